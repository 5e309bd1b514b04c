"""Work on several processes: results in order whoever computes them, nothing lost with a process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ecggen.utils import parallel
from ecggen.utils.parallel import Pool, WorkerError, ordered_map, workers
from tests.dask_cluster import Cluster, started
from tests.running import runs, wait_for, workers_of
from tests.worker_tasks import cut, doubled, environment, product, size


@pytest.fixture
def cluster(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with started(tmp_path, getattr(request, "param", 3)) as dask:
        yield dask


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_order_and_few_items_are_under_way(processes: int) -> None:
    begun: list[int] = []

    def items() -> Iterator[tuple[int, ...]]:
        for number in range(40):
            begun.append(number)
            yield (number,)

    with workers(processes=processes) as pool:
        for at, (result,) in enumerate(ordered_map(doubled, items(), pool)):
            assert result == 2 * at and len(begun) <= at + 1 + 6
    assert len(begun) == 40


def test_a_process_has_one_thread_and_its_arguments_once_and_no_main_module(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    main = sys.modules["__main__"]
    with workers(processes=2, shared=(3, 5), prepare=environment) as pool:
        assert list(ordered_map(product, range(4), pool)) == [0, 15, 30, 45]
    with workers(processes=2) as pool:
        assert list(ordered_map(environment, [0], pool)) == [["1", "1", "1"]]
    assert os.environ["OMP_NUM_THREADS"] == "7" and sys.modules["__main__"] is main
    assert list(ordered_map(product, range(4), Pool(shared=(3, 5)))) == [0, 15, 30, 45]


def test_a_lost_process_costs_nothing_and_an_item_that_ends_it_every_time_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    results: list[list[int]] = []
    with workers(processes=2) as pool:
        items = [(1,), (2, -2, 3), (4,), (-1, 6), (7,)]
        with pytest.raises(WorkerError, match=r"process that computed record -1 ended every time: .*out"):
            for result in ordered_map(
                doubled, items, pool, describe=lambda item: f"record {item[0]}", split=cut
            ):
                results.append(result)
    assert results == [[2], [4, -4, 6], [8]]


def test_what_the_function_raises_is_raised() -> None:
    for processes in (1, 2):
        with workers(processes=processes) as pool, pytest.raises(ZeroDivisionError):
            list(ordered_map(divmod_of, [1, 0], pool))


def divmod_of(number: int) -> tuple[int, int]:
    return divmod(1, number)


def test_a_cluster_that_loses_a_worker(cluster: Cluster, tmp_path: Path) -> None:
    large = b"x" * (20 << 20)
    with workers(cluster.address, shared=(3, large)) as pool:
        assert list(ordered_map(size, range(4), pool)) == [0, len(large), 2 * len(large), 3 * len(large)]
    met = tmp_path / "met"  # the workers' own folder
    with workers(cluster.address) as pool:
        items = [(number,) for number in range(10)] + [(-2, 10)] + [(11,)]
        assert [r[-1] for r in ordered_map(doubled, items, pool)] == [2 * n for n in range(12)]
    assert met.exists() and sum(process.poll() is not None for process in cluster.workers) == 1


@pytest.mark.parametrize("cluster", [0], indirect=True)
def test_an_item_that_ends_workers_until_none_is_left(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduler of `cluster` gives an item up at the first worker that is lost with it."""
    monkeypatch.setattr(parallel, "NO_WORKER_S", 2.0)
    monkeypatch.setattr(parallel, "LOOK_S", 0.2)
    with workers(cluster.address) as pool:
        for left in (1, 0):
            with pytest.raises(WorkerError, match="process that computed record -1 ended"):
                list(ordered_map(doubled, [(-1,)], pool, describe=lambda item: f"record {item[0]}"))
            wait_for(lambda left=left: sum(p.poll() is None for p in cluster.workers) == left)
        with pytest.raises(WorkerError, match=r"All workers of tcp://127\.0\.0\.1:\d+ were lost"):
            list(ordered_map(doubled, [(2,)], pool))


def test_other_code_on_a_worker_and_no_scheduler(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "code_version", lambda: "ecggen 1")
    with workers(cluster.address) as pool, pytest.raises(WorkerError, match=r"has ecggen \w{12}, numpy .*1"):
        list(ordered_map(max, [(1, 2)], pool))
    cluster.scheduler.kill()
    monkeypatch.setattr(parallel, "CONNECT_S", 0.5)
    for address in (cluster.address, "nowhere"):
        with pytest.raises(WorkerError, match=rf"at {address} cannot be used .*data\.scheduler"):
            workers(address).__enter__()


def test_processes_end_with_a_parent_that_is_killed() -> None:
    code = (
        "import time\n"
        "from ecggen.utils.parallel import ordered_map, workers\n"
        "with workers(processes=2) as pool:\n"
        "    pool.submit(time.sleep, 60)\n"
        "    print(*ordered_map(abs, [1], pool), flush=True)  # the other one waits for an item\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == b"1\n"
        children = workers_of(parent.pid)
        assert len(children) == 2
        parent.kill()
    wait_for(lambda: not any(map(runs, children)), 20)
