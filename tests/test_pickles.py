"""Files from elsewhere run nothing, and damage is told in one line."""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import assert_same

from smr.data.cifar_files import Refused, load_archive, read_cifar, read_pickle
from smr.data.noise_file import read_label_list
from smr.errors import InputError

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def read(path: Path, raw: bytes) -> dict:
    path.write_bytes(raw)
    return read_pickle(path)


def same(found, wanted) -> bool:
    """Whether plain data, NumPy's arrays within, is equal in values and types."""
    if isinstance(wanted, np.ndarray):
        return found.dtype == wanted.dtype and np.array_equal(found, wanted)
    return type(found) is type(wanted) and found == wanted


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pickle_of_plain_data_reads_as_python_reads_it(tmp_path, protocol):
    content = {
        "data": np.arange(600, dtype=np.uint16).astype(np.uint8).reshape(2, 300),
        "columns first": np.asfortranarray(np.arange(12, dtype=np.uint8).reshape(3, 4)),
        "numbers": [0, 255, 256, 65536, -7, 2**40, 0.5, None, True, False],
        "tuples": ((), (1,), (1, 2, 3, 4)),
        "bytes": b"\x00\xff",
    }
    found = read(tmp_path / "a", pickle.dumps(content, protocol=protocol))
    assert list(found) == list(content)
    assert all(same(found[name], content[name]) for name in content)


def test_cifar_files_whose_strings_are_bytes_are_read(cifar10_folder):
    """As Python 3 writes them again after pickle.load(encoding="bytes")."""
    expected = read_cifar(cifar10_folder, "cifar10")
    for path in cifar10_folder.iterdir():
        content = pickle.loads(path.read_bytes(), encoding="bytes")
        assert all(type(key) is bytes for key in content)
        path.write_bytes(pickle.dumps(content))
    assert_same(vars(read_cifar(cifar10_folder, "cifar10")), vars(expected))


class Planted:
    """Creates a file as soon as it is unpickled by Python's own unpickler."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_planted_pickle_is_named_and_runs_nothing(tmp_path, protocol):
    planted = tmp_path / "planted"
    raw = pickle.dumps({"data": Planted(planted)}, protocol=protocol)
    pickle.loads(raw)["data"].close()
    planted.unlink()  # so it works, where it is let
    message = r"a: not a CIFAR file: it asks for '(io|_io|__builtin__|builtins)\.open', which"
    with pytest.raises(InputError, match=message):
        read(tmp_path / "a", raw)
    assert not planted.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("new_form", [True, False])
@pytest.mark.parametrize("protocol", [2, 5])
def test_a_planted_torch_file_is_refused_and_runs_nothing(tmp_path, protocol, new_form):
    path, planted = tmp_path / "CIFAR-10_human.pt", tmp_path / "planted"
    options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": new_form}
    torch.save({"worse_label": Planted(planted)}, path, **options)
    with pytest.raises(InputError, match=r"no file of labels: it is [^\n]* or holds more than"):
        read_label_list(path, 10, 10, column="worse_label")
    assert not planted.exists()


@pytest.mark.parametrize(
    "name",
    [b"os\nsystem", b"numpy\nload", b"builtins\neval", b"builtins\ngetattr", b"numpy.f2py\nx"],
)
def test_no_other_name_is_imported(tmp_path, name):
    # By the stack, as protocol 4 does it, a dotted name may reach into a module.
    words = [*name.split(b"\n")]
    words[1] += b".x"
    by_stack = b"".join(b"\x8c" + bytes([len(word)]) + word for word in words)
    for raw in (b"\x80\x02c" + name + b"\n.", b"\x80\x04" + by_stack + b"\x93."):
        with pytest.raises(InputError, match="it asks for"):
            read(tmp_path / "a", raw)


DTYPE, NDARRAY, ONE = b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"K\x01\x85"
# In operations that torch knows too.
ADDRESS = b"c_codecs\nencode\nX\x08\x00\x00\x00AAAAAAAAX\x06\x00\x00\x00latin1\x86R"
OBJECT, NUMBER, VOID = (
    DTYPE + b"X\x02\x00\x00\x00" + name + b"\x85R" for name in (b"|O", b"i8", b"V8")
)
NAMED_O, NAMED_A = b"X\x01\x00\x00\x00O", b"X\x01\x00\x00\x00a"
FIELDS = NAMED_A + b"\x85}" + NAMED_A + OBJECT + b"K\x00\x86s"
# Arrays of objects that lie wherever the file says: to look at one is to read any memory.
ARRAYS = {
    "an object's type": NDARRAY + ONE + OBJECT + ADDRESS,
    "its name": NDARRAY + ONE + NAMED_O + ADDRESS,
    "a field": NDARRAY + ONE + b"](" + NAMED_A + NAMED_O + b"\x86e" + ADDRESS,
    # A type whose state names a field of objects, and says that it holds none.
    "a state": NDARRAY
    + ONE
    + VOID
    + b"(K\x03X\x01\x00\x00\x00|N"
    + FIELDS
    + b"K\x08K\x01K\x00tb"
    + ADDRESS,
}


@pytest.mark.parametrize("made", ARRAYS.values(), ids=ARRAYS)
def test_no_array_is_laid_over_an_address(tmp_path, made):
    raw = b"\x80\x02}" + NAMED_A + made + b"\x87Rs."
    array = pickle.loads(raw)["a"]
    assert array.dtype.hasobject or array.dtype["a"].hasobject
    path = tmp_path / "a.pt"
    torch.save(torch.zeros(2), path)
    rewritten(path, raw)
    for load in (lambda: read(tmp_path / "a", raw), lambda: load_archive(path)):
        try:
            assert load()["a"].size == 0
        except (InputError, Refused) as error:
            assert "an array that is not of numbers" in str(error)


def test_a_file_cannot_change_a_type_of_numbers(tmp_path):
    flags = b"(K\x03X\x01\x00\x00\x00|NNNK\x08K\x01K?tb"  # as of objects
    read(tmp_path / "a", b"\x80\x02}" + NAMED_A + NUMBER + flags + b"s.")
    assert (np.dtype("i8").flags, np.dtype("i8").hasobject) == (0, False)


IMAGES = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a CIFAR file: it is damaged, cut off or no dict; restore it"),
        (b"no pickle", "not a CIFAR file: it is damaged"),
        (pickle.dumps({"data": IMAGES})[:-20], "not a CIFAR file: it is damaged"),
        (b"\x80\x02Nr\xff\xff\xff\xff", "not a CIFAR file: it is damaged"),
        (b"\x80\x02" + DTYPE + b"X\x02\x00\x00\x00no\x85R.", "not a CIFAR file: it is damaged"),
        ([1, 2], "not a CIFAR file: it is damaged, cut off or no dict; restore it"),
        ({"labels": [0]}, "'data' is not rows of 3072 bytes"),
        ({"data": IMAGES.astype(float), "labels": [0, 1]}, "'data' is not rows of 3072 bytes"),
        ({"data": IMAGES[:0], "labels": []}, "'data' is not rows of 3072 bytes"),
        ({"data": IMAGES, "labels": np.zeros(2)}, "labels: expected a plain list of whole numbers"),
        ({"data": IMAGES, "labels": [0]}, "labels: 1 labels for 2 images"),
    ],
)
def test_a_damaged_cifar_file_is_told_in_one_line(cifar10_folder, content, message):
    raw = content if isinstance(content, bytes) else pickle.dumps(content)
    (cifar10_folder / "data_batch_2").write_bytes(raw)
    with pytest.raises(InputError) as refused:
        read_cifar(cifar10_folder, "cifar10")
    assert f"data_batch_2: {message}" in str(refused.value) and "\n" not in str(refused.value)


def rewritten(path: Path, data_pkl: bytes) -> None:
    """Replace the pickle of the archive at `path`."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, raw in parts.items():
            archive.writestr(name, data_pkl if name.endswith("/data.pkl") else raw)


def test_the_human_labels_of_cifar_n_load_as_they_are_published(tmp_path):
    # As its authors' file: a dict of NumPy's int64 arrays, NumPy's names those before version 2.
    clean = np.arange(50) % 10
    path = tmp_path / "CIFAR-10_human.pt"
    torch.save({"clean_label": clean, "worse_label": (clean + 1) % 10}, path)
    with zipfile.ZipFile(path) as archive:
        raw = archive.read("CIFAR-10_human/data.pkl").replace(b"numpy._core.", b"numpy.core.")
    assert b"cnumpy.core.multiarray" in raw
    for names in (b"numpy.core.", b"numpy._core."):
        rewritten(path, raw.replace(b"numpy.core.", names))
        labels = read_label_list(path, 50, 10, column="worse_label", clean=clean)
        assert labels.tolist() == ((clean + 1) % 10).tolist()


def test_a_state_dict_and_numpy_s_whole_numbers_load(tmp_path):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.BatchNorm2d(2))
    kinds = np.typecodes["AllInteger"]
    content = {kind: np.arange(10, dtype=kind).reshape(2, 5) for kind in kinds} | {"words": "a"}
    torch.save(content | {"network": network.state_dict()}, tmp_path / "a.pt")
    loaded = load_archive(tmp_path / "a.pt")
    assert all(same(loaded[name], content[name]) for name in content)
    assert isinstance(loaded["network"], OrderedDict)
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded["network"][name], tensor)


def test_a_changed_byte_of_a_tensor_is_found(tmp_path):
    path = tmp_path / "a.pt"
    torch.save(torch.full((1000,), 7.0), path)
    raw = bytearray(path.read_bytes())
    raw[raw.index(np.full(10, 7, np.float32).tobytes()) + 20] ^= 1
    path.write_bytes(raw)
    with pytest.raises(Refused, match=r"it is damaged: a/data/0 has another checksum"):
        load_archive(path)
