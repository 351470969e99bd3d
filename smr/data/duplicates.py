"""Byte-identical photos in two classes, or in training and test: one of two labels is wrong."""

import hashlib
from collections import Counter, defaultdict
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
    sizes = [(images.root / file).stat().st_size for file in files]
    times, same = Counter(sizes), defaultdict(list)
    for i, file in enumerate(files):
        if times[sizes[i]] > 1:
            same[hashlib.sha256((images.root / file).read_bytes()).digest()].append(i)
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
        note = f"{len(pairs)} pairs of identical photos: {first_ten(pairs)}"
        loader.info.data_notes.append(note)
