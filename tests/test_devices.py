"""What a run stands on: the device that it finds, seeds, versions, compilation, memory."""

import random
import sys
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from smr import devices
from smr.errors import InputError

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def machine(monkeypatch):
    """Makes this a machine of so many CUDA cards, with or without Apple's graphics."""

    def make(cards: int, mps: bool) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cards > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return make


@pytest.mark.parametrize(
    ("cards", "mps", "found"), [(2, True, "cuda:0"), (0, True, "mps"), (0, False, "cpu")]
)
def test_auto_takes_the_first_of_cuda_mps_and_cpu_that_is_there(machine, cards, mps, found):
    machine(cards, mps)
    assert devices.find_device("auto", 0) == torch.device(found)
    assert devices.find_device("cpu", 0) == CPU


def test_a_card_is_found_by_its_number(machine):
    machine(cards=2, mps=False)
    assert devices.find_device("cuda", 1) == torch.device("cuda", 1)
    with pytest.raises(InputError, match=r"^GPU 2: this machine has 2, numbered from 0;"):
        devices.find_device("cuda", 2)


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused(machine, name):
    machine(cards=0, mps=False)
    with pytest.raises(InputError, match=f"^--device {name}: this torch finds none; use --device"):
        devices.find_device(name, 0)


def test_a_seed_is_that_of_python_numpy_and_torch():
    def draw(seed: int) -> tuple:
        devices.seed_everything(seed)
        return random.random(), np.random.rand(), torch.rand(1).item()

    first, again, other = draw(5), draw(5), draw(6)
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_versions_are_those_of_what_numbers_depend_on():
    found = devices.versions()
    assert found.pop("python") == ".".join(map(str, sys.version_info[:3]))
    assert found.pop("torch") == torch.__version__
    assert found == {name: version(name) for name in ("torchvision", "numpy", "scikit-learn")}


def test_hardware_is_the_card_s_name_or_threads_and_vector_units(monkeypatch):
    monkeypatch.setattr(devices.platform, "machine", lambda: "arm64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "SVE256")
    for threads, words in ((1, "1 thread"), (4, "4 threads")):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert devices.hardware(CPU) == f"cpu, {words}, arm64 SVE256"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"a card at {device}")
    assert devices.hardware(CUDA) == "a card at cuda:0"


@pytest.mark.parametrize("amp", [True, False])
def test_a_card_rounds_float32_convolutions_only_where_amp_does(monkeypatch, amp):
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", not amp)
    devices.prepare_process(CUDA, amp)
    assert torch.backends.cudnn.allow_tf32 is amp and chosen == [CUDA]


@pytest.mark.parametrize(("platform", "unit"), [("linux", 2**10), ("darwin", 1)])
def test_memory_is_told_in_gib_whatever_the_system_counts_in(monkeypatch, platform, unit):
    held = SimpleNamespace(ru_maxrss=3 * 2**30 // unit)
    system = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda who: held)
    monkeypatch.setattr(devices, "resource", system)
    monkeypatch.setattr(devices.sys, "platform", platform)
    assert devices.peak_memory(CPU) == {"memory/host_gib": 3}
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 2**29)
    assert devices.peak_memory(CUDA) == {"memory/host_gib": 3, "memory/device_gib": 0.5}


def test_where_the_system_tells_no_memory_none_is_told(monkeypatch):
    monkeypatch.setattr(devices, "resource", None)
    assert devices.peak_memory(CPU) == {}


@pytest.fixture
def tools(monkeypatch, tmp_path):
    """Makes this a machine with these compilers and, where asked, Python's headers and triton."""

    def make(*compilers: str, headers: bool = True, triton: bool = True, **variables: str) -> None:
        for name in ("CC", "CXX"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        if headers:
            (tmp_path / "Python.h").touch()
        monkeypatch.setattr(devices.shutil, "which", lambda name: name if name in compilers else "")
        monkeypatch.setattr(devices.sysconfig, "get_path", lambda name: {"include": tmp_path}[name])
        found = {"triton": object()} if triton else {}
        monkeypatch.setattr(devices, "find_spec", found.get)

    return make


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_a_cpu_compiles_with_any_cxx_compiler(tools, compiler):
    tools(compiler, triton=False)
    assert devices.can_compile(CPU)


@pytest.mark.parametrize("compiler", ["gcc", "clang", "cc"])
def test_a_card_compiles_with_any_c_compiler_and_triton(tools, compiler):
    tools(compiler)
    assert devices.can_compile(CUDA) and not devices.can_compile(CPU)
    tools(compiler, triton=False)
    assert not devices.can_compile(CUDA)


def test_a_compiler_may_be_named_by_the_environment(tools):
    tools(CXX="icpx")
    assert devices.can_compile(CPU) and not devices.can_compile(CUDA)
    tools(CC="icx")
    assert devices.can_compile(CUDA) and not devices.can_compile(CPU)


def test_nothing_compiles_without_python_s_headers(tools):
    tools("g++", "gcc", headers=False)
    assert not devices.can_compile(CPU) and not devices.can_compile(CUDA)


def test_batches_of_the_usual_sizes_alone_go_through_the_compiled_network(monkeypatch):
    def compiled(function, dynamic):
        assert dynamic is False
        return lambda images: function(images) + 100

    monkeypatch.setattr(torch, "compile", compiled)
    network = nn.Identity()
    devices.compile_network(network, [4, 8])
    sizes = [size for size in range(1, 10) if network(torch.zeros(size)).sum() > 0]
    assert sizes == [4, 8]
