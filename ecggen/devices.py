"""Which device, which precision, how many threads."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from ecggen.utils.errors import EcggenError


class DeviceError(EcggenError):
    """A device that is not there."""


def pick_device(name: str) -> torch.device:
    """auto: CUDA, else MPS, else CPU. Raises DeviceError."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"train.device is {name!r}: use auto, cpu, cuda, cuda:N or mps.") from error
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present.get(device.type, False):
        here = ", ".join(kind for kind, there in present.items() if there)
        raise DeviceError(f"train.device is {name!r}, which this machine does not have: use auto or {here}.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"train.device is {name!r}, but this machine has {torch.cuda.device_count()} GPU(s)."
        )
    return device


def pick_precision(name: str, device: torch.device) -> torch.dtype | None:
    """The autocast type, or None for plain float32. auto uses bf16 where the GPU has it, nothing on a CPU."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else None
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def autocast(device: torch.device, dtype: torch.dtype | None) -> Any:
    """A context in which the model runs in `dtype` where that is safe."""
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
