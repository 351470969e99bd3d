"""Small photo collections for the tests: Animal-10N's three forms, and folders of class folders."""

from pathlib import Path

import numpy as np
from PIL import Image

FOLDERS = (
    *("cat", "lynx", "wolf", "coyote", "cheetah", "jaguar"),
    *("chimpanzee", "orangutan", "hamster", "guinea_pig"),
)


def animals(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(images uint8 [count, 64, 64, 3], labels, ids): noise around a color of each class."""
    source = np.random.default_rng(seed)
    labels = source.permutation(np.arange(count) % 10)
    colors = np.random.default_rng(0).integers(40, 216, (10, 1, 1, 3))
    images = (colors[labels] + source.normal(0, 15, (count, 64, 64, 3))).clip(0, 255)
    return images.astype(np.uint8), labels, source.permutation(1000)[:count]


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 [height, width, 3] (or [height, width]) as PNG, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def records(images: np.ndarray, labels: np.ndarray, ids: np.ndarray) -> bytes:
    """The binary form: big-endian id and label, then the pixels channel by channel."""
    return b"".join(
        int(number).to_bytes(4, "big", signed=True)
        + int(label).to_bytes(4, "big", signed=True)
        + pixels.transpose(2, 0, 1).tobytes()
        for pixels, label, number in zip(images, labels, ids, strict=True)
    )


def write_animals(root: Path, form: str, train: int = 30, test: int = 20) -> Path:
    """Write the same images in Animal-10N's form 'names', 'classes' or 'binary'; the folder."""
    folder = root / form
    folder.mkdir(parents=True)
    for part, count, binary, seed in (
        ("training", train, "data_batch_1.bin", 1),
        ("testing", test, "test_batch.bin", 2),
    ):
        content = animals(count, seed)
        if form == "binary":
            (folder / binary).write_bytes(records(*content))
        for pixels, label, number in zip(*content, strict=True):
            if form == "names":
                write_png(folder / part / f"{label}_{number}.png", pixels)
            elif form == "classes":
                write_png(folder / part / FOLDERS[label] / f"{number}.png", pixels)
    return folder


def write_photos(
    root: Path, counts: dict[str, int], part: str = "training", shape: tuple[int, int] = (40, 50)
) -> Path:
    """Write root/part/<class>/<i>.png, each image of its class's color and own noise; root."""
    for label, (name, count) in enumerate(counts.items()):
        source = np.random.default_rng(label)
        (root / part / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = source.integers(0, 60, (*shape, 3)) + 60 * label % 190
            write_png(root / part / name / f"{i}.png", pixels.astype(np.uint8))
    return root
