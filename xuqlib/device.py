"""The device to compute on."""

from __future__ import annotations

import os
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

Where = torch.device | str | None


def device() -> torch.device:
    """Where to compute: $XUQ_DEVICE if it is set, else the first CUDA device, else the CPU.

    Apple's `mps` has no float64 and is not tested here, so it is used only when $XUQ_DEVICE asks for it.

    Raises:
        ValueError: $XUQ_DEVICE names no device.
    """
    wanted = os.environ.get("XUQ_DEVICE", "")
    return _named(wanted or ("cuda" if torch.cuda.is_available() else "cpu"), "XUQ_DEVICE")


def check_device(value: Any) -> torch.device:
    """Return a device that is there.

    Raises:
        ValueError: the name of none, or of one that this machine has not, or that holds no numbers.
    """
    found = _named(value, "device")
    try:
        torch.empty(0, device=found)
    except (AssertionError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"device is {value!r}, which this machine has not; pass one that is there") from error
    if found.type == "meta":
        raise ValueError(f"device is {value!r}, which holds no numbers; pass cpu or cuda")
    return found


def device_of(network: nn.Module, x: Tensor) -> torch.device:
    """Where the tensors of a network are; where x is, if it holds none."""
    return next(chain(network.parameters(), network.buffers()), x).device


def has_bfloat16(where: torch.device) -> bool:
    """Whether a device has arithmetic for bfloat16; a CPU without it takes a hundred times as long as for float32."""
    # PyTorch may have been built without oneDNN; `bool()` is False.
    return where.type != "cpu" or bool(getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", bool)())


def sent(tensor: Tensor, where: torch.device) -> Tensor:
    """Return a tensor on a device; of one on its way from the CPU, nobody waits for the end of that."""
    if tensor.device == where or where.type in ("cpu", "mps"):
        return tensor.to(where)
    return (tensor.pin_memory() if where.type == "cuda" and tensor.is_cpu else tensor).to(where, non_blocking=True)


def _named(value: Any, what: str) -> torch.device:
    try:
        return torch.device(value)
    except (RuntimeError, TypeError) as error:
        hint = "pass" if what == "device" else "set it to"
        raise ValueError(f"{what} is {value!r}; {hint} cpu, cuda, cuda:1 or mps") from error
