"""Use a trained run: predict the class of photos, or export its networks as one program.

    python predict.py checkpoint/folder_smr_seed123/best.pt PHOTOS… --output predictions.csv
    python predict.py checkpoint/folder_smr_seed123/best.pt PHOTOS… --export model.pt2

PHOTOS are files, or folders that are searched with all inside. The checkpoint contains network,
image size, normalization and class names. --export writes both networks as one torch.export
program, uint8 images [b, height, width, 3] to probabilities [b, classes], and checks its
probabilities on the photos; torch.export.load needs none of this project's code.
"""

import csv
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np
import torch

import smr
from smr.data.decoding import reason_of
from smr.data.image_folder import files_inside, first_ten
from smr.devices import cpu_count, find_device
from smr.errors import InputError
from smr.files import atomic_write
from smr.flags import Parser, number
from smr.logging.console import Terminal
from smr.run.command import command

COLUMNS = ("file", "predicted", "probability", "second", "p_second")
# Between the probabilities of the networks and of the exported program: rounding alone.
TOLERANCE = 1e-4


@command
def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="best.pt, last.pt, or a run folder")
    add("photos", nargs="*", type=Path, metavar="PHOTOS", help="image files, or folders of them")
    about = f"write a table with the columns {', '.join(COLUMNS)} (default: to standard output)"
    add("--output", type=Path, metavar="FILE", help=about)
    about = "write both networks as a torch.export program, such as model.pt2"
    add("--export", type=Path, metavar="FILE", help=about)
    add("--batch_size", type=number(int, 1), default=64, help="photos at a time (default: 64)")
    about = "auto takes the first of cuda, mps and cpu that is there (default: auto)"
    add("--device", choices=("auto", "cuda", "cpu", "mps"), default="auto", help=about)
    args = parser.parse_args(argv)
    if not args.photos and (args.output or not args.export):
        parser.error("give PHOTOS, --export FILE, or both")
    for path in filter(None, (args.output, args.export)):
        check_output(path)
    paths, broken = files_of(args.photos)
    model = smr.load(args.checkpoint)
    if args.export:
        export(model, paths[: args.batch_size], args.export)
    if args.output or not args.export:
        model.to(find_device(args.device, 0))
        with table_file(args.output) as file:
            predict(model, paths, args.batch_size, file, broken)


def check_output(path: Path) -> None:
    """Raise InputError if this file cannot be written, before any work is done."""
    if path.exists():
        raise InputError(f"{path}: exists already; give another name or remove it")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"{path}: there is no folder {path.parent}, or it is read-only")


@contextmanager
def table_file(path: Path | None) -> Iterator[TextIO]:
    """The table to write: standard output, or `path`.part, which becomes `path` once complete.

    Raises InputError.
    """
    part = path and path.with_name(f"{path.name}.part")
    try:
        if part is None:
            yield sys.stdout
            return
        # Names that are not UTF-8 are written escaped.
        with open(part, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            yield file
        os.replace(part, path)
    except BrokenPipeError:
        raise
    except OSError as error:
        so_far = f"; the rows so far are in {part}" if part else ""
        raise InputError(f"{path or 'standard output'}: {error.strerror}{so_far}") from error


def files_of(photos: Sequence[Path]) -> tuple[list[str], dict[str, str]]:
    """The files, and those in folders, linked ones too, without hidden ones and junk.

    Returns also what cannot be read, with the reason. Raises InputError.
    """
    files: list[str] = []
    broken: dict[str, str] = {}
    for path in photos:
        if path.is_dir():
            files += files_inside(path, broken, str(path), lenient=True)
        elif path.is_file():
            files.append(str(path))
        else:
            raise InputError(f"{path}: there is no such file or folder")
    if photos and not (files or broken):
        raise InputError(f"{first_ten([str(path) for path in photos])}: no file in it")
    return files, broken


def decoded(
    model: smr.Predictor, paths: list[str], batch_size: int, broken: dict[str, str]
) -> Iterator[tuple[list[str], torch.Tensor]]:
    """Paths and uint8 images [b, height, width, 3] by the batch; others join `broken`."""

    def read(path: str) -> np.ndarray | None:
        try:
            return model.read(path)
        except Exception as error:  # Pillow's decoders raise many types
            broken[path] = reason_of(error, path)
            return None

    with ThreadPoolExecutor(cpu_count()) as threads:
        for start in range(0, len(paths), batch_size):
            batch = paths[start : start + batch_size]
            images = [image for image in threads.map(read, batch) if image is not None]
            if images:
                names = [path for path in batch if path not in broken]
                yield names, torch.from_numpy(np.stack(images))


def predict(
    model: smr.Predictor, paths: list[str], batch_size: int, file: TextIO, broken: dict[str, str]
) -> None:
    """Write the table of predicted classes, batch by batch. Raises InputError and OSError.

    Progress goes to standard output unless the table does. Args: broken, what is left out already.
    """
    terminal, writer, done = Terminal(), csv.writer(file, lineterminator="\n"), 0
    count = len(paths) + len(broken)
    for files, images in decoded(model, paths, batch_size, broken):
        with torch.no_grad():
            p, labels = model(images.to(model.scale.device)).topk(2, dim=1)
        if not done:
            writer.writerow(COLUMNS)
        for path, (p1, p2), (first, second) in zip(files, p.tolist(), labels.tolist(), strict=True):
            names = model.classes[first], model.classes[second]
            writer.writerow([path, names[0], f"{p1:.6g}", names[1], f"{p2:.6g}"])
        file.flush()
        done += len(files)
        if file is not sys.stdout and terminal.due():
            terminal.progress(f"predicted: {done:,} of {len(paths):,} photos")
    if broken:
        named = first_ten([f"{path} ({reason})" for path, reason in sorted(broken.items())])
        summary = f"{len(broken):,} of {count:,} files cannot be read as images: {named}"
        if not done:
            raise InputError(summary)
        print(f"predict.py: left out: {summary}", file=sys.stderr)
    if file is not sys.stdout:
        terminal.line(f"predicted {done:,} photos: {file.name.removesuffix('.part')}")


def export(model: smr.Predictor, paths: list[str], path: Path) -> None:
    """Write the model as a program, checked on these photos, or on noise without any.

    Raises InputError if its probabilities differ, or if it cannot be written.
    """
    noise = [], torch.randint(256, (4, model.side, model.side, 3), dtype=torch.uint8)
    _, images = next(decoded(model, paths, len(paths) or 1, {}), noise)
    example = images[:1].repeat(2, 1, 1, 1)  # one image would fix the batch's size
    batch = {"images": {0: torch.export.Dim("batch")}}
    with torch.no_grad():
        program = torch.export.export(model, (example,), dynamic_shapes=batch)
        exported = program.module()
        worst = max(float((exported(x) - model(x)).abs().max()) for x in (images, images[:1]))
    if not worst < TOLERANCE:
        raise InputError(f"{path}: not written: the program's probabilities are {worst:.2g} off")
    try:
        with atomic_write(path) as file:
            names = {"classes.json": json.dumps(model.classes)}
            torch.export.save(program, file, extra_files=names)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    print(
        f"exported {path}: uint8 [batch, {model.side}, {model.side}, 3] to probabilities of "
        f"{len(model.classes)} classes; on {len(images)} images at most {worst:.1e} off"
    )


if __name__ == "__main__":
    sys.exit(main())
