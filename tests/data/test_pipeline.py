"""The dataset over a window folder, and the order of its loader."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ecggen.data.pipeline import DataError, ECGDataset, make_loader, read_window_folder
from ecggen.leads import LEADS
from ecggen.utils.files import read_csv, write_csv, write_json

T = 64
COLUMNS = ("window", "record", "patient", "start_s", "split", "labels", "observed")
SPLIT_OF = ("train", "train", "train", "validation", "test")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ten records of five patients; three windows each, the last one half over the second."""
    records = np.random.default_rng(1).normal(size=(10, 12, 160)).astype(np.float32)
    rows: list[dict[str, Any]] = []
    for record in range(10):
        for start in (0, 64, 96):
            row = {"window": len(rows), "record": f"r{record}", "patient": f"p{record // 2}"}
            row |= {"start_s": start / 100, "split": SPLIT_OF[record // 2]}
            row["labels"] = "b;a" if record % 2 else ""
            rows.append(row | {"observed": "1" * 12 if record else "11" + "0" * 10})
    write_csv(tmp_path / "index.csv", rows, COLUMNS)
    ecg = np.concatenate([r[None, :, s : s + T] for r in records for s in (0, 64, 96)])
    np.save(tmp_path / "windows.npy", ecg)
    meta = {"fs": 100.0, "time_len": T, "leads": LEADS, "label_classes": ["a", "b", "c"], "stride": 64}
    write_json(tmp_path / "meta.json", meta)
    return tmp_path


def test_items(root: Path) -> None:
    data = ECGDataset(read_window_folder(root), "train", seed=3)
    item = data[4]
    assert item["ecg"].shape == (12, T) and item["ecg"].dtype == torch.float32 and item["row"] == 4
    np.testing.assert_array_equal(item["ecg"], np.load(root / "windows.npy")[4])
    assert item["has_support"] and item["labels"].tolist() == [1, 1, 0]
    hidden = data[0]
    assert hidden["observed"].tolist() == [True] * 2 + [False] * 10
    assert (hidden["ecg"][~hidden["observed"]] == 0).all()
    indices = [11, 0, 4, 4, 17]
    batch = data.__getitems__(indices)
    for i, index in enumerate(indices):
        assert all(np.array_equal(batch[key][i], value) for key, value in data[index].items())
    ecg, observed = data.windows(indices)
    assert torch.equal(ecg, batch["ecg"]) and torch.equal(observed, batch["observed"])
    rows = read_csv(root / "index.csv")
    rows[0] |= {"record": "alone", "patient": "nobody else"}
    write_csv(root / "index.csv", rows, COLUMNS)
    alone = ECGDataset(read_window_folder(root), "train")[0]
    assert not alone["has_support"] and torch.equal(alone["support"], alone["ecg"])


def test_crops_are_pieces_of_the_record(root: Path) -> None:
    record = np.random.default_rng(1).normal(size=(10, 12, 160)).astype(np.float32)[1]
    data, starts = ECGDataset(read_window_folder(root), "train", seed=5), set()
    for epoch in range(40):
        data.set_epoch(epoch)
        crop = data[5]["crop"].numpy()  # the last window of the second record
        (start,) = [s for s in range(160 - T + 1) if np.array_equal(crop, record[:, s : s + T])]
        starts.add(start)
    assert len(starts) > 15 and min(starts) >= 64


def test_time_scaling_changes_the_speed_within_the_record(root: Path) -> None:
    """A straight line stays one, with other slopes; no crop leaves the signal."""
    line = np.linspace(0, 1, 160, dtype=np.float32)
    windows = np.stack([np.tile(line[s : s + T], (12, 1)) for _ in range(10) for s in (0, 64, 96)])
    np.save(root / "windows.npy", windows)
    data, slopes = ECGDataset(read_window_folder(root), "train", seed=5, time_scaling=0.2), []
    for epoch in range(60):
        data.set_epoch(epoch)
        crop = data[3]["crop"][0].double()
        slope = np.diff(crop[2:-2])
        np.testing.assert_allclose(slope, slope.mean(), rtol=1e-3)
        slopes.append(slope.mean() * 159)
        assert crop.min() >= -1e-6 and crop.max() <= line[127] + 1e-6
    assert 0.1 < np.std(np.log(slopes)) < 0.3 and max(slopes) <= 127 / 63 + 0.01


def test_training_supports_come_from_other_records_too(root: Path) -> None:
    folder = read_window_folder(root)
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


def test_nan_in_an_observed_lead_is_refused_in_a_hidden_one_ignored(root: Path) -> None:
    data = ECGDataset(read_window_folder(root), "train")
    x = np.load(root / "windows.npy")
    x[0, 2, 5] = x[7, 6, 1] = np.nan  # lead III of window 0 is not observed
    np.save(root / "windows.npy", x)
    assert torch.isfinite(data[0]["ecg"]).all() and (data.folder.windows[0][2] == 0).all()
    sentence = r"Window 7 of .*windows.npy has NaN or infinite samples in lead V1, which is marked as obs"
    for read in (lambda: data[7], lambda: data.folder.windows[5:], lambda: read_window_folder(root)):
        with pytest.raises(DataError, match=sentence):
            read()


def test_limit_and_empty_splits(root: Path) -> None:
    folder = read_window_folder(root)
    few = ECGDataset(folder, "train", seed=1, limit=5)
    assert len(few) == 5 and set(few.row_numbers) <= set(folder.rows("train"))
    assert ECGDataset(folder, "train", seed=1, limit=5).row_numbers.tolist() == few.row_numbers.tolist()
    assert len(ECGDataset(folder, "train", limit=500)) == 18
    rows = [row | {"split": row["split"].replace("test", "train")} for row in read_csv(root / "index.csv")]
    write_csv(root / "index.csv", rows, COLUMNS)
    with pytest.raises(DataError, match=r"'test' .* is empty \(train 24, validation 6, test 0 windows\)"):
        ECGDataset(read_window_folder(root), "test")


def rows_of(data: ECGDataset, **options: Any) -> list[list[int]]:
    options = {"batch_size": 4, "shuffle": True, "seed": 5} | options
    return [batch["row"].tolist() for batch in make_loader(data, **options)]


def test_the_order_is_a_function_of_seed_and_epoch(root: Path) -> None:
    data = ECGDataset(read_window_folder(root), "train")
    before = torch.get_rng_state()
    first = rows_of(data, epoch=0)
    assert torch.equal(torch.get_rng_state(), before), "the global generator is left alone"
    torch.manual_seed(99)
    assert rows_of(data, epoch=0) == first
    assert sorted(np.concatenate(first)) == list(range(18)) and [len(b) for b in first] == [4, 4, 4, 4, 2]
    assert rows_of(data, epoch=1) != first != rows_of(data, epoch=0, seed=6)
    assert rows_of(data, shuffle=False)[0] == [0, 1, 2, 3]


def test_a_resumed_epoch_and_loader_processes_give_the_same_batches(root: Path) -> None:
    data = ECGDataset(read_window_folder(root), "train", seed=2)
    options: dict[str, Any] = {"batch_size": 4, "shuffle": True, "seed": 5, "epoch": 3}
    whole = list(make_loader(data, **options))
    for start, workers in ((3, 0), (0, 2)):
        rest = list(make_loader(data, **options, start_batch=start, workers=workers))
        assert len(rest) == 5 - start
        for a, b in zip(whole[start:], rest, strict=True):
            assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert len(make_loader(data, **options, start_batch=5)) == 0


def test_a_dataset_is_pickled_as_its_paths(root: Path) -> None:
    data = ECGDataset(read_window_folder(root), "train")
    sent = pickle.dumps(data)
    assert len(sent) < data.folder.windows[:].nbytes / 8
    assert torch.equal(pickle.loads(sent)[4]["ecg"], data[4]["ecg"])
