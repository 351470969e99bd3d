"""Checksums of a dataset's files, by which a run knows its data again."""

import hashlib
import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from smr.data.image_folder import Listing
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
        paths = [part.root / file for part in parts for file in part.files]
        with ThreadPoolExecutor(8) as threads:
            described = list(threads.map(describe, paths))
        digest.update(json.dumps([described, photos.files, labels.tolist()]).encode())
        return digest.hexdigest()
    for start in range(0, count, CHUNK):
        images = loader.thumbnails(np.arange(start, min(start + CHUNK, count)))
        digest.update(np.ascontiguousarray(images).data)
    return digest.hexdigest()
