"""Byte-identical photos in two classes, or in training and test: one of two labels is wrong."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from smr.data.image_folder import Listing, first_ten

# Bytes of a file that are compared before all of them.
START = 2**16


def find_duplicates(
    root: Path, train: Listing, test: Listing, class_names: Sequence[str]
) -> list[list[str]]:
    """[file, file, problem] of byte-identical photos in two classes, or in training and test."""
    files = [*train.files, *test.files]
    labels = np.concatenate([train.labels, test.labels])
    groups = split_groups([range(len(files))], lambda i: (root / files[i]).stat().st_size)
    for limit in (START, -1):
        groups = split_groups(groups, lambda i, limit=limit: checksum(root / files[i], limit))
    pairs = []
    for one, other in (pair for group in groups for pair in pairwise(group)):
        if labels[one] != labels[other]:
            names = [class_names[labels[i]] for i in (one, other)]
            pairs.append([files[one], files[other], f"in {names[0]} and {names[1]}"])
        elif one < len(train.files) <= other:
            pairs.append([files[one], files[other], "in training and test"])
    return pairs


def split_groups(groups: Sequence[Sequence[int]], key: Callable[[int], object]) -> list[list[int]]:
    """The groups of two or more, within these groups, that share a key."""
    shared = []
    for group in groups:
        parts = defaultdict(list)
        for i in group:
            parts[key(i)].append(i)
        shared += [part for part in parts.values() if len(part) > 1]
    return shared


def checksum(path: Path, limit: int) -> bytes:
    """Of a file's first bytes, or of all: -1."""
    with open(path, "rb") as file:
        return hashlib.sha256(file.read(limit)).digest()


def duplicate_notes(duplicates: Sequence[Sequence[str]]) -> list[str]:
    """A note on byte-identical photos."""
    shown = first_ten([f"{one} = {other} ({problem})" for one, other, problem in duplicates])
    return [f"{len(duplicates)} pairs of identical photos: {shown}"] if duplicates else []
