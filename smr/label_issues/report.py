"""A run's report on its label issues: `labels.csv`, a page to review them, pictures, log lines.

Both networks predict every training image once, as they are at the end (method 4).
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sized
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import average_precision_score

from smr import distributed
from smr.data.fingerprint import IN_BOTH_PARTS, checksum
from smr.data.loader import Loader
from smr.errors import NonFiniteLoss
from smr.evaluate import predict_batches
from smr.files import atomic_write, write_text
from smr.gmm_split import SampleLosses
from smr.label_issues.review_page import page
from smr.label_issues.scores import LabelIssues, self_confidence, why_unreliable
from smr.logging import figures
from smr.logging.console import Terminal
from smr.methods import Method
from smr.training import Pair

Line = Callable[[str], None]
# Label issues in a picture: how many, in rows of how many, of what side; TensorBoard's are small.
FOLDER_GALLERY, TENSORBOARD_GALLERY = (64, 8, 128), (9, 3, 224)
CONFUSIONS_NAMED = 3


def with_progress(batches: Sized) -> Iterator:
    """The batches, with a progress line now and then."""
    terminal = Terminal()
    for number, batch in enumerate(batches):
        yield batch
        if terminal.due():
            done = distributed.world_size() * number + 1
            terminal.progress(f"predicting the training images: {done} of {len(batches)} batches")


def compute_label_issues(
    pair: Pair, loader: Loader, method: Method, amp: bool, frozen: bool = False
) -> LabelIssues:
    """Predict every training image by both networks in eval mode; all ranks take part.

    pred_probs are the softmax of the mean of both networks' logits, as in the test (method 3), and
    the mean over the views of an image that the loader serves several times. Raises NonFiniteLoss.
    """
    parts, positions, device = [], [], loader.noisy_labels.device
    batches = with_progress(loader.run("whole"))
    for logits, labels, index in predict_batches(pair.networks, batches, amp):
        losses = [F.cross_entropy(each, labels, reduction="none") for each in logits]
        pred_probs = torch.softmax(logits.mean(dim=0), dim=1)
        parts.append(torch.cat([torch.stack(losses, dim=1), pred_probs], dim=1))
        positions.append(index)
    positions = torch.cat(distributed.all_gather_tensors(positions, device))
    parts = torch.cat(distributed.all_gather_tensors(parts, device))
    index, places, views = positions.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros((len(index), parts.shape[1]), device=device).index_add_(0, places, parts)
    whole = sums / views[:, None]
    if not torch.isfinite(whole).all():
        raise NonFiniteLoss("the loss of a training image is not finite")
    return LabelIssues(
        index.cpu().numpy(),
        loader.noisy_labels[index].cpu().numpy(),
        whole[:, 2:].cpu().numpy(),
        method.clean_probabilities([SampleLosses(index, losses) for losses in whole.T[:2]]),
        frozen,
    )


def to_csv(columns: Iterable[str], rows: Iterable[Iterable]) -> bytes:
    """A table for spreadsheets, which read UTF-8 only after a byte order mark."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue().encode("utf-8-sig", "backslashreplace")


def labels_csv(issues: LabelIssues, loader: Loader) -> bytes:
    """The content of `labels.csv`: a line for each image, in the training set's order."""
    index, labels, p_clean = issues.index, issues.labels, issues.clean_probability
    names, true = np.asarray(loader.class_names, dtype=object), loader.clean_labels
    columns = {
        "index": index,
        "file": [loader.files[i] if loader.files else "" for i in index],
        "given": labels,
        "given_name": names[labels],
        "predicted": issues.predicted,
        "predicted_name": names[issues.predicted],
        "p_predicted": issues.pred_probs.max(axis=1),
        "p_given": self_confidence(labels, issues.pred_probs),
        "p_clean_net1": p_clean[0],
        "p_clean_net2": p_clean[-1],
        "p_clean": p_clean.mean(axis=0),
        "rank": issues.rank,
        "true": [""] * len(index) if true is None else true[index],
    }
    for name, values in columns.items():
        if name.startswith("p_"):
            columns[name] = [f"{p:.6g}" for p in values]
    return to_csv(columns, zip(*columns.values(), strict=True))


def closing_lines(issues: LabelIssues, loader: Loader) -> list[str]:
    """Lines for the log: how many label issues, of which classes, and how reliable they are."""
    names, chosen, labels = loader.class_names, issues.is_issue, issues.labels
    count, share = int(chosen.sum()), f"{100 * chosen.mean():.1f} %"
    lines = [f"label issues: {count:,} of {len(labels):,} training labels ({share})"]
    pairs = Counter(zip(labels[chosen].tolist(), issues.predicted[chosen].tolist(), strict=True))
    for i, ((label, predicted), times) in enumerate(pairs.most_common(CONFUSIONS_NAMED)):
        lines[0] += ", " if i else ", most often "
        lines[0] += f"{names[label]} predicted as {names[predicted]} ({times:,})"
    if reason := why_unreliable(labels, issues.pred_probs, names):
        lines.append(f"the networks have not learned enough to find label issues: {reason}")
    if count:
        # By the label's probability, and that of all but the predicted class: on easy images
        # too high.
        least = self_confidence(labels, issues.pred_probs)[chosen].sum()
        most = (1 - issues.pred_probs.max(axis=1)[chosen]).sum()
        lines.append(
            f"review before you change any: an estimated {least:,.0f} to {most:,.0f} of these "
            f"{count:,} labels are correct"
        )
    is_noisy = None if loader.is_clean is None else ~loader.is_clean[issues.index]
    if is_noisy is not None and is_noisy.any():
        hits, noisy = int((chosen & is_noisy).sum()), int(is_noisy.sum())
        lines.append(
            f"of {noisy:,} noisy labels {hits:,} are among them (precision "
            f"{hits / max(count, 1):.3f}, recall {hits / noisy:.3f}); average precision "
            f"of the ranking {average_precision_score(is_noisy, -issues.quality):.3f}"
        )
    return lines


def draw(issues: LabelIssues, loader: Loader) -> tuple[dict, dict]:
    """The first label issues and the noise transitions: by file name, and by TensorBoard's tag."""
    names, true, labels, predicted = loader.class_names, None, issues.labels, issues.predicted
    if loader.clean_labels is not None:
        true = loader.clean_labels[issues.index]
    transitions = figures.noise_transitions(labels, predicted, true, names)

    def gallery(count: int, columns: int, side: int) -> np.ndarray:
        rows = issues.order[:count]
        index = issues.index[rows]
        captions = [Path(loader.files[i]).name if loader.files else f"image {i}" for i in index]
        shown = loader.thumbnails(index), captions, labels[rows], predicted[rows]
        return figures.label_issues(*shown, names, columns, side)

    files = {"label_issues.png": gallery(*FOLDER_GALLERY), "transitions.png": transitions}
    top = gallery(*TENSORBOARD_GALLERY)
    return files, {"label_issues/top": top, "label_issues/noise_transitions": transitions}


def read_run_labels(folder: Path) -> dict:
    """The content of a run's `labels.json`; {"written": []} without a complete one."""
    with suppress(FileNotFoundError, TypeError, ValueError):
        return {"written": []} | json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    return {"written": []}


def is_edited(path: Path, written: Container[str]) -> bool:
    """Whether there is a list that the run did not write. Args: written, SHA-256 of its own."""
    return path.exists() and sha256(path.read_bytes()).hexdigest() not in written


def free_path(path: Path, is_taken: Callable[[Path], bool]) -> Path:
    """The path, or the next with _2, _3, … that is not taken."""
    free, number = path, 1
    while is_taken(free):
        number += 1
        free = path.with_stem(f"{path.stem}_{number}")
    return free


def edited(folder: Path) -> list[Path]:
    """The run folder's lists that a person edited, and the corrections that are kept there."""
    written = read_run_labels(folder)["written"]
    lists = [path for path in sorted(folder.glob("labels*.csv")) if is_edited(path, written)]
    return lists + sorted(folder.glob("correct*"))


def write_list(issues: LabelIssues, loader: Loader, folder: Path, root: Path | None) -> Path:
    """Write `labels.csv`, over none that a person may have edited, and what goes with it; its path.

    `labels.json` tells correct_labels.py the run's labels, class names and files, and the checksums
    of files that it may move. Raises OSError.
    """
    raw = labels_csv(issues, loader)
    written = sorted({*read_run_labels(folder)["written"], sha256(raw).hexdigest()})
    files = [loader.files[i] for i in issues.index] if loader.files else None
    may_move = root and loader.info.labels_in_paths
    crc32 = [checksum(root / file) for file in files] if may_move else None
    content = {"written": written, "class_names": loader.class_names, "files": files}
    content |= {"index": issues.index.tolist(), "labels": issues.labels.tolist(), "crc32": crc32}
    path = free_path(folder / "labels.csv", lambda path: is_edited(path, written))
    # First: a list whose digest is not there would be taken for an edited one.
    write_text(folder / "labels.json", json.dumps(content) + "\n")
    with atomic_write(path) as file:
        file.write(raw)
    with atomic_write(folder / "pred_probs.npy") as file:
        np.save(file, issues.pred_probs)
    return path


def write_duplicates(loader: Loader, path: Path) -> dict[int, str]:
    """Write `duplicates.csv`; position → the identical file, of images whose two labels differ.

    Without duplicates there is no such file. Raises OSError.
    """
    path.unlink(missing_ok=True)
    if loader.info.duplicates:
        path.write_bytes(to_csv(("file", "duplicate", "problem"), loader.info.duplicates))
    pairs = [files for *files, problem in loader.info.duplicates if problem != IN_BOTH_PARTS]
    others = dict(pairs) | {other: one for one, other in pairs}
    return {i: others[file] for i, file in enumerate(loader.files or ()) if file in others}


def report(
    issues: LabelIssues, loader: Loader, folder: Path, line: Line, root: Path | None, review: int
) -> dict[str, np.ndarray]:
    """Write the lists, the pictures and `labels.html`, and log what they show.

    Returns TensorBoard's pictures. Args: root, the folder of the image files; review, how many
    images `labels.html` shows. A file that cannot be written is named in a line.
    """
    pictures, tags = draw(issues, loader)
    for text in closing_lines(issues, loader):
        line(text)
    try:
        path = write_list(issues, loader, folder, root)
        if path.name != "labels.csv":
            line(f"labels.csv was edited and stays as it is; the new list is {path.name}")
        for name, picture in pictures.items():
            Image.fromarray(picture).save(folder / name)
        line(f"all labels, ranked by quality: {path}")
        conflicts = write_duplicates(loader, folder / "duplicates.csv")
        if conflicts:
            line(f"identical images with two labels: {folder / 'duplicates.csv'}")
        if review:
            text = page(issues, loader, root, folder.as_posix(), review, conflicts)
            write_text(folder / "labels.html", text)
            first = min(review, len(issues.labels))
            line(f"review the first {first:,} in a browser: {folder / 'labels.html'}")
    except OSError as error:
        line(f"labels.csv was not written to {folder} ({error.strerror})")
    return tags
