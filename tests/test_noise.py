"""Noise in the training labels and the files that carry it (method 1).

That generated labels are the published code's, bit for bit, is in test_golden.
"""

import json

import numpy as np
import pytest
import torch
from helpers import write_cifar

from dataloader_cifar import HUMAN_LABELS, HUMAN_MODES, cifar_dataloader, noisy_labels
from smr.data.cifar_files import read_digits
from smr.errors import InputError

# Superclass of each fine class, as CIFAR-100's files give it in `coarse_labels`.
COARSE_OF_FINE = [
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11,
    6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5,
    5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17,
    10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13,
    16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13,
]  # fmt: skip


def clean_labels(n: int = 5000, classes: int = 10) -> np.ndarray:
    return np.arange(n) % classes


def turned(dataset: str, mode: str, classes: int) -> dict[int, int]:
    """Class → class under asymmetric noise of every label."""
    return dict(enumerate(noisy_labels(range(classes), dataset, mode, 1.0, 0)))


def loader(root, noise_mode="sym", r=0.5, dataset="cifar10", **options):
    return cifar_dataloader(dataset, r, noise_mode, 16, 0, root, None, **options)


def test_asymmetric_noise_of_cifar100_turns_circularly_in_blocks_of_five():
    found = turned("cifar100", "asym", 100)
    assert found == {label: label // 5 * 5 + (label + 1) % 5 for label in range(100)}
    assert [found[k] for k in (0, 3, 4, 5, 99)] == [1, 4, 0, 6, 95]


def test_superclass_noise_turns_circularly_inside_the_true_superclasses():
    found = turned("cifar100", "asym_superclass", 100)
    for superclass in range(20):
        fine = [label for label in range(100) if COARSE_OF_FINE[label] == superclass]
        assert [found[label] for label in fine] == fine[1:] + fine[:1]


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_no_noise_is_no_change_and_seeds_give_other_noise(dataset):
    clean = clean_labels(classes=100)[:3000] % 10
    for mode in ("sym", "asym"):
        assert noisy_labels(clean, dataset, mode, 0.0, 1) == clean.tolist()
        first, same, other = (noisy_labels(clean, dataset, mode, 0.5, s) for s in (1, 1, 2))
        assert first == same != other


@pytest.mark.parametrize(("dataset", "mode"), [("digits", "asym"), ("cifar10", "asym_superclass")])
def test_noise_that_a_data_set_has_not_is_refused_in_words(dataset, mode):
    with pytest.raises(InputError, match=f"{mode} is not defined for {dataset}: use sym"):
        noisy_labels([0, 1], dataset, mode, 0.5, 0)


def test_generated_labels_are_those_of_the_seed_and_nothing_is_written(cifar10_folder):
    before = sorted(cifar10_folder.iterdir())
    found = loader(cifar10_folder, r=0.55, seed=7)
    expected = noisy_labels(clean_labels(100), "cifar10", "sym", 0.55, 7)
    assert found.noisy_labels.tolist() == expected
    assert found.is_clean.tolist() == (np.array(expected) == clean_labels(100)).tolist()
    assert sorted(cifar10_folder.iterdir()) == before


def write_human_file(path, clean, dataset="cifar10"):
    """A file in CIFAR-N's form; its labels of mode k are those of class (clean + k) % 10."""
    columns = [HUMAN_LABELS[mode][0] for mode in HUMAN_MODES[dataset]]
    labels = {column: (clean + k) % 10 for k, column in enumerate(columns)}
    torch.save({"clean_label": clean} | labels, path)
    return path


def test_each_set_of_human_labels_is_read_under_its_name(cifar10_folder, cifar100_folder, tmp_path):
    ten, hundred = (cifar10_folder, clean_labels(100)), (cifar100_folder, clean_labels(200, 100))
    for dataset, (folder, clean) in (("cifar10", ten), ("cifar100", hundred)):
        path = write_human_file(tmp_path / "human.pt", clean, dataset)
        for k, mode in enumerate(HUMAN_MODES[dataset]):
            for count in (None, 30):
                found = loader(folder, mode, dataset=dataset, noise_file=path, train_images=count)
                assert found.noisy_labels.tolist() == ((clean + k) % 10).tolist()[:count]


def test_fewer_training_images_are_the_first_ones(cifar10_folder):
    found, whole = (loader(cifar10_folder, r=0.0, train_images=n) for n in (25, None))
    index = np.arange(25)
    assert np.array_equal(found.thumbnails(index), whole.thumbnails(index))
    assert found.noisy_labels.tolist() == clean_labels(25).tolist()
    assert (found.info.train_images, found.info.test_images) == (25, 40)
    with pytest.raises(InputError, match="--train_images 101: there are 100"):
        loader(cifar10_folder, train_images=101)


def test_human_modes_need_their_file_and_only_theirs(cifar10_folder, tmp_path):
    with pytest.raises(InputError, match="needs --noise_file"):
        loader(cifar10_folder, "worst")
    path = write_human_file(tmp_path / "human.pt", clean_labels(100))
    with pytest.raises(InputError, match="CIFAR-N with its --noise_mode, such as worst"):
        loader(cifar10_folder, "sym", noise_file=path)


def test_folder_above_the_official_one_is_found_too(tmp_path):
    folder = write_cifar(tmp_path, "cifar10", 50, 10)
    assert [loader(root).info.train_images for root in (folder.parent, folder)] == [50, 50]


def test_images_and_labels_are_those_of_the_files(cifar10_folder):
    found = loader(cifar10_folder, r=0.0)
    assert found.noisy_labels.tolist() == clean_labels(100).tolist()
    tested = torch.cat([labels for _, labels, _ in found.run("test")])
    assert tested.tolist() == clean_labels(40).tolist()
    assert found.class_names == [f"class{label}" for label in range(10)]
    raw = (cifar10_folder / "data_batch_2").read_bytes()
    last_of_1, first_of_2 = found.thumbnails(np.array([19, 20])).transpose(0, 3, 1, 2)
    assert first_of_2.tobytes() in raw
    assert last_of_1.tobytes() not in raw


def test_digits_are_scikit_learn_s_in_one_fixed_stratified_split():
    data = read_digits()
    assert data.train_images.shape == (1437, 8, 8, 3)
    assert data.test_images.shape == (360, 8, 8, 3)
    assert data.train_images.max() == 255
    assert (data.train_images[..., 0] == data.train_images[..., 2]).all()
    whole = np.bincount(np.concatenate([data.train_labels, data.test_labels]))
    assert np.abs(np.bincount(data.test_labels) - whole / whole.sum() * 360).max() < 1
    assert data.train_labels[:8].tolist() == [3, 9, 1, 3, 1, 9, 4, 4]
    assert (data.train_images == read_digits().train_images).all()


LABELS = [9] * 60 + [0] * 40


def write_npz(path, labels):
    order = np.random.default_rng(0).permutation(len(labels))
    np.savez(path, label=np.array(labels)[order], index=order)


WRITERS = {
    "a.npy": lambda path, labels: np.save(path, np.array(labels)),
    "float.npy": lambda path, labels: np.save(path, np.array(labels, dtype=float)[:, None]),
    "unnamed.npz": lambda path, labels: np.savez(path, np.array(labels)),
    "a.npz": write_npz,
    "a.pt": lambda path, labels: torch.save(torch.tensor(labels), path),
    "old.pt": lambda path, labels: torch.save(
        torch.tensor(labels), path, _use_new_zipfile_serialization=False
    ),
    "list.pt": lambda path, labels: torch.save(labels, path),
    "a.JSON": lambda path, labels: path.write_text(json.dumps(labels)),
    "bom.json": lambda path, labels: path.write_text(json.dumps(labels), encoding="utf-8-sig"),
    "a.csv": lambda path, labels: path.write_text(
        "\ufeffindex,label\n" + "".join(f"{i},{labels[i]}\n" for i in reversed(range(len(labels))))
    ),
    "excel.csv": lambda path, labels: path.write_text(
        '"label";"x"\n' + "".join(f'"{label}.0";"a;b"\n' for label in labels)
    ),
    "plain.csv": lambda path, labels: path.write_text("".join(f"{k}\n" for k in labels)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_labels_are_read_in_any_unambiguous_form(cifar10_folder, tmp_path, name):
    WRITERS[name](tmp_path / name, LABELS)
    found = loader(cifar10_folder, noise_file=tmp_path / name)
    assert found.noisy_labels.tolist() == LABELS
    fewer = loader(cifar10_folder, noise_file=tmp_path / name, train_images=30)
    assert fewer.noisy_labels.tolist() == LABELS[:30]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[1, 2", "no file of labels: Expecting .* expected a list of whole numbers"),
        ("a.json", '{"words": [1]}', "no list of labels; found words; expected a list"),
        ("a.json", "[" + "1.0," * 99 + "1]", "expected a plain list of whole numbers"),
        ("a.json", json.dumps([True] * 100), "expected a plain list of whole numbers"),
        ("a.json", json.dumps([1] * 99), "99 labels for 100 images"),
        ("a.json", json.dumps([10] * 100), "labels from 10 to 10, expected 0 to 9"),
        ("a.json", json.dumps([-1] * 100), "labels from -1 to -1, expected 0 to 9"),
        ("a.csv", "index,label\n0,1\n0,1\n", "its index is not 0 to 1"),
        ("a.csv", "file,words\na,b\n", "no list of labels; found file, words"),
        ("a.csv", "index,label\n0\n", "expected a plain list of whole numbers"),
        ("a.npz", "PK\x03\x04", "no file of labels"),
        ("a.npy", "NUMPY", "no file of labels"),
        ("a.npy", np.array([open], dtype=object), "Object arrays cannot be loaded .*_human.pt"),
        ("a.pt", "no torch file", "not of torch.save's form"),
    ],
)
def test_other_files_of_labels_are_refused_in_a_line(
    cifar10_folder, tmp_path, name, content, message
):
    path = tmp_path / name
    path.write_text(content) if isinstance(content, str) else np.save(path, content)
    with pytest.raises(InputError, match=f"{name}: .*{message}") as refused:
        loader(cifar10_folder, noise_file=path)
    assert "\n" not in str(refused.value)


def test_human_labels_in_tensorflow_s_order_are_refused(cifar10_folder, tmp_path):
    path = write_human_file(tmp_path / "CIFAR-10_human_ordered.pt", clean_labels(100)[::-1].copy())
    with pytest.raises(InputError, match=r"100 images: .*TensorFlow's order.*CIFAR-10_human\.pt"):
        loader(cifar10_folder, "worst", noise_file=path)
