"""Use a trained run: the class of each photo, or its networks as one program for elsewhere.

    python predict.py checkpoint/folder_smr_seed123/best.pt PHOTOS… --output predictions.csv
    python predict.py checkpoint/folder_smr_seed123/best.pt PHOTOS… --export model.pt2

PHOTOS are files, or folders that are searched; any image that Pillow reads. The checkpoint knows
network, image size, normalization and class names. --export writes both networks as one
torch.export program, uint8 images [b, height, width, 3] to probabilities [b, classes], and checks
on the photos that it gives the same; torch.export.load needs none of this project's code.
"""

import csv
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

import smr
from smr.data.decoding import reason_of
from smr.data.image_folder import first_ten, natural_order
from smr.errors import InputError
from smr.files import atomic_write, write_text
from smr.logging.console import Terminal
from smr.run.devices import find_device
from smr.run.options import Parser, number, one_line_errors

COLUMNS = ("file", "predicted", "probability", "second", "p_second")
# Between what the networks and the exported program give: rounding alone.
TOLERANCE = 1e-4


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
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
    if not (args.photos or args.export):
        parser.error("give PHOTOS, --export FILE, or both")
    with one_line_errors("predict.py"):
        for path in (args.output, args.export):
            if path and path.exists():
                raise InputError(f"{path}: is there already; give another name or remove it")
        model, paths = smr.load(args.checkpoint), files_of(args.photos)
        try:
            if args.export:
                export(model, paths[: args.batch_size], args.export)
            if args.output or (paths and not args.export):
                model.to(find_device(args.device, 0))
                predict(model, paths, args.batch_size, args.output)
        except OSError as error:
            raise InputError(f"{error.filename}: {error.strerror}") from error
    return 0


def files_of(photos: Sequence[Path]) -> list[Path]:
    """The files, and those in folders at any depth but hidden ones. Raises InputError."""
    found = []
    for path in photos:
        if path.is_dir():
            inside = [file for file in path.rglob("*") if file.is_file()]
            shown = [file for file in inside if "/." not in f"/{file.relative_to(path).as_posix()}"]
            found += sorted(shown, key=lambda file: natural_order(str(file)))
        elif path.is_file():
            found.append(path)
        else:
            raise InputError(f"{path}: there is no such file or folder")
    if photos and not found:
        raise InputError(f"{first_ten([str(path) for path in photos])}: no file in it")
    return found


def decoded(
    model: smr.Predictor, paths: Sequence[Path], batch_size: int, broken: dict[Path, str]
) -> Iterator[tuple[list[Path], torch.Tensor]]:
    """Paths and uint8 images [b, height, width, 3] by the batch; others join `broken`."""

    def read(path: Path) -> np.ndarray | None:
        try:
            return model.read(path)
        except Exception as error:  # Pillow's decoders raise whatever they stumble over
            broken[path] = reason_of(error)
            return None

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for start in range(0, len(paths), batch_size):
            batch = paths[start : start + batch_size]
            images = list(threads.map(read, batch))
            kept = [path for path, image in zip(batch, images, strict=True) if image is not None]
            if kept:
                arrays = [image for image in images if image is not None]
                yield kept, torch.from_numpy(np.stack(arrays))


def predict(
    model: smr.Predictor, paths: Sequence[Path], batch_size: int, output: Path | None
) -> None:
    """Write the table of what the model sees; progress goes where the table does not.

    Raises InputError where nothing is an image, and OSError.
    """
    console, broken, table = Terminal(), {}, io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    done = 0
    for files, images in decoded(model, paths, batch_size, broken):
        with torch.no_grad():
            p, labels = model(images.to(model.scale.device)).topk(2, dim=1)
        for file, (p1, p2), (first, second) in zip(files, p.tolist(), labels.tolist(), strict=True):
            names = model.classes[first], model.classes[second]
            writer.writerow([file, names[0], f"{p1:.6g}", names[1], f"{p2:.6g}"])
        done += len(files)
        if output and console.due():
            console.progress(f"predicted: {done:,} of {len(paths):,} photos")
    if broken:
        named = first_ten([f"{path} ({reason})" for path, reason in sorted(broken.items())])
        found = f"{len(broken):,} of {len(paths):,} files are no images: {named}"
        if not done:
            raise InputError(found)
        print(f"predict.py: left out: {found}", file=sys.stderr)
    if output is None:
        print(table.getvalue(), end="")
        return
    write_text(output, table.getvalue())
    console.line(f"predicted {done:,} photos: {output}")


def export(model: smr.Predictor, paths: Sequence[Path], path: Path) -> None:
    """Write the model as a program, checked on these photos, or on noise where there are none.

    Raises InputError where it would not give the same, and OSError.
    """
    broken: dict[Path, str] = {}
    images = [batch for _, batch in decoded(model, paths, max(1, len(paths)), broken)]
    if not images:
        images = [torch.randint(256, (4, model.side, model.side, 3), dtype=torch.uint8)]
    example = images[0][:1].repeat(2, 1, 1, 1)  # one image would fix the batch's size
    batch = {"images": {0: torch.export.Dim("batch")}}
    archive, facts = io.BytesIO(), {"classes.json": json.dumps(model.classes)}
    with torch.no_grad():
        program = torch.export.export(model, (example,), dynamic_shapes=batch)
        torch.export.save(program, archive, extra_files=facts)
        archive.seek(0)
        exported = torch.export.load(archive).module()
        worst = max(
            float((exported(each) - model(each)).abs().max()) for each in (images[0], images[0][:1])
        )
    if not worst < TOLERANCE:
        raise InputError(f"{path}: not written: the program's probabilities are {worst:.2g} off")
    with atomic_write(path) as file:
        file.write(archive.getbuffer())
    print(
        f"exported {path}: uint8 [batch, {model.side}, {model.side}, 3] to probabilities of "
        f"{len(model.classes)} classes; on {len(images[0])} images at most {worst:.1e} off"
    )


if __name__ == "__main__":
    sys.exit(main())
