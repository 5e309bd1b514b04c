"""Processes that train together: who is who, what they say to each other, gradients summed over them.

torchrun (torch.distributed.run, or `ecggen.training.launch` for one machine) starts the processes and tells
each by its environment which one it is. Every rank holds the whole model and takes the same steps; of a
batch it computes its own parts, of a validation set its own batches.

Gradients are summed by one explicit exchange instead of DistributedDataParallel's hooks. Those reduce what
`backward` leaves in `.grad`, in an order that the ring of the backend chooses and that depends on the number
of ranks; a rank could not compute several parts on threads either, because a wrapped model takes one forward
pass at a time. Here each part's gradients come from `torch.autograd.grad`, are added in the order of the
parts as one process adds them, and go out as one flat tensor.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ecggen.training.devices import pick_device
from ecggen.training.parallel import Out, Part, SideBySide, sum_in_pairs
from ecggen.utils.errors import EcggenError

Value = TypeVar("Value")

#: Ranks wait so long for each other: for a slow disk under a checkpoint, not for a lost process, whose
#: closed connection is noticed at once (a lost machine by torchrun's own heartbeat).
PATIENCE = timedelta(hours=1)


class LostRankError(EcggenError):
    """Another process of the training is gone, or was not to be reached."""


@dataclass(frozen=True)
class _Failure:
    """An error on its way to the other ranks."""

    error: EcggenError


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    rank of size; local: rank on this machine; beside: processes on this machine; restarts: how often torchrun
    has started the processes again.
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    beside: int = 1
    restarts: int = 0

    @property
    def main(self) -> bool:
        """The one that writes files, logs and bars."""
        return self.rank == 0

    def together(self, function: Callable[[], Value]) -> list[Value]:
        """What `function` returns on every rank, by rank. An EcggenError of one is raised on all."""
        if self.size == 1:
            return [function()]
        every: list[Any] = [None] * self.size
        own = _caught(function)
        _exchanged(lambda: dist.all_gather_object(every, own))
        return [_raised(each) for each in every]

    def each(self, function: Callable[[], Value]) -> Value:
        """What `function` returns here. An EcggenError of any rank is raised on all.

        Like with `together` and `from_main`, nothing inside may talk to the other ranks.
        """
        own: list[Value] = []
        self.together(lambda: own.append(function()))
        return own[0]

    def from_main(self, function: Callable[[], Value]) -> Value:
        """What `function` returns on rank 0, the only one that calls it. Its EcggenError is raised on all."""
        if self.size == 1:
            return function()
        told: list[Any] = [_caught(function) if self.main else None]
        _exchanged(lambda: dist.broadcast_object_list(told, src=0))
        return _raised(told[0])

    def same(self, module: torch.nn.Module) -> None:
        """Give every rank the weights and buffers of rank 0."""
        if self.size > 1:
            for tensor in (*module.parameters(), *module.buffers()):
                whole = tensor.detach().contiguous()
                _exchanged(lambda whole=whole: dist.broadcast(whole, src=0))  # type: ignore[misc]
                if whole.data_ptr() != tensor.data_ptr():
                    tensor.detach().copy_(whole)

    def add(self, flat: Tensor) -> Tensor:
        """The sum of flat [n] over the ranks, in pairs by rank, the same bits on all.

        Every rank adds up its own stretch and hands it round: as much traffic as a ring, in an order of ours.
        """
        if self.size == 1:
            return flat
        if self.size == 2:  # a + b is b + a
            _exchanged(lambda: dist.all_reduce(flat))
            return flat
        length = -(-len(flat) // self.size)
        sent = torch.nn.functional.pad(flat, (0, length * self.size - len(flat)))
        received = torch.empty_like(sent)
        _exchanged(lambda: dist.all_to_all_single(received, sent))
        stretch = sum_in_pairs(received.split(length))
        _exchanged(lambda: dist.all_gather(list(sent.split(length)), stretch))
        return sent[: len(flat)]


class AcrossRanks(SideBySide):
    """Calls a function on parts that the ranks share out, each its own side by side; all get every result."""

    def __init__(self, ranks: Ranks, device: torch.device, most: int = 64) -> None:
        super().__init__(device, most)
        self.ranks = ranks

    def map(self, function: Callable[[Part], Out], parts: Iterable[Part]) -> list[Out]:
        """[function(part) for part in parts], in this order. Results travel: small, on the CPU."""
        parts, size = list(parts), self.ranks.size
        own = parts[self.ranks.rank :: size]
        by_rank = self.ranks.together(lambda: SideBySide.map(self, function, own))
        return [by_rank[index % size][index // size] for index in range(len(parts))]


def sum_over_ranks(parameters: Sequence[torch.nn.Parameter], ranks: Ranks, absent: frozenset[int]) -> None:
    """Replace each gradient by its sum over the ranks; those numbered in `absent` are None on every rank."""
    there = [parameter for number, parameter in enumerate(parameters) if number not in absent]
    pieces = [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in there]
    flat = ranks.add(torch.cat(pieces))
    for parameter, piece in zip(there, flat.split([p.numel() for p in there]), strict=True):
        parameter.grad = piece.view_as(parameter)


def ranks_of_environment() -> Ranks:
    """The place that torchrun gave this process; the only one of its kind where torchrun did not start it."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
    return Ranks(
        *(int(os.environ.get(name) or default) for name, default in zip(names, "01010", strict=True))
    )


@contextmanager
def joined(device_name: str) -> Iterator[Ranks]:
    """The ranks of this training, able to talk: gloo between processors, NCCL between GPUs.

    device_name: `train.device`. Raises DeviceError.
    """
    ranks = ranks_of_environment()
    if ranks.size == 1 or dist.is_initialized():
        yield ranks
        return
    gpus = torch.cuda.is_available() and device_name.startswith(("auto", "cuda"))
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    _exchanged(lambda: _join(ranks, backend))
    try:
        device = ranks.each(lambda: pick_device(device_name, ranks.local))
        if device.type == "cuda":
            torch.cuda.set_device(device)
        yield ranks
    finally:
        dist.destroy_process_group()


def _join(ranks: Ranks, backend: str) -> None:
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        dist.init_process_group(backend, timeout=PATIENCE)
        return
    # The agent's own store outlives a restart, and with it the addresses of processes that are gone: every
    # start looks among its own keys alone.
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, ranks.size, is_master=False, timeout=PATIENCE)
    own = dist.PrefixStore(f"start_{ranks.restarts}", store)
    dist.init_process_group(backend, store=own, rank=ranks.rank, world_size=ranks.size, timeout=PATIENCE)


def _caught(function: Callable[[], Value]) -> Value | _Failure:
    try:
        return function()
    except EcggenError as error:
        return _Failure(error)


def _raised(value: Any) -> Any:
    if isinstance(value, _Failure):
        raise value.error
    return value


def _exchanged(call: Callable[[], Any]) -> None:
    try:
        call()
    except RuntimeError as error:  # of gloo, NCCL and the store alike
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise LostRankError(
            f"Another process of this training cannot be reached ({reason}): torchrun starts all of them "
            "again as often as --max-restarts says; after that the same command with --resume goes on."
        ) from error
