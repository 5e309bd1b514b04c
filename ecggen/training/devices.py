"""Which device, which precision, and the parts of a batch on threads side by side."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ecggen.utils.errors import EcggenError
from ecggen.utils.parallel import Pool, ordered_map

Part = TypeVar("Part")
Out = TypeVar("Out")


class DeviceError(EcggenError):
    """A device that is not there."""


def pick_device(name: str, local: int | None = None) -> torch.device:
    """auto: CUDA, else MPS, else CPU. Raises DeviceError.

    local: number of this process among those that train together on this machine; each has a GPU of its own.
    """
    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kinds = [kind for kind, there in usable.items() if there]
    try:
        device = torch.device(kinds[0] if name == "auto" else name)
    except RuntimeError as error:
        raise DeviceError(f"train.device is {name!r}: use auto, cpu, cuda, cuda:N or mps.") from error
    if device.type not in kinds:
        here = ", ".join(kinds)
        raise DeviceError(f"train.device is {name!r}, which this machine does not have: use auto or {here}.")
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise DeviceError(f"train.device is {name!r}, but this machine has {gpus} GPU(s).")
    if local is None or device.type == "cpu":
        return device
    if device.type == "mps" or device.index is not None:
        raise DeviceError(
            f"train.device is {name!r} ({device}), one device for several processes: use auto, cpu or cuda, "
            "or train.nproc=1."
        )
    if local >= gpus:
        raise DeviceError(
            f"Process {local + 1} on this machine has no GPU, there are {gpus}: use train.nproc=0 (one "
            "process per GPU), or train.device=cpu."
        )
    return torch.device("cuda", local)


def pick_precision(name: str, device: torch.device) -> torch.dtype | None:
    """The autocast type, or None for plain float32. auto: bf16 where the device has instructions for it."""
    if name != "auto":
        return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    # Older releases have no such function; without the instructions bf16 is emulated, and slower.
    capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    bf16 = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if bf16 else None


@contextlib.contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Within the block a GPU sums in the same order every time, as a CPU always does.

    PyTorch warns of an operation that has no deterministic version there.
    """
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or PyTorch warns of every product
    chosen = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        # The other two sum gradients of attention without a fixed order.
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]), warnings.catch_warnings():
            # Which of several equal values is the median does not matter here.
            warnings.filterwarnings("ignore", "median CUDA with indices output", UserWarning)
            yield
    finally:
        torch.use_deterministic_algorithms(chosen, warn_only=warns)


def autocast(device: torch.device, dtype: torch.dtype | None) -> Any:
    """A context in which the model runs in `dtype` where that is safe."""
    if dtype is None:
        return contextlib.nullcontext()
    # Threads share the cache of cast weights: parts of a batch side by side would empty it for each other.
    return torch.autocast(device.type, dtype=dtype, cache_enabled=device.type != "cpu")


class SideBySide:
    """Calls a function on several parts at once, each on its own thread of a CPU; one by one elsewhere.

    Small convolutions gain nothing from a second thread inside an operation; two halves of a batch on a
    thread each do. most: threads at most; they share torch's own number (`torch.set_num_threads`). How a
    batch is cut is the caller's choice, so results do not depend on the number of threads.
    """

    def __init__(self, device: torch.device, most: int = 64) -> None:
        total = torch.get_num_threads()
        self.workers = max(1, min(most, total)) if device.type == "cpu" else 1
        self._inside = max(1, total // self.workers)
        self._pool = Pool()

    def map(self, function: Callable[[Part], Out], parts: Iterable[Part]) -> list[Out]:
        """[function(part) for part in parts], in this order; the first error of a part is raised."""
        return list(self.stream(function, parts))

    def stream(self, function: Callable[[Part], Out], parts: Iterable[Part]) -> Iterator[Out]:
        """`map` of parts that are made as they are needed, a few of them ahead."""
        if self.workers > 1 and self._pool.executor is None:
            threads = ThreadPoolExecutor(self.workers, "ecggen", torch.set_num_threads, (self._inside,))
            self._pool = Pool(threads, self.workers)
        grad = torch.is_grad_enabled()  # such modes belong to a thread

        def call(part: Part) -> Out:
            with torch.set_grad_enabled(grad):
                return function(part)

        return ordered_map(call, parts, self._pool)


def even_parts(whole: range, most: int, multiple: int = 2) -> list[range]:
    """whole cut into parts of nearly equal size, at most `most` in each.

    Their number is a multiple of `multiple` where there are enough: so many threads then end together.
    """
    count = -(-len(whole) // most)
    count = min(len(whole), multiple * -(-count // multiple))
    return [whole[len(whole) * part // count : len(whole) * (part + 1) // count] for part in range(count)]


def draws(module: torch.nn.Module) -> bool:
    """Whether it draws random numbers in training: then parts take turns, because the generator is one."""
    return any(isinstance(part, torch.nn.Dropout) and part.p > 0 for part in module.modules())


def sum_gradients(parameters: Sequence[torch.nn.Parameter], parts: Sequence[Sequence[Tensor | None]]) -> None:
    """Set each parameter's gradient to the sum over parts, in their order; parts[i] as `parameters`."""
    for number, parameter in enumerate(parameters):
        present = [gradient for part in parts if (gradient := part[number]) is not None]
        parameter.grad = sum(present[1:], present[0]) if present else None
