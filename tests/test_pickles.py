"""Files from elsewhere run nothing, and damage is told in one line."""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from helpers import Python2Pickler, write_python2_pickle

from dataloader_cifar import read_cifar, read_human_labels
from smr.data.cifar_files import Refused, load_archive, unpickle
from smr.errors import InputError


def same(found, wanted) -> bool:
    """Whether plain data, NumPy's arrays within, is equal in values and types."""
    if isinstance(wanted, np.ndarray):
        return found.dtype == wanted.dtype and np.array_equal(found, wanted)
    if isinstance(wanted, dict):
        return list(found) == list(wanted) and all(same(found[k], wanted[k]) for k in wanted)
    return type(found) is type(wanted) and found == wanted


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_of_plain_data_reads_as_python_reads_it(protocol):
    content = {
        b"data": np.arange(600, dtype=np.uint16).astype(np.uint8).reshape(2, 300),
        b"columns first": np.asfortranarray(np.arange(12, dtype=np.uint8).reshape(3, 4)),
        b"numbers": [0, 255, 256, 65536, -7, 2**40, 0.5, None, True, False],
        b"tuples": ((), (1,), (1, 2, 3, 4)),
    }
    assert same(unpickle(pickle.dumps(content, protocol=protocol)), content)


def test_strings_of_python_2_stay_bytes_and_its_arrays_load():
    rows, raw = np.arange(6, dtype=np.uint8).reshape(2, 3), io.BytesIO()
    Python2Pickler(raw, protocol=2).dump({"data": rows, "name": "a\xe9"})
    written = raw.getvalue().replace(b"cnumpy._core.", b"cnumpy.core.")
    found = unpickle(written)
    assert same(found, {b"data": rows, b"name": "a\xe9".encode()})


class Planted:
    """Creates a file as soon as it is unpickled by Python's own unpickler."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_planted_pickle_is_named_and_runs_nothing(tmp_path, protocol):
    planted = tmp_path / "planted"
    raw = pickle.dumps({b"data": Planted(planted)}, protocol=protocol)
    pickle.loads(raw)[b"data"].close()
    planted.unlink()  # so it works, where it is let
    with pytest.raises(Refused, match=r"it asks for '(io|_io|__builtin__|builtins)\.open', which"):
        unpickle(raw)
    assert not planted.exists()


@pytest.mark.parametrize(
    "name",
    [b"os\nsystem", b"numpy\nload", b"builtins\neval", b"builtins\ngetattr", b"numpy.f2py\nx"],
)
def test_no_other_name_is_imported(name):
    with pytest.raises(Refused, match="it asks for"):
        unpickle(b"\x80\x02c" + name + b"\n.")
    with pytest.raises(Refused, match="it asks for"):
        # By the stack, as protocol 4 does it, where a dotted name may reach into a module.
        module, attribute = name.split(b"\n")
        words = b"".join(b"\x8c" + bytes([len(w)]) + w for w in (module, attribute + b".x"))
        unpickle(b"\x80\x04" + words + b"\x93.")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"no pickle",
        pickle.dumps({b"data": np.zeros(9)}, protocol=2)[:-20],
        b"\x80\x02Nr\xff\xff\xff\xff",  # cut off
        b"\x80\x02cnumpy\nndarray\n)R(K\x01K\x01tb.",  # an array without a type and a content
        b"\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00no\x85R.",  # a type of numbers that is none
    ],
)
def test_a_damaged_pickle_is_refused(raw):
    with pytest.raises(Refused, match="it is damaged or cut off"):
        unpickle(raw)


DTYPE, NDARRAY = b"cnumpy\ndtype\n", b"cnumpy\nndarray\n"
ADDRESS = b"C\x08AAAAAAAA"
# The same without an operation that torch does not know.
LATIN1_ADDRESS = b"c_codecs\nencode\nX\x08\x00\x00\x00AAAAAAAAX\x06\x00\x00\x00latin1\x86R"
# Arrays of objects that lie wherever the file says: to look at one is to read any memory.
OBJECTS = {
    "an object's type": NDARRAY + b"K\x01\x85" + DTYPE + b"X\x01\x00\x00\x00O\x85R" + ADDRESS,
    "its name": NDARRAY + b"K\x01\x85X\x01\x00\x00\x00O" + ADDRESS,
    "a field": NDARRAY + b"K\x01\x85](X\x01\x00\x00\x00aX\x01\x00\x00\x00O\x86e" + ADDRESS,
}


@pytest.mark.parametrize("made", OBJECTS.values(), ids=OBJECTS)
def test_no_array_is_laid_over_an_address(made):
    raw = b"\x80\x03" + made + b"\x87R."
    assert pickle.loads(raw).dtype.hasobject
    try:
        assert unpickle(raw).size == 0
    except Refused as refused:
        assert "it holds an array" in str(refused) or "damaged" in str(refused)


def test_flags_of_a_type_s_state_change_no_array():
    # A type of 8 bytes whose state names a field of objects, and says that it holds none.
    fields = (
        b"X\x01\x00\x00\x00a\x85}X\x01\x00\x00\x00a" + DTYPE + b"X\x01\x00\x00\x00O\x85RK\x00\x86s"
    )
    state = b"(K\x03X\x01\x00\x00\x00|N" + fields + b"K\x08K\x01K\x00tb"
    kind = DTYPE + b"X\x02\x00\x00\x00V8\x85R" + state
    raw = b"\x80\x03" + NDARRAY + b"K\x01\x85" + kind + ADDRESS + b"\x87R."
    assert pickle.loads(raw).dtype["a"].hasobject
    with pytest.raises(Refused, match="it holds an array that is not of numbers"):
        unpickle(raw)


@pytest.mark.parametrize("kind", [">i4", "<f8", ">u2", "?"])
@pytest.mark.parametrize("protocol", [2, 5])
def test_numbers_of_either_byte_order_load(kind, protocol):
    values = np.array([0, 1, 1], dtype=kind)
    found = unpickle(pickle.dumps(values, protocol=protocol))
    assert found.dtype.newbyteorder("=") == values.dtype.newbyteorder("=")
    assert found.tolist() == values.tolist()


@pytest.mark.parametrize("made", OBJECTS.values(), ids=OBJECTS)
def test_no_array_of_an_archive_is_laid_over_an_address(tmp_path, made):
    path = saved(tmp_path / "a.pt", torch.zeros(2))
    rewritten(path, data_pkl=b"\x80\x02" + made.replace(ADDRESS, LATIN1_ADDRESS) + b"\x87R.")
    try:
        assert load_archive(path).size == 0
    except Refused as refused:
        assert "it holds an array" in str(refused) or "damaged" in str(refused)


def one_line(refused) -> str:
    message = str(refused.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps([1, 2]), "data_batch_2: not a CIFAR file; restore it"),
        (pickle.dumps({1: 2}), "data_batch_2: not a CIFAR file; restore it"),
        (pickle.dumps({b"\xff": 2}), "data_batch_2: not a CIFAR file; restore it"),
        (pickle.dumps({"labels": [0]}), "data_batch_2: 'data' is not rows of 3072 bytes"),
        (
            pickle.dumps({"data": np.zeros((2, 3072)), "labels": [0, 1]}),
            "'data' is not rows of 3072 bytes",
        ),
        (
            pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": np.zeros(2)}),
            "data_batch_2: labels: expected a plain list of whole numbers",
        ),
        (
            pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}),
            "data_batch_2: labels: 1 labels for 2 images",
        ),
        (
            pickle.dumps({"data": np.zeros((0, 3072), np.uint8), "labels": []}),
            "data_batch_2: holds no image",
        ),
        (b"", "data_batch_2: not a CIFAR file: it is damaged or cut off; restore it"),
        (b"cio\nopen\n.", "data_batch_2: not a CIFAR file: it asks for 'io.open'"),
    ],
)
def test_a_damaged_cifar_file_is_told_in_one_line(cifar10_folder, content, message):
    (cifar10_folder / "data_batch_2").write_bytes(content)
    with pytest.raises(InputError) as refused:
        read_cifar(cifar10_folder, "cifar10")
    assert message in one_line(refused)


def test_a_batch_under_another_one_s_name_is_refused(cifar10_folder):
    content = {"data": np.zeros((4, 3072), np.uint8), "labels": [0, 1, 2, 3]}
    batch = cifar10_folder / "data_batch_2"
    write_python2_pickle(batch, content | {"batch_label": "training batch 2 of 5"})
    assert len(read_cifar(cifar10_folder, "cifar10").train_images) == 84
    write_python2_pickle(batch, content | {"batch_label": "testing batch 1 of 1"})
    with pytest.raises(InputError, match="data_batch_2: another file stands under this name"):
        read_cifar(cifar10_folder, "cifar10")


def saved(path, content):
    torch.save(content, path)
    return path


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_planted_torch_file_is_refused_and_runs_nothing(tmp_path, protocol):
    path, planted = tmp_path / "CIFAR-10_human.pt", tmp_path / "planted"
    torch.save({"worse_label": Planted(planted)}, path, pickle_protocol=protocol)
    with pytest.raises(InputError) as refused:
        read_human_labels(path, "worst", np.zeros(10, np.int64))
    assert "no file of labels: it holds more than numbers and text" in one_line(refused)
    assert not planted.exists()


def test_the_human_labels_of_cifar_n_load_as_they_are_published(tmp_path):
    # As its authors' file: a dict of NumPy's int64 arrays, NumPy's names those before version 2.
    clean = np.arange(50) % 10
    content = {"clean_label": clean, "worse_label": (clean + 1) % 10, "aggre_label": clean}
    path = saved(tmp_path / "CIFAR-10_human.pt", content)
    assert read_human_labels(path, "worst", clean).tolist() == ((clean + 1) % 10).tolist()
    raw = part_of(path)
    names = [b"numpy.core.multiarray", b"numpy._core.multiarray"]
    assert sum(raw.count(name) for name in names) > 0
    for name in names:
        for other in names:
            raw = raw.replace(other, name) if other != name else raw
        rewritten(path, data_pkl=raw)
        assert read_human_labels(path, "aggre", clean).tolist() == clean.tolist()


def test_a_state_dict_and_numpy_s_whole_numbers_load(tmp_path):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.BatchNorm2d(2))
    content = {"network": network.state_dict(), "empty": torch.zeros(0, 3), "words": "a text"}
    for kind in np.typecodes["AllInteger"]:
        content[kind] = np.arange(10, dtype=kind).reshape(2, 5)
    loaded = load_archive(saved(tmp_path / "a.pt", content))
    for kind in np.typecodes["AllInteger"]:
        assert same(loaded[kind], content[kind])
    assert isinstance(loaded["network"], OrderedDict)
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded["network"][name], tensor)
    assert loaded["empty"].shape == (0, 3)
    assert loaded["words"] == "a text"


def part_of(path, part: str = "data.pkl") -> bytes:
    """The content of an archive's part."""
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(f"/{part}"))
        return archive.read(name)


def rewritten(path, **changed) -> None:
    """Replace the content of some of the parts of the archive at `path`."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, raw in parts.items():
            part = name.rsplit("/", 1)[1]
            archive.writestr(name, changed.get(part.replace(".", "_"), raw))


@pytest.mark.parametrize("larger", [b"K\x05\x85", b"K\x05tq"], ids=["its size", "its memory"])
def test_a_tensor_beyond_its_memory_is_refused(tmp_path, larger):
    path = saved(tmp_path / "a.pt", torch.zeros(5))
    raw = part_of(path)
    assert raw.count(larger) == 1
    rewritten(path, data_pkl=raw.replace(larger, b"J\xff\xff\xff\x7f" + larger[2:]))
    with pytest.raises(Refused, match=r"it is damaged"):
        load_archive(path)


def test_a_changed_byte_of_a_tensor_is_found(tmp_path):
    path = saved(tmp_path / "a.pt", torch.full((1000,), 7.0))
    raw = bytearray(path.read_bytes())
    raw[raw.index(struct.pack("<10f", *[7.0] * 10)) + 20] ^= 1
    path.write_bytes(raw)
    with pytest.raises(Refused, match=r"it is damaged: a/data/0 has another checksum"):
        load_archive(path)


def test_what_is_no_archive_is_refused(tmp_path):
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("a/readme.txt", "nothing to load")
    for content in (b"", b"PK\x03\x04", b"x" * 1000, other.getvalue()):
        (tmp_path / "a.pt").write_bytes(content)
        with pytest.raises(Refused, match="it is damaged, cut off, or not of"):
            load_archive(tmp_path / "a.pt")


def test_an_archive_cut_anywhere_is_refused(tmp_path):
    whole = saved(tmp_path / "a.pt", torch.zeros(5)).read_bytes()
    for length in range(0, len(whole), 37):
        (tmp_path / "b.pt").write_bytes(whole[:length])
        with pytest.raises(Refused):
            load_archive(tmp_path / "b.pt")


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(Refused, match="there is no such file"):
        load_archive(tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"human.pt: no file of labels: there is no such file"):
        read_human_labels(tmp_path / "human.pt", "worst", np.zeros(10, np.int64))
