"""Records prepared by one process, by several, and on a Dask scheduler: the same bytes, whoever is lost."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from distributed import Client
from test_preprocess import heart
from wfdb import wrann

from ecggen.io.records import write_record
from ecggen.leads import FRANK, LEADS
from ecggen.prepare.download.source import list_source, write_source
from ecggen.prepare.preprocess import chunks
from ecggen.prepare.preprocess.stage import preprocess
from ecggen.utils import parallel
from ecggen.utils.config import DataConfig, PreprocessConfig
from ecggen.utils.files import read_csv
from ecggen.utils.parallel import WorkerError
from tests.dask_cluster import Cluster, started, wait_for

RULES = PreprocessConfig()
COUNT = 64  # records, of which the last two cannot be read


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The list of COUNT records of 16 different signals; two are cut short, two have beats annotated."""
    folder = tmp_path_factory.mktemp("workers")
    wfdb = folder / "wfdb"
    for i in range(16):
        leads = [*LEADS, *FRANK]
        write_record(wfdb, f"s{i:02d}", 250, heart(6, 250, i, frank=True), leads, [f"Patient: {i // 2}"])
    for i in range(16, COUNT):
        text = (wfdb / f"s{i % 16:02d}.hea").read_text()
        (wfdb / f"t{i:03d}.hea").write_text(text.replace(f"s{i % 16:02d} ", f"t{i:03d} ", 1))
    for i in (COUNT - 2, COUNT - 1):
        path = wfdb / f"t{i:03d}.hea"
        path.write_text(path.read_text().replace(" 1500", " 1600"))
    for name in ("s03", "t020"):
        wrann(name, "atr", np.array([500, 700, 900]), symbol=["N", "V", "N"], write_dir=str(wfdb))
    (folder / "raw").mkdir()
    write_source(folder / "raw", list_source(wfdb))
    return folder / "raw"


@pytest.fixture(scope="module")
def alone(raw: Path) -> dict[str, bytes]:
    """The files that one process writes."""
    return written(raw, raw.parent / "alone", DataConfig(workers=1))


def written(raw: Path, out: Path, data: DataConfig) -> dict[str, bytes]:
    counts = preprocess(raw, out, data, RULES)
    assert (counts["records"], counts["rejected"], counts["patients"]) == (COUNT - 2, 2, 8)
    assert not list(out.parent.glob(f".{out.name}.*"))
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_every_record_is_there_once(alone: dict[str, bytes], raw: Path) -> None:
    rows = read_csv(raw.parent / "alone" / "records.csv")
    assert [row["record"] for row in rows] == sorted({row["record"] for row in rows}) and len(
        rows
    ) == COUNT - 2
    ends = [int(row["offset"]) + int(row["n_samples"]) for row in rows]
    assert [int(row["offset"]) for row in rows] == [0, *ends[:-1]] and ends[-1] == (COUNT - 2) * 600
    signals = np.load(raw.parent / "alone" / "signals.npy").reshape(COUNT - 2, 600, 12)
    assert (signals[16:32] == signals[:16]).all() and len(np.unique(signals[:, 350, 6])) == 16
    assert {"frank.npy", "beats.csv"} <= set(alone)


@pytest.mark.parametrize("size", [1, 7])
def test_local_processes_write_the_same_bytes(
    raw: Path, alone: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(chunks, "RECORDS", size)
    assert written(raw, tmp_path / "out", DataConfig(workers=1 if size == 1 else 2)) == alone


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with started(tmp_path) as made:
        yield made


def kill_in_the_middle(process: subprocess.Popen[bytes], out: Path) -> threading.Thread:
    """Kill a process when the second task has begun to write its results."""

    def kill() -> None:
        wait_for(lambda: len(list(out.parent.glob(f".{out.name}.parts.*/*.signals"))) > 1)
        process.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def test_on_a_scheduler_of_which_a_worker_and_then_all_is_lost(
    raw: Path, alone: dict[str, bytes], tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "RECORDS", 2)
    data = DataConfig(scheduler=cluster.address)
    out = tmp_path / "out"

    with Client(cluster.address, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
    killer = kill_in_the_middle(cluster.workers[0], out)
    assert written(raw, out, data) == alone
    killer.join()
    assert cluster.workers[0].wait() == -signal.SIGKILL and cluster.workers[1].poll() is None

    # What is there stays where the scheduler is lost, or code and versions are not the same.
    killer = kill_in_the_middle(cluster.scheduler, out)
    monkeypatch.setattr(parallel, "CONNECT_S", 0.5)
    with pytest.raises(WorkerError, match=r"scheduler at tcp://127\.0\.0\.1:\d+ was lost"):
        preprocess(raw, out, data, RULES)
    killer.join()
    with pytest.raises(WorkerError, match=r"at tcp://127.* cannot be used .*data\.scheduler"):
        preprocess(raw, out, data, RULES)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == alone
    assert not list(tmp_path.glob(".out.*"))
    assert written(raw, out, replace(data, scheduler="", workers=1)) == alone


def test_a_folder_that_a_worker_does_not_see(raw: Path, tmp_path: Path) -> None:
    chunk = chunks.Chunk(tmp_path, ("a",), tmp_path / "elsewhere", 100.0, RULES, "numpy")
    with pytest.raises(chunks.SharedFolderError, match="all workers share, under the same path"):
        chunks.run_chunk(chunk)
