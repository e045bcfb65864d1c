"""Devices: choose one, join several processes, choose a precision, measure memory."""

import atexit
import os
import sys
from contextlib import suppress
from functools import lru_cache

import psutil
import torch
from torch import distributed

from dulvos.errors import InputError

__all__ = ["autocast", "computed_in", "find_device", "fitting_processes", "free_memory",
           "joined_processes", "peak_memory", "reading_processes"]


def find_device(device: str | None = None) -> torch.device:
    """The device of that name, after a test; without a name a CUDA GPU if there is one, else the CPU.

    Raises:
        InputError: the device is not available.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.zeros(1, device=found).item()  # fails on "meta", whose tensors hold no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        line = str(error).splitlines()[0]
        reason = f"not available ({line})"
        if line.startswith("Expected one of"):
            reason = "unknown; a GPU is called 'cuda', or 'mps' on a Mac"
        raise InputError(f"device {device!r} is {reason}; use 'cpu', or omit it to choose automatically"
                         ) from None
    return found


def joined_processes(device: str | None = None) -> tuple[int, int, torch.device]:
    """Join the processes that torchrun started: each has its own GPU (nccl), or all share the CPU (gloo).

    Returns:
        rank of this process, number of processes, device.

    Raises:
        InputError: the device is not available, or the processes cannot find each other.
    """
    place, processes = find_device(device), int(os.environ.get("WORLD_SIZE", 1))
    if processes == 1:
        return 0, 1, place
    if place.type == "cuda":
        place = find_device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}")
        torch.cuda.set_device(place)
    if not distributed.is_initialized():
        try:
            distributed.init_process_group("nccl" if place.type == "cuda" else "gloo")
        except (ValueError, RuntimeError) as error:
            raise InputError(f"WORLD_SIZE={processes}, but the processes cannot be joined ({error}); start "
                             "them with torchrun, or unset WORLD_SIZE") from None
        atexit.register(distributed.destroy_process_group)
    return distributed.get_rank(), distributed.get_world_size(), place


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context for running an encoder: "bf16" uses bfloat16 if the device can, "fp32" changes nothing.

    On a GPU, convolutions still round to TF32 unless `torch.backends.cudnn.allow_tf32` is False.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=computed_in(device.type, precision) == "bf16")


@lru_cache
def computed_in(kind: str, precision: str) -> str:
    """The precision in which a kind of device ("cpu", "cuda", ...) computes: the one asked for, or "fp32".

    On devices without bfloat16 instructions (CPUs with only AVX2, GPUs before Ampere) float32 is many times
    faster, so it is used there, and a note says so once.
    """
    if kind == "cpu":
        able = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    else:
        able = kind != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16" and not able:
        print(f"note: this {kind} device computes bfloat16 slowly, so float32 is used instead", flush=True)
        return "fp32"
    return precision


def reading_processes(device: torch.device) -> int:
    """Number of processes that should read clips: none for a CPU, which is busy anyway; 1 to 8 for a GPU."""
    from dask.system import CPU_COUNT  # here, to keep `import dulvos` fast
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's processes on this machine
    return 0 if device.type == "cpu" else min(8, max(1, (CPU_COUNT - 1) // sharing))


def peak_memory(device: torch.device) -> float:
    """Peak memory since this process began, in MB: of the GPU, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**20
    import resource  # not on Windows
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def fitting_processes(wanted: int, size: int, shared: str = "/dev/shm") -> int:
    """At most `wanted` processes: as many as have room in shared memory for batches of `size` bytes.

    Containers often have only 64 MB, and the processes of torchrun share them.
    """
    fitting, sharing = wanted, int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    with suppress(OSError):  # not every system has the folder
        # two batches wait while one is read
        fitting = min(wanted, psutil.disk_usage(shared).free // (3 * size * sharing))
    if fitting < wanted:
        print(f"note: {shared} is small, so {fitting} processes read clips instead of {wanted} (docker run "
              "--shm-size=2g makes it larger)", flush=True)
    return fitting


def free_memory(device: torch.device) -> int:
    """Free bytes: of the GPU, or of the machine within the limits of this process's container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    from distributed.system import memory_limit  # here, to keep `import dulvos` fast
    here = memory_limit() - psutil.Process().memory_info().rss
    return max(0, min(psutil.virtual_memory().available, here))
