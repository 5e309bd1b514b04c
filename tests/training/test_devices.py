"""Devices, precision, and parts side by side: the same values in the same order, whatever the threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from ecggen.training.devices import (
    DeviceError,
    SideBySide,
    even_parts,
    pick_device,
    pick_precision,
    sum_gradients,
)

CPU = torch.device("cpu")


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_devices() -> None:
    assert pick_device("cpu").type == "cpu" == pick_device("cpu", 3).type
    with pytest.raises(DeviceError, match="auto, cpu"):
        pick_device("tpu0")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="does not have"):
            pick_device("cuda")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"avx512_bf16": True}, torch.bfloat16), ({"avx2": True, "avx512_bf16": False}, None), ({}, None)],
)
def test_half_precision_is_chosen_where_the_processor_has_it(
    capabilities: dict, expected: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert pick_precision("auto", CPU) == expected
    assert pick_precision("bf16", CPU) == torch.bfloat16 and pick_precision("fp32", CPU) is None


def test_parts_run_at_once_and_keep_their_order(two_threads: None) -> None:
    meeting = threading.Barrier(2, timeout=60)  # passes only where two parts are under way together

    def work(part: int) -> tuple[int, int, bool]:
        meeting.wait()
        return part, torch.get_num_threads(), torch.is_grad_enabled()

    runner = SideBySide(CPU)
    assert runner.map(work, range(4)) == [(part, 1, True) for part in range(4)]
    with torch.no_grad():
        assert runner.map(work, range(2)) == [(0, 1, False), (1, 1, False)]
    with pytest.raises(ZeroDivisionError):
        runner.map(lambda part: 1 // part, [1, 0, 1])
    assert torch.get_num_threads() == 2, "the caller's own threads are left alone"


def test_one_after_the_other_where_there_is_one_thread_or_another_device(two_threads: None) -> None:
    here = threading.get_ident()
    for runner in (SideBySide(CPU, most=1), SideBySide(torch.device("meta"))):
        assert set(runner.map(lambda _: threading.get_ident(), range(3))) == {here}


@pytest.mark.parametrize("most", [1, 2])
def test_a_stream_is_produced_as_it_is_needed(two_threads: None, most: int) -> None:
    produced: list[int] = []

    def parts() -> Iterator[int]:
        for part in range(1000):
            produced.append(part)
            yield part

    stream = SideBySide(CPU, most).stream(lambda part: 2 * part, parts())
    assert [next(stream) for _ in range(10)] == list(range(0, 20, 2))
    assert 10 <= len(produced) <= 20
    assert list(stream) == list(range(20, 2000, 2))


def test_gradients_of_parts_add_up_to_those_of_the_whole(two_threads: None) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, 3).double()
    unused = torch.nn.Parameter(torch.zeros(1))
    parameters = [*layer.parameters(), unused]
    x = torch.randn(7, 5, dtype=torch.float64)

    def share(part: torch.Tensor) -> tuple[torch.Tensor, ...]:
        loss = layer(part).square().mean() * (len(part) / len(x))
        return torch.autograd.grad(loss, parameters, allow_unused=True)

    sum_gradients(parameters, SideBySide(CPU).map(share, x.split(4)))
    whole = torch.autograd.grad(layer(x).square().mean(), list(layer.parameters()))
    torch.testing.assert_close([layer.weight.grad, layer.bias.grad], list(whole))
    assert unused.grad is None


@pytest.mark.parametrize("multiple", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 5, 92, 129, 512])
def test_even_parts_are_the_whole_and_none_is_a_rest(count: int, multiple: int) -> None:
    whole = range(7, 7 + 3 * count, 3)
    parts = even_parts(whole, 64, multiple)
    assert [number for part in parts for number in part] == list(whole)
    sizes = [len(part) for part in parts]
    assert not count or (max(sizes) <= 64 and min(sizes) >= max(1, max(sizes) - 1))
    assert len(parts) % multiple == 0 or len(parts) == count
