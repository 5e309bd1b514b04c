"""Window folders: what is read, who belongs to whom, and what is refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ecggen.data.read_windows import read_window_folder
from ecggen.data.windows import DataError, WindowFiles, WindowFolder
from ecggen.leads import LEADS
from ecggen.utils.files import read_csv, write_csv, write_json

T = 64
COLUMNS = ("window", "record", "patient", "start_s", "split", "labels", "scale", "observed", "quality")
SPLIT_OF = ("train", "train", "train", "validation", "test")
META = {"fs": 100.0, "time_len": T, "leads": LEADS, "label_classes": ["a", "b", "c"], "split_rule": ""}


def signals(n: int, seed: int = 0, width: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, width, T)).astype(np.float32)


@pytest.fixture
def indexed(tmp_path: Path) -> Path:
    """Ten records of five patients; three windows each, the last one half over the second."""
    rows = []
    for record in range(10):
        for k, start in enumerate((0.0, 0.64, 0.96)):
            row = {"window": 3 * record + k, "record": f"r{record}", "patient": f"p{record // 2}"}
            row |= {"start_s": start, "split": SPLIT_OF[record // 2], "labels": "b;a" if record % 2 else ""}
            rows.append(row | {"scale": 0.5, "observed": "1" * 12 if record else "110000111111"})
    write_csv(tmp_path / "index.csv", rows, COLUMNS)
    np.save(tmp_path / "windows.npy", signals(30))
    np.save(tmp_path / "frank.npy", signals(30)[:, :3])
    write_json(tmp_path / "meta.json", META)
    return tmp_path


def change(folder: Path, row: int, **values: str) -> None:
    rows = read_csv(folder / "index.csv")
    rows[row] |= values
    write_csv(folder / "index.csv", rows, COLUMNS)


def test_an_indexed_folder(indexed: Path) -> None:
    folder = read_window_folder(indexed, fs=100.0, time_len=T)
    assert len(folder) == 30 and folder.fs == 100 and folder.time_len == T
    assert folder.windows.shape == (30, 12, T) and folder.frank.shape == (30, 3, T)
    assert folder.rows("train").tolist() == list(range(18))
    assert folder.rows("validation").tolist() == list(range(18, 24))
    assert len(folder.rows("all")) == 30
    assert folder.record[4] == "r1" and folder.patient[4] == "p0" and folder.start_s[1] == 0.64
    assert folder.labels[3].tolist() == [1, 1, 0] and folder.labels[0].tolist() == [0, 0, 0]
    assert folder.label_valid[:4].tolist() == [False, False, False, True]
    assert folder.observed[0].tolist() == [c == "1" for c in "110000111111"]
    with pytest.raises(DataError, match="train, validation, test or all"):
        folder.rows("dev")
    for classes, shape in (([], (30, 0)), (None, (30, 2))):
        write_json(indexed / "meta.json", META | {"label_classes": classes})
        assert read_window_folder(indexed).labels.shape == shape


KEYS = (
    *(3, -1, np.int64(17), slice(None), slice(2, 15, 3), slice(None, None, -1), [], [17, 0, 7, 7, -2]),
    *(np.arange(18) % 3 == 0, np.zeros(18, bool), np.array([[1, 2], [16, 3]]), (4, 2)),
    *((slice(1, 9), slice(None), 3), ([0, 8], 1, slice(2, 5)), (np.arange(18) > 9, -1)),
)


@pytest.mark.parametrize("dtype", [np.float32, ">f8", np.int16])
def test_files_are_indexed_as_one_array(tmp_path: Path, dtype: str) -> None:
    """One file, and several with a different number of windows, the last one without that axis."""
    x = (100 * signals(18)).astype(dtype)
    np.save(tmp_path / "whole.npy", np.asfortranarray(x))
    for i, part in enumerate((x[:7], x[7:17], x[17])):
        np.save(tmp_path / f"part{i}.npy", part)
    one = WindowFiles([tmp_path / "whole.npy"])
    several = WindowFiles(sorted(tmp_path.glob("part*.npy")))
    for files in (one, several, pickle.loads(pickle.dumps(several))):
        assert len(files) == 18 and files.shape == x.shape
        np.testing.assert_array_equal(np.asarray(files), x.astype(np.float32))
        for key in KEYS:
            part = files[key]
            assert part.dtype == np.float32 and part.flags.writeable
            np.testing.assert_array_equal(part, x[key].astype(np.float32))
        for key in (18, -19, [0, 18], np.zeros(17, bool), 0.5):
            with pytest.raises(IndexError):
                files[key]


def test_nothing_stays_open_and_a_folder_is_pickled_as_its_paths(indexed: Path) -> None:
    folder = read_window_folder(indexed)
    folder.windows[::2], folder.supports(np.arange(30))
    if (handles := Path("/proc/self/fd")).is_dir():  # Linux
        assert not any(str(indexed) in str(handle.resolve()) for handle in handles.iterdir())
        assert str(indexed) not in Path("/proc/self/maps").read_text()
    sent = pickle.dumps(folder)
    assert len(sent) < folder.windows[:].nbytes / 8
    np.testing.assert_array_equal(pickle.loads(sent).windows[3:9], signals(30)[3:9])


def spoil_bytes(path: Path, cut: int) -> None:
    path.write_bytes(path.read_bytes()[:-cut])


SPOILS: list[tuple[Callable[[Path], object], str]] = [
    (lambda f: change(f, 0, split="dev"), "line 2 names the split 'dev'"),
    (lambda f: change(f, 2, split="test"), "line 4: patient 'p0' is in train and in test"),
    (lambda f: change(f, 0, observed="11"), "observed is '11'"),
    (lambda f: change(f, 0, start_s="late"), "line 2: start_s is 'late': a number is needed"),
    (lambda f: change(f, 3, window="7"), "line 5 is window '7', not 3"),
    (lambda f: spoil_bytes(f / "index.csv", 12), "line 31 has 8 cells, not 9"),
    (lambda f: (f / "index.csv").write_bytes(b"record,patient,split\n\xff,p,test\n"), "Cannot read"),
    (lambda f: (f / "index.csv").write_text("record\nr\n"), "lacks the column patient, split"),
    (lambda f: (f / "index.csv").write_text(",".join(COLUMNS) + "\n"), "lists 0 windows"),
    (lambda f: (f / "index.csv").unlink(), "index.csv is missing: make the windows again"),
    (lambda f: np.save(f / "windows.npy", signals(29)), "lists 30 windows but windows.npy holds 29"),
    (lambda f: np.save(f / "windows.npy", signals(30)[:, :8]), r"shape \(30, 8, 64\)"),
    (lambda f: np.save(f / "windows.npy", np.array(["a"])), "numbers in mV"),
    (lambda f: np.save(f / "windows.npy", 1000 * signals(30)), "range of .* mV in the median, 0.005 to 20"),
    (lambda f: np.save(f / "windows.npy", signals(30) / 1000), "1 mV = 1000 uV = 0.001 V"),
    (lambda f: spoil_bytes(f / "windows.npy", 4), r"Cannot read .*windows.npy: .*; make the windows again"),
    (lambda f: (f / "windows.npy").write_bytes(b"\x93NUMPY"), "Cannot read"),
    (lambda f: (f / "windows.npy").unlink(), "Cannot read .*windows.npy: No such file"),
    (lambda f: np.save(f / "frank.npy", signals(29)[:, :3]), "30 windows but frank.npy holds 29"),
    (lambda f: write_json(f / "meta.json", {"fs": 100, "leads": LEADS[::-1]}), "lists the leads V6"),
    (lambda f: (f / "meta.json").unlink(), r"sampling rate .* is unknown"),
    (lambda f: (f / "meta.json").write_text("[1]"), "a mapping is needed"),
    (lambda f: (f / "meta.json").write_text('{"fs": "fast"}'), r"sampling rate .* is unknown"),
]


@pytest.mark.parametrize(("spoil", "words"), SPOILS, ids=[words for _, words in SPOILS])
def test_folders_that_cannot_be_used(indexed: Path, spoil: Callable[[Path], object], words: str) -> None:
    spoil(indexed)
    with pytest.raises(DataError, match=words) as error:
        read_window_folder(indexed)
    assert "\n" not in str(error.value)


def test_expectations_are_checked_and_named(indexed: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"100 Hz but data.fs is 250 Hz"):
        read_window_folder(indexed, fs=250.0)
    with pytest.raises(DataError, match=r"64 samples but 512 are expected: set data.time_len"):
        read_window_folder(indexed, time_len=512)
    with pytest.raises(DataError, match="No folder"):
        read_window_folder(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no window: run the window stage"):
        read_window_folder(tmp_path / "empty", fs=100.0)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """Eleven records without an index, one of them in a subfolder, one as a single window."""
    root = tmp_path / "npy"
    (root / "more").mkdir(parents=True)
    for i in range(9):
        np.save(root / f"r{i}.npy", signals(2, seed=i).astype(np.float64))
    np.save(root / "more" / "r9.npy", signals(3, seed=9))
    np.save(root / "single.npy", signals(1, seed=10)[0])
    return root


def test_a_bare_folder(bare: Path) -> None:
    folder = read_window_folder(bare, fs=100.0, time_len=T)
    assert len(folder) == 22 and folder.windows.shape == (22, 12, T)
    assert folder.record == folder.patient and folder.record[:3] == ["more/r9"] * 3
    np.testing.assert_array_equal(folder.windows[np.array([2, 21])][1], signals(1, seed=10)[0])
    assert folder.observed.all() and not folder.label_classes and not folder.label_valid.any()
    assert folder.start_s[:3].tolist() == [0, 0.64, 1.28]
    assert folder.supports(np.array([0]))[0].tolist() == [1, 2]
    splits = [{folder.patient[i] for i in folder.rows(name)} for name in ("train", "validation", "test")]
    assert all(splits) and sum(map(len, splits)) == 11
    again = read_window_folder(bare, fs=100.0)
    assert again.split == folder.split and again.meta["fingerprint"] == folder.meta["fingerprint"]
    (bare / "single.npy").unlink()
    assert read_window_folder(bare, fs=100.0).meta["fingerprint"] != folder.meta["fingerprint"]


def test_constant_leads_of_a_bare_folder_are_not_recorded_and_named(bare: Path) -> None:
    spoiled = signals(2, seed=0)
    spoiled[1, 5], spoiled[:, 7] = 0.25, 0.0
    np.save(bare / "r0.npy", spoiled)
    with pytest.warns(UserWarning, match=r"not recorded there: aVF in 1 of 22, V2 in 2 of 22"):
        folder = read_window_folder(bare, fs=100.0)
    row = folder.record.index("r0")
    assert np.flatnonzero(~folder.observed[row]).tolist() == [7]
    assert np.flatnonzero(~folder.observed[row + 1]).tolist() == [5, 7]


def test_bare_folders_that_cannot_be_used(bare: Path) -> None:
    def refused(file: str, array: np.ndarray, words: str) -> None:
        before = (bare / file).read_bytes()
        np.save(bare / file, array)
        with pytest.raises(DataError, match=words):
            read_window_folder(bare, fs=100.0)
        (bare / file).write_bytes(before)

    holes = signals(2)
    holes[1, 3, 10] = np.nan
    refused("r0.npy", holes, r"r0.npy has NaN or infinite samples in lead aVR of window 1: fill the gap")
    holes[1, 3] = np.inf
    refused("r0.npy", holes, "r0.npy has NaN or infinite")
    refused("r0.npy", np.zeros((2, 12, T)), "r0.npy has no signal in window 0")
    refused("r5.npy", np.zeros((12, T + 1)), r"r5.npy has windows of 65 samples")
    refused("r5.npy", np.zeros((3, T)), r"r5.npy has shape")
    for factor, words in ((1000, r"range of 4.*e\+03 mV"), (1e-3, r"range of 0.00\d* mV")):  # uV, V
        folder = bare.parent / f"{factor}"
        folder.mkdir()
        np.save(folder / "r.npy", factor * signals(9))
        with pytest.raises(DataError, match=rf"{words} in the median, 0.005 to 20 mV is possible"):
            read_window_folder(folder, fs=100.0)
    (bare / "meta.json").write_text(json.dumps({"fs": 500}))
    with pytest.raises(DataError, match=r"500 Hz but data.fs is 100 Hz"):
        read_window_folder(bare, fs=100.0)


@pytest.mark.parametrize("scattered", [False, True])
def test_who_belongs_to_whom(scattered: bool) -> None:
    """Records of several patients, in the order of the file or anyhow, against the definitions."""
    rng = np.random.default_rng(scattered)
    n = 60
    record = np.sort(rng.integers(0, n // 3, n))
    record = rng.permutation(record) if scattered else record
    samples = 16 * rng.integers(0, 8, n)
    names: dict[str, Any] = {"record": [f"r{i}" for i in record], "patient": [f"p{i // 2}" for i in record]}
    names |= {"split": ["train"] * n, "start_s": samples / 100}
    names["observed"] = rng.random((n, 12)) < np.where(rng.random((n, 1)) < 0.5, 1.0, 0.97)
    names |= {"labels": np.zeros((n, 0), bool), "label_valid": np.zeros(n, bool), "label_classes": []}
    ecg, meta = np.zeros((n, 12, T // 2), np.float32), {"fs": 100.0, "stride": 16}
    folder = WindowFolder(root=Path("folder"), windows=ecg, frank=None, meta=meta, **names)
    rows = np.random.default_rng(2).permutation(n)
    supports, of_support = folder.supports(rows)
    others, of_other = folder.other_records(rows)
    first, second, gap = folder.neighbours(rows)
    for i, row in enumerate(rows.tolist()):
        partners = [j for j in range(n) if record[j] == record[row] and j != row]
        wanted = [j for j in partners if abs(samples[j] - samples[row]) >= 0.9 * T / 2]
        assert wanted == supports[of_support == i].tolist()
        wanted = [j for j in range(n) if record[j] // 2 == record[row] // 2 and record[j] != record[row]]
        assert wanted == others[of_other == i].tolist()
        alike = [j for j in partners if (folder.observed[j] == folder.observed[row]).all()]
        gaps = {j: int(samples[j] - samples[row]) for j in alike if abs(samples[j] - samples[row]) <= T / 2}
        after, before = ([j for j in gaps if sign * gaps[j] > 0] for sign in (1, -1))
        best = min(after or before, key=lambda j: abs(gaps[j]), default=row)
        expected = (best, row) if before and not after else (row, best)
        assert (*expected, abs(gaps.get(best, 0))) == (first[i], second[i], gap[i])
    folder.meta.pop("stride")
    assert folder.neighbours(rows)[2].tolist() == [0] * n, "nobody says that windows follow each other"


def test_a_window_takes_a_few_numbers_of_memory(tmp_path: Path) -> None:
    """Below 100 bytes as pickled; a name that repeats is held once."""
    n = 20_000
    lines = [
        f"{i},p{i // 2:05d}_1,p{i // 2:05d},{4.88 * (i % 2)},train,{'norm;afib' if i % 5 else ''},0.5,"
        f"{'1' * 12 if i % 7 else '110000111111'},1"
        for i in range(n)
    ]
    (tmp_path / "index.csv").write_text("\n".join((",".join(COLUMNS), *lines, "")))
    np.save(tmp_path / "windows.npy", np.lib.stride_tricks.as_strided(signals(1), (n, 12, 2), (0, 4, 4)))
    write_json(tmp_path / "meta.json", {"fs": 100.0, "label_classes": ["afib", "norm"]})
    folder = read_window_folder(tmp_path)
    assert len(pickle.dumps(folder)) < 100 * n
    assert folder.record[-1] == "p09999_1" and folder.record[-1] is folder.record[-2]
    assert folder.labels[1].tolist() == [1, 1] and (~folder.label_valid).sum() == n // 5
    assert folder.observed[7].sum() == 8 and folder.observed[[7, 8]].all(1).tolist() == [False, True]
