"""What a run depends on: its device, seeds, versions, compilation, memory."""

import platform
import random
import sys
import sysconfig
from importlib.metadata import version

import numpy as np
import pytest
import torch
from torch import nn

from smr import devices
from smr.errors import InputError

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def machine(monkeypatch):
    """Makes this a machine of so many CUDA GPUs, with or without Apple's."""

    def make(gpus: int, mps: bool) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return make


@pytest.mark.parametrize(
    ("gpus", "mps", "found"), [(2, True, "cuda:0"), (0, True, "mps"), (0, False, "cpu")]
)
def test_auto_takes_the_first_available_of_cuda_mps_and_cpu(machine, gpus, mps, found):
    machine(gpus, mps)
    assert devices.find_device("auto", 0) == torch.device(found)
    assert devices.find_device("cpu", 0) == CPU


def test_a_gpu_is_found_by_its_number(machine):
    machine(gpus=2, mps=False)
    assert devices.find_device("cuda", 1) == torch.device("cuda", 1)
    with pytest.raises(InputError, match=r"^GPU 2: this machine has 2, numbered from 0;"):
        devices.find_device("cuda", 2)


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_is_not_available_is_refused(machine, name):
    machine(gpus=0, mps=False)
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


def test_hardware_is_the_gpu_s_name_or_threads_and_vector_units(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "SVE256")
    assert devices.hardware(CPU) == "cpu, 1 thread, arm64 SVE256"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert devices.hardware(CPU) == "cpu, 4 threads, arm64 SVE256"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"a GPU at {device}")
    assert devices.hardware(CUDA) == "a GPU at cuda:0"


@pytest.mark.parametrize("amp", [True, False])
def test_a_gpu_rounds_float32_convolutions_only_with_amp(monkeypatch, amp):
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", not amp)
    devices.prepare_process(CUDA, amp)
    assert torch.backends.cudnn.allow_tf32 is amp and chosen == [CUDA]


@pytest.mark.parametrize(
    ("variables", "cpu", "cuda"),
    [
        ({"PATH": "g++"}, True, False),
        ({"PATH": "clang++"}, True, False),
        ({"PATH": "gcc"}, False, True),
        ({"PATH": "clang"}, False, True),
        ({"PATH": "cc"}, False, True),
        ({"CXX": "icpx"}, True, False),
        ({"CC": "icx"}, False, True),
    ],
    ids=str,
)
def test_a_cpu_compiles_with_cxx_and_a_gpu_with_c_and_triton(
    monkeypatch, tmp_path, variables, cpu, cuda
):
    folder, modules = tmp_path / "bin", tmp_path / "modules"
    for path in (folder / variables.pop("PATH", "none"), modules / "triton.py"):
        path.parent.mkdir()
        path.touch(0o755)
    monkeypatch.setattr(sysconfig, "get_path", {"include": tmp_path}.get)
    for name, value in ({"PATH": str(folder), "CC": "", "CXX": ""} | variables).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "path", [str(modules)])
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    assert not devices.can_compile(CPU) and not devices.can_compile(CUDA)  # no headers
    (tmp_path / "Python.h").touch()
    assert (devices.can_compile(CPU), devices.can_compile(CUDA)) == (cpu, cuda)
    monkeypatch.setattr(sys, "path", [])
    assert (devices.can_compile(CPU), devices.can_compile(CUDA)) == (cpu, False)


def test_batches_of_the_usual_sizes_alone_go_through_the_compiled_network(monkeypatch):
    def compiled(function, dynamic):
        assert dynamic is False
        return lambda images: function(images) + 100

    monkeypatch.setattr(torch, "compile", compiled)
    network = nn.Identity()
    devices.compile_network(network, [4, 8])
    sizes = [size for size in range(1, 10) if network(torch.zeros(size)).sum() > 0]
    assert sizes == [4, 8]
