"""Where tensors live: finding the device, its autocast, its peak memory."""

from __future__ import annotations

import resource
import sys

import torch
from accelerate import PartialState

from dulvos.errors import InputError

__all__ = ["autocast", "find_device", "peak_memory"]


def find_device(device: str | None = None) -> torch.device:
    """The device of that name, tried out; without a name, this process's GPU as Accelerate finds it, else the CPU.

    Raises:
        InputError: no such device here.
    """
    if device is None:
        return PartialState().device
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device={device!r} is not to be had here ({str(error).splitlines()[0]}); give 'cpu', or None for "
                         "what there is") from None
    return found


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which an encoder runs: "bf16" computes convolutions in bfloat16, "fp32" changes nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def peak_memory(device: torch.device) -> float:
    """Peak memory in MB: the device's if it is a GPU, else this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
