"""Which training labels are wrong: `labels.csv`, two pictures, and a run's closing words.

Both networks judge every training image once, as they are at the end (method 4).
"""

import csv
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import average_precision_score

from smr.data.loaders import Loader
from smr.divide import Scores, add_scores, divide
from smr.errors import NonFiniteLoss
from smr.files import replace_text
from smr.method import Pair, score
from smr.recipe import Recipe
from smr.record import pictures

COLUMNS = (
    "index",
    "file",
    "given",
    "given_name",
    "predicted",
    "predicted_name",
    "p_predicted",
    "p_given",
    "p_clean_net1",
    "p_clean_net2",
    "p_clean",
    "rank",
    "true",
)
SUSPECTS_SHOWN = 64
CONFUSIONS_NAMED = 3


@dataclass(frozen=True)
class Judgement:
    """What two networks hold of the training labels: arrays over the n images.

    predicted int64: the likeliest class of the added logits, as in the test (method 3); p_predicted
    and p_given float: the probability, by the mean logits, of that class and of the given label;
    p_clean float [2, n]: each network's own mixture's probability that the label is right.
    """

    given: np.ndarray
    predicted: np.ndarray
    p_predicted: np.ndarray
    p_given: np.ndarray
    p_clean: np.ndarray

    @property
    def looks_wrong(self) -> np.ndarray:
        """Bool [n]: the networks see another class, and hold the label rather for wrong."""
        return (self.predicted != self.given) & (self.p_clean.mean(axis=0) < 0.5)

    @property
    def suspicion(self) -> np.ndarray:
        """Float [n], how suspicious each label is: the best of what was tried (README's table).

        The mean clean probability tells how badly a label is learnt beside the others; the label's
        probability over that of the likeliest class, whether a better one is at hand.
        """
        return -(self.p_clean.mean(axis=0) + self.p_given / self.p_predicted)

    @property
    def order(self) -> np.ndarray:
        """The images' positions, the most suspicious label first."""
        return np.argsort(-self.suspicion, kind="stable")


def judge(pair: Pair, loader: Loader, recipe: Recipe) -> Judgement:
    """Judge every training label in one pass by both networks, in eval mode.

    At r = 0.9 the mixtures are fitted to the pair's histories with this pass added (method 4); the
    pair keeps its own. Raises NonFiniteLoss.
    """
    parts, positions = [], []
    for logits, labels, index in score(pair.networks, loader.run("eval_train"), recipe.amp):
        losses = [F.cross_entropy(each, labels, reduction="none") for each in logits]
        probability = torch.softmax(logits.mean(dim=0), dim=1)
        p_predicted, predicted = probability.max(dim=1)
        p_given = probability.gather(1, labels[:, None])[:, 0]
        parts.append(torch.stack([*losses, predicted, p_predicted, p_given]))
        positions.append(index)
    index, order = torch.cat(positions).sort()
    *losses, predicted, p_predicted, p_given = torch.cat(parts, dim=1)[:, order]
    if not all(torch.isfinite(each).all() for each in losses):
        raise NonFiniteLoss("the loss of a training image is not finite")
    p_clean = []
    for history, latest in zip(pair.histories, losses, strict=True):
        prolonged = list(history)
        add_scores(prolonged, Scores(index, latest), recipe.r)
        p_clean.append(divide(prolonged, recipe).probability)
    return Judgement(
        loader.noisy_labels.cpu().numpy(),
        predicted.long().cpu().numpy(),
        p_predicted.cpu().numpy(),
        p_given.cpu().numpy(),
        np.stack(p_clean),
    )


def labels_csv(judgement: Judgement, loader: Loader) -> str:
    """The text of `labels.csv`: a line for each training image, in their order."""
    j = judgement
    count = len(j.given)
    rank = np.empty(count, dtype=np.int64)
    rank[j.order] = np.arange(1, count + 1)
    names = np.asarray(loader.class_names, dtype=object)
    rounded = [
        [f"{p:.6g}" for p in values]
        for values in (j.p_predicted, j.p_given, *j.p_clean, j.p_clean.mean(axis=0))
    ]
    unknown = [""] * count
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(
        zip(
            range(count),
            unknown if loader.files is None else loader.files,
            j.given,
            names[j.given],
            j.predicted,
            names[j.predicted],
            *rounded,
            rank,
            unknown if loader.clean_labels is None else loader.clean_labels,
            strict=True,
        )
    )
    return text.getvalue()


def closing_words(judgement: Judgement, loader: Loader) -> list[str]:
    """How many labels look wrong, the likeliest confusions, and how right that is if known."""
    j, names = judgement, loader.class_names
    wrong, count = int(j.looks_wrong.sum()), len(j.given)
    line = f"{wrong:,} of {count:,} training labels look wrong ({100 * wrong / count:.1f} %)"
    pairs = Counter(
        zip(j.given[j.looks_wrong].tolist(), j.predicted[j.looks_wrong].tolist(), strict=True)
    )
    confusions = [
        f"{names[given]} that looks like {names[predicted]} ({times:,})"
        for (given, predicted), times in pairs.most_common(CONFUSIONS_NAMED)
    ]
    words = [line + (", most often " + ", ".join(confusions) if confusions else "")]
    is_clean = loader.is_clean
    if is_clean is not None and not is_clean.all():
        precision = average_precision_score(~is_clean, j.suspicion)
        found = int((j.looks_wrong & ~is_clean).sum())
        words.append(
            f"by the true labels {int((~is_clean).sum()):,} are wrong, {found:,} of them among "
            f"these; average precision of the ranking {precision:.3f}"
        )
    return words


def draw(judgement: Judgement, loader: Loader) -> dict[str, np.ndarray]:
    """Tag → picture: the most suspicious images, and the noise found beside the true one.

    Their tags come last in TensorBoard's alphabet, so that its first page shows curves.
    """
    j, names = judgement, loader.class_names
    first = j.order[:SUSPECTS_SHOWN]
    return {
        "wrong_labels/suspects": pictures.suspects(
            loader.thumbnails(first), first, j.given[first], j.predicted[first], names
        ),
        "wrong_labels/transitions": pictures.transitions(
            j.given, j.predicted, loader.clean_labels, names
        ),
    }


def report(
    pair: Pair,
    loader: Loader,
    recipe: Recipe,
    folder: Path,
    line: Callable[[str], None],
) -> dict[str, np.ndarray]:
    """Write `labels.csv` and its pictures to `folder` and say what they show; the pictures.

    Where the networks cannot judge or the disk does not take it, a line says so.
    """
    try:
        judgement = judge(pair, loader, recipe)
    except NonFiniteLoss as error:
        line(f"labels.csv was not written: {error}")
        return {}
    drawn = draw(judgement, loader)
    for words in closing_words(judgement, loader):
        line(words)
    try:
        replace_text(folder / "labels.csv", labels_csv(judgement, loader))
        for tag, picture in drawn.items():
            Image.fromarray(picture).save(folder / f"{tag.split('/')[1]}.png")
        line(f"every label, with its rank of suspicion: {folder / 'labels.csv'}")
    except OSError as error:
        line(f"labels.csv was not written to {folder} ({error.strerror})")
    return drawn
