"""Jobs of an evaluation on threads, processes and a cluster: the same results in the same order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_folder import DowerRenderer

from ecggen.data.windows import WindowFiles
from ecggen.eval.missing_lead import missing_lead
from ecggen.eval.result import EvalError
from ecggen.eval.workers import FEWEST_CORES, VARIABLE, Workers, default_processes
from ecggen.utils.config import MissingLeadConfig
from ecggen.utils.parallel import ClusterPool
from tests.dask_cluster import started

CPU = torch.device("cpu")
CONFIG = MissingLeadConfig(
    batch_size=2, lead_sets=["I", "I+II+V2"], leave_one_out=False, ttt_steps=2, bootstrap=20, context=1
)


def product(context: np.ndarray, job: int) -> tuple[np.ndarray, int, int]:
    return context @ context * job, torch.get_num_threads(), os.getpid()


def fails(context: object, job: int) -> int:
    if job == 2:
        raise EvalError(f"job {job} cannot be done")
    return job


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_workers_change_nothing(threads: None) -> None:
    context = np.random.default_rng(0).normal(size=(64, 64))
    values, pids = [], []
    for count in (1, 2):
        with Workers(context, CPU, count) as workers:
            results = list(workers.map(product, range(9)))
            assert [inside for _, inside, _ in results] == [1] * 9, "every job computes with one thread"
            values.append(np.stack([value for value, _, _ in results]))
            pids.append({pid for _, _, pid in results})
    np.testing.assert_array_equal(values[0], values[1])
    np.testing.assert_allclose(values[0][3], 3 * (context @ context))
    assert pids[0] == {os.getpid()} and os.getpid() not in pids[1]


@pytest.mark.parametrize("device", [CPU, torch.device("cuda")])
def test_the_first_error_of_a_job_is_raised(threads: None, device: torch.device) -> None:
    with Workers(None, device) as workers, pytest.raises(EvalError, match="job 2 cannot"):
        list(workers.map(fails, range(5)))


def test_how_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: FEWEST_CORES - 1)
    assert default_processes(CPU) == 1, "threads do as well"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    assert default_processes(CPU) == 16 and default_processes(torch.device("mps")) == 1
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert default_processes(torch.device("cuda")) == 8
    monkeypatch.setenv(VARIABLE, "3")
    assert default_processes(CPU) == default_processes(torch.device("cuda")) == 3
    for wrong in ("0", "many", "-1", "1.5"):
        monkeypatch.setenv(VARIABLE, wrong)
        with pytest.raises(EvalError, match="1 or more"):
            default_processes(CPU)


def test_an_evaluation_by_processes_and_by_a_cluster_that_loses_a_worker(
    folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("w.npy", folder.windows)
    windows = WindowFiles([Path("w.npy")])
    folder = replace(folder, windows=windows)  # of a path that is not the workers' own
    here = missing_lead(DowerRenderer(), folder, CONFIG)
    two = missing_lead(DowerRenderer(), folder, CONFIG, processes=2)
    (tmp_path / "far").mkdir()
    submitted: list[object] = []
    submit = ClusterPool.submit
    with started(tmp_path / "far") as far:

        def submit_and_kill(self: ClusterPool, function, item):
            submitted.append(item)
            if len(submitted) == 5:
                far.workers[0].kill()
            return submit(self, function, item)

        monkeypatch.setattr(ClusterPool, "submit", submit_and_kill)
        cluster = missing_lead(DowerRenderer(), folder, CONFIG, processes=far.address)
        assert len(submitted) > 10 and far.workers[0].wait() == -9 and far.workers[1].poll() is None
        with Workers(None, CPU, far.address) as workers, pytest.raises(EvalError, match="job 2 cannot"):
            list(workers.map(fails, range(5)))
    for other in (two, cluster):
        assert str(other.tables) == str(here.tables) and other.facts == here.facts
