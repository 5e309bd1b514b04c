"""Windows written by one process or by several: the same bytes, or none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_windows import DATA, RULES, records

from ecggen.prepare.window import writer as window_writer
from ecggen.prepare.window.stage import WindowError, window
from ecggen.prepare.window.writer import ShardFiles
from ecggen.utils.config import DataConfig
from ecggen.utils.parallel import WorkerError
from tests.worker_tasks import write_block_and_end, write_block_and_end_once, write_block_on_a_full_disk


def test_windows_in_any_order_become_the_files_that_numpy_writes(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(23, 3, 7)).astype(np.float32)
    files = ShardFiles(tmp_path, "windows", 23, (3, 7), 8)
    files.create()
    for first, count in ((15, 8), (0, 1), (3, 12), (1, 2), (3, 12)):  # the third over two borders, and again
        files.write(first, values[first : first + count])
    written = b""
    for number, part in enumerate(np.split(values, [8, 16])):
        np.save(tmp_path / "again.npy", part)
        written += (tmp_path / "again.npy").read_bytes()
        own = tmp_path / f"windows-{number:05d}.npy"
        assert own.read_bytes() == (tmp_path / "again.npy").read_bytes()
    assert b"".join(b"".join(files.read(at, min(5, 23 - at))) for at in range(0, 23, 5)) == written


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of three windows, some of them of none, at the ends as well; leads that are not observed."""
    count = 192
    changes = {i: {"n_samples": 100} for i in (0, 1, 40, 41, 42, 43, count - 1)}
    changes[17] = {"observed": "1" * 6 + "0" * 6}
    spans = [("r50", "flat", "V2", 1.0, 4.0), ("r51", "noise", "", 0.0, 2.0)]
    return records(
        tmp_path_factory.mktemp("many") / "records", count, spans=spans, changes=changes, frank=True
    )


def written(source: Path, out: Path, data: DataConfig) -> dict[str, bytes]:
    window(source, out, data, replace(RULES, shard_windows=100))
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.fixture(scope="module")
def alone(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return written(source, tmp_path_factory.mktemp("alone") / "w", replace(DATA, workers=1))


def test_local_processes_write_the_same_bytes(
    source: Path, alone: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {"windows-00005.npy", "frank-00005.npy", "index.csv", "meta.json"} <= set(alone)
    assert written(source, tmp_path / "a" / "w", replace(DATA, workers=2)) == alone
    # Other tasks, and one that ends its process the first time.
    monkeypatch.setattr(window_writer, "BYTES", 7 * 12 * 200 * 4)
    monkeypatch.setattr(window_writer, "write_block", write_block_and_end_once)
    monkeypatch.chdir(tmp_path)
    assert written(source, tmp_path / "b" / "w", replace(DATA, workers=2)) == alone
    assert (tmp_path / "met").exists()


def test_what_fails_in_a_process_is_said_and_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = replace(DATA, workers=2)
    monkeypatch.setattr(window_writer, "write_block", write_block_on_a_full_disk)
    with pytest.raises(WindowError, match=r"/w: no space left on device \(6\.\d MB are needed"):
        window(source, tmp_path / "w", two, RULES)
    monkeypatch.undo()
    short = records(tmp_path / "records", 60)
    whole = (short / "signals.npy").read_bytes()
    (short / "signals.npy").write_bytes(whole[:-4000])
    with pytest.raises(WindowError, match="ends before sample 30000 that"):
        window(short, tmp_path / "w", two, RULES)
    assert [path.name for path in tmp_path.iterdir()] == ["records"]


def test_a_task_that_always_ends_its_process_is_named(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window_writer, "write_block", write_block_and_end)
    with pytest.raises(WorkerError, match="process that computed windows 0 to 63 ended every time"):
        window(source, tmp_path / "w", replace(DATA, workers=2), RULES)
    assert not list(tmp_path.iterdir())
