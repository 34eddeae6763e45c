"""The device to compute on."""

from __future__ import annotations

import os
from typing import Any

import torch


def device() -> torch.device:
    """Where to compute: $XUQ_DEVICE if it is set, else the first CUDA device, else the CPU.

    Apple's `mps` has no float64 and is not tested here, so it is used only when $XUQ_DEVICE asks for it.

    Raises:
        ValueError: $XUQ_DEVICE names no device.
    """
    wanted = os.environ.get("XUQ_DEVICE", "")
    return check_device(wanted or ("cuda" if torch.cuda.is_available() else "cpu"), "XUQ_DEVICE")


def check_device(value: Any, what: str = "device") -> torch.device:
    """Return a device that is there.

    Raises:
        ValueError: the name of none, or of one that this machine has not.
    """
    try:
        found = torch.device(value)
        torch.empty(0, device=found)
    except (AssertionError, RuntimeError, TypeError, NotImplementedError) as error:
        raise ValueError(f"{what} is {value!r}; pass cpu, cuda, cuda:1 or mps, one that is there") from error
    if found.type == "meta":
        raise ValueError(f"{what} is {value!r}, which holds no numbers; pass cpu or cuda")
    return found
