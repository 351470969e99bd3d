"""What a run depends on: its device, seeds, versions, compilation, memory."""

import sys
import sysconfig

import pytest
import torch

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
    ("gpus", "mps", "name", "found"),
    [
        (2, True, "auto", "cuda:0"),
        (0, True, "auto", "mps"),
        (0, False, "auto", "cpu"),
        (2, True, "cpu", "cpu"),
    ],
)
def test_auto_takes_the_first_available_of_cuda_mps_and_cpu(machine, gpus, mps, name, found):
    machine(gpus, mps)
    assert devices.find_device(name, 0) == torch.device(found)


def test_a_gpu_is_found_by_its_number_and_a_device_that_is_not_there_refused(machine):
    machine(gpus=2, mps=False)
    assert devices.find_device("cuda", 1) == torch.device("cuda", 1)
    with pytest.raises(InputError, match=r"^GPU 2: this machine has 2, numbered from 0;"):
        devices.find_device("cuda", 2)
    with pytest.raises(InputError, match=r"^--device mps: this torch finds none; use --device"):
        devices.find_device("mps", 0)


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
