"""Use a trained run: predict the class of photos, or export its networks as one program.

    python predict.py checkpoint/folder_smr_seed123/best.pt PHOTOS… --output predictions.csv
    python predict.py checkpoint/folder_smr_seed123/best.pt --export model.pt2

PHOTOS are files, or folders that are searched with all inside. The checkpoint contains network,
image size, normalization and class names. --export writes both networks as one torch.export
program, uint8 images [b, height, width, 3] to probabilities [b, classes]; torch.export.load needs
none of this project's code.
"""

import csv
import json
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
        if path.exists() or not path.parent.is_dir():
            raise InputError(f"{path}: it exists already, or there is no folder {path.parent}")
    files, broken = files_of(args.photos)
    model = smr.load(args.checkpoint)
    try:
        if args.export:
            export(model, args.export)
        if args.photos:
            model.to(find_device(args.device, 0))
            with open_table(args.output) as table:
                predict(model, files, args.batch_size, table, broken)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InputError(
            f"{error.filename or args.output or 'standard output'}: {error.strerror}"
        ) from error


@contextmanager
def open_table(path: Path | None) -> Iterator[TextIO]:
    """The table to write: standard output, or FILE.part, which is renamed once it is complete.

    Names that are not UTF-8 are escaped.
    """
    if not path:
        yield sys.stdout
        return
    part = path.with_name(f"{path.name}.part")
    with open(part, "w", encoding="utf-8", errors="backslashreplace", newline="") as table:
        yield table
    part.replace(path)


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
    model: smr.Predictor, files: list[str], batch_size: int, table: TextIO, broken: dict[str, str]
) -> None:
    """Write the table of predicted classes, batch by batch. Raises InputError and OSError.

    Progress goes to standard output unless the table does. Args: broken, what is left out already.
    """
    terminal, writer = Terminal(), csv.writer(table, lineterminator="\n")
    done, count = 0, len(files) + len(broken)
    for names, images in decoded(model, files, batch_size, broken):
        with torch.no_grad():
            p, labels = model(images.to(model.scale.device)).topk(2, dim=1)
        if not done:
            writer.writerow(COLUMNS)
        for name, values, top in zip(names, p.tolist(), labels.tolist(), strict=True):
            cells = [(model.classes[c], f"{p:.6g}") for c, p in zip(top, values, strict=True)]
            writer.writerow([name, *cells[0], *cells[1]])
        table.flush()
        done += len(names)
        if table is not sys.stdout and terminal.due():
            terminal.progress(f"predicted: {done:,} of {len(files):,} photos")
    if broken:
        named = first_ten([f"{path} ({reason})" for path, reason in sorted(broken.items())])
        summary = f"{len(broken):,} of {count:,} files cannot be read as images: {named}"
        if not done:
            raise InputError(summary)
        print(f"predict.py: left out: {summary}", file=sys.stderr)
    if table is not sys.stdout:
        terminal.line(f"predicted {done:,} photos")


def export(model: smr.Predictor, path: Path) -> None:
    """Write the model as a program that takes batches of any size. Raises OSError."""
    images = torch.zeros((2, model.side, model.side, 3), dtype=torch.uint8)
    batch = {"images": {0: torch.export.Dim("batch")}}
    with torch.no_grad():
        program = torch.export.export(model, (images,), dynamic_shapes=batch)
    with atomic_write(path) as file:
        names = {"classes.json": json.dumps(model.classes)}
        torch.export.save(program, file, extra_files=names)
    size = f"[batch, {model.side}, {model.side}, 3]"
    print(f"exported {path}: uint8 {size} to probabilities of {len(model.classes)} classes")


if __name__ == "__main__":
    sys.exit(main())
