"""The process's memory: how the C library holds it, and the most that was held."""

import ctypes
import resource
import sys

import torch

# Of glibc's mallopt; malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def keep_freed_memory() -> None:
    """Have glibc keep what torch frees on the CPU for the next tensor; elsewhere nothing changes.

    Left to itself it gives each large tensor back to the system and gets it anew, page by page and
    zeroed, in every step: a tenth and more of the time that a CPU trains (benchmarks/RESULTS.md).
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def peak_memory(device: torch.device) -> dict[str, float]:
    """Most memory that this process has held so far, in GiB: `host_gib`, on CUDA `device_gib`."""
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peaks = {"host_gib": held / 2**30 if sys.platform == "darwin" else held / 2**20}
    if device.type == "cuda":
        peaks["device_gib"] = torch.cuda.max_memory_reserved(device) / 2**30
    return peaks
