"""Parts of a batch side by side.

Small convolutions gain nothing from a second thread inside an operation: on two cores a training step takes
as long as on one. Two halves of a batch on two threads, each computing alone, do gain. How a batch is cut is
the caller's choice and fixed, so a result does not depend on how many threads there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

Part = TypeVar("Part")
Out = TypeVar("Out")


class SideBySide:
    """Calls a function on several parts at once, on a CPU; one after the other on any other device.

    most: threads at most, besides torch's own number (`torch.set_num_threads`), which they share.
    """

    def __init__(self, device: torch.device, most: int = 64) -> None:
        total = torch.get_num_threads()
        self.workers = max(1, min(most, total)) if device.type == "cpu" else 1
        self._inside = max(1, total // self.workers)
        self._pool: ThreadPoolExecutor | None = None

    def map(self, function: Callable[[Part], Out], parts: Iterable[Part]) -> list[Out]:
        """[function(part) for part in parts], in this order; the first error of a part is raised.

        A single part has a thread of its own as well: with several inside each operation it takes longer.
        """
        parts = list(parts)
        return list(self.stream(function, parts, len(parts)))

    def stream(self, function: Callable[[Part], Out], parts: Iterable[Part], ahead: int) -> Iterator[Out]:
        """`map` of parts that are made as they are needed, at most `ahead` of them before their result."""
        if self.workers == 1:
            yield from map(function, parts)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.workers, "ecggen", torch.set_num_threads, (self._inside,))
        grad = torch.is_grad_enabled()  # such modes belong to a thread

        def call(part: Part) -> Out:
            with torch.set_grad_enabled(grad):
                return function(part)

        waiting: deque[Future[Out]] = deque()
        try:
            for part in parts:
                waiting.append(self._pool.submit(call, part))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for left in waiting:
                left.cancel()


def even_parts(whole: range, most: int, multiple: int = 2) -> list[range]:
    """whole cut into parts of nearly equal size, at most `most` in each.

    Their number is a multiple of `multiple` where there are enough: so many threads then end together.
    """
    count = -(-len(whole) // most)
    count = min(len(whole), multiple * -(-count // multiple))
    return [whole[len(whole) * part // count : len(whole) * (part + 1) // count] for part in range(count)]


def draws(module: torch.nn.Module) -> bool:
    """Does it draw random numbers while training? Then parts must wait for each other: one generator."""
    return any(isinstance(part, torch.nn.Dropout) and part.p > 0 for part in module.modules())


def sum_in_pairs(parts: Sequence[Tensor | None]) -> Tensor | None:
    """(a + b) + (c + d) and so on, by halves; None counts as nothing.

    Processes that hold half of the parts each, or a quarter, add up whole branches: the sum of their sums is
    the same to the last bit.
    """
    if len(parts) == 1:
        return parts[0]
    middle = len(parts) // 2
    a, b = sum_in_pairs(parts[:middle]), sum_in_pairs(parts[middle:])
    return b if a is None else a if b is None else a + b


def sum_gradients(parameters: Sequence[torch.nn.Parameter], parts: Sequence[Sequence[Tensor | None]]) -> None:
    """Set each parameter's gradient to the sum over parts, in pairs; parts[i] as `parameters`."""
    for parameter, *own in zip(parameters, *parts, strict=True):
        parameter.grad = sum_in_pairs(own) if own else None
