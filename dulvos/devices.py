"""Where tensors live: finding the device, its autocast, its peak memory."""

from __future__ import annotations

import resource
import sys

import torch
from accelerate import PartialState

from dulvos.errors import InputError

__all__ = ["autocast", "cannot_compile", "find_device", "peak_memory"]


def find_device(device: str | None = None) -> torch.device:
    """The device of that name, tried out; without a name, this process's GPU as Accelerate finds it, else the CPU.

    Raises:
        InputError: no such device here.
    """
    if device is None:
        return PartialState().device
    try:
        found = torch.device(device)
        torch.zeros(1, device=found).item()  # "meta" has tensors, but no numbers in them
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device={device!r} is not to be had here ({str(error).splitlines()[0]}); give 'cpu', or nothing for "
                         "what there is") from None
    return found


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
