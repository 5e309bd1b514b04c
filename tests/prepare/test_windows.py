"""Windows cover records, patients stay in one split, and what is dropped is listed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from ecggen.leads import LEADS
from ecggen.prepare.splits import SplitError
from ecggen.prepare.windows import WindowError, robust_scale, window, window_starts
from ecggen.utils.config import ConfigError, DataConfig, WindowConfig
from ecggen.utils.files import read_csv, read_json, save_npy, write_csv, write_json

DATA = DataConfig(time_len=200)
RULES = WindowConfig(stride=150, min_label_count=2)
RECORD = ("record", "patient", "offset", "n_samples", "fs_raw", "observed", "labels", "fold", "reasons")


def records(
    folder: Path,
    count: int = 9,
    n: int = 500,
    spans: tuple = (),
    changes: dict[int, dict] | None = None,
    frank=False,
) -> Path:
    """A records folder whose sample value is its own position, so that windows can be traced."""
    rows, offset = [], 0
    for i in range(count):
        row = {"record": f"r{i}", "patient": f"p{i // 2}", "offset": offset, "n_samples": n, "fs_raw": 100}
        row |= {"observed": "1" * 12, "labels": "A;B" if i % 2 else "A", "fold": "", "reasons": ""}
        row |= (changes or {}).get(i, {})
        rows.append(row)
        offset += int(row["n_samples"])
    signal = np.arange(offset, dtype=np.float32)[:, None] + np.arange(12, dtype=np.float32) / 16
    save_npy(folder / "signals.npy", signal)
    if frank:
        save_npy(folder / "frank.npy", -signal[:, :3])
    write_csv(folder / "records.csv", rows, RECORD)
    write_csv(folder / "rejected.csv", [{"record": "bad", "reason": "broken"}], ("record", "reason"))
    columns = ("record", "flag", "lead", "start_s", "stop_s")
    write_csv(folder / "spans.csv", [dict(zip(columns, s, strict=True)) for s in spans], columns)
    counts = {"listed": count + 1, "absent": 0, "records": count, "rejected": 1}
    write_json(
        folder / "meta.json", {"fs": 100.0, "preprocessing": {"fs": 100.0, "low_hz": 0.67}, "counts": counts}
    )
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
def test_window_starts(n, length, stride, starts):
    assert window_starts(n, length, stride) == starts


@pytest.mark.parametrize("n", range(200, 1500, 37))
@pytest.mark.parametrize("stride", [1, 63, 200])
def test_the_whole_record_is_covered(n, stride):
    seen = np.zeros(n, dtype=int)
    starts = window_starts(n, 200, stride)
    for start in starts:
        seen[start : start + 200] += 1
    assert seen.min() >= 1 and len(starts) == len(set(starts)) and starts[-1] == n - 200


def test_content_index_and_meta(tmp_path):
    out = tmp_path / "windows"
    counts = window(records(tmp_path / "records", frank=True), out, DATA, RULES)
    rows, windows, frank = (
        read_csv(out / "index.csv"),
        np.load(out / "windows.npy"),
        np.load(out / "frank.npy"),
    )
    assert windows.shape == (27, 12, 200) and windows.dtype == np.float32 and frank.shape == (27, 3, 200)
    for i, row in enumerate(rows):
        start = int(row["record"][1:]) * 500 + round(float(row["start_s"]) * 100)
        np.testing.assert_array_equal(windows[i, 0], np.arange(start, start + 200))
        np.testing.assert_array_equal(windows[i, 3], windows[i, 0] + np.float32(3 / 16))
        np.testing.assert_array_equal(frank[i, 0], -windows[i, 0])
        assert int(row["window"]) == i
    assert [r["start_s"] for r in rows[:3]] == ["0.0", "1.5", "3.0"]
    splits = {r["patient"]: set() for r in rows}
    for r in rows:
        splits[r["patient"]].add(r["split"])
    assert all(len(kinds) == 1 for kinds in splits.values())
    meta = read_json(out / "meta.json")
    assert meta["label_classes"] == ["A", "B"] and meta["preprocessing"]["low_hz"] == 0.67
    assert sum(meta["label_patients"]["A"].values()) == 5 and sum(meta["label_patients"]["B"].values()) == 4
    digest = hashlib.sha256((out / "windows.npy").read_bytes() + (out / "index.csv").read_bytes()).hexdigest()
    assert meta["fingerprint"] == digest
    assert counts["windows"] == 27 == sum(counts["windows_by_split"].values())
    assert counts["records_unreadable"] == 1 and counts["records"] == 9
    assert read_csv(out / "rejected.csv") == [{"record": "bad", "window": "", "reason": "broken"}]


def test_same_input_same_bytes(tmp_path):
    source, outs = records(tmp_path / "records"), [tmp_path / "a", tmp_path / "b"]
    for out in outs:
        window(source, out, DATA, RULES)
    for name in ("windows.npy", "index.csv", "meta.json", "rejected.csv"):
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes()


def test_flags_of_a_window(tmp_path):
    spans = (
        ("r0", "saturated", "V1", "0.1", "0.2"),  # in window 0 only: left out
        ("r1", "flat", "V2", "0.0", "2.0"),  # windows 0 and 1: V2 unobserved there
        ("r2", "gap", "I", "4.99", "5.0"),  # window 2
        *[("r3", "gap", name, "0.0", "1.0") for name in LEADS],  # nothing left of window 0
    )
    changes = {4: {"observed": "011111111111", "reasons": "missing:I"}, 5: {"n_samples": 199}}
    out = tmp_path / "windows"
    counts = window(records(tmp_path / "records", spans=spans, changes=changes), out, DATA, RULES)
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


def test_exclusion_is_a_choice(tmp_path):
    source = records(tmp_path / "records", spans=(("r0", "saturated", "V1", "0.1", "0.2"),))
    kept = window(source, tmp_path / "w", DATA, WindowConfig(stride=150, exclude=[]))
    assert kept["windows"] == 27
    with pytest.raises(ConfigError, match=r"window\.exclude has 'noisy': use any of flat"):
        window(source, tmp_path / "w", DATA, WindowConfig(exclude=["noisy"]))
    with pytest.raises(ConfigError, match=r"window\.exclude has 'swap:V1-V9': after swap: comes RA-LA"):
        window(source, tmp_path / "w", DATA, WindowConfig(exclude=["swap:V1-V9"]))


def test_flags_that_are_kept_are_counted_and_can_be_excluded(tmp_path):
    spans = (
        ("r0", "noise", "V1", "0.1", "0.2"),  # window 0
        ("r0", "noise", "V2", "0.1", "0.2"),  # window 0 again
        ("r1", "swap", "RA-LA", "0.0", "5.0"),  # all three
        ("r2", "polarity", "V4", "0.0", "5.0"),
    )
    changes = {1: {"reasons": "swap:RA-LA"}}
    source = records(tmp_path / "records", spans=spans, changes=changes)
    counts = window(source, tmp_path / "w", DATA, RULES)
    assert counts["windows_by_flag"] == {"noise": 1, "polarity": 3, "swap": 3}
    assert counts["windows"] == 27 and counts["windows_rejected_by_reason"] == {}
    rows = {(r["record"], r["start_s"]): r for r in read_csv(tmp_path / "w" / "index.csv")}
    assert rows["r0", "0.0"]["reasons"] == "noise:V1;noise:V2"
    assert float(rows["r0", "0.0"]["quality"]) == pytest.approx(10 / 12, abs=1e-5)
    assert float(rows["r1", "1.5"]["quality"]) == pytest.approx(6 / 12)
    assert rows["r1", "1.5"]["observed"] == "1" * 12  # doubtful is not unobserved
    for exclude, gone in ((["noise"], 1), (["noise:V2"], 1), (["noise:V3"], 0), (["swap", "polarity"], 6)):
        rules = WindowConfig(stride=150, min_label_count=2, exclude=exclude)
        assert window(source, tmp_path / "x", DATA, rules)["windows"] == 27 - gone


def test_label_classes_need_training_patients(tmp_path):
    source = records(tmp_path / "records", changes={0: {"labels": "A;Rare"}})
    window(source, tmp_path / "w", DATA, RULES)
    meta = read_json(tmp_path / "w" / "meta.json")
    assert "Rare" not in meta["label_classes"] and sum(meta["label_patients"]["Rare"].values()) == 1


def test_scale():
    rng = np.random.default_rng(0)
    ecg = rng.normal(size=(12, 500))
    observed = np.arange(12) < 6
    assert robust_scale(ecg, observed) == pytest.approx(1.0, abs=0.05)
    spiked = ecg.copy()
    spiked[0, :10] = 500.0  # less than one per cent of the observed samples
    assert robust_scale(spiked, observed) == pytest.approx(1.0, abs=0.1)
    spiked[7:] = 1e6
    assert robust_scale(spiked, observed) == pytest.approx(1.0, abs=0.1)
    assert robust_scale(0 * ecg, observed) == 1e-3


def test_scale_is_stored_not_applied(tmp_path):
    source = records(tmp_path / "records")
    for kind in ("rms", "none"):
        window(source, tmp_path / kind, DATA, WindowConfig(stride=150, scale=kind))
    np.testing.assert_array_equal(
        np.load(tmp_path / "rms/windows.npy"), np.load(tmp_path / "none/windows.npy")
    )
    assert {r["scale"] for r in read_csv(tmp_path / "none/index.csv")} == {"1"}
    assert float(read_csv(tmp_path / "rms/index.csv")[-1]["scale"]) == pytest.approx(4400, rel=0.01)


def test_refusals_in_words(tmp_path):
    with pytest.raises(WindowError, match="run the preprocess stage first"):
        window(tmp_path, tmp_path / "w", DATA, RULES)
    source = records(tmp_path / "records")
    with pytest.raises(WindowError, match=r"100 Hz and data\.fs is 250"):
        window(source, tmp_path / "w", DataConfig(fs=250, time_len=200), RULES)
    with pytest.raises(WindowError, match=r"No window is left of 9 records: shorter than one window.* \(9\)"):
        window(source, tmp_path / "w", DataConfig(time_len=512), RULES)
    with pytest.raises(SplitError, match="at least 3"):
        window(records(tmp_path / "few", count=3), tmp_path / "w", DATA, RULES)
    assert not (tmp_path / "w").exists()
