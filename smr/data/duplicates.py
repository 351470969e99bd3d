"""Byte-identical photos in two classes, or in training and test: one of two labels is wrong."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise

from smr.data.image_file_dataset import ImageFileLoader
from smr.data.image_folder import first_ten

# The problem of two photos of one class.
IN_BOTH_PARTS = "in training and test"


def add_duplicates(loader: ImageFileLoader) -> None:
    """Add [file, file, problem] of byte-identical photos, and a note, to a loader's description."""
    images, (test_images, test_labels) = loader.train_images, loader.tests["test"]
    files = [*images.files, *test_images.files]
    labels = [*loader.noisy_labels.tolist(), *test_labels.tolist()]
    paths = [images.root / file for file in files]
    groups = split_groups([range(len(files))], lambda i: paths[i].stat().st_size)
    groups = split_groups(groups, lambda i: hashlib.sha256(paths[i].read_bytes()).digest())
    for one, other in (pair for group in groups for pair in pairwise(group)):
        problem = IN_BOTH_PARTS if one < len(images) <= other else ""
        if labels[one] != labels[other]:
            problem = " and ".join(loader.class_names[labels[i]] for i in (one, other))
            problem = f"in {problem}"
        if problem:
            loader.info.duplicates.append([files[one], files[other], problem])
    pairs = [f"{one} = {other} ({problem})" for one, other, problem in loader.info.duplicates]
    if pairs:
        note = f"{len(pairs)} pairs of identical photos: {first_ten(pairs)}"
        loader.info.data_notes.append(note)


def split_groups(groups: Sequence[Sequence[int]], key: Callable[[int], object]) -> list[list[int]]:
    """The groups of two or more, within these groups, that share a key."""
    shared = []
    for group in groups:
        parts = defaultdict(list)
        for i in group:
            parts[key(i)].append(i)
        shared += [part for part in parts.values() if len(part) > 1]
    return shared
