"""Which device, which precision, how many threads."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from ecggen.utils.errors import EcggenError


class DeviceError(EcggenError):
    """A device that is not there."""


def pick_device(name: str, local: int | None = None) -> torch.device:
    """auto: CUDA, else MPS, else CPU. Raises DeviceError.

    local: number of this process among those that train together on this machine; each has a GPU of its own.
    """
    if local is not None:
        return _of_its_own(pick_device(name), name, local)
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


def _of_its_own(device: torch.device, name: str, local: int) -> torch.device:
    if device.type == "mps" or device.index is not None:
        raise DeviceError(
            f"train.device is {name!r} ({device}), one device for several processes: use auto, cpu or cuda, "
            "or train.nproc=1."
        )
    if device.type == "cuda" and local >= torch.cuda.device_count():
        raise DeviceError(
            f"Process {local + 1} on this machine has no GPU, there are {torch.cuda.device_count()}: use "
            "train.nproc=0 (one process per GPU), or train.device=cpu."
        )
    return torch.device("cuda", local) if device.type == "cuda" else device


def pick_precision(name: str, device: torch.device) -> torch.dtype | None:
    """The autocast type, or None for plain float32. auto: bf16 where the device has instructions for it."""
    if name == "auto":
        return torch.bfloat16 if _has_bf16(device) else None
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    # Older releases do not tell; without the instructions bf16 is emulated, and slower.
    told: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(told.get("avx512_bf16") or told.get("amx_bf16"))


@contextlib.contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Meanwhile a GPU sums in the same order every time, as a CPU does in any case.

    PyTorch warns of an operation that has no such way there.
    """
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or PyTorch warns of every product
    chosen = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    efficient = torch.backends.cuda.mem_efficient_sdp_enabled()
    cudnn = torch.backends.cuda.cudnn_sdp_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cuda.enable_mem_efficient_sdp(False)  # gradients of attention without a fixed order
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        with warnings.catch_warnings():
            # Which of several equal numbers is the median is open, and nobody asks.
            warnings.filterwarnings("ignore", "median CUDA with indices output", UserWarning)
            yield
    finally:
        torch.use_deterministic_algorithms(chosen, warn_only=warns)
        torch.backends.cuda.enable_mem_efficient_sdp(efficient)
        torch.backends.cuda.enable_cudnn_sdp(cudnn)


def autocast(device: torch.device, dtype: torch.dtype | None) -> Any:
    """A context in which the model runs in `dtype` where that is safe."""
    if dtype is None:
        return contextlib.nullcontext()
    # The cache of cast weights is one for all threads: parts of a batch side by side would empty it, and fill
    # it, for each other.
    return torch.autocast(device.type, dtype=dtype, cache_enabled=device.type != "cpu")
