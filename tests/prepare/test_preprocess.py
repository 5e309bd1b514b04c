"""Records in, tables and arrays out: content, reasons, nothing half written, whoever computes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from distributed import Client
from made_databases import heart
from wfdb import wrann

from ecggen.data.signal import condition
from ecggen.io.records import AnyRecord, RecordError, read_record, write_record
from ecggen.leads import FRANK, LEADS
from ecggen.prepare.download.source import list_source, write_source
from ecggen.prepare.preprocess import batches
from ecggen.prepare.preprocess.stage import notes, preprocess
from ecggen.utils import parallel
from ecggen.utils.config import DataConfig, PreprocessConfig
from ecggen.utils.files import read_csv, read_json
from ecggen.utils.parallel import WorkerError
from tests.dask_cluster import started
from tests.running import wait_for

DATA, CONFIG = DataConfig(), PreprocessConfig()
COUNT = 64  # records of the fixture `raw`, of which the last two cannot be read


def listed(tmp_path: Path, copies: bool = False) -> tuple[Path, Path]:
    """(raw, out) for the records in tmp_path/wfdb; copies: those of a recording are kept, as if they were
    other recordings."""
    raw = tmp_path / "raw"
    raw.mkdir(exist_ok=True)
    source = list_source(tmp_path / "wfdb")
    if copies:
        source = replace(source, records=sorted([*source.records, *source.rejected]), rejected={})
    write_source(raw, source)
    return raw, tmp_path / "records"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_content_and_tables(tmp_path: Path) -> None:
    wfdb = tmp_path / "wfdb"
    write_record(wfdb, "a", 500, heart(3000, 500, 1), LEADS, ["Dx: X,Y", "Patient: p1", "Age: 50", "Sex: M"])
    write_record(wfdb, "b", 360, heart(1440, 360, 2)[:, [1, 7]], ["II", "V2"])
    write_record(wfdb, "c", 100, heart(100, 100, 3), LEADS)  # too short
    (wfdb / "d.hea").write_text("d 1 100 10\nd.dat 16 200 16 0 0 0 0 I\n")
    raw, out = listed(tmp_path)
    counts = preprocess(raw, out, DATA, CONFIG)
    assert (counts["listed"], counts["records"], counts["rejected"], counts["frank"]) == (4, 2, 2, False)
    assert notes(counts)[0] == "2 of 4 records are left out, see data/records/rejected.csv."
    a, b = read_csv(out / "records.csv")
    assert (a["patient"], a["labels"], a["age"], a["sex"], a["reasons"]) == ("p1", "X;Y", "50", "male", "")
    assert (b["patient"], b["observed"], b["fs_raw"]) == ("b", "010000010000", "360")
    assert b["reasons"].count("missing:") == 10 and float(b["quality"]) == pytest.approx(2 / 12, abs=1e-5)
    assert [(r["offset"], r["n_samples"]) for r in (a, b)] == [("0", "600"), ("600", "400")]
    signals = np.load(out / "signals.npy", mmap_mode="r")
    assert signals.shape == (1000, 12) and signals.dtype == np.float32
    wanted = condition(read_record(wfdb / "a").ecg, 500, 100, low_hz=0.67, high_hz=40)
    np.testing.assert_allclose(signals[:600].T, wanted, atol=1e-6)
    assert not signals[600:, 0].any() and signals[600:, 1].any()
    reasons = {row["record"]: row["reason"] for row in read_csv(out / "rejected.csv")}
    assert reasons["c"].startswith("too short: 1.00 s") and "no signal file" in reasons["d"]
    meta = read_json(out / "meta.json")
    assert (meta["preprocessing"]["high_hz"], meta["preprocessing"]["order"], meta["fs"]) == (40, 3, 100)
    assert str(tmp_path).encode() not in b"".join(contents(out).values())
    assert preprocess(raw, out, replace(DATA, limit=1), CONFIG)["records"] == 1


def test_bad_entries_and_records_are_rejected_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bad when they are listed (broken, garbage, pipe) or only later."""
    wfdb = tmp_path / "wfdb"
    for seed, name in enumerate("abcefg"):
        write_record(wfdb, name, 100, heart(500, 100, seed), LEADS)
    (wfdb / "broken.hea").symlink_to(wfdb / "nowhere")
    (wfdb / "garbage.hea").write_bytes(b"\xff\x00")
    os.mkfifo(wfdb / "pipe.hea")
    raw, out = listed(tmp_path)
    (wfdb / "b.hea").unlink()
    (wfdb / "b.hea").symlink_to(wfdb / "nowhere.hea")
    (wfdb / "c.hea").write_bytes(b"\xff\x00 12 nonsense\n" * 3)
    (wfdb / "e.dat").unlink()
    (wfdb / "e.dat").mkdir()
    opened = batches.open_record

    def open_record(path: Path) -> AnyRecord:
        if path.name == "g":
            raise KeyError("what nobody thought of")
        return opened(path)

    monkeypatch.setattr(batches, "open_record", open_record)
    counts = preprocess(raw, out, DATA, CONFIG)
    assert (counts["records"], counts["rejected"]) == (2, 7)
    reasons = {row["record"]: row["reason"] for row in read_csv(out / "rejected.csv")}
    assert set(reasons) == {*"bceg", "broken", "garbage", "pipe"} and all(map(len, reasons.values()))
    assert reasons["g"] == "KeyError: 'what nobody thought of'"
    assert [row["record"] for row in read_csv(out / "records.csv")] == ["a", "f"]


def test_long_and_short_records_in_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ecggen.data.quality import spans
    from ecggen.prepare.preprocess import conditioning

    monkeypatch.setattr(conditioning, "PIECE", 3000)
    monkeypatch.setattr(conditioning, "WHOLE", 6000)
    folder = tmp_path / "wfdb"
    long = heart(20000, 125, 1, frank=True)
    long[:, 11] = 0.0  # known after all has been written
    for name, fs, x in (
        ("a", 250, heart(2000, 250, 1, frank=True)),
        ("b", 125, long),
        ("c", 125, np.zeros((20_000, 15))),
        ("d", 250, heart(2000, 250, 1, frank=True)),
        ("e", 125, long),
    ):
        write_record(folder, name, fs, x, [*LEADS, *FRANK])
    conditioned, calls = spans.conditioned_spans, []

    def fail_half_way(*arguments):
        calls.append(arguments)
        if len(calls) == 1 + 7 + 7 + 1 + 4:
            raise RecordError("Signals of record e cannot be read: the disk is gone.")
        return conditioned(*arguments)

    monkeypatch.setattr(spans, "conditioned_spans", fail_half_way)
    raw, out = listed(tmp_path, copies=True)
    counts = preprocess(raw, out, DATA, CONFIG)
    assert (counts["records"], counts["rejected"], counts["frank"]) == (3, 2, True)
    signals = np.load(out / "signals.npy")
    rows = [(r["record"], int(r["offset"]), int(r["n_samples"])) for r in read_csv(out / "records.csv")]
    assert rows == [("a", 0, 800), ("b", 800, 16_000), ("d", 16_800, 800)]
    assert not signals[800:16_800, 11].any() and signals[800:16_800, 10].any()
    np.testing.assert_array_equal(signals[:800], signals[16_800:])
    assert len(np.load(out / "frank.npy")) == len(signals)


def test_frank_leads_are_kept_if_every_record_has_them(tmp_path: Path) -> None:
    wfdb = tmp_path / "wfdb"
    write_record(wfdb, "a", 500, heart(2500, 500, 1, frank=True), [*LEADS, *FRANK])
    raw, out = listed(tmp_path)
    assert preprocess(raw, out, DATA, CONFIG)["frank"]
    frank, signals = np.load(out / "frank.npy"), np.load(out / "signals.npy")
    # The sources of I and II are the first two Frank rows here.
    np.testing.assert_allclose(frank[:, :2], signals[:, :2], atol=1e-3)
    write_record(wfdb, "b", 500, heart(2500, 500, 1), LEADS)
    raw, out = listed(tmp_path)
    counts = preprocess(raw, out, DATA, CONFIG)
    assert not counts["frank"] and not (out / "frank.npy").exists()
    assert "1 of 2 records have Frank leads: they are left out" in notes(counts)[0]


def test_noise_and_inverted_leads_reach_the_tables(tmp_path: Path) -> None:
    x = heart(10000, 500, 1)
    x[2500:5000, 8] += 0.5 * np.random.default_rng(0).normal(size=2500)  # 5 to 10 s of V3
    x[:, 2] *= -1  # III upside down
    write_record(tmp_path / "wfdb", "a", 500, x, LEADS)
    raw, out = listed(tmp_path)
    assert preprocess(raw, out, DATA, CONFIG)["records_by_flag"] == {"algebra": 1, "noise": 1, "polarity": 1}
    (row,) = read_csv(out / "records.csv")
    assert row["reasons"] == "algebra;noise:V3;polarity:III" and row["observed"] == "1" * 12
    assert float(row["quality"]) == pytest.approx(11 / 12, abs=1e-5)  # V3 is noisy for a quarter of the time
    spans = {r["flag"]: r for r in read_csv(out / "spans.csv")}
    assert 4 <= float(spans["noise"]["start_s"]) <= 5.25 and 9.75 <= float(spans["noise"]["stop_s"]) <= 11
    polarity = spans["polarity"]
    assert (polarity["lead"], polarity["start_s"], polarity["stop_s"]) == ("III", "0.0000", "20.0000")


def test_no_usable_record_says_why_and_leaves_what_was_there(tmp_path: Path) -> None:
    for seed, name in enumerate("abc"):
        write_record(tmp_path / "wfdb", name, 100, heart(100, 100, seed), LEADS)
    (tmp_path / "wfdb" / "c.dat").write_bytes(b"")
    raw, out = listed(tmp_path)
    words = r"None of the 3 records is usable: too short: 1\.00 s.* \(2\); .*truncated"
    with pytest.raises(RecordError, match=words):
        preprocess(raw, out, DATA, CONFIG)
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "wfdb"}


def test_a_copy_of_a_recording_is_rejected_with_its_reason(tmp_path: Path) -> None:
    """By a copied header alone, and by copies of both files: once in the result, so in one split."""
    folder = tmp_path / "wfdb"
    for seed, name in enumerate(("JS1", "JS2")):
        write_record(folder, name, 100, heart(500, 100, seed), LEADS)
    shutil.copy(folder / "JS1.hea", folder / "JS1 (1).hea")
    (folder / "JS2 - Copy.hea").write_text((folder / "JS2.hea").read_text().replace("JS2.dat", "x.dat"))
    shutil.copy(folder / "JS2.dat", folder / "x.dat")
    raw, out = listed(tmp_path)
    counts = preprocess(raw, out, DATA, CONFIG)
    assert (counts["listed"], counts["records"], counts["rejected"], counts["patients"]) == (4, 2, 2, 2)
    assert {row["record"]: row["reason"] for row in read_csv(out / "rejected.csv")} == {
        "JS1 (1)": "Record JS1 (1) is a copy of JS1: a recording counts once.",
        "JS2 - Copy": "Record JS2 - Copy is a copy of JS2: a recording counts once.",
    }


# Whoever computes.


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The list of COUNT records of 16 different signals; two are cut short, two have beats annotated."""
    folder = tmp_path_factory.mktemp("workers")
    wfdb = folder / "wfdb"
    for i in range(16):
        leads = [*LEADS, *FRANK]
        write_record(wfdb, f"s{i:02d}", 250, heart(1500, 250, i, frank=True), leads, [f"Patient: {i // 2}"])
    for i in range(16, COUNT):
        (wfdb / f"t{i:03d}.dat").write_bytes((wfdb / f"s{i % 16:02d}.dat").read_bytes())
        text = (wfdb / f"s{i % 16:02d}.hea").read_text()
        (wfdb / f"t{i:03d}.hea").write_text(text.replace(f"s{i % 16:02d}", f"t{i:03d}"))
    for i in (COUNT - 2, COUNT - 1):
        path = wfdb / f"t{i:03d}.hea"
        path.write_text(path.read_text().replace(" 1500", " 1600"))
    for name in ("s03", "t020"):
        wrann(name, "atr", np.array([500, 700, 900]), symbol=["N", "V", "N"], write_dir=str(wfdb))
    return listed(folder, copies=True)[0]


@pytest.fixture(scope="module")
def alone(raw: Path) -> dict[str, bytes]:
    """The files that one process writes."""
    return written(raw, raw.parent / "alone", replace(DATA, workers=1))


def written(raw: Path, out: Path, data: DataConfig) -> dict[str, bytes]:
    counts = preprocess(raw, out, data, CONFIG)
    assert (counts["records"], counts["rejected"], counts["patients"]) == (COUNT - 2, 2, 8)
    assert not list(out.parent.glob(f".{out.name}.*"))
    return contents(out)


def test_every_record_is_there_once(alone: dict[str, bytes], raw: Path) -> None:
    rows = read_csv(raw.parent / "alone" / "records.csv")
    names = [row["record"] for row in rows]
    assert names == sorted(set(names)) and len(names) == COUNT - 2
    assert [int(row["offset"]) for row in rows] == [600 * i for i in range(COUNT - 2)]
    signals = np.load(raw.parent / "alone" / "signals.npy").reshape(COUNT - 2, 600, 12)
    assert (signals[16:32] == signals[:16]).all() and len(np.unique(signals[:, 350, 6])) == 16
    assert {"frank.npy", "beats.csv"} <= set(alone)


def test_local_processes_write_the_same_bytes(
    raw: Path, alone: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "RECORDS", 7)
    assert written(raw, tmp_path / "out", replace(DATA, workers=2)) == alone


def kill_in_the_middle(process: subprocess.Popen[bytes], out: Path) -> threading.Thread:
    """Kill a process when the second batch has begun to write its results."""

    def kill() -> None:
        wait_for(lambda: len(list(out.parent.glob(f".{out.name}.*/parts/*.signals"))) > 1)
        process.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def test_on_a_scheduler_of_which_a_worker_and_then_all_is_lost(
    raw: Path, alone: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "RECORDS", 2)
    out = tmp_path / "out"
    with started(tmp_path) as cluster:
        data = replace(DATA, scheduler=cluster.address)
        with Client(cluster.address, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=60)
        killer = kill_in_the_middle(cluster.workers[0], out)
        assert written(raw, out, data) == alone
        killer.join()
        assert cluster.workers[0].wait() == -signal.SIGKILL and cluster.workers[1].poll() is None
        # What is there stays where the scheduler is lost.
        killer = kill_in_the_middle(cluster.scheduler, out)
        monkeypatch.setattr(parallel, "CONNECT_S", 0.5)
        with pytest.raises(WorkerError, match=r"scheduler at tcp://127\.0\.0\.1:\d+ was lost"):
            preprocess(raw, out, data, CONFIG)
        killer.join()
    assert contents(out) == alone and not list(tmp_path.glob(".out.*"))


def test_a_folder_that_a_worker_does_not_see(tmp_path: Path) -> None:
    batch = batches.Batch(tmp_path, (("a", None),), tmp_path / "elsewhere", 100.0, CONFIG, (), "numpy")
    with pytest.raises(batches.SharedFolderError, match="all workers share, under the same path"):
        batches.condition_batch(batch)


def test_what_a_killed_run_left_is_gone_after_the_next(
    raw: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    code = (
        "import os, sys; from pathlib import Path\n"
        "from ecggen.prepare.preprocess import stage\n"
        "from ecggen.utils.config import DataConfig, PreprocessConfig\n"
        "stage.NpyRows.move_file = lambda *_: os.kill(os.getpid(), 9)\n"
        "stage.preprocess(Path(sys.argv[1]), Path(sys.argv[2]), DataConfig(workers=1), PreprocessConfig())\n"
    )
    out = tmp_path / "out"
    command = [sys.executable, "-c", code, str(raw), str(out)]
    assert subprocess.run(command, env={**os.environ}, check=False).returncode == -signal.SIGKILL
    assert list(tmp_path.glob(".out*/parts/*.signals")) and not out.exists()
    assert written(raw, out, replace(DATA, workers=1)) == alone
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
