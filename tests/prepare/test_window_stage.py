"""Windows cover records, patients stay in one split, and what is dropped is listed."""

from __future__ import annotations

import hashlib
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ecggen.data.read_windows import read_window_folder
from ecggen.leads import LEADS
from ecggen.prepare.window.plan import window_starts
from ecggen.prepare.window.signals import robust_scale
from ecggen.prepare.window.splits import SplitError
from ecggen.prepare.window.stage import WindowError, window
from ecggen.utils.config import ConfigError, DataConfig, WindowConfig
from ecggen.utils.files import read_csv, read_json, save_npy, write_csv, write_json

DATA = DataConfig(time_len=200)
CONFIG = WindowConfig(stride=150, min_label_count=2)
RECORD = ("record", "patient", "offset", "n_samples", "fs_raw", "observed", "fold", "reasons", "database")
RECORD += ("label_system", "all_labels")
SPAN = ("record", "flag", "lead", "start_s", "stop_s")


def records(
    folder: Path,
    count: int = 9,
    n: int = 500,
    spans: tuple = (),
    changes: dict[int, dict[str, Any]] | None = None,
    frank: bool = False,
) -> Path:
    """A records folder whose sample value is its own position, so that windows can be traced."""
    rows, offset = [], 0
    for i in range(count):
        row = {"record": f"r{i}", "patient": f"p{i // 2}", "offset": offset, "n_samples": n, "fs_raw": 100}
        row |= {"observed": "1" * 12, "database": "made", "label_system": "dx"}
        row |= {"all_labels": "dx/A;dx/B" if i % 2 else "dx/A"}
        row |= (changes or {}).get(i, {})
        rows.append(row)
        offset += int(row["n_samples"])
    signal = np.arange(offset, dtype=np.float32)[:, None] + np.arange(12, dtype=np.float32) / 16
    save_npy(folder / "signals.npy", signal)
    if frank:
        save_npy(folder / "frank.npy", -signal[:, :3])
    write_csv(folder / "records.csv", rows, RECORD)
    write_csv(folder / "rejected.csv", [{"record": "bad", "reason": "broken"}], ("record", "reason"))
    write_csv(folder / "spans.csv", [dict(zip(SPAN, s, strict=True)) for s in spans], SPAN)
    counts = {"listed": count + 1, "absent": 0, "records": count, "rejected": 1}
    meta = {"fs": 100.0, "preprocessing": {"fs": 100.0, "low_hz": 0.67}}
    write_json(folder / "meta.json", meta | {"counts": counts | {"by_database": {"made": counts}}})
    return folder


@pytest.mark.parametrize(
    ("n", "length", "stride", "starts"),
    [
        (1000, 512, 512, [0, 488]),
        (512, 512, 512, [0]),
        (511, 512, 512, []),
        (1024, 512, 512, [0, 512]),
        (1000, 512, 100, [0, 100, 200, 300, 400, 488]),
        (513, 512, 9999, [0, 1]),
    ],
)
def test_window_starts(n: int, length: int, stride: int, starts: list[int]) -> None:
    assert window_starts(n, length, stride) == starts


def test_content_index_and_meta(tmp_path: Path) -> None:
    out = tmp_path / "windows"
    source = records(tmp_path / "records", frank=True, changes={0: {"all_labels": "dx/A;dx/Rare"}})
    counts = window(source, out, DATA, CONFIG)
    rows = read_csv(out / "index.csv")
    windows, frank = np.load(out / "windows.npy"), np.load(out / "frank.npy")
    assert windows.shape == (27, 12, 200) and windows.dtype == np.float32 and frank.shape == (27, 3, 200)
    for i, row in enumerate(rows):
        start = int(row["record"][1:]) * 500 + round(float(row["start_s"]) * 100)
        np.testing.assert_array_equal(windows[i, 0], np.arange(start, start + 200))
        np.testing.assert_array_equal(windows[i, 3], windows[i, 0] + np.float32(3 / 16))
        np.testing.assert_array_equal(frank[i], -windows[i, :3])
        assert int(row["window"]) == i
    assert [r["start_s"] for r in rows[:3]] == ["0.0", "1.5", "3.0"]
    assert len({(r["patient"], r["split"]) for r in rows}) == len({r["patient"] for r in rows})
    meta = read_json(out / "meta.json")
    assert meta["label_classes"] == ["A", "B"] and meta["preprocessing"]["low_hz"] == 0.67
    of_label = {label: sum(splits.values()) for label, splits in meta["label_patients"].items()}
    assert of_label == {"A": 5, "B": 4, "Rare": 1}, "a class needs two training patients"
    digest = hashlib.sha256((out / "windows.npy").read_bytes() + (out / "index.csv").read_bytes()).hexdigest()
    assert meta["fingerprint"] == digest
    assert counts["windows"] == 27 == sum(counts["windows_by_split"].values())
    assert counts["records_unreadable"] == 1 and counts["records"] == 9
    made = counts["by_database"]["made"]
    assert (made["records"], made["patients"], made["windows"], made["listed"]) == (9, 5, 27, 10)
    assert made["windows_by_split"] == counts["windows_by_split"]
    assert read_csv(out / "rejected.csv") == [{"record": "bad", "window": "", "reason": "broken"}]
    window(source, tmp_path / "again", DATA, CONFIG)
    for path in out.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_flags_of_a_window(tmp_path: Path) -> None:
    spans = (
        ("r0", "saturated", "V1", "0.1", "0.2"),  # in window 0 only: left out
        ("r1", "flat", "V2", "0.0", "2.0"),  # windows 0 and 1: V2 unobserved there
        ("r2", "gap", "I", "4.99", "5.0"),  # window 2
        *[("r3", "gap", name, "0.0", "1.0") for name in LEADS],  # nothing left of window 0
    )
    changes = {4: {"observed": "011111111111", "reasons": "missing:I"}, 5: {"n_samples": 199}}
    out = tmp_path / "windows"
    counts = window(records(tmp_path / "records", spans=spans, changes=changes), out, DATA, CONFIG)
    rows, windows = read_csv(out / "index.csv"), np.load(out / "windows.npy")
    by = {(r["record"], r["start_s"]): r for r in rows}
    dropped = [(r["record"], r["window"], r["reason"]) for r in read_csv(out / "rejected.csv")][1:]
    assert dropped == [
        ("r0", "0", "saturated:V1"),
        ("r3", "0", "no usable lead"),
        ("r5", "", "shorter than one window of 200 samples"),
    ]
    assert ("r0", "0.0") not in by and ("r0", "1.5") in by
    assert [by["r1", t]["observed"][7] for t in ("0.0", "1.5", "3.0")] == ["0", "0", "1"]
    assert by["r1", "0.0"]["reasons"] == "flat:V2" and by["r1", "3.0"]["reasons"] == ""
    at = int(by["r1", "0.0"]["window"])
    assert not windows[at, 7].any() and windows[at, 6].any()
    assert by["r2", "3.0"]["observed"] == "011111111111" and by["r2", "1.5"]["observed"] == "1" * 12
    assert by["r4", "3.0"]["reasons"] == "missing:I" and float(by["r4", "3.0"]["quality"]) < 1
    assert counts["windows_rejected"] == 3 and counts["records_without_window"] == 1


def test_flags_that_are_kept_are_counted_and_can_be_excluded(tmp_path: Path) -> None:
    spans = (
        ("r0", "noise", "V1", "0.1", "0.2"),  # window 0
        ("r0", "noise", "V2", "0.1", "0.2"),  # window 0 again
        ("r1", "swap", "RA-LA", "0.0", "5.0"),  # all three
        ("r2", "polarity", "V4", "0.0", "5.0"),
    )
    source = records(tmp_path / "records", spans=spans, changes={1: {"reasons": "swap:RA-LA"}})
    counts = window(source, tmp_path / "w", DATA, CONFIG)
    assert counts["windows_by_flag"] == {"noise": 1, "polarity": 3, "swap": 3}
    assert counts["windows"] == 27 and counts["windows_rejected_by_reason"] == {}
    rows = {(r["record"], r["start_s"]): r for r in read_csv(tmp_path / "w" / "index.csv")}
    assert rows["r0", "0.0"]["reasons"] == "noise:V1;noise:V2"
    assert float(rows["r0", "0.0"]["quality"]) == pytest.approx(10 / 12, abs=1e-5)
    assert float(rows["r1", "1.5"]["quality"]) == pytest.approx(6 / 12)
    assert rows["r1", "1.5"]["observed"] == "1" * 12  # doubtful is not unobserved
    for exclude, gone in ((["noise"], 1), (["noise:V2"], 1), (["noise:V3"], 0), (["swap", "polarity"], 6)):
        config = WindowConfig(stride=150, min_label_count=2, exclude=exclude)
        assert window(source, tmp_path / "x", DATA, config)["windows"] == 27 - gone
    with pytest.raises(ConfigError, match=r"window\.exclude has 'noisy': use any of flat"):
        window(source, tmp_path / "w", DATA, WindowConfig(exclude=["noisy"]))
    with pytest.raises(ConfigError, match=r"window\.exclude has 'swap:V1-V9': after swap: comes RA-LA"):
        window(source, tmp_path / "w", DATA, WindowConfig(exclude=["swap:V1-V9"]))


def test_scale_is_stored_not_applied(tmp_path: Path) -> None:
    source = records(tmp_path / "records")
    for kind in ("rms", "none"):
        window(source, tmp_path / kind, DATA, WindowConfig(stride=150, scale=kind))
    np.testing.assert_array_equal(*(np.load(tmp_path / kind / "windows.npy") for kind in ("rms", "none")))
    assert {r["scale"] for r in read_csv(tmp_path / "none/index.csv")} == {"1"}
    assert float(read_csv(tmp_path / "rms/index.csv")[-1]["scale"]) == pytest.approx(4400, rel=0.01)


def test_scale_of_a_window() -> None:
    ecg = np.random.default_rng(0).normal(size=(12, 500))
    observed = np.arange(12) < 6
    assert robust_scale(ecg, observed) == pytest.approx(1.0, abs=0.05)
    spiked = ecg.copy()
    spiked[0, :10] = 500.0  # less than one per cent of the observed samples
    spiked[7:] = 1e6
    assert robust_scale(spiked, observed) == pytest.approx(1.0, abs=0.1)
    assert robust_scale(0 * ecg, observed) == 1e-3 and robust_scale(ecg, np.zeros(12, bool)) == 1.0


def test_refusals_in_words(tmp_path: Path) -> None:
    with pytest.raises(WindowError, match="run the preprocess stage first"):
        window(tmp_path, tmp_path / "w", DATA, CONFIG)
    source = records(tmp_path / "records")
    with pytest.raises(WindowError, match=r"100 Hz and data\.fs is 250"):
        window(source, tmp_path / "w", DataConfig(fs=250, time_len=200), CONFIG)
    with pytest.raises(WindowError, match=r"No window is left of 9 records: shorter than one window.* \(9\)"):
        window(source, tmp_path / "w", DataConfig(time_len=512), CONFIG)
    with pytest.raises(SplitError, match="at least 3"):
        window(records(tmp_path / "few", count=3), tmp_path / "w", DATA, CONFIG)
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("name", ["spans.csv", "beats.csv"])
def test_a_table_in_another_order_than_the_records_is_refused(tmp_path: Path, name: str) -> None:
    """Else its flags, or beats, would be lost without a word."""
    source = records(tmp_path / "records")
    spans = [dict(zip(SPAN, (r, "flat", "V2", 0, 2), strict=True)) for r in ("r4", "r1")]
    beats = [{"record": record, "time_s": 1, "symbol": "N"} for record in ("r4", "unknown")]
    write_csv(source / name, spans if name == "spans.csv" else beats, (*SPAN, "time_s", "symbol"))
    with pytest.raises(WindowError, match=rf"{name} lists record '(r1|unknown)' where records.csv does not"):
        window(source, tmp_path / "w", DATA, CONFIG)
    assert not (tmp_path / "w").exists()


def test_signals_that_do_not_fit_the_table(tmp_path: Path) -> None:
    source = records(tmp_path / "records")
    whole = np.load(source / "signals.npy")
    for write, words in (
        (lambda p: np.save(p, whole[:-80]), r"signals.npy ends before sample 4500 that records.csv promises"),
        (lambda p: p.write_bytes(p.read_bytes()[:-80]), r"Cannot read .*signals.npy"),
        (lambda p: p.write_bytes(b"none"), r"Cannot read .*signals.npy"),
        (lambda p: np.save(p, np.zeros((4500, 12))), r"holds float64 \(4500, 12\), not float32"),
        (lambda p: p.unlink(), r"Cannot read .*signals.npy: No such file"),
    ):
        write(source / "signals.npy")
        with pytest.raises(WindowError, match=words):
            window(source, tmp_path / "w", DATA, CONFIG)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["records"]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="no limits on this system")
    source, out = records(tmp_path / "records"), tmp_path / "w"
    window(source, out, DATA, CONFIG)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for most in (20_000, 200_000):  # among the windows, near their end
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
        try:
            with pytest.raises(WindowError, match=r"/w: larger than this system or user may write") as error:
                window(source, out, DATA, CONFIG)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert "\n" not in str(error.value)
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["records", "w"]


def test_the_same_recording_in_two_splits_is_counted_and_said(tmp_path: Path) -> None:
    folds = {i: {"fold": 1 + i // 2} for i in range(9)}  # r6, r7: fold 4, validation; r8: fold 5, test
    source = records(tmp_path / "records", changes=folds)
    assert window(source, tmp_path / "w", DATA, CONFIG)["windows_copied_across_splits"] == 0
    signals = np.load(source / "signals.npy")
    signals[4000:4500], signals[500:1000] = signals[0:500], signals[0:500]  # r0 in r8 (test) and r1 (train)
    np.save(source / "signals.npy", signals)
    with pytest.warns(UserWarning, match="9 windows in .* same samples as a window of another split"):
        counts = window(source, tmp_path / "w", DATA, CONFIG)
    assert counts["windows_copied_across_splits"] == 9
    assert read_json(tmp_path / "w" / "meta.json")["counts"] == counts


def test_memory_hardly_grows_with_the_number_of_records(tmp_path: Path) -> None:
    """About 200 bytes for each further record and patient, not the size of its signals (1,536 bytes)."""

    def peak(count: int) -> int:
        changes = {i: {"patient": f"patient-{i * 7919 % count:032d}"} for i in range(count)}
        source = records(tmp_path / f"r{count}", count=count, n=32, changes=changes)
        tracemalloc.start()
        try:
            window(source, tmp_path / f"w{count}", DataConfig(time_len=32), CONFIG)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(50)  # what is imported or compiled on the way
    small, large = peak(200), peak(1500)
    assert large - small < 500 * 1300, (small, large)


def test_what_is_written_is_what_training_reads(tmp_path: Path) -> None:
    source = records(tmp_path / "records", frank=True)
    signals = np.load(source / "signals.npy")
    np.save(source / "signals.npy", np.sin(signals))
    window(source, tmp_path / "w", DATA, CONFIG)
    folder = read_window_folder(tmp_path / "w", fs=100.0, time_len=200)
    np.testing.assert_array_equal(folder.windows[[26, 3]], np.load(tmp_path / "w" / "windows.npy")[[26, 3]])
    assert len(folder) == 27 and folder.label_classes == ["A", "B"] and folder.labels[3].tolist() == [1, 1]
