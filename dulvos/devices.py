"""Where tensors live: finding the device, its autocast, its peak memory."""

from __future__ import annotations

import os
import resource
import sys
from functools import lru_cache

import psutil
import torch
from accelerate import PartialState

from dulvos.errors import InputError

__all__ = ["autocast", "cannot_compile", "computed_in", "find_device", "free_memory", "joined_processes", "peak_memory"]
__all__ += ["reading_processes"]


def find_device(device: str | None = None) -> torch.device:
    """The device of that name, tried out; without a name, a CUDA device where there is one, else the CPU.

    Raises:
        InputError: no such device here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.zeros(1, device=found).item()  # "meta" has tensors, but no numbers in them
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device={device!r} is not to be had here ({str(error).splitlines()[0]}); give 'cpu', or nothing for "
                         "what there is") from None
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
    """The context in which an encoder runs: "bf16" computes convolutions in bfloat16 where the device can, "fp32" changes nothing.

    Unchanged, PyTorch lets a GPU's convolutions round to TF32; `torch.backends.cudnn.allow_tf32 = False` forbids it.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=computed_in(device.type, precision) == "bf16")


@lru_cache
def computed_in(kind: str, precision: str) -> str:
    """What convolutions are computed in on a kind of device ("cpu", "cuda", ...): the precision asked for, or "fp32", said once.

    Without instructions for it (processors of AVX2, GPUs before Ampere) PyTorch computes bfloat16 many times slower than float32.
    """
    if kind == "cpu":
        able = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    else:
        able = kind != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16" and not able:
        print(f"note: this {kind} device computes bfloat16 slowly, so float32 is taken (precision='bf16' was asked for)", flush=True)
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
    """How many processes should read clips for a training there: none beside a processor's own work, else some a GPU."""
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # of torchrun, on this machine
    return 0 if device.type == "cpu" else min(8, max(1, ((os.cpu_count() or 2) - 1) // sharing))


def free_memory(device: torch.device) -> int:
    """Bytes that are free: the GPU's, else this machine's."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def peak_memory(device: torch.device) -> float:
    """Peak memory in MB: the device's if it is a GPU, else this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
