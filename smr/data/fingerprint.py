"""Checksums of a dataset's files, by which a run knows its data again; duplicates among them."""

import hashlib
import json
import zlib
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

from smr.data.image_folder import Listing, first_ten
from smr.data.loader import Loader

# Of more files than this only names and sizes are compared: reading a million takes an hour.
READ_AT_MOST = 100_000
# The problem of two identical photos of one class.
IN_BOTH_PARTS = "in training and test"


def checksum(path: Path) -> int | None:
    """CRC-32 of a file's content; None if it cannot be read."""
    try:
        return zlib.crc32(path.read_bytes())
    except OSError:
        return None


def content_fingerprint(loader: Loader) -> str:
    """SHA-256 over the class names, the training images and the photos of the first test set.

    Of photos: names, sizes and contents. Of images in memory: pixels.
    """
    digest = hashlib.sha256(json.dumps([loader.class_names, loader.files]).encode())
    count, (photos, labels) = len(loader.noisy_labels), loader.tests[loader.test_sets[0]]

    def describe(path: Path) -> list:
        return [path.stat().st_size, checksum(path) if count <= READ_AT_MOST else None]

    if isinstance(photos, Listing):
        parts = loader.train_images, photos
        with ThreadPoolExecutor(8) as threads:
            described = threads.map(describe, [path for part in parts for path in part.paths])
            digest.update(json.dumps([*described, photos.files, labels.tolist()]).encode())
    else:
        for index in loader.train_index.split(1000):
            digest.update(loader.thumbnails(index).tobytes())
    return digest.hexdigest()


def add_duplicates(loader: Loader) -> None:
    """Add [file, file, problem] of byte-identical photos to a loader's description, and a note.

    They are in two classes, or in training and test: one of two labels is wrong.
    """
    images, (test_images, test_labels) = loader.train_images, loader.tests["test"]
    files = [*images.files, *test_images.files]
    labels = [*loader.noisy_labels.tolist(), *test_labels.tolist()]
    paths = [*images.paths, *test_images.paths]
    sizes = [path.stat().st_size for path in paths]
    times, same = Counter(sizes), defaultdict(list)
    for i, path in enumerate(paths):
        if times[sizes[i]] > 1:
            same[hashlib.sha256(path.read_bytes()).digest()].append(i)
    for one, other in (pair for group in same.values() for pair in pairwise(group)):
        if labels[one] != labels[other]:
            names = [loader.class_names[labels[i]] for i in (one, other)]
            problem = f"in {' and '.join(names)}"
        elif one < len(images) <= other:
            problem = IN_BOTH_PARTS
        else:
            continue
        loader.info.duplicates.append([files[one], files[other], problem])
    pairs = [f"{one} = {other} ({problem})" for one, other, problem in loader.info.duplicates]
    if pairs:
        loader.info.data_notes.append(f"{len(pairs)} pairs of identical photos: {first_ten(pairs)}")
