"""A run's report on its label issues: `labels.csv`, a page to review them, pictures, log lines.

Both networks predict every training image once, as they are at the end (method 4).
"""

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import average_precision_score

from smr import distributed
from smr.data.duplicates import IN_BOTH_PARTS
from smr.data.fingerprint import checksum
from smr.data.loader import Loader
from smr.errors import NonFiniteLoss
from smr.evaluate import predict_batches
from smr.files import atomic_write, write_text
from smr.gmm_split import SampleLosses
from smr.label_issues.review_page import page
from smr.label_issues.scores import LabelIssues, estimate_correct_among, why_unreliable
from smr.logging import figures
from smr.logging.console import Terminal
from smr.methods import Method
from smr.training import Pair

COLUMNS = (
    *("index", "file", "given", "given_name", "predicted", "predicted_name"),
    *("p_predicted", "p_given", "p_clean_net1", "p_clean_net2", "p_clean", "rank", "true"),
)
# Pictures of label issues: how many images, in rows of how many, of what side; TensorBoard shows
# pictures small.
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


def to_csv(columns: Sequence[str], rows: Iterable[Sequence]) -> bytes:
    """A table for spreadsheets, which read UTF-8 only after a byte order mark."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue().encode("utf-8-sig", "backslashreplace")


def labels_csv(issues: LabelIssues, loader: Loader) -> bytes:
    """The content of `labels.csv`: a line for each image, in the training set's order."""
    clean_probability = issues.clean_probability
    names = np.asarray(loader.class_names, dtype=object)
    p_label = np.take_along_axis(issues.pred_probs, issues.labels[:, None], axis=1)[:, 0]
    first, last = clean_probability[0], clean_probability[-1]
    rounded = [
        [f"{p:.6g}" for p in values]
        for values in (
            *(issues.pred_probs.max(axis=1), p_label, first, last),
            clean_probability.mean(axis=0),
        )
    ]
    files, clean = loader.files, loader.clean_labels
    rows = zip(
        issues.index,
        [files[i] if files else "" for i in issues.index],
        *(issues.labels, names[issues.labels], issues.predicted, names[issues.predicted]),
        *(*rounded, issues.rank),
        [""] * len(issues.index) if clean is None else clean[issues.index],
        strict=True,
    )
    return to_csv(COLUMNS, rows)


def closing_lines(issues: LabelIssues, loader: Loader) -> list[str]:
    """Lines for the log: how many label issues, of which classes, and how reliable they are."""
    names, chosen = loader.class_names, issues.is_issue
    issues_found, count = int(chosen.sum()), len(issues.labels)
    pairs = Counter(
        zip(issues.labels[chosen].tolist(), issues.predicted[chosen].tolist(), strict=True)
    )
    confusions = [
        f"{names[label]} predicted as {names[predicted]} ({times:,})"
        for (label, predicted), times in pairs.most_common(CONFUSIONS_NAMED)
    ]
    share = 100 * issues_found / count
    line = f"label issues: {issues_found:,} of {count:,} training labels ({share:.1f} %)"
    lines = [line + (", most often " + ", ".join(confusions) if confusions else "")]
    if reason := why_unreliable(issues.labels, issues.pred_probs, names):
        lines.append(f"the networks have not learned enough to find label issues: {reason}")
    if issues_found:
        least, most = estimate_correct_among(issues.labels, issues.pred_probs, chosen)
        lines.append(
            f"review before you change any: an estimated {least:,} to {most:,} of these "
            f"{issues_found:,} labels are correct"
        )
    is_noisy = None if loader.is_clean is None else ~loader.is_clean[issues.index]
    if is_noisy is not None and is_noisy.any():
        hits, noisy = int((chosen & is_noisy).sum()), int(is_noisy.sum())
        average_precision = average_precision_score(is_noisy, -issues.quality)
        lines.append(
            f"of {noisy:,} noisy labels {hits:,} are among them (precision "
            f"{hits / max(issues_found, 1):.3f}, recall {hits / noisy:.3f}); average precision "
            f"of the ranking {average_precision:.3f}"
        )
    return lines


def draw(issues: LabelIssues, loader: Loader) -> tuple[dict, dict]:
    """The first label issues and the noise transitions: by file name, and by TensorBoard's tag."""

    def gallery(count: int, columns: int, side: int) -> np.ndarray:
        rows = issues.order[:count]
        index, labels, predicted = issues.index[rows], issues.labels[rows], issues.predicted[rows]
        captions = [Path(loader.files[i]).name if loader.files else f"image {i}" for i in index]
        images, names = loader.thumbnails(index), loader.class_names
        return figures.label_issues(images, captions, labels, predicted, names, columns, side)

    clean, names = loader.clean_labels, loader.class_names
    true = None if clean is None else clean[issues.index]
    transitions = figures.noise_transitions(issues.labels, issues.predicted, true, names)
    return (
        {"label_issues.png": gallery(*FOLDER_GALLERY), "transitions.png": transitions},
        {
            "label_issues/top": gallery(*TENSORBOARD_GALLERY),
            "label_issues/noise_transitions": transitions,
        },
    )


def digest(raw: bytes) -> str:
    """By which a list is recognized as the run's own."""
    return hashlib.sha256(raw).hexdigest()


def read_run_labels(folder: Path) -> dict:
    """The content of a run's `labels.json`; {"written": []} without a complete one."""
    try:
        return {"written": []} | json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, TypeError, ValueError):
        return {"written": []}


def edited(folder: Path) -> list[Path]:
    """The run folder's lists that a person edited, and the corrections that are kept there."""
    written = read_run_labels(folder)["written"]
    lists = [
        path for path in folder.glob("labels*.csv") if digest(path.read_bytes()) not in written
    ]
    return sorted(lists) + sorted(folder.glob("correct*"))


def write_list(issues: LabelIssues, loader: Loader, folder: Path, root: Path | None) -> Path:
    """Write `labels.csv`, over none that a person may have edited, and what goes with it; its path.

    `labels.json` tells correct_labels.py the run's labels, class names and files, and the checksums
    of files that it may move. Raises OSError.
    """
    raw, written = labels_csv(issues, loader), read_run_labels(folder)["written"]
    written = [each for each in written if each != digest(raw)] + [digest(raw)]
    files = [loader.files[i] for i in issues.index] if loader.files else None
    may_move = root and loader.info.labels_in_paths
    content = {
        "written": written,
        "class_names": loader.class_names,
        "index": issues.index.tolist(),
        "labels": issues.labels.tolist(),
        "files": files,
        "crc32": [checksum(root / file) for file in files] if may_move else None,
    }
    path, number = folder / "labels.csv", 1
    while path.exists() and digest(path.read_bytes()) not in written:
        number += 1
        path = folder / f"labels_{number}.csv"
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
    pairs = loader.info.duplicates
    if not pairs:
        path.unlink(missing_ok=True)
        return {}
    with atomic_write(path) as file:
        file.write(to_csv(("file", "duplicate", "problem"), pairs))
    positions = {file: i for i, file in enumerate(loader.files)}
    conflicts = [pair for *pair, problem in pairs if problem != IN_BOTH_PARTS]
    both = [pair for one, other in conflicts for pair in ((one, other), (other, one))]
    return {positions[file]: other for file, other in both if file in positions}


def report(
    issues: LabelIssues,
    loader: Loader,
    folder: Path,
    line: Callable[[str], None],
    root: Path | None = None,
    review: int = 0,
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
