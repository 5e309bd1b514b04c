"""Window folders, the dataset over them, and the loader's order."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from plain_dataset import PlainDataset

from ecggen.data.pipeline import (
    DataError,
    ECGDataset,
    make_loader,
    read_window_folder,
    resampled,
    split_patients,
)
from ecggen.leads import LEADS
from ecggen.prepare.synthetic.population import write_windows
from ecggen.utils.config import SyntheticConfig
from ecggen.utils.files import read_csv, read_json, write_csv, write_json

T = 64
COLUMNS = [
    "window",
    "record",
    "patient",
    "start_s",
    "split",
    "labels",
    "scale",
    "observed",
    "quality",
    "reasons",
]
SPLIT_OF = ("train", "train", "train", "validation", "test")


def signals(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 12, T)).astype(np.float32)


@pytest.fixture
def indexed(tmp_path) -> Path:
    """Ten records of five patients; three windows each, the last one half over the second."""
    rows = []
    for record in range(10):
        for k, start in enumerate((0.0, 0.64, 0.96)):
            row = {
                "window": 3 * record + k,
                "record": f"r{record}",
                "patient": f"p{record // 2}",
                "start_s": start,
            }
            row |= {"split": SPLIT_OF[record // 2], "labels": "b;a" if record % 2 else "", "scale": 0.5}
            rows.append(row | {"observed": "1" * 12 if record else "110000111111", "quality": 1})
    write_csv(tmp_path / "index.csv", rows, COLUMNS)
    np.save(tmp_path / "windows.npy", signals(30))
    np.save(tmp_path / "frank.npy", signals(30)[:, :3])
    write_json(
        tmp_path / "meta.json", {"fs": 100.0, "time_len": T, "leads": LEADS, "label_classes": ["a", "b", "c"]}
    )
    return tmp_path


def change(folder: Path, row: int, **values: str) -> None:
    rows = read_csv(folder / "index.csv")
    rows[row] |= values
    write_csv(folder / "index.csv", rows, COLUMNS)


def test_an_indexed_folder(indexed):
    folder = read_window_folder(indexed, fs=100.0, time_len=T)
    assert len(folder) == 30 and folder.fs == 100 and folder.time_len == T
    assert folder.windows.shape == (30, 12, T) and folder.frank.shape == (30, 3, T)
    assert folder.rows("train").tolist() == list(range(18))
    assert folder.rows("validation").tolist() == list(range(18, 24))
    assert len(folder.rows("all")) == 30
    assert folder.labels[3].tolist() == [1, 1, 0] and folder.labels[0].tolist() == [0, 0, 0]
    assert folder.label_valid[:4].tolist() == [False, False, False, True]
    assert folder.observed[0].tolist() == [c == "1" for c in "110000111111"]
    assert folder.scale[0] == 0.5 and folder.start_s[1] == 0.64
    assert folder.partners(4).tolist() == [3, 5]
    with pytest.raises(DataError, match="train, validation, test or all"):
        folder.rows("dev")


def test_the_database_of_each_window(indexed):
    assert read_window_folder(indexed).database == [""] * 30
    rows = read_csv(indexed / "index.csv")
    write_csv(
        indexed / "index.csv",
        [r | {"database": f"d{i % 2}"} for i, r in enumerate(rows)],
        [*COLUMNS, "database"],
    )
    assert read_window_folder(indexed).database == ["d0", "d1"] * 15


def test_a_support_shares_little_with_its_window(indexed):
    folder = read_window_folder(indexed)
    assert folder.supports(0).tolist() == [1, 2]
    assert folder.supports(1).tolist() == [0]  # window 2 covers half of window 1
    assert folder.supports(2).tolist() == [0]


def test_crops_are_pieces_of_the_record(indexed):
    records = np.random.default_rng(1).normal(size=(10, 12, 160)).astype(np.float32)
    np.save(
        indexed / "windows.npy", np.concatenate([r[None, :, s : s + T] for r in records for s in (0, 64, 96)])
    )
    write_json(indexed / "meta.json", {"fs": 100.0, "time_len": T, "leads": LEADS, "stride": 64})
    folder = read_window_folder(indexed)
    assert [folder.stretch(row) for row in (3, 4, 5)] == [(3, 4, 64), (4, 5, 32), (4, 5, 32)]
    data, seen = ECGDataset(folder, "train", seed=5), set()
    for epoch in range(40):
        data.set_epoch(epoch)
        crop = data[5]["crop"].numpy()  # the last window of the second record
        starts = [s for s in range(160 - T + 1) if np.array_equal(crop, records[1][:, s : s + T])]
        assert len(starts) == 1 and 64 <= starts[0] <= 96
        seen |= set(starts)
    assert len(seen) > 15
    assert torch.equal(data[5]["crop"], data[5]["crop"])


def test_warped_crops_are_the_record_at_another_speed(indexed):
    t = np.arange(160)
    wave = np.cos(2 * np.pi * t / 23).astype(np.float32)
    records = np.broadcast_to(wave, (10, 12, 160))
    np.save(
        indexed / "windows.npy", np.concatenate([r[None, :, s : s + T] for r in records for s in (0, 64, 96)])
    )
    write_json(indexed / "meta.json", {"fs": 100.0, "time_len": T, "leads": LEADS, "stride": 64})
    data = ECGDataset(read_window_folder(indexed), "train", seed=5, warp=0.2)
    speeds = []
    for epoch in range(40):
        data.set_epoch(epoch)
        crop = data[3]["crop"][0].numpy().astype(np.float64)
        # cos(a (s t + b)) for some speed s: the best of a fine grid explains the crop.
        grid = np.linspace(0.4, 2.1, 341)
        basis = np.exp(2j * np.pi / 23 * grid[:, None] * np.arange(T))
        inside = slice(2, T - 2)
        fits = [
            np.linalg.lstsq(np.stack([b.real, b.imag], 1)[inside], crop[inside], rcond=None)[1][0]
            for b in basis
        ]
        assert min(fits) < 0.05
        speeds.append(grid[int(np.argmin(fits))])
    assert 0.1 < np.std(np.log(speeds)) < 0.3 and max(speeds) <= 127 / 63 + 0.01


def test_resampling_meets_samples_and_keeps_parabolas():
    x = np.arange(50.0)
    signal = np.stack([x, 0.1 * x**2])
    np.testing.assert_array_equal(resampled(signal, x), signal)
    at = np.array([3.25, 7.5, 20.9])
    np.testing.assert_allclose(resampled(signal, at), np.stack([at, 0.1 * at**2]), rtol=1e-12)


def test_training_supports_come_from_other_records_too(indexed):
    folder = read_window_folder(indexed)
    assert folder.other_records(0).tolist() == [3, 4, 5] and folder.other_records(20).tolist() == [21, 22, 23]
    train, validation = ECGDataset(folder, "train", seed=1), ECGDataset(folder, "validation", seed=1)
    windows, origin = np.asarray(folder.windows), []
    for epoch in range(40):
        train.set_epoch(epoch)
        validation.set_epoch(epoch)
        support = train[3]["support"].numpy()
        origin.append(int(np.flatnonzero((windows[:, 1] == support[1]).all(1))[0]))
        held = validation[0]["support"].numpy()
        assert any(np.array_equal(held, windows[row]) for row in (19, 20)), "of the record itself"
    assert set(origin) == {0, 1, 2, 4, 5} and 8 < sum(row < 3 for row in origin) < 32


def test_windows_that_do_not_belong_together_are_not_joined(indexed):
    folder = read_window_folder(indexed)
    assert folder.stretch(4) == (4, 4, 0), "without a stride nobody says that windows follow each other"
    meta = {"fs": 100.0, "time_len": T, "leads": LEADS, "stride": 64}
    write_json(indexed / "meta.json", meta)
    change(indexed, 4, observed="0" + "1" * 11)
    folder = read_window_folder(indexed)
    assert folder.stretch(4) == (4, 4, 0) and folder.stretch(3) == (3, 3, 0), "other leads, or a gap"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: change(f, 0, split="dev"), "the split 'dev'"),
        (lambda f: change(f, 0, observed="11"), "observed is '11'"),
        (lambda f: np.save(f / "windows.npy", signals(29)), "lists 30 windows but windows.npy holds 29"),
        (lambda f: np.save(f / "windows.npy", signals(30)[:, :8]), r"shape \(30, 8, 64\)"),
        (lambda f: np.save(f / "frank.npy", signals(29)[:, :3]), "frank.npy"),
        (lambda f: (f / "windows.npy").write_bytes(b"\x93NUMPY"), "Cannot read"),
        (lambda f: (f / "windows.npy").unlink(), "Cannot read"),
        (lambda f: np.save(f / "windows.npy", np.array(["a"])), "numbers in mV"),
        (
            lambda f: write_csv(f / "index.csv", [{"record": "r"}] * 30, ["record"]),
            "lacks the column patient, split",
        ),
        (lambda f: write_json(f / "meta.json", {"fs": 100, "leads": LEADS[::-1]}), "lists the leads V6"),
        (lambda f: (f / "meta.json").unlink(), r"sampling rate .* is unknown"),
        (lambda f: (f / "meta.json").write_text("[1]"), "a mapping is needed"),
    ],
)
def test_folders_that_cannot_be_used(indexed, spoil, words):
    spoil(indexed)
    with pytest.raises(DataError, match=words) as error:
        read_window_folder(indexed)
    assert "\n" not in str(error.value)


def test_expectations_are_checked_and_named(indexed, tmp_path):
    with pytest.raises(DataError, match=r"100 Hz but data.fs is 250 Hz"):
        read_window_folder(indexed, fs=250.0)
    with pytest.raises(DataError, match=r"64 samples but 512 are expected: set data.time_len"):
        read_window_folder(indexed, time_len=512)
    with pytest.raises(DataError, match="No folder"):
        read_window_folder(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \.npy file"):
        read_window_folder(tmp_path / "empty", fs=100.0)


@pytest.fixture
def bare(tmp_path) -> Path:
    """Eleven records without an index, one of them in a subfolder, one as a single window."""
    root = tmp_path / "npy"
    (root / "more").mkdir(parents=True)
    for i in range(9):
        np.save(root / f"r{i}.npy", signals(2, seed=i).astype(np.float64))
    np.save(root / "more" / "r9.npy", signals(3, seed=9))
    np.save(root / "single.npy", signals(1, seed=10)[0])
    return root


def test_a_bare_folder(bare):
    folder = read_window_folder(bare, fs=100.0, time_len=T)
    assert len(folder) == 22 and folder.windows.shape == (22, 12, T)
    assert folder.record == folder.patient and folder.record[:3] == ["more/r9"] * 3
    np.testing.assert_array_equal(folder.windows[2], signals(3, seed=9)[2])
    np.testing.assert_array_equal(folder.windows[np.array([3, 21, 0])][1], signals(1, seed=10)[0])
    np.testing.assert_array_equal(np.asarray(folder.windows)[5:7], signals(2, seed=1))
    assert folder.windows[folder.rows("test")].dtype == np.float32
    assert folder.observed.all() and not folder.label_classes and not folder.label_valid.any()
    assert folder.start_s[:3].tolist() == [0, 0.64, 1.28] and folder.supports(0).tolist() == [1, 2]
    splits = {
        name: {folder.patient[i] for i in folder.rows(name)} for name in ("train", "validation", "test")
    }
    assert all(splits.values()) and sum(map(len, splits.values())) == 11
    again = read_window_folder(bare, fs=100.0)
    assert again.split == folder.split and again.meta["fingerprint"] == folder.meta["fingerprint"]
    (bare / "single.npy").unlink()
    assert read_window_folder(bare, fs=100.0).meta["fingerprint"] != folder.meta["fingerprint"]
    np.save(bare / "single.npy", signals(1, seed=10)[0])
    sample = ECGDataset(folder, "all")[5]
    np.testing.assert_array_equal(sample["ecg"], signals(2, seed=1)[0])


def test_a_bare_folder_with_nan_flat_and_misfits(bare):
    spoiled = signals(2, seed=0)
    spoiled[0, 3, 10], spoiled[1, 5] = np.nan, 0.25
    np.save(bare / "r0.npy", spoiled)
    folder = read_window_folder(bare, fs=100.0)
    row = folder.record.index("r0")
    assert np.flatnonzero(~folder.observed[row]).tolist() == [3]
    assert np.flatnonzero(~folder.observed[row + 1]).tolist() == [5]
    sample = ECGDataset(folder, "all")[row]
    assert (sample["ecg"][3] == 0).all() and torch.isfinite(sample["ecg"]).all()
    (bare / "meta.json").write_text(json.dumps({"fs": 500}))
    with pytest.raises(DataError, match=r"500 Hz but data.fs is 100 Hz"):
        read_window_folder(bare, fs=100.0)
    np.save(bare / "r5.npy", np.zeros((12, T + 1)))
    with pytest.raises(DataError, match=r"r5.npy has windows of 65 samples"):
        read_window_folder(bare)
    np.save(bare / "r5.npy", np.zeros((3, T)))
    with pytest.raises(DataError, match=r"r5.npy has shape"):
        read_window_folder(bare)


def test_patients_are_split_the_same_in_any_order():
    names = [f"p{i}" for i in range(200)]
    split = split_patients(names, 0.15, 0.2, seed=1)
    assert split == split_patients(names[::-1] + names, 0.15, 0.2, seed=1)
    assert split != split_patients(names, 0.15, 0.2, seed=2)
    counts = [list(split.values()).count(name) for name in ("train", "validation", "test")]
    assert counts == [130, 30, 40]
    assert set(split_patients(["a", "b", "c"], 0.15, 0.2, seed=1).values()) == {"train", "validation", "test"}
    assert set(split_patients(["a"], 0.15, 0.2, seed=1).values()) == {"train"}


def test_items(indexed):
    folder = read_window_folder(indexed)
    data = ECGDataset(folder, "train", seed=3)
    item = data[4]
    assert item["ecg"].shape == (12, T) and item["ecg"].dtype == torch.float32 and item["row"] == 4
    np.testing.assert_array_equal(item["ecg"], signals(30)[4])
    np.testing.assert_array_equal(item["support"], signals(30)[3])
    assert item["has_support"] and item["support_observed"].all() and item["labels"].tolist() == [1, 1, 0]
    hidden = data[0]
    assert hidden["observed"].tolist() == folder.observed[0].tolist()
    assert (hidden["ecg"][~hidden["observed"]] == 0).all()


@pytest.fixture
def mixed(indexed) -> Path:
    """Windows as they come: records that are cut differently, lack leads, lie apart in the file."""
    rng = np.random.default_rng(4)
    rows = read_csv(indexed / "index.csv")
    for i in (4, 11, 19):
        rows[i]["observed"] = "".join(rng.choice(["0", "1"], 12))
    rows[7]["record"], rows[15]["record"], rows[8]["start_s"] = "alone", "r2", "0.3"
    order = rng.permutation(30)
    write_csv(indexed / "index.csv", [rows[i] for i in order], COLUMNS)
    meta = {"fs": 100.0, "time_len": T, "leads": LEADS, "stride": 64, "label_classes": ["a", "b", "c"]}
    write_json(indexed / "meta.json", meta)
    return indexed


@pytest.mark.parametrize("split", ["train", "validation", "all"])
@pytest.mark.parametrize("warp", [0.0, 0.1])
def test_batches_equal_items_made_in_the_plainest_way(mixed, split, warp):
    data = ECGDataset(read_window_folder(mixed), split, seed=3, warp=warp)
    rng = np.random.default_rng(0)
    for epoch in range(8):
        plain = PlainDataset(mixed, split, 3, epoch, warp)
        data.set_epoch(epoch)
        indices = rng.permutation(len(data)).tolist()
        batch = data.__getitems__(indices)
        for i, index in enumerate(indices):
            wanted, item = plain.item(index), data[index]
            assert list(wanted) == list(batch) == list(item)
            for key, value in wanted.items():
                got = batch[key][i].numpy()
                assert got.dtype == value.dtype and got.tobytes() == value.tobytes(), (key, epoch, index)
                assert np.array_equal(item[key], value)
        ecg, observed = data.windows(indices)
        assert torch.equal(ecg, batch["ecg"]) and torch.equal(observed, batch["observed"])


def test_batches_of_made_records_equal_plain_items(tmp_path):
    """Beats instead of noise, windows as long as the real ones, two threads' worth of lanes in every sum."""
    write_windows(tmp_path / "w", SyntheticConfig(patients=12, seconds=12.0), 100.0, 512, n=30)
    write_json(tmp_path / "w" / "meta.json", read_json(tmp_path / "w" / "meta.json") | {"stride": 512})
    data = ECGDataset(read_window_folder(tmp_path / "w"), "train", seed=1, warp=0.1)
    plain = PlainDataset(tmp_path / "w", "train", 1, 0, 0.1)
    batch = data.__getitems__(range(len(data)))
    for i in range(len(data)):
        for key, value in plain.item(i).items():
            assert batch[key][i].numpy().tobytes() == value.tobytes(), key


def test_a_window_alone_supports_itself(indexed):
    change(indexed, 0, record="alone")
    item = ECGDataset(read_window_folder(indexed), "train")[0]
    assert not item["has_support"] and torch.equal(item["support"], item["ecg"])


def test_supports_change_with_the_epoch_and_come_back(indexed):
    data = ECGDataset(read_window_folder(indexed), "all", seed=1)

    def chosen(epoch: int) -> list[float]:
        data.set_epoch(epoch)
        return [float(data[i]["support"][6, 0]) for i in range(0, 30, 3)]

    first = chosen(0)
    assert any(chosen(e) != first for e in range(1, 5)) and chosen(0) == first


def test_nan_in_an_observed_lead_is_refused_in_a_hidden_one_ignored(indexed):
    x = signals(30)
    x[0, 2, 5] = x[7, 6, 1] = np.nan  # lead III of window 0 is not observed
    np.save(indexed / "windows.npy", x)
    data = ECGDataset(read_window_folder(indexed), "train")
    assert torch.isfinite(data[0]["ecg"]).all()
    with pytest.raises(DataError, match=r"Window 7 .*record r2.* in lead V1"):
        data[7]


def test_limit_and_empty_splits(indexed):
    folder = read_window_folder(indexed)
    few = ECGDataset(folder, "train", seed=1, limit=5)
    assert len(few) == 5 and set(few.row_numbers) <= set(folder.rows("train"))
    assert ECGDataset(folder, "train", seed=1, limit=5).row_numbers.tolist() == few.row_numbers.tolist()
    assert len(ECGDataset(folder, "train", limit=500)) == 18
    for row in range(24, 30):
        change(indexed, row, split="train")
    with pytest.raises(DataError, match=r"'test' .* is empty \(train 24, validation 6, test 0 windows\)"):
        ECGDataset(read_window_folder(indexed), "test")


def rows_of(data: ECGDataset, **how) -> list[list[int]]:
    how = {"batch_size": 4, "shuffle": True, "seed": 5} | how
    return [batch["row"].tolist() for batch in make_loader(data, **how)]


def test_the_order_is_a_function_of_seed_and_epoch(indexed):
    data = ECGDataset(read_window_folder(indexed), "train")
    first = rows_of(data, epoch=0)
    torch.manual_seed(99)
    assert rows_of(data, epoch=0) == first
    assert sorted(row for batch in first for row in batch) == list(range(18)) and [len(b) for b in first] == [
        4,
        4,
        4,
        4,
        2,
    ]
    assert rows_of(data, epoch=1) != first != rows_of(data, epoch=0, seed=6)
    assert rows_of(data, shuffle=False)[0] == [0, 1, 2, 3]
    assert len(rows_of(data, drop_last=True)) == 4
    assert rows_of(data, drop_last=True, batch_size=64) == rows_of(data, batch_size=64)


def test_a_resumed_epoch_is_the_rest_of_the_whole_one(indexed):
    data = ECGDataset(read_window_folder(indexed), "train", seed=2)
    whole = list(make_loader(data, batch_size=4, shuffle=True, seed=5, epoch=3))
    rest = list(make_loader(data, batch_size=4, shuffle=True, seed=5, epoch=3, start_batch=3))
    assert len(rest) == 2
    for a, b in zip(whole[3:], rest, strict=True):
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert len(make_loader(data, batch_size=4, shuffle=True, seed=5, start_batch=5)) == 0


@pytest.mark.parametrize("batch_size", [4, 5, 7, 18])
@pytest.mark.parametrize("shards", [1, 2, 3, 4])
def test_parts_of_a_batch_are_those_that_a_step_is_cut_into(indexed, shards, batch_size):
    data, how = ECGDataset(read_window_folder(indexed), "train"), {"batch_size": batch_size, "epoch": 1}
    whole = rows_of(data, **how)
    for cut in range(shards + 1):
        first = rows_of(data, **how, shards=shards, take=range(cut))
        second = rows_of(data, **how, shards=shards, take=range(cut, shards))
        assert [a + b for a, b in zip(first, second, strict=True)] == whole
    for number in range(shards):
        own = rows_of(data, **how, shards=shards, take=range(number, number + 1))
        # torch.split is what Shown.parts cuts with.
        cut = [torch.tensor(batch).split(-(-len(batch) // shards)) for batch in whole]
        assert own == [parts[number].tolist() if number < len(parts) else [] for parts in cut]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_epoch_in_parts_and_processes_is_the_rest_of_the_whole_one(indexed, workers):
    data, how = ECGDataset(read_window_folder(indexed), "train", seed=2), {"batch_size": 5, "epoch": 3}
    whole = list(make_loader(data, shuffle=True, seed=5, **how))[2:]
    cut = {"shards": 2, "start_batch": 2, "workers": workers}
    ranks = [
        list(make_loader(data, shuffle=True, seed=5, **how, **cut, take=range(i, i + 1))) for i in (0, 1)
    ]
    for batch, first, second in zip(whole, *ranks, strict=True):
        for key, value in batch.items():
            assert torch.equal(torch.cat([first[key], second[key]]), value), key


def test_a_part_that_a_short_batch_lacks_is_a_batch_of_no_rows(indexed):
    data = ECGDataset(read_window_folder(indexed), "train")
    how = {"batch_size": 16, "shuffle": True, "seed": 5, "shards": 4, "take": range(3, 4)}
    for workers in (0, 2):
        full, short = make_loader(data, workers=workers, **how)
        assert len(full["row"]) == 4 and len(short["row"]) == 0
        assert {k: (v.dtype, v.shape[1:]) for k, v in full.items()} == {
            k: (v.dtype, v.shape[1:]) for k, v in short.items()
        }


def test_the_loader_leaves_the_global_generator_alone(indexed):
    before = torch.get_rng_state()
    rows_of(ECGDataset(read_window_folder(indexed), "train"))
    assert torch.equal(torch.get_rng_state(), before)


def test_loader_processes_give_the_same_batches(indexed):
    data = ECGDataset(read_window_folder(indexed), "train")
    alone = list(make_loader(data, batch_size=8, shuffle=True, seed=5, epoch=2))
    together = list(make_loader(data, batch_size=8, shuffle=True, seed=5, epoch=2, workers=2))
    for a, b in zip(alone, together, strict=True):
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_folder_travels_as_a_path_not_as_its_windows(indexed, bare):
    folder = read_window_folder(indexed)
    folder.partners(0)
    sent = pickle.dumps(ECGDataset(folder, "train"))
    assert len(sent) < folder.windows.nbytes / 4
    back = pickle.loads(sent)
    assert torch.equal(back[4]["ecg"], ECGDataset(folder, "train")[4]["ecg"])
    other = pickle.loads(pickle.dumps(read_window_folder(bare, fs=100.0)))
    np.testing.assert_array_equal(other.windows[2], signals(3, seed=9)[2])
