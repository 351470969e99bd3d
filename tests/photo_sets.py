"""Small photo sets in the official layouts of WebVision, ImageNet and Clothing1M."""

import itertools
from pathlib import Path

import numpy as np
from PIL import Image

COLORS = np.random.default_rng(0).integers(30, 226, (20, 3))
SIZES = ((60, 48), (48, 64), (78, 60), (50, 50))


def write_photo(path: Path, label: int, number: int) -> None:
    """A JPEG of its class's color, its own noise, and one of several sizes, modes, qualities."""
    width, height = SIZES[number % len(SIZES)]
    noise = np.random.default_rng((label, number)).integers(-25, 26, (height // 4, width // 4, 3))
    pixels = (COLORS[label] + noise).clip(0, 255).astype(np.uint8)
    picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    if number % 7 == 6:
        picture = picture.convert(("L", "CMYK")[number % 2])
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, "JPEG", quality=(75, 95)[number % 2])


def write_webvision(
    root: Path, classes: int = 6, train: int = 8, val: int = 3, folder: str = "val_images_256"
) -> Path:
    """WebVision with a class more than `classes`; every fourth training photo shows another one."""
    lists = {"train_filelist_google.txt": [], "val_filelist.txt": []}
    for label in range(classes + 1):
        for i in range(train):
            name = f"google/q{label:04}/photo {i}.jpg"
            write_photo(root / name, label if i % 4 else (label + 1) % classes, i)
            lists["train_filelist_google.txt"].append(f"{name} {label}")
        for i in range(val):
            name = f"val{label:02}{i:06}.jpg"
            write_photo(root / folder / name, label, 100 + i)
            lists["val_filelist.txt"].append(f"{name} {label}")
    names = [f"n{1000 + label} thing {label}, {label}th thing" for label in range(classes + 1)]
    lists["synsets.txt"] = names
    (root / "info").mkdir(parents=True, exist_ok=True)
    for name, lines in lists.items():
        (root / "info" / name).write_text("\n".join(lines) + "\n")
    return root


def write_imagenet(root: Path, named_by: str = "synset", classes: int = 6, count: int = 2) -> Path:
    """ImageNet's validation photos in folders named by 'synset' or 'number'."""
    for label, i in itertools.product(range(classes), range(count)):
        folder = f"n{1000 + label}" if named_by == "synset" else str(label)
        write_photo(root / folder / f"ILSVRC2012_val_{i:08}.JPEG", label, 200 + i)
    return root


def write_clothing(root: Path, train: int = 6, clean: int = 2) -> Path:
    """Clothing1M, `train` photos of each of 14 classes, every third with the next class's label."""
    lists = {name: [] for name in ("noisy_train", "clean_val", "clean_test")}
    labels = {"noisy": [], "clean": []}
    for part, count, kind in (
        ("noisy_train", train, "noisy"),
        ("clean_val", clean, "clean"),
        ("clean_test", clean, "clean"),
    ):
        for label, i in itertools.product(range(14), range(count)):
            name = f"images/{label % 10}/{i % 3}/{part},{label},{i}.jpg"
            write_photo(root / name, label, i)
            lists[part].append(name)
            wrong = kind == "noisy" and i % 3 == 2
            labels[kind].append(f"{name} {(label + 1) % 14 if wrong else label}")
    for part, names in lists.items():
        (root / f"{part}_key_list.txt").write_text("\n".join(names) + "\n")
    for kind, lines in labels.items():
        (root / f"{kind}_label_kv.txt").write_text("\n".join(lines) + "\n")
    return root


def write_imbalanced_clothing(root: Path) -> Path:
    """Clothing1M of 8x8 pixels: 20 to 111 training photos a class, 38 % symmetric label noise.

    A class has a pattern of its own and five clean test photos.
    """
    draw = np.random.default_rng(0)
    patterns = draw.integers(60, 196, (14, 8, 8, 3))
    (root / "images").mkdir(parents=True)
    for part, kind, counts in (
        ("noisy_train", "noisy", range(20, 112, 7)),
        ("clean_val", "clean", [1] * 14),
        ("clean_test", "clean", [5] * 14),
    ):
        labels = np.repeat(np.arange(14), counts)
        names = [f"images/{part}{i}.png" for i in range(len(labels))]
        for name, label in zip(names, labels, strict=True):
            pixels = patterns[label] + draw.integers(-60, 60, (8, 8, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / name)
        noisy = (draw.random(len(labels)) < 0.38) & (kind == "noisy")
        given = np.where(noisy, draw.integers(0, 14, len(labels)), labels)
        (root / f"{part}_key_list.txt").write_text("\n".join(names))
        with open(root / f"{kind}_label_kv.txt", "a", encoding="utf-8") as file:
            file.writelines(f"{name} {label}\n" for name, label in zip(names, given, strict=True))
    return root
