"""Jobs over threads and processes: the same results in the same order, errors in words."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import DowerRenderer

from ecggen.eval.missing_lead import missing_lead
from ecggen.eval.result import EvalError
from ecggen.eval.spread import FEWEST_CORES, VARIABLE, Spread, processes
from ecggen.utils.config import MissingLeadConfig

CPU = torch.device("cpu")


def product(context: np.ndarray, job: int) -> tuple[np.ndarray, int, int]:
    return context @ context * job, torch.get_num_threads(), os.getpid()


def fails(context: object, job: int) -> int:
    if job == 2:
        raise EvalError(f"job {job} cannot be done")
    return job


def dies(context: object, job: int) -> None:
    os._exit(9)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_workers_change_nothing(threads: None) -> None:
    context = np.random.default_rng(0).normal(size=(64, 64))
    found, pids = [], []
    for count in (1, 2):
        with Spread(context, CPU, count) as spread:
            results = list(spread.map(product, range(9)))
            assert [inside for _, inside, _ in results] == [1] * 9, "every job computes with one thread"
            found.append(np.stack([made for made, _, _ in results]))
            pids.append({pid for _, _, pid in results})
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_allclose(found[0][3], 3 * (context @ context))
    assert pids[0] == {os.getpid()} and os.getpid() not in pids[1]


def test_results_do_not_pile_up() -> None:
    begun: list[int] = []

    def remember(context: None, job: int) -> int:
        begun.append(job)
        return job

    with Spread(None, CPU) as spread:
        results = spread.map(remember, iter(range(1000)))
        assert next(results) == 0 and len(begun) <= 2 * spread.workers + 1


@pytest.mark.parametrize("device", [CPU, torch.device("cuda")])
def test_the_first_error_of_a_job_is_raised(threads: None, device: torch.device) -> None:
    with Spread(None, device) as spread, pytest.raises(EvalError, match="job 2 cannot"):
        list(spread.map(fails, range(5)))


def test_a_killed_process_is_an_error_in_words() -> None:
    with Spread(None, CPU, 2) as spread, pytest.raises(EvalError, match=f"{VARIABLE} to fewer than 2"):
        list(spread.map(dies, range(3)))


def test_how_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: FEWEST_CORES - 1)
    assert processes(CPU) == 1, "threads do as well"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    assert processes(CPU) == 16 and processes(torch.device("mps")) == 1
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert processes(torch.device("cuda")) == 8
    monkeypatch.setenv(VARIABLE, "3")
    assert processes(CPU) == processes(torch.device("cuda")) == 3
    for wrong in ("0", "many", "-1", "1.5"):
        monkeypatch.setenv(VARIABLE, wrong)
        with pytest.raises(EvalError, match="1 or more"):
            processes(CPU)


def test_an_evaluation_over_processes_has_the_same_numbers(folder, tmp_path) -> None:
    # As a folder on disk is: windows that every process maps for itself.
    windows = np.lib.format.open_memmap(tmp_path / "w.npy", "w+", np.float32, folder.windows.shape)
    windows[:] = folder.windows
    windows.flush()
    folder = replace(folder, windows=np.load(tmp_path / "w.npy", mmap_mode="r"))
    rules = MissingLeadConfig(
        batch_size=5, lead_sets=["I", "I+II+V2"], leave_one_out=False, ttt_steps=2, bootstrap=20, context=1
    )
    one, two = (missing_lead(DowerRenderer(), folder, rules, processes=count) for count in (1, 2))
    assert str(one.tables) == str(two.tables) and one.metrics == two.metrics
