"""Jobs over threads and processes: the same results in the same order, errors in words."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DowerRenderer

from ecggen.data.window_files import WindowFiles, read_head
from ecggen.eval.evaluators import evaluators
from ecggen.eval.missing_lead import missing_lead
from ecggen.eval.result import EvalError
from ecggen.eval.spread import FEWEST_CORES, VARIABLE, Spread, processes
from ecggen.utils.config import MissingLeadConfig
from ecggen.utils.workers import Cluster, WorkerError
from tests.dask_cluster import started

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


def test_an_evaluation_on_other_machines_of_which_one_is_lost(
    folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("w.npy", folder.windows)
    head = read_head(Path("w.npy"))
    windows = WindowFiles([Path("w.npy")], [head], *folder.windows.shape[1:], clean=False)
    folder = replace(folder, windows=windows)  # of a path that is not the workers' own
    rules = MissingLeadConfig(
        batch_size=2, lead_sets=["I", "I+II+V2"], leave_one_out=False, ttt_steps=2, bootstrap=20, context=1
    )
    (tmp_path / "far").mkdir()
    handed_in: list[object] = []
    submit = Cluster.submit
    with started(tmp_path / "far", [Path(__file__).parent]) as far:

        def losing(self: Cluster, call: Callable[..., Any], *arguments: Any) -> Any:
            handed_in.append(arguments[-1])
            if len(handed_in) == 5:
                far.workers[0].kill()
            return submit(self, call, *arguments)

        monkeypatch.setattr(Cluster, "submit", losing)
        with evaluators(far.address, CPU) as workers:
            machines = missing_lead(DowerRenderer(), folder, rules, processes=workers)
            with Spread(None, CPU, workers) as spread, pytest.raises(EvalError, match="job 2 cannot"):
                list(spread.map(fails, range(5)))
        assert len(handed_in) > 10 and far.workers[0].wait() == -9 and far.workers[1].poll() is None
    alone = missing_lead(DowerRenderer(), folder, rules)
    assert str(alone.tables) == str(machines.tables) and alone.metrics == machines.metrics


def test_a_job_that_ends_its_worker_says_so(tmp_path: Path) -> None:
    with (
        started(tmp_path, [Path(__file__).parent], allowed=0) as far,
        evaluators(far.address, CPU) as workers,
        Spread(None, CPU, workers) as spread,
        pytest.raises(
            WorkerError, match=r"A part of the evaluation ended its worker process 1 times: .*memory"
        ),
    ):
        list(spread.map(dies, [1]))


def test_without_a_scheduler_this_machine_evaluates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "3")
    with evaluators("", CPU) as workers:
        assert workers == 3
