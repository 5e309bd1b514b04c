"""Signals of a window folder in one file or several, and who belongs to whom."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from ecggen.data.window_files import WindowFiles, find_shards, read_head, shard_name
from ecggen.data.window_folder import DataError, WindowFolder, read_window_folder
from ecggen.utils.files import write_json

T, COUNTS = 32, (7, 7, 4)
N = sum(COUNTS)


def signals(width: int = 12, dtype: type = np.float32) -> np.ndarray:
    return (100 * np.random.default_rng(width).normal(size=(N, width, T))).astype(dtype)


def write(root: Path, stem: str, array: np.ndarray, counts: tuple[int, ...]) -> None:
    for number, part in enumerate(np.split(array, np.cumsum(counts)[:-1])):
        np.save(root / shard_name(stem, number), part)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    write(tmp_path, "windows", signals(), COUNTS)
    write(tmp_path, "frank", signals(3), COUNTS)
    lines = [f"r{i // 2},p{i // 4},{('train', 'validation', 'test')[i % 3]}" for i in range(N)]
    (tmp_path / "index.csv").write_text("record,patient,split\n" + "\n".join(lines) + "\n")
    write_json(tmp_path / "meta.json", {"fs": 100.0})
    return tmp_path


KEYS = (
    *(
        3,
        -1,
        np.int64(17),
        slice(None),
        slice(2, 15, 3),
        slice(None, None, -1),
        [],
        [6, 7],
        [17, 0, 7, 7, -2],
    ),
    *(np.arange(N)[::-1], np.arange(N) % 3 == 0, np.zeros(N, bool), np.array([[1, 2], [16, 3]]), np.uint8(9)),
    *((4, 2), (slice(1, 9), slice(None), 3), ([0, 8], 1, slice(2, 5)), (np.arange(N) > 9, -1)),
)


@pytest.mark.parametrize("key", KEYS, ids=[str(i) for i in range(len(KEYS))])
def test_shards_are_indexed_as_one_array(sharded: Path, key: object) -> None:
    folder, x = read_window_folder(sharded), signals()
    got = folder.windows[key]
    assert got.dtype == np.float32 and got.flags.writeable
    np.testing.assert_array_equal(got, x[tuple(key) if isinstance(key, tuple) else key])
    np.testing.assert_array_equal(
        folder.frank[key], signals(3)[tuple(key) if isinstance(key, tuple) else key]
    )


@pytest.mark.parametrize("key", [N, -N - 1, [0, N], np.zeros(N - 1, bool), 0.5, [0.0]])
def test_rows_that_are_not_there(sharded: Path, key: object) -> None:
    with pytest.raises(IndexError):
        read_window_folder(sharded).windows[key]


@pytest.mark.parametrize("dtype", [np.float32, ">f4", np.float64, np.int16])
@pytest.mark.parametrize("order", ["C", "F"])
def test_any_numbers_in_any_order_of_bytes(tmp_path: Path, dtype: str, order: str) -> None:
    x = np.asarray(signals(), dtype=dtype, order=order)
    np.save(tmp_path / "x.npy", x)
    head = read_head(tmp_path / "x.npy")
    files = WindowFiles([tmp_path / "x.npy"], [head], 12, T, clean=False)
    np.testing.assert_array_equal(files[[3, 4, 5, 0, 17]], x[[3, 4, 5, 0, 17]].astype(np.float32))
    np.testing.assert_array_equal(np.asarray(files), x.astype(np.float32))


def test_nothing_stays_open_and_a_folder_is_sent_as_its_paths(sharded: Path) -> None:
    folder = read_window_folder(sharded)
    handles = Path("/proc/self/fd")  # Linux
    before = len(list(handles.iterdir())) if handles.is_dir() else None
    folder.windows[::2]
    sent = pickle.dumps(folder)
    assert len(sent) < 8000 < folder.windows.nbytes
    back = pickle.loads(sent)
    np.testing.assert_array_equal(back.windows[::2], signals()[::2])
    assert back.record == folder.record and back.rows("test").tolist() == folder.rows("test").tolist()
    if before is not None:
        assert len(list(handles.iterdir())) == before
        assert str(sharded) not in Path("/proc/self/maps").read_text()


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: cut_short(f / "windows-00001.npy"), r"windows-00001.npy has .* it was cut short"),
        (lambda f: cut_short(f / "frank-00002.npy"), r"frank-00002.npy has .* it was cut short"),
        (lambda f: (f / "windows-00001.npy").unlink(), r"windows-00001.npy is missing, windows-00002.npy is"),
        (lambda f: (f / "windows-00000.npy").unlink(), r"windows-00000.npy is missing"),
        (lambda f: (f / "windows-00002.npy").unlink(), r"lists 18 windows but the 2 files .* hold 14"),
        (lambda f: (f / "frank-00002.npy").unlink(), r"frank-00001.npy ends the Frank leads of 14 windows"),
        (lambda f: np.save(f / "windows-00003.npy", signals()), r"but the 4 files .* hold 36"),
        (lambda f: np.save(f / "windows-00001.npy", signals()[:7, :8]), r"00001.npy has shape \(7, 8, 32\)"),
        (lambda f: np.save(f / "windows-00001.npy", signals()[0]), r"00001.npy has shape \(12, 32\)"),
        (lambda f: np.save(f / "windows-00002.npy", signals()[:4, :, 1:]), r"windows of 31 samples but 32"),
        (lambda f: np.save(f / "windows.npy", signals()), r"both windows.npy and windows-00000.npy"),
        (lambda f: (f / "windows-00001.npy").write_bytes(b"nothing"), r"Cannot read .*windows-00001.npy"),
        (
            lambda f: (f / "index.csv").write_text("record,patient,split,start_s\nr,p,test,late\n"),
            r"index.csv, line 2: start_s is 'late': a number is needed",
        ),
        (lambda f: (f / "index.csv").write_bytes(b"record,patient,split\n\xff,p,test\n"), "Cannot read"),
    ],
)
def test_broken_shards_are_one_clear_sentence(sharded: Path, spoil, words: str) -> None:
    spoil(sharded)
    with pytest.raises(DataError, match=words) as error:
        read_window_folder(sharded)
    assert "\n" not in str(error.value)


def test_a_file_that_shrinks_or_goes_while_it_is_used(sharded: Path) -> None:
    folder = read_window_folder(sharded)
    cut_short(sharded / "windows-00002.npy")
    np.testing.assert_array_equal(folder.windows[14:17], signals()[14:17])
    with pytest.raises(DataError, match="ends within a window"):
        folder.windows[17]
    (sharded / "windows-00000.npy").unlink()
    with pytest.raises(DataError, match=r"Cannot read .*windows-00000.npy"):
        folder.windows[0]


def test_names_of_shards(tmp_path: Path) -> None:
    assert shard_name("windows", 3) == "windows-00003.npy" and not find_shards(tmp_path, "windows")
    (tmp_path / "windows.npy").touch()
    assert find_shards(tmp_path, "windows") == [tmp_path / "windows.npy"]
    (tmp_path / "windows-extra.npy").touch()
    assert len(find_shards(tmp_path, "windows")) == 1


def random_folder(rng: np.random.Generator, n: int, scattered: bool) -> WindowFolder:
    """Records of several patients; in the order of the file, or anyhow."""
    record = np.sort(rng.integers(0, n // 3, n))
    if scattered:
        record = rng.permutation(record)
    return WindowFolder(
        root=Path("made"),
        windows=np.zeros((n, 12, T), np.float32),
        frank=None,
        record=[f"r{i}" for i in record],
        patient=[f"p{i // 2}" for i in record],
        split=["train"] * n,
        start_s=rng.integers(0, 8, n) * 0.16,
        observed=rng.random((n, 12)) < np.where(rng.random((n, 1)) < 0.5, 1.0, 0.97),
        labels=np.zeros((n, 0), np.float32),
        label_valid=np.zeros(n, bool),
        label_classes=[],
        scale=np.ones(n),
        meta={"fs": 100.0, "stride": 16},
    )


@pytest.mark.parametrize("scattered", [False, True])
def test_who_belongs_to_whom(scattered: bool) -> None:
    """Many rows at once, and one at a time, against the definition."""
    folder = random_folder(np.random.default_rng(scattered), 60, scattered)
    rows = np.random.default_rng(2).permutation(60)
    found, owner = folder.all_supports(rows)
    later, later_owner = folder.all_other_records(rows)
    first, second, gap = folder.stretches(rows)
    n = range(60)
    samples = np.rint(100 * folder.start_s).astype(int)
    for i, row in enumerate(rows.tolist()):
        partners = [j for j in n if folder.record[j] == folder.record[row] and j != row]
        assert folder.partners(row).tolist() == partners
        wanted = [j for j in partners if abs(samples[j] - samples[row]) >= 0.9 * T]
        assert folder.supports(row).tolist() == wanted == found[owner == i].tolist()
        wanted = [
            j
            for j in n
            if folder.patient[j] == folder.patient[row] and folder.record[j] != folder.record[row]
        ]
        assert folder.other_records(row).tolist() == wanted == later[later_owner == i].tolist()
        alike = [j for j in partners if (folder.observed[j] == folder.observed[row]).all()]
        after = {j: samples[j] - samples[row] for j in alike if 0 < samples[j] - samples[row] <= T}
        before = {j: samples[row] - samples[j] for j in alike if 0 < samples[row] - samples[j] <= T}
        if after:
            best = min(after, key=after.__getitem__)
            expected = (row, best, after[best])
        elif before:
            best = min(before, key=before.__getitem__)
            expected = (best, row, before[best])
        else:
            expected = (row, row, 0)
        assert folder.stretch(row) == expected == (first[i], second[i], gap[i])


def test_a_window_takes_a_few_numbers_of_memory(tmp_path: Path) -> None:
    """Columns of a long table: below 64 bytes a window, names, labels and leads among them."""
    n = 20_000
    lines = [
        f"{i},p{i // 2:05d}_1,p{i // 2:05d},{4.88 * (i % 2)},train,{'norm;afib' if i % 5 else ''},0.5,"
        f"{'1' * 12 if i % 7 else '110000111111'},1,,,ptb-xl"
        for i in range(n)
    ]
    head = "window,record,patient,start_s,split,labels,scale,observed,quality,reasons,recorded,database\n"
    (tmp_path / "index.csv").write_text(head + "\n".join(lines) + "\n")
    np.save(tmp_path / "windows.npy", np.lib.stride_tricks.as_strided(np.float32(0), (n, 12, 1), (0, 0, 0)))
    write_json(tmp_path / "meta.json", {"fs": 100.0, "label_classes": ["afib", "norm"]})
    folder = read_window_folder(tmp_path)
    columns = (*("record", "patient", "split", "database", "labels", "observed"),)
    held = sum(getattr(folder, name).nbytes for name in (*columns, "start_s", "scale", "label_valid"))
    assert held < 64 * n
    assert folder.record[-1] == "p09999_1" and folder.labels[1].tolist() == [1, 1]
    assert folder.labels[[0, 1], 0].tolist() == [0, 1] and (~folder.label_valid).sum() == n // 5
    assert folder.observed[7].sum() == 8 and folder.observed[[7, 8]].all(1).tolist() == [False, True]
