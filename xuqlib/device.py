"""The device to compute on."""

from __future__ import annotations

import os

import torch


def device() -> torch.device:
    """Where to compute: $XUQ_DEVICE if it is set, else the first CUDA device, else the CPU.

    Apple's `mps` has no float64 and is not tested here, so it is used only when $XUQ_DEVICE asks for it.

    Raises:
        ValueError: $XUQ_DEVICE names no device.
    """
    wanted = os.environ.get("XUQ_DEVICE", "")
    try:
        return torch.device(wanted or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"XUQ_DEVICE is {wanted!r}; set it to cpu, cuda, cuda:1 or mps, or unset it") from error
