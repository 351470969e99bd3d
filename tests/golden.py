"""How far we are from the figures of the published implementation in tests/reference.

    pytest tests/test_golden.py -s -n 0

prints the error of each: the largest absolute difference divided by the largest absolute value of
the reference. Steps are run by the epoch functions that training calls, with the recorded Beta draw
and permutation in place of random ones. The update of a step is compared too, since it is small
beside the weights.
"""

import hashlib
import json
import math
from unittest import mock

import numpy as np
import torch
from helpers import REFERENCE, TinyNet, tiny_config
from torch import nn

import smr
from dataloader_cifar import NUM_CLASS, noisy_labels
from PreResNet import ResNet18
from smr.gmm_split import with_losses
from smr.training import MOMENTUM


class OneBatch:
    """An epoch of one batch; `dataset` and `batch_size` make the ramp count `steps` steps."""

    def __init__(self, *batch, steps: int = 6):
        self.batch = batch
        self.batch_size = len(batch[0])
        self.dataset = range((steps - 1) * self.batch_size)

    def __len__(self):
        return 1

    def __iter__(self):
        yield self.batch


def relative_error(found, expected) -> float:
    """Largest absolute difference over the largest absolute value of `expected`; inf for NaN."""
    found, expected = (np.asarray(values, dtype=np.float64) for values in (found, expected))
    if found.shape != expected.shape or not np.isfinite(found).all():
        return math.inf
    difference, scale = np.abs(found - expected).max(), np.abs(expected).max()
    return float(difference / scale) if scale else float(difference)


def load(name: str) -> dict[str, np.ndarray]:
    """The arrays of a reference file."""
    with np.load(REFERENCE / f"{name}.npz") as content:
        return dict(content)


def network_from(content: dict, prefix: str) -> TinyNet:
    """The network whose tensors stand under `prefix`."""
    network = TinyNet()
    state = {
        k.removeprefix(prefix): torch.tensor(v) for k, v in content.items() if k.startswith(prefix)
    }
    network.load_state_dict(network.state_dict() | state)
    return network


def config_from(content: dict) -> smr.Config:
    """The configuration of a recorded step."""
    assert content["momentum"] == MOMENTUM
    values = {k: content[k].item() for k in ("lr", "weight_decay")}
    values |= {k: content[k].item() for k in ("T", "lambda_u", "warm_up") if k in content}
    labeled_rows_only = "mixed_target" not in content and "inputs_u" in content
    return tiny_config(**{"warm_up": 10, "labeled_rows_only": labeled_rows_only} | values)


def recorded_draws(content: dict):
    """A context in which the Beta draw and the permutation are the recorded ones."""
    permutation = torch.tensor(content["perm"])
    draw = mock.patch("numpy.random.beta", lambda a, b, size=None: np.full(size, content["lam"]))
    shuffle = mock.patch("torch.randperm", lambda *args, **kwargs: permutation)
    return draw, shuffle


def pair_from(content: dict, config: smr.Config) -> smr.Pair:
    """The recorded network and its peer, with the optimizers that training makes."""
    peer_prefix = "peer." if any(k.startswith("peer.") for k in content) else "net_before."
    networks = iter((network_from(content, "net_before."), network_from(content, peer_prefix)))
    return smr.new_pair(lambda: next(networks), config, "cpu")


def after_errors(network: nn.Module, content: dict) -> dict[str, float]:
    """Errors of the state after a step and, for what SGD moved, of the update."""
    errors = {"net_after": 0.0, "update": 0.0}
    parameters = dict(network.named_parameters())
    for name, tensor in network.state_dict().items():
        if name == "bn.num_batches_tracked":
            continue
        found = tensor.numpy().astype(np.float64)
        before, after = (content[f"{when}.{name}"] for when in ("net_before", "net_after"))
        errors["net_after"] = max(errors["net_after"], relative_error(found, after))
        if name in parameters:
            update = relative_error(found - before, after.astype(np.float64) - before)
            errors["update"] = max(errors["update"], update)
    return errors


def supervised_step_errors(name: str) -> dict[str, float]:
    """Errors of `warmup_step` or `recalibrate_step`."""
    content = load(name)
    config = config_from(content)
    pair = pair_from(content, config)
    images, labels = torch.tensor(content["inputs"]), torch.tensor(content["labels"])
    epoch = smr.mixup_epoch if name == "warmup_step" else smr.cross_entropy_epoch
    draw, shuffle = recorded_draws(content)
    with draw, shuffle:
        batches = OneBatch(images, labels, torch.arange(len(images)))
        means = epoch(pair.networks[0], pair.optimizers[0], batches, config)
    loss = relative_error(means["loss"], content["loss"])
    return {"loss": loss} | after_errors(pair.networks[0], content)


def mixmatch_step_errors(name: str) -> dict[str, float]:
    """Errors of `mixmatch_step_<name>`."""
    content = load(f"mixmatch_step_{name}")
    config, epoch = config_from(content), content["epoch"].item()
    x1, x2, u1, u2, labels = (
        torch.tensor(content[key])
        for key in ("inputs_x", "inputs_x2", "inputs_u", "inputs_u2", "labels_x")
    )
    probability = torch.tensor(content["w_x"], dtype=torch.float32)
    labeled, unlabeled = OneBatch(x1, x2, labels, probability), OneBatch(u1, u2)

    pair = pair_from(content, config)
    pair.networks[0].train()
    pair.networks[1].eval()
    weight = max(content["lam"].item(), 1 - content["lam"].item())
    result = smr.mixmatch_loss(
        *pair.networks, labeled.batch, unlabeled.batch, weight,
        torch.tensor(content["perm"]), epoch, config,
    )  # fmt: skip
    errors = {"logits": relative_error(result.logits.detach(), content["logits"])}
    if "mixed_target" in content:  # the photo scripts' step has neither it nor Lu
        errors["mixed_target"] = relative_error(result.mixed_targets, content["mixed_target"])

    pair = pair_from(content, config)
    draw, shuffle = recorded_draws(content)
    with draw, shuffle:
        means = smr.mixmatch_epoch(
            *pair.networks, pair.optimizers[0], labeled, unlabeled, epoch, config
        )
    for name, figure in (("Lx", "loss_x"), ("Lu", "loss_u"), ("lamb", "lambda_u")):
        if name in content:
            errors[name] = relative_error(means[figure], content[name])
    return errors | after_errors(pair.networks[0], content)


class ManyBatches:
    """Batches of recorded passes, each a list of batches: the next pass at each iteration."""

    def __init__(self, passes: list[list], batch_size: int):
        self.passes, self.batch_size = iter(passes), batch_size
        self.dataset = range(sum(len(batch[0]) for batch in passes[0]))
        self.steps = len(passes[0])

    def __len__(self):
        return self.steps

    def __iter__(self):
        yield from next(self.passes)


def plain_step(network, peer, optimizer, batch_x, batch_u, weight, permutation, ramp, config):
    """A semi-supervised step written out from section 5 of docs/method.md; returns (Lx, Lu)."""
    (x1, x2, labels, w), (u1, u2) = batch_x, batch_u
    with torch.no_grad():
        q = sum(n(u).softmax(1) for u in (u1, u2) for n in (network, peer)) / 4
        target_u = q ** (1 / config.T) / (q ** (1 / config.T)).sum(1, keepdim=True)
        p = (network(x1).softmax(1) + network(x2).softmax(1)) / 2
        p = w[:, None] * torch.eye(10)[labels] + (1 - w[:, None]) * p
        target_x = p ** (1 / config.T) / (p ** (1 / config.T)).sum(1, keepdim=True)
    images = torch.cat([x1, x2, u1, u2])
    targets = torch.cat([target_x, target_x, target_u, target_u])
    images = weight * images + (1 - weight) * images[permutation]
    targets = weight * targets + (1 - weight) * targets[permutation]
    rows = 2 * len(x1)
    if config.labeled_rows_only:
        images, targets = images[:rows], targets[:rows]
    logits = network(images)
    log_p, softmax = logits.log_softmax(1), logits.softmax(1)
    loss_x = -(log_p[:rows] * targets[:rows]).sum(1).mean()
    loss_u = ((softmax[rows:] - targets[rows:]) ** 2).mean() if len(logits) > rows else 0 * loss_x
    penalty = (0.1 * (0.1 / softmax.mean(0)).log()).sum()
    optimizer.zero_grad()
    (loss_x + config.lambda_u * min(max(ramp, 0), 1) * loss_u + penalty).backward()
    optimizer.step()
    return loss_x.item(), loss_u.item()


def consecutive_steps_errors(photos: bool) -> dict[str, float]:
    """Errors of a pass of five steps against `plain_step`, at B = 4.

    The last labeled batch has two images. The unlabeled images, ten, run out after three steps
    (4, 4, 2) and start again.
    """
    rng, (batch_size, epoch) = np.random.default_rng(0), (4, 35 if photos else 12)
    config = tiny_config(
        warm_up=10, lr=0.05, lambda_u=0.0 if photos else 25.0, labeled_rows_only=photos
    )

    def tensor(*shape):
        return torch.from_numpy(rng.normal(size=shape)).float()

    sizes_x, sizes_u = (4, 4, 4, 4, 2), (4, 4, 2)
    labeled = [
        (
            *(tensor(b, 3, 8, 8), tensor(b, 3, 8, 8)),
            torch.from_numpy(rng.integers(0, 10, b)),
            torch.from_numpy(rng.random(b)).float(),
        )
        for b in sizes_x
    ]
    passes_u = [[(tensor(b, 3, 8, 8), tensor(b, 3, 8, 8)) for b in sizes_u] for _ in range(2)]
    unlabeled = [*passes_u[0], *passes_u[1]][: len(labeled)]
    drawn = rng.beta(4, 4, len(labeled))
    rows = [2 * (len(x[0]) + len(u[0])) for x, u in zip(labeled, unlabeled, strict=True)]
    permutations = [torch.from_numpy(rng.permutation(count)) for count in rows]

    torch.manual_seed(0)
    states = [TinyNet().state_dict() for _ in range(2)]
    network, peer = TinyNet(), TinyNet().eval()
    network.load_state_dict(states[0])
    peer.load_state_dict(states[1])
    sgd = {"momentum": MOMENTUM, "weight_decay": config.weight_decay}
    optimizer = torch.optim.SGD(network.parameters(), config.lr, **sgd)
    losses = []
    steps = sum(sizes_x) // batch_size + 1
    for step, (x, u) in enumerate(zip(labeled, unlabeled, strict=True)):
        weight = max(drawn[step], 1 - drawn[step])
        ramp = (epoch + step / steps - config.warm_up) / 16
        settings = weight, permutations[step], ramp, config
        losses.append(plain_step(network, peer, optimizer, x, u, *settings))

    networks = iter((TinyNet(), TinyNet()))
    pair = smr.new_pair(lambda: next(networks), config, "cpu")
    for own, state in zip(pair.networks, states, strict=True):
        own.load_state_dict(state)
    served = ManyBatches([labeled], batch_size), ManyBatches(passes_u, batch_size)
    draw = mock.patch("numpy.random.beta", lambda a, b, size=None: drawn)
    shuffles = mock.patch("torch.randperm", side_effect=permutations)
    with draw, shuffles:
        means = smr.mixmatch_epoch(*pair.networks, pair.optimizers[0], *served, epoch, config)
    content = {f"net_before.{name}": value.numpy() for name, value in states[0].items()}
    content |= {f"net_after.{name}": value.numpy() for name, value in network.state_dict().items()}
    loss_x, loss_u = np.mean(losses, axis=0)
    errors = {"Lx": relative_error(means["loss_x"], loss_x)}
    if not photos:
        errors["Lu"] = relative_error(means["loss_u"], loss_u)
    return errors | after_errors(pair.networks[0], content)


def co_divide_errors(name: str) -> dict[str, float]:
    """Errors of the clean probability in `codivide` or `codivide_r09`."""
    content = load(name)
    if name == "codivide":
        losses = torch.tensor(content["raw_losses"])
        r = 0.5
        history = with_losses([], smr.SampleLosses(torch.arange(len(losses)), losses), r)
    else:
        r, recorded = 0.9, [torch.tensor(losses) for losses in content["history"]]
        history = [smr.SampleLosses(torch.arange(len(losses)), losses) for losses in recorded]
    # The start of the mixture's fit is drawn. The recorded one is found from seed 0; other seeds
    # end up to 1e-4 away, since ten iterations do not converge.
    found = smr.gmm_split(history, r, seed=0).clean_probability
    return {
        "clean_prob": relative_error(found, content["clean_prob"]),
        "labeled": float(((found > 0.5) != (content["clean_prob"] > 0.5)).sum()),
    }


def preact_weights(network: nn.Module, phase: float) -> None:
    """Fill the state by the formula of the reference's README, floating-point tensors only."""
    floating = [t for t in network.state_dict().items() if t[1].is_floating_point()]
    for j, (name, tensor) in enumerate(floating):
        s = np.sin(0.37 * np.arange(tensor.numel()) + 1.3 * j + phase).reshape(tensor.shape)
        if name.endswith("running_var"):
            s = 1 + 0.5 * s
        elif tensor.dim() > 1:
            s *= math.sqrt(2 / tensor[0].numel())
        elif name.endswith("weight"):
            s = 1 + 0.3 * s
        else:
            s *= 0.1
        tensor.copy_(torch.from_numpy(s))


@torch.no_grad()
def preact_errors() -> dict[str, float]:
    """Errors of the logits of PreAct-ResNet-18, and of its state dict's names, shapes and count."""
    content = load("preact_resnet18")
    described = json.loads((REFERENCE / "preact_resnet18.json").read_text())
    network, phase = ResNet18(), content["phase"].item()
    shapes = [(name, list(tensor.shape)) for name, tensor in network.state_dict().items()]
    parameters = sum(parameter.numel() for parameter in network.parameters())
    preact_weights(network, phase)
    images = np.sin(0.05 * np.arange(4 * 3 * 32 * 32) + phase).reshape(4, 3, 32, 32)
    images = torch.from_numpy(images).float()
    return {
        "eval_logits": relative_error(network.eval()(images), content["eval_logits"]),
        "train_logits": relative_error(network.train()(images), content["train_logits"]),
        "names, shapes": float(shapes != list(described["state_dict"].items())),
        "parameters": float(parameters - described["parameters"]),
    }


def noise_errors(case: dict) -> dict[str, float]:
    """Errors of one case of `noise.json`: 0 where it is the same bit for bit."""
    classes = NUM_CLASS[case["dataset"]]
    clean = [i % classes for i in range(50_000)]
    noisy = noisy_labels(clean, case["dataset"], case["noise_mode"], case["r"], case["seed"])
    rate = sum(a != b for a, b in zip(noisy, clean, strict=True)) / len(clean)
    found = hashlib.sha256(json.dumps(noisy).encode()).hexdigest()
    return {
        "first_40": float(noisy[:40] != case["first_40"]),
        "realized_rate": relative_error(rate, case["realised_rate"]),
        "sha256": float(found != case["sha256_of_json"]),
    }


def noise_cases() -> dict[str, dict]:
    """The cases of `noise.json` by name."""
    cases = json.loads((REFERENCE / "noise.json").read_text())
    return {"noise {dataset} {noise_mode} {r} seed {seed}".format(**case): case for case in cases}
