"""Windows cover records, patients stay in one split, and what is dropped is listed."""

from __future__ import annotations

import dataclasses
import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from ecggen.data.window_folder import read_window_folder
from ecggen.leads import LEADS
from ecggen.prepare.window.splits import SplitError
from ecggen.prepare.window.stage import WindowError, window, window_starts
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


def test_shards_are_the_same_windows_in_several_files(tmp_path):
    source = records(tmp_path / "records", frank=True)
    window(source, tmp_path / "one", DATA, RULES)
    window(source, tmp_path / "many", DATA, dataclasses.replace(RULES, shard_windows=10))
    one, many = tmp_path / "one", tmp_path / "many"
    for stem in ("windows", "frank"):
        files = sorted(many.glob(f"{stem}*.npy"))
        assert [path.name for path in files] == [f"{stem}-{i:05d}.npy" for i in range(3)]
        parts = [np.load(path) for path in files]
        assert [len(part) for part in parts] == [10, 10, 7]
        np.testing.assert_array_equal(np.concatenate(parts), np.load(one / f"{stem}.npy"))
        stored = sorted(one.glob(f"{stem}*"))
        assert [path.name for path in stored] == [f"{stem}.npy"]
    for name in ("index.csv", "rejected.csv"):
        assert (one / name).read_bytes() == (many / name).read_bytes()
    digest = hashlib.sha256()
    for name in ("windows-00000.npy", "windows-00001.npy", "windows-00002.npy", "index.csv"):
        digest.update((many / name).read_bytes())
    first, second = (read_json(folder / "meta.json") for folder in (one, many))
    assert second.pop("fingerprint") == digest.hexdigest() != first.pop("fingerprint")
    assert first == second
    folders = [read_window_folder(folder) for folder in (one, many)]
    rows = [26, 9, 10, 11, 3]
    np.testing.assert_array_equal(*(folder.windows[rows] for folder in folders))
    np.testing.assert_array_equal(*(folder.frank[rows] for folder in folders))
    assert folders[0].split == folders[1].split and len(folders[1]) == 27
    for most, names in ((27, ["windows.npy"]), (26, ["windows-00000.npy", "windows-00001.npy"])):
        window(source, tmp_path / "edge", DATA, dataclasses.replace(RULES, shard_windows=most))
        assert sorted(path.name for path in (tmp_path / "edge").glob("windows*")) == names


def test_files_are_those_that_numpy_writes(tmp_path):
    window(records(tmp_path / "records"), tmp_path / "w", DATA, RULES)
    written = (tmp_path / "w" / "windows.npy").read_bytes()
    np.save(tmp_path / "again.npy", np.load(tmp_path / "w" / "windows.npy"))
    assert (tmp_path / "again.npy").read_bytes() == written


def test_tables_in_another_order_than_the_records_give_the_same_windows(tmp_path):
    spans = [
        ("r1", "flat", "V2", "0.0", "2.0"),
        ("r1", "noise", "V1", "0.1", "0.2"),
        ("r4", "gap", "I", "4.99", "5.0"),
        ("r4", "saturated", "V1", "0.1", "0.2"),
        ("r7", "noise", "V2", "0.0", "5.0"),
    ]
    beats = [
        (name, time, "NV"[i % 2]) for name in ("r0", "r3", "r8") for i, time in enumerate((0.5, 1.7, 4.2))
    ]
    orders = ([0, 1, 2, 3, 4], [4, 2, 3, 0, 1], [0, 2, 1, 4, 3])
    made = []
    for number, order in enumerate(orders):
        source = records(tmp_path / f"r{number}", spans=tuple(spans[i] for i in order))
        rows = [dict(zip(("record", "time_s", "symbol"), beat, strict=True)) for beat in beats]
        rows = rows[6:] + rows[:6] if number else rows
        write_csv(source / "beats.csv", rows, ("record", "time_s", "symbol"))
        out = tmp_path / f"w{number}"
        window(source, out, DATA, RULES)
        made.append(
            [(out / name).read_bytes() for name in ("index.csv", "rejected.csv", "beats.csv", "windows.npy")]
        )
    assert made[0] == made[1] == made[2]
    table = read_csv(tmp_path / "w0" / "beats.csv")
    index = read_csv(tmp_path / "w0" / "index.csv")
    for row in table:  # each at its time within its window
        own = index[int(row["window"])]
        at = float(own["start_s"]) + int(row["sample"]) / 100
        assert (own["record"], at, row["symbol"]) in [(n, pytest.approx(t), s) for n, t, s in beats]
    # Windows at 0, 1.5 and 3 s: 1.7 s lies in two of them, 4.2 and 0.5 s in one.
    assert len(table) == 3 * 4


def test_a_full_disk_leaves_what_was_there(tmp_path):
    resource = pytest.importorskip("resource", reason="no limits on this system")
    source, out = records(tmp_path / "records"), tmp_path / "w"
    window(source, out, DATA, RULES)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for most in (500, 20_000, 200_000):  # within the first file, among its windows, near its end
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
        try:
            with pytest.raises(WindowError, match=r"/w: larger than this system or user may write") as error:
                window(source, out, DATA, RULES)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert "\n" not in str(error.value)
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["records", "w"]


def test_signals_that_do_not_fit_the_table(tmp_path):
    source = records(tmp_path / "records")
    whole = (source / "signals.npy").read_bytes()
    for content, words in (
        (whole[:-4000], r"signals.npy ends before sample 4500 that records.csv promises"),
        (b"none", r"Cannot read .*signals.npy"),
    ):
        (source / "signals.npy").write_bytes(content)
        with pytest.raises(WindowError, match=words):
            window(source, tmp_path / "w", DATA, RULES)
    np.save(source / "signals.npy", np.zeros((4500, 12)))
    with pytest.raises(WindowError, match=r"holds float64 \(4500, 12\), not float32"):
        window(source, tmp_path / "w", DATA, RULES)
    (source / "signals.npy").unlink()
    with pytest.raises(WindowError, match=r"Cannot read .*signals.npy: No such file"):
        window(source, tmp_path / "w", DATA, RULES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["records"]


def test_memory_hardly_grows_with_the_number_of_records(tmp_path):
    """Below 100 bytes for each further record, and 40 of them are the text of its patient's name."""

    def peak(count: int) -> int:
        source = records(tmp_path / f"r{count}", count=count, n=32)
        rows = read_csv(source / "records.csv")
        order = np.random.default_rng(0).permutation(count)  # names that do not come sorted
        for row, number in zip(rows, order, strict=True):
            row["patient"] = f"patient-{number:032d}"
        write_csv(source / "records.csv", rows, RECORD)
        tracemalloc.start()
        try:
            window(source, tmp_path / f"w{count}", DataConfig(time_len=32), RULES)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(50)  # what is imported or compiled on the way
    small, large = peak(300), peak(3000)
    assert large - small < 100 * 2700, (small, large)
