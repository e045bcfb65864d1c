"""The device that tensors live on, its autocast and its memory."""

from __future__ import annotations

import os
import sys
from functools import lru_cache

import psutil
import torch
from accelerate import PartialState

from dulvos.errors import InputError

__all__ = ["autocast", "cannot_compile", "computed_in", "find_device", "free_memory", "joined_processes", "peak_memory"]
__all__ += ["reading_processes"]


def find_device(device: str | None = None) -> torch.device:
    """The device of that name, after a trial; without a name, a CUDA GPU if there is one, else the CPU.

    Raises:
        InputError: the device is not available.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.zeros(1, device=found).item()  # fails on "meta", whose tensors hold no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {device!r} is not available ({reason}); use 'cpu', or omit it to choose "
                         "automatically") from None
    return found


def joined_processes(device: str | None = None) -> PartialState:
    """This process among those that torchrun started, joined with them: each has a GPU of its own, or all compute on the CPU.

    Raises:
        InputError: they cannot be joined, or not on that device.
    """
    # Left to itself without a GPU, Accelerate joins the processes and yet counts one.
    world = PartialState(cpu=device == "cpu" or not torch.cuda.is_available())
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started > 1 and (world.num_processes != started or device and torch.device(device).type != world.device.type):
        raise InputError(f"{started} processes were started, and they compute on {world.device.type!r} here, {world.num_processes} "
                         f"together; give no device, or start one process")
    return world


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context that an encoder runs in: "bf16" uses bfloat16 if the device can, "fp32" changes nothing.

    With "fp32", PyTorch still lets a GPU's convolutions round to TF32; to forbid that, set
    `torch.backends.cudnn.allow_tf32 = False`.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=computed_in(device.type, precision) == "bf16")


@lru_cache
def computed_in(kind: str, precision: str) -> str:
    """The precision that a kind of device ("cpu", "cuda", ...) computes in: the one asked for, or "fp32".

    Devices without bfloat16 instructions (CPUs with AVX2 only, GPUs before Ampere) would take many times as
    long as with float32, so they use float32; a note says so once.
    """
    if kind == "cpu":
        able = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    else:
        able = kind != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16" and not able:
        print(f"note: this {kind} device computes bfloat16 slowly, so float32 is used instead", flush=True)
        return "fp32"
    return precision


def cannot_compile(device: torch.device) -> str:
    """Why torch.compile does not work on this device (it needs a compiler), or "" where it does."""
    try:
        torch.compile(torch.square)(torch.ones(2, device=device))
    except Exception as error:  # whatever a missing compiler raises
        return f"torch.compile fails ({str(error).strip().splitlines()[0]})"
    return ""


def reading_processes(device: torch.device) -> int:
    """How many worker processes should read clips: none on a CPU, which is busy anyway, else 1 to 8 a GPU."""
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's processes on this machine
    return 0 if device.type == "cpu" else min(8, max(1, ((os.cpu_count() or 2) - 1) // sharing))


def free_memory(device: torch.device) -> int:
    """Free memory of the GPU, or of this machine, in bytes."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def peak_memory(device: torch.device) -> float:
    """Peak memory of the GPU, or of this process, in MB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**20
    import resource  # not on Windows
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
