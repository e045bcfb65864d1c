"""Where tensors live: finding the device, its autocast, its peak memory."""

from __future__ import annotations

import os
import resource
import sys

import torch
from accelerate import PartialState

from dulvos.errors import InputError

__all__ = ["autocast", "cannot_compile", "find_device", "joined_processes", "peak_memory"]


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
    """The context in which an encoder runs: "bf16" computes convolutions in bfloat16, "fp32" changes nothing.

    Unchanged, PyTorch lets a GPU's convolutions round to TF32; `torch.backends.cudnn.allow_tf32 = False` forbids it.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def cannot_compile(device: torch.device) -> str:
    """Why torch.compile does not work on this device (it needs a compiler), or "" where it does."""
    try:
        torch.compile(torch.square)(torch.ones(2, device=device))
    except Exception as error:  # whatever a missing compiler raises
        return f"torch.compile fails ({str(error).strip().splitlines()[0]})"
    return ""


def peak_memory(device: torch.device) -> float:
    """Peak memory in MB: the device's if it is a GPU, else this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
