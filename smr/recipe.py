"""What a run of the method depends on, which kind each epoch is, and its learning rate."""

from dataclasses import dataclass, fields

WARM_UP = "warm-up"
RECALIBRATION = "recalibration"
SEMI_SUPERVISED = "semi-supervised"
CROSS_ENTROPY = "cross-entropy"


@dataclass(frozen=True)
class Recipe:
    """All that a run of the method depends on besides data and networks (method 3)."""

    method: str  # 'smr', 'dividemix' or 'ce': with 'ce' every epoch is plain cross-entropy
    num_epochs: int  # the last epoch's number, since epoch 0 is run too
    batch_size: int
    lr: float
    lr_steps: tuple[tuple[int, float], ...]  # from this epoch on, this factor of lr
    weight_decay: float
    warm_up: int
    warmup_loss: str  # 'mixup' or 'ce'
    recalibrate_every: int  # 0: never
    alpha: float
    T: float
    p_threshold: float
    lambda_u: float
    seed: int
    r: float = 0.0  # no share of injected noise is known of labels that people gave
    warmup_penalty: bool = False  # warm-up with CE has DivideMix's negative-entropy penalty
    labeled_rows_only: bool = False  # Kept for Animal-10N: the others skip the network
    augment: str = "weak"  # or 'strong': the mixed views are distorted (method 11)
    momentum: float = 0.9
    amp: bool = False  # bf16 autocast
    top5: bool = False  # tests give the share of labels among the five likeliest classes too
    select_on: str = ""  # the test set by which each network's best epoch is kept apart (method 9)


def recipe_of(config: dict) -> Recipe:
    """The Recipe in a run's configuration, which holds more than that."""
    names = [field.name for field in fields(Recipe) if field.name in config]
    return Recipe(**{name: config[name] for name in names})


def kind_of_epoch(epoch: int, recipe: Recipe) -> str:
    """Warm-up, recalibration or semi-supervised (method 3); all cross-entropy for 'ce' (6)."""
    if recipe.method == "ce":
        return CROSS_ENTROPY
    if epoch < recipe.warm_up:
        return WARM_UP
    k = recipe.recalibrate_every
    if k and (epoch + 1) % k == 0 and epoch > recipe.warm_up:
        return RECALIBRATION
    return SEMI_SUPERVISED


def learning_rate(epoch: int, recipe: Recipe) -> float:
    """lr times the factor of the last step reached (method 3)."""
    reached = [factor for start, factor in sorted(recipe.lr_steps) if epoch >= start]
    return recipe.lr * (reached[-1] if reached else 1.0)
