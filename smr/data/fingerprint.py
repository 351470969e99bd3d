"""Checksums of a dataset's files, by which a run knows its data again."""

import hashlib
import json
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from smr.data.loader import Loader

# Of more files than this only names and sizes are compared: reading a million takes an hour.
READ_AT_MOST = 100_000
CHUNK = 1000


def checksum(path: Path) -> int | None:
    """CRC-32 of a file's content; None if it cannot be read."""
    try:
        return zlib.crc32(path.read_bytes())
    except OSError:
        return None


def content_fingerprint(loader: Loader, root: str | Path | None) -> str:
    """SHA-256 over the class names, the training images and the photos of the first test set.

    Of files: names, sizes and contents. Images that are no files below `root` count with their
    pixels.
    """
    digest = hashlib.sha256(json.dumps(loader.class_names).encode())
    count, files = len(loader.noisy_labels), loader.files
    read = count <= READ_AT_MOST

    def describe(path: Path) -> list | None:
        try:
            return [os.stat(path).st_size, checksum(path) if read else None]
        except OSError:
            return None

    with ThreadPoolExecutor(8) as threads:
        paths = [Path(root, file) for file in files] if files and root else []
        described = list(threads.map(describe, paths)) or [None] * count
        photos, labels = loader.tests[loader.test_sets[0]]
        if test_files := list(getattr(photos, "files", [])):
            tests = list(threads.map(describe, [Path(photos.root, file) for file in test_files]))
            digest.update(json.dumps([test_files, tests, labels.tolist()]).encode())
    digest.update(json.dumps([files, described]).encode())
    pixels = [i for i, one in enumerate(described) if one is None]
    for start in range(0, len(pixels), CHUNK):
        chunk = loader.thumbnails(np.array(pixels[start : start + CHUNK]))
        digest.update(np.ascontiguousarray(chunk).data)
    return digest.hexdigest()
