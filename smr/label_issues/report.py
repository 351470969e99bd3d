"""Which training labels are wrong: `labels.csv`, a page to decide on, and a run's closing words.

Both networks judge every training image once, as they are at the end (method 4).
"""

import csv
import hashlib
import io
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import average_precision_score

from smr import distributed
from smr.data.loader import Loader
from smr.errors import NonFiniteLoss
from smr.files import atomic_write, write_text
from smr.gmm_split import SampleLosses, append_losses, gmm_split
from smr.label_issues import review_page as review
from smr.logging import figures
from smr.logging.console import Terminal
from smr.method import Pair
from smr.recipe import Recipe
from smr.training import score

COLUMNS = (
    *("index", "file", "given", "given_name", "predicted", "predicted_name"),
    *("p_predicted", "p_given", "p_clean_net1", "p_clean_net2", "p_clean", "rank", "true"),
)
# Suspects: how many, in rows of how many, of what side; TensorBoard shows pictures small.
FOLDER_GALLERY, TENSORBOARD_GALLERY = (64, 8, 128), (9, 3, 224)
CONFUSIONS_NAMED = 3
# Agreement with the given labels, 0 by chance and 1 for all, below which networks judge nothing.
LEAST_KAPPA = 0.05
# Of all predictions, in one class; and how many times more than are labeled so.
LARGEST_SHARE, LARGEST_EXCESS = 0.5, 1.5


@dataclass(frozen=True)
class Judgment:
    """What two networks hold of m training labels.

    index int64 [m]: the images' positions in the training set, ascending; given int64 [m]: their
    labels; probability float32 [m, classes]: softmax of the mean of both networks' logits, whose
    likeliest class is that of the test (method 3); p_clean float [2, m]: each network's own
    mixture's probability that the label is right.
    """

    index: np.ndarray
    given: np.ndarray
    probability: np.ndarray
    p_clean: np.ndarray

    @cached_property
    def predicted(self) -> np.ndarray:
        """int64 [m], the likeliest class."""
        return self.probability.argmax(axis=1)

    @cached_property
    def p_predicted(self) -> np.ndarray:
        """Float [m], the probability of the likeliest class."""
        return self.probability.max(axis=1)

    @cached_property
    def p_given(self) -> np.ndarray:
        """Float [m], the probability of the given label."""
        return np.take_along_axis(self.probability, self.given[:, None], axis=1)[:, 0]

    @property
    def looks_wrong(self) -> np.ndarray:
        """Bool [m]: the networks see another class, and hold the label rather for wrong."""
        return (self.predicted != self.given) & (self.p_clean.mean(axis=0) < 0.5)

    @property
    def suspicion(self) -> np.ndarray:
        """Float [m], how suspicious each label is: the best of what was tried (docs/labels.md).

        The mean clean probability tells how badly a label is learnt beside the others; the label's
        probability over that of the likeliest class, whether a better one is at hand.
        """
        return -(self.p_clean.mean(axis=0) + self.p_given / self.p_predicted)

    @cached_property
    def order(self) -> np.ndarray:
        """int64 [m]: the rows in order of rank, the most suspicious label first."""
        return np.argsort(-self.suspicion, kind="stable")


def watched(batches: Sized) -> Iterator:
    """The batches, with a line now and then on how many there are still to judge."""
    console = Terminal()
    for number, batch in enumerate(batches):
        yield batch
        if console.due():
            judged = distributed.world_size() * number + 1
            console.progress(f"judging the labels: {judged} of {len(batches)} batches")


def judge(pair: Pair, loader: Loader, recipe: Recipe) -> Judgment:
    """Judge every training label in one pass by both networks, in eval mode.

    At r = 0.9 the mixtures are fitted to the pair's histories with this pass added (method 4); the
    pair keeps its own. Raises NonFiniteLoss.
    """
    parts, positions, device = [], [], loader.noisy_labels.device
    for logits, labels, index in score(pair.networks, watched(loader.run("whole")), recipe.amp):
        losses = [F.cross_entropy(each, labels, reduction="none") for each in logits]
        probability = torch.softmax(logits.mean(dim=0), dim=1)
        parts.append(torch.cat([torch.stack(losses, dim=1), probability], dim=1))
        positions.append(index)
    index, order = torch.cat(distributed.all_gather_tensors(positions, device)).sort()
    judged = torch.cat(distributed.all_gather_tensors(parts, device))[order]
    if not torch.isfinite(judged).all():
        raise NonFiniteLoss("the loss of a training image is not finite")
    p_clean = []
    for history, latest in zip(pair.histories, judged.T[:2], strict=True):
        prolonged = list(history)
        append_losses(prolonged, SampleLosses(index, latest), recipe.r)
        p_clean.append(gmm_split(prolonged, recipe).probability)
    return Judgment(
        index.cpu().numpy(),
        loader.noisy_labels[index].cpu().numpy(),
        judged[:, 2:].cpu().numpy(),
        np.stack(p_clean),
    )


def labels_csv(judgment: Judgment, loader: Loader) -> str:
    """The text of `labels.csv`: a line for each image judged, in their order."""
    j = judgment
    rank = np.empty(len(j.given), dtype=np.int64)
    rank[j.order] = np.arange(1, len(rank) + 1)
    names = np.asarray(loader.class_names, dtype=object)
    rounded = [
        [f"{p:.6g}" for p in values]
        for values in (j.p_predicted, j.p_given, *j.p_clean, j.p_clean.mean(axis=0))
    ]
    files, clean = loader.files, loader.clean_labels
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(
        zip(
            j.index,
            [files[i] if files else "" for i in j.index],
            *(j.given, names[j.given], j.predicted, names[j.predicted], *rounded, rank),
            [""] * len(rank) if clean is None else clean[j.index],
            strict=True,
        )
    )
    return text.getvalue()


def closing_words(judgment: Judgment, loader: Loader) -> list[str]:
    """What a reader should know of the candidates: how many, which, and how far to trust them."""
    j, names = judgment, loader.class_names
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
    if doubt := doubts(j, names):
        words.append(f"the networks have not learnt enough to judge labels: {doubt}")
    if wrong:
        least, most = likely_right(j)
        words.append(
            f"these are candidates: by the networks' own probabilities {least:,} to {most:,} of "
            "them are right as they are, hard images among them; look before you change one"
        )
    is_wrong = None if loader.is_clean is None else ~loader.is_clean[j.index]
    if is_wrong is not None and is_wrong.any():
        precision = average_precision_score(is_wrong, j.suspicion)
        found = int((j.looks_wrong & is_wrong).sum())
        words.append(
            f"by the true labels {int(is_wrong.sum()):,} are wrong, {found:,} of them among these "
            f"(precision {found / max(wrong, 1):.3f}, recall {found / is_wrong.sum():.3f}); "
            f"average precision of the ranking {precision:.3f}"
        )
    return words


def likely_right(judgment: Judgment) -> tuple[int, int]:
    """How many of the labels that look wrong are right, at least and at most.

    The networks' probability of the label, and of all that is not the class they see: an estimate,
    which on images as easy as digits is too high.
    """
    j, chosen = judgment, judgment.looks_wrong
    return round(float(j.p_given[chosen].sum())), round(float((1 - j.p_predicted[chosen]).sum()))


def doubts(judgment: Judgment, names: list[str]) -> str:
    """Why these predictions tell little about labels; empty where nothing is known against them."""
    given, predicted = (
        np.bincount(labels, minlength=len(names)) / len(judgment.given)
        for labels in (judgment.given, judgment.predicted)
    )
    by_chance = float(given @ predicted)
    agreement = float((judgment.predicted == judgment.given).mean())
    most = int(predicted.argmax())
    if predicted[most] > max(LARGEST_SHARE, LARGEST_EXCESS * given[most]):
        return f"they see {names[most]} in {100 * predicted[most]:.0f} % of the images"
    if agreement - by_chance < LEAST_KAPPA * (1 - by_chance):
        return (
            f"they agree with {100 * agreement:.0f} % of the labels, where chance gives "
            f"{100 * by_chance:.0f} %"
        )
    return ""


def gallery(judgment: Judgment, loader: Loader, count: int, columns: int, side: int) -> np.ndarray:
    """The `count` most suspicious images, in rows of `columns`, each of `side` pixels."""
    j, first = judgment, judgment.order[:count]
    index, given, predicted = j.index[first], j.given[first], j.predicted[first]
    captions = [Path(loader.files[i]).name if loader.files else f"image {i}" for i in index]
    return figures.label_issues(
        *(loader.thumbnails(index), captions, given, predicted, loader.class_names, columns, side)
    )


def draw(judgment: Judgment, loader: Loader) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The most suspicious images, and the noise found beside the true one.

    By file name for the run folder, and by tag for TensorBoard, in whose alphabet these come last,
    so that its first page shows curves.
    """
    j, clean = judgment, loader.clean_labels
    transitions = figures.noise_transitions(
        *(j.given, j.predicted, None if clean is None else clean[j.index], loader.class_names)
    )
    files = {
        "label_issues.png": gallery(j, loader, *FOLDER_GALLERY),
        "transitions.png": transitions,
    }
    tags = {
        "label_issues/top": gallery(j, loader, *TENSORBOARD_GALLERY),
        "label_issues/noise_transitions": transitions,
    }
    return files, tags


def digest(raw: bytes) -> str:
    """By which a list is known again as the run's own."""
    return hashlib.sha256(raw).hexdigest()


def read_judged(folder: Path) -> dict:
    """The content of a run's `judged.json`; without a whole one, of a run that wrote no list."""
    try:
        return {"written": []} | json.loads((folder / "judged.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, TypeError, ValueError):
        return {"written": []}


def edited(folder: Path) -> list[Path]:
    """The run folder's lists that a person edited, and the corrections that are kept there."""
    written = read_judged(folder)["written"]
    lists = [
        path for path in folder.glob("labels*.csv") if digest(path.read_bytes()) not in written
    ]
    return sorted(lists) + sorted(folder.glob("correct*"))


def list_path(folder: Path, written: list[str]) -> Path:
    """The first of labels.csv, labels_2.csv, … that is not there or that no person has edited."""
    path, number = folder / "labels.csv", 1
    while path.exists() and digest(path.read_bytes()) not in written:
        number += 1
        path = folder / f"labels_{number}.csv"
    return path


def checksum(path: Path) -> int | None:
    """Of a file's content; None where it is no file of its own."""
    try:
        return zlib.crc32(path.read_bytes())
    except OSError:
        return None


def write_list(judgment: Judgment, loader: Loader, folder: Path, root: Path | None) -> Path:
    """Write `labels.csv`, over none that a person may have edited, and what goes with it; its path.

    `judged.json` tells correct_labels.py what the run saw: labels, files and their content.
    Raises OSError.
    """
    text, j = labels_csv(judgment, loader), judgment
    mine, written = digest(text.encode()), read_judged(folder)["written"]
    files = [loader.files[i] for i in j.index] if loader.files else None
    may_move = root and loader.info.labels_in_paths
    judged = {
        "written": written if mine in written else [*written, mine],
        "index": j.index.tolist(),
        "given": j.given.tolist(),
        "files": files,
        "crc32": [checksum(root / file) for file in files] if may_move else None,
    }
    path = list_path(folder, [*written, mine])
    # First: a list whose checksum is not there would be taken for an edited one.
    write_text(folder / "judged.json", json.dumps(judged) + "\n")
    write_text(path, text)
    with atomic_write(folder / "pred_probs.npy") as file:
        np.save(file, j.probability)
    return path


def report(
    pair: Pair,
    loader: Loader,
    recipe: Recipe,
    folder: Path,
    line: Callable[[str], None],
    root: Path | None = None,
    shown: int = 0,
) -> dict[str, np.ndarray]:
    """Write `labels.csv`, its pictures and `labels.html`, say what they show.

    Returns TensorBoard's pictures. Args: root, the folder of the image files; shown, how many
    labels `labels.html` shows. Where the networks cannot judge or the disk does not take it, a
    line says so.
    """
    try:
        judgment = judge(pair, loader, recipe)
    except NonFiniteLoss as error:
        line(f"labels.csv was not written: {error}")
        return {}
    files, tags = draw(judgment, loader)
    for words in closing_words(judgment, loader):
        line(words)
    try:
        path = write_list(judgment, loader, folder, root)
        if path.name != "labels.csv":
            line(f"labels.csv was edited and stays as it is; the new list is {path.name}")
        for name, picture in files.items():
            Image.fromarray(picture).save(folder / name)
        line(f"every label, with its rank of suspicion: {path}")
        if shown:
            rows = judgment.order[:shown]
            text = review.page(
                judgment.index[rows],
                judgment.given[rows],
                judgment.probability[rows],
                *(loader, root, folder.as_posix()),
            )
            write_text(folder / "labels.html", text)
            line(f"the first {len(rows):,} to look at and decide: {folder / 'labels.html'}")
    except OSError as error:
        line(f"labels.csv was not written to {folder} ({error.strerror})")
    return tags
