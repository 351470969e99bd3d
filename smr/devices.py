"""What a run depends on: its device, seeds, versions, compilation, memory."""

import ctypes
import os
import platform
import random
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from smr.errors import InputError

try:
    import resource
except ImportError:  # Windows has none
    resource = None

# Of glibc's mallopt; malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def find_device(name: str, gpuid: int) -> torch.device:
    """The device of --device and --gpuid. Raises InputError if this machine lacks it."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, is_available in available.items() if is_available)
    if not available[name]:
        raise InputError(f"--device {name}: this torch finds none; use --device cpu or auto")
    if name != "cuda":
        return torch.device(name)
    if gpuid >= torch.cuda.device_count():
        raise InputError(
            f"GPU {gpuid}: this machine has {torch.cuda.device_count()}, numbered from 0; "
            "lower --gpuid, or torchrun's --nproc_per_node"
        )
    return torch.device(name, gpuid)


def cpu_count() -> int:
    """The cores that this process may use; all of them where the system cannot tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch; the loader and the GMM take the seed themselves."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def versions() -> dict[str, str]:
    """The versions that a run's numbers depend on."""
    packages = ("torchvision", "numpy", "scikit-learn")
    found = {"python": platform.python_version(), "torch": torch.__version__}
    return found | {name: version(name) for name in packages}


def hardware(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    units, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    return f"{device.type}, {threads} thread{'s' * (threads > 1)}, {platform.machine()} {units}"


def prepare_process(device: torch.device, amp: bool) -> None:
    """Set this process's memory allocation (CPU), current device and TF32 (CUDA) for training."""
    if device.type == "cpu":
        keep_freed_memory()
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.allow_tf32 = amp  # else float32 convolutions round to ten bits


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next tensor; other C libraries stay as they are.

    By default each training step gets large tensors anew, page by page and zeroed: a tenth and
    more of the time on a CPU (benchmarks/RESULTS.md).
    """
    library = ctypes.CDLL(None) if os.name == "posix" else None
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def memory_of(device: torch.device) -> int:
    """Bytes of memory of the device; 0 if unknown."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if not hasattr(os, "sysconf"):  # Windows
        return 0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_memory(device: torch.device) -> dict[str, float]:
    """Peak memory so far in GiB: `memory/host_gib`, and on CUDA `memory/device_gib`."""
    peaks = {}
    if resource:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peaks["memory/host_gib"] = peak / (2**30 if sys.platform == "darwin" else 2**20)
    if device.type == "cuda":
        peaks["memory/device_gib"] = torch.cuda.max_memory_reserved(device) / 2**30
    return peaks


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile works here: it has C or C++ compiled against Python's headers."""
    on_cuda = device.type == "cuda"
    variable, names = ("CC", ("gcc", "clang", "cc")) if on_cuda else ("CXX", ("g++", "clang++"))
    compiler = os.environ.get(variable) or any(map(shutil.which, names))
    headers = Path(sysconfig.get_path("include"), "Python.h").is_file()
    return bool(compiler) and headers and (not on_cuda or find_spec("triton") is not None)


def compile_network(network: nn.Module, batch_sizes: Sequence[int]) -> None:
    """Compile the network for batches of these sizes; it takes others as it is, uncompiled.

    A trailing batch has another size in each epoch: `network.compile()` would compile for each.
    """
    plain = network.forward
    compiled = torch.compile(plain, dynamic=False)

    def forward(images: Tensor) -> Tensor:
        return (compiled if len(images) in batch_sizes else plain)(images)

    network.forward = forward
