"""Files from elsewhere run nothing, and need no more memory than they are large."""

import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from helpers import write_python2_pickle

from batches import InputError
from dataloader_cifar import read_cifar, read_human_labels
from support import untrusted
from support.untrusted import Refused

MB = 2**20


def read(raw: bytes):
    return untrusted.unpickle(raw, untrusted.numpy_names(len(raw)))


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_a_pickle_of_plain_data_reads_as_python_reads_it(protocol):
    rows = np.arange(2 * 3072, dtype=np.uint16).astype(np.uint8).reshape(2, 3072)
    numbers = [0, 255, 256, 65536, -7, 2**40, 0.5, None, True, False]
    content = {b"data": rows, b"numbers": numbers, b"tuples": ((), (1,), (1, 2, 3, 4))}
    found = read(pickle.dumps(content, protocol=protocol))
    np.testing.assert_array_equal(found[b"data"].values, rows)
    assert found[b"numbers"] == numbers
    assert found[b"tuples"] == content[b"tuples"]


def test_an_array_in_fortran_order_keeps_its_rows():
    rows = np.asfortranarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    np.testing.assert_array_equal(read(pickle.dumps(rows, protocol=2)).values, rows)


class Planted:
    """Creates a file as soon as it is unpickled by Python's own unpickler."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_planted_pickle_is_named_and_runs_nothing(tmp_path, protocol):
    path, planted = tmp_path / "file", tmp_path / "planted"
    path.write_bytes(pickle.dumps({b"data": Planted(planted)}, protocol=protocol))
    pickle.loads(path.read_bytes())[b"data"].close()
    planted.unlink()  # so it works, where it is let
    with pytest.raises(Refused, match="no such file needs"):
        read(path.read_bytes())
    assert not planted.exists()


def test_a_planted_cifar_file_is_refused_in_one_line(cifar10_folder, tmp_path):
    batch = cifar10_folder / "data_batch_2"
    batch.write_bytes(pickle.dumps({b"data": Planted(tmp_path / "planted")}, protocol=2))
    with pytest.raises(InputError, match=r"data_batch_2: not a CIFAR file: .*'.*open'") as refused:
        read_cifar(cifar10_folder, "cifar10")
    assert "\n" not in str(refused.value) and not (tmp_path / "planted").exists()


def test_a_planted_torch_file_is_refused_and_runs_nothing(tmp_path):
    path, planted = tmp_path / "CIFAR-10_human.pt", tmp_path / "planted"
    torch.save({"worse_label": Planted(planted)}, path)
    with pytest.raises(InputError, match=r"human.pt: no CIFAR-N label file: .*open"):
        read_human_labels(path, "worst", np.zeros(10, np.int64))
    assert not planted.exists()


def array_of(shape: bytes, raw: bytes) -> bytes:
    """The pickle of a uint8 array with this shape and content, each a pickle's operations."""
    return (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
        b"(K\x01" + shape + b"cnumpy\ndtype\nC\x02u1K\x00K\x01\x87R"
        b"(K\x03C\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89" + raw + b"tb."
    )


def test_the_hand_made_array_is_one():
    assert read(array_of(b"K\x02\x85", b"C\x02\x07\x08")).values.tolist() == [7, 8]


HUGE = {
    "memo at 4 billion": b"\x80\x02Nr\xff\xff\xff\xff0.",
    "string of 4 GB": b"\x80\x02X\xff\xff\xff\xff.",
    "bytes of 4 GB": b"\x80\x03B\xff\xff\xff\xff.",
    "bytes of 2^62": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".",
    "bytearray of 2^62": b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b".",
    "frame of 2^62": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b".",
    "array of 2^31": array_of(b"J\xff\xff\xff\x7f\x85", b"C\x01\x07"),
    "array made of 2^31": b"\x80\x02cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85R.",
    "nothing but lists": b"\x80\x02" + b"]" * (4 * MB) + b".",
    "lists in lists": b"\x80\x02" + b"]" * 90_000 + b"a" * 89_999 + b"0.",
    "marks": b"\x80\x02" + b"(" * MB,
    "one string encoded for ever": b"\x80\x02c_codecs\nencode\nq\x00X\x00\x00\x10\x00"
    + b"a" * MB
    + b"q\x01"
    + b"h\x00h\x01C\x06latin1\x86R" * 50_000,
}


@pytest.mark.parametrize("raw", HUGE.values(), ids=HUGE.keys())
def test_a_small_pickle_gets_no_large_memory(raw):
    tracemalloc.start()
    try:
        with pytest.raises(Refused):
            read(raw)
        assert tracemalloc.get_traced_memory()[1] < 32 * MB + 2 * len(raw)
    finally:
        tracemalloc.stop()


def test_a_state_dict_and_numpy_s_whole_numbers_load(tmp_path):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.BatchNorm2d(2))
    labels = np.arange(100).reshape(10, 10)
    content = {"network": network.state_dict(), "labels": labels, "empty": torch.zeros(0, 3)}
    torch.save(content, tmp_path / "a.pt")
    loaded = untrusted.load_archive(tmp_path / "a.pt")
    np.testing.assert_array_equal(loaded["labels"], labels)
    for name, tensor in network.state_dict().items():
        assert torch.equal(loaded["network"][name], tensor)


def rewritten(path, compression=zipfile.ZIP_STORED, **changed):
    """The archive at `path` with the content of some of its parts replaced."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, raw in parts.items():
            part = name.rsplit("/", 1)[1]
            archive.writestr(name, changed.get(part.replace(".", "_"), raw))
    return path


def saved(path, content):
    torch.save(content, path)
    return path


def test_an_archive_whose_parts_are_packed_is_refused(tmp_path):
    path = rewritten(saved(tmp_path / "a.pt", torch.zeros(10 * MB)), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < MB
    with pytest.raises(Refused, match="packed"):
        untrusted.load_archive(path)


def test_a_tensor_larger_than_its_memory_is_refused(tmp_path):
    raw = zipfile.ZipFile(saved(tmp_path / "a.pt", torch.zeros(5))).read("a/data.pkl")
    size = b"K\x05\x85"
    assert raw.count(size) == 1
    path = rewritten(tmp_path / "a.pt", data_pkl=raw.replace(size, b"J\xff\xff\xff\x7f\x85"))
    with pytest.raises(Refused, match="beyond its memory"):
        untrusted.load_archive(path)


def test_memory_larger_than_the_file_is_refused(tmp_path):
    raw = zipfile.ZipFile(saved(tmp_path / "a.pt", torch.zeros(5))).read("a/data.pkl")
    count = b"K\x05tq"
    assert raw.count(count) == 1
    path = rewritten(tmp_path / "a.pt", data_pkl=raw.replace(count, b"J\xff\xff\xff\x7ftq"))
    with pytest.raises(Refused, match="not of the size"):
        untrusted.load_archive(path)


def test_a_bytearray_of_a_gigabyte_is_refused(tmp_path):
    path = saved(tmp_path / "a.pt", torch.zeros(5))
    rewritten(path, data_pkl=b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x40\x85R.")
    with pytest.raises(Refused, match="bytearray"):
        untrusted.load_archive(path)


def test_a_changed_byte_of_a_tensor_is_found(tmp_path):
    path = saved(tmp_path / "a.pt", torch.full((1000,), 7.0))
    raw = bytearray(path.read_bytes())
    raw[raw.index(struct.pack("<10f", *[7.0] * 10)) + 20] ^= 1
    path.write_bytes(raw)
    with pytest.raises(Refused, match="damaged"):
        untrusted.load_archive(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"x" * 1000])
def test_what_is_no_archive_is_refused(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(Refused, match=r"not of torch\.save's form"):
        untrusted.load_archive(tmp_path / "a.pt")


def test_a_batch_under_another_one_s_name_is_refused(cifar10_folder):
    content = {"data": np.zeros((4, 3072), np.uint8), "labels": [0, 1, 2, 3]}
    batch = cifar10_folder / "data_batch_2"
    write_python2_pickle(batch, content | {"batch_label": "training batch 2 of 5"})
    assert len(read_cifar(cifar10_folder, "cifar10").train_images) == 84
    write_python2_pickle(batch, content | {"batch_label": "testing batch 1 of 1"})
    with pytest.raises(InputError, match="data_batch_2: another file stands under this name"):
        read_cifar(cifar10_folder, "cifar10")
