"""The dataset over a window folder, and its loader."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import BatchSampler, DataLoader, Dataset

from ecggen.data.read_windows import read_window_folder
from ecggen.data.windows import DataError, WindowFolder
from ecggen.utils.config import SPLITS
from ecggen.utils.seed import derive_seed

__all__ = ["DataError", "ECGDataset", "WindowFolder", "make_loader", "read_window_folder"]

Ints = NDArray[np.int64]
Signals = NDArray[np.float32]


class ECGDataset(Dataset[dict[str, Any]]):
    """Windows of one split, each with another window of the same record as support.

    Training windows of patients with several records take their support from another record half of the
    time. limit > 0 keeps a seeded choice of that many windows; time_scaling: see `_crop`. Raises DataError
    when the split is empty.
    """

    def __init__(
        self, folder: WindowFolder, split: str, *, seed: int = 0, limit: int = 0, time_scaling: float = 0.0
    ) -> None:
        rows = folder.rows(split)
        if not len(rows):
            counts = ", ".join(f"{name} {len(folder.rows(name))}" for name in SPLITS)
            raise DataError(
                f"The split {split!r} of {folder.root} is empty ({counts} windows): "
                "more patients, or other split shares, are needed."
            )
        if 0 < limit < len(rows):
            generator = np.random.default_rng(derive_seed(seed, "limit", split))
            rows = np.sort(generator.permutation(rows)[:limit])
        self.folder, self.split, self.seed, self.epoch = folder, split, seed, 0
        self.time_scaling = time_scaling
        self.row_numbers = rows

    def __len__(self) -> int:
        return len(self.row_numbers)

    def set_epoch(self, epoch: int) -> None:
        """Choose the support windows of this epoch."""
        self.epoch = int(epoch)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """ecg [12, T] mV (unobserved leads 0), observed [12], labels [C], row, support [12, T], ...

        The training split has crop [12, T] as well, of the same leads (see `_crop`).
        """
        item = {key: value[0] for key, value in self.__getitems__([index]).items()}
        return item | {"row": int(item["row"]), "has_support": bool(item["has_support"])}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """The items of these indices as one batch [B, ...]; without indices, all keys with no rows.

        Windows that several items need are read once.
        """
        rows = self.row_numbers[np.asarray(indices, dtype=np.int64)]
        training = self.split == "train"
        support, has_support = self._supports(rows)
        needed = [rows, support]
        if training:
            first, second, gap = self.folder.neighbours(rows)
            needed += [first, second]
        distinct, at = np.unique(np.concatenate(needed), return_inverse=True)
        ecg, observed = self._read(distinct)
        place = at.reshape(len(needed), len(rows))
        batch: dict[str, NDArray[Any]] = {}
        if training:
            batch["crop"] = np.empty((len(rows), *ecg.shape[1:]), dtype=np.float32)
            for i, row in enumerate(rows.tolist()):
                batch["crop"][i] = self._crop(row, ecg[place[2, i]], ecg[place[3, i]], int(gap[i]))
        batch |= {
            "ecg": ecg[place[0]],
            "observed": observed[place[0]],
            "labels": self.folder.labels[rows].astype(np.float32),
            "row": rows,
            "support": ecg[place[1]],
            "support_observed": observed[place[1]],
            "has_support": has_support,
        }
        return {key: torch.from_numpy(value) for key, value in batch.items()}

    def windows(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """(ecg [B, 12, T], observed [B, 12]) of these indices alone, as in the items."""
        ecg, observed = self._read(self.row_numbers[np.asarray(indices, dtype=np.int64)])
        return torch.from_numpy(ecg), torch.from_numpy(observed)

    def _supports(self, rows: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """(the support of each row, the row itself where there is none; which rows have one)."""
        seeds = [derive_seed(self.seed, "support", self.epoch, row) for row in rows.tolist()]
        support, has_support = _choose(rows, *self.folder.supports(rows), seeds)
        if self.split == "train":
            other, has_other = _choose(rows, *self.folder.other_records(rows), seeds)
            for i in np.flatnonzero(has_other):
                if derive_seed(self.seed, "record", self.epoch, int(rows[i])) % 2:
                    support[i], has_support[i] = other[i], True
        return support, has_support

    def _crop(self, row: int, first: Signals, second: Signals, gap: int) -> Signals:
        """A window [12, T] cut anywhere from the signal of two windows that start `gap` samples apart.

        first, second: `row` and its neighbour in time order, which overlap or touch. The crop runs faster or
        slower by exp(N(0, time_scaling)), as far as the signal is long enough.
        """
        length = first.shape[1]
        signal = np.concatenate([first, second[:, length - gap :]], axis=1) if gap else first
        rng = np.random.default_rng(derive_seed(self.seed, "crop", self.epoch, row))
        speed = math.exp(self.time_scaling * rng.standard_normal())
        if not self.time_scaling:
            start = int(rng.integers(gap + 1))
            return signal[:, start : start + length]
        speed = min(speed, (length + gap - 1) / (length - 1))
        start_at = rng.random() * (length + gap - 1 - speed * (length - 1))
        return _interpolate(signal, start_at + speed * np.arange(length))

    def _read(self, rows: Ints) -> tuple[Signals, NDArray[np.bool_]]:
        ecg, observed = self.folder.windows[rows], self.folder.observed[rows]  # copies
        if not observed.all():
            ecg[~observed] = 0.0
        return ecg, observed


def _choose(rows: Ints, windows: Ints, owner: Ints, seeds: Sequence[int]) -> tuple[Ints, NDArray[np.bool_]]:
    """One of the windows of each row, by number seed % how many; the row itself where it has none.

    windows [m]; owner [m]: for which of the rows each is, ascending. Also returns which rows have windows.
    """
    counts = np.bincount(owner, minlength=len(rows))
    has = counts > 0
    place = np.cumsum(counts) - counts + np.array(seeds, dtype=np.int64) % np.maximum(counts, 1)
    chosen = rows.copy()
    chosen[has] = windows[place[has]]
    return chosen, has


def _interpolate(signal: Signals, positions: NDArray[np.float64]) -> Signals:
    """signal [C, T] at real-valued sample positions [n] -> [C, n]; cubic convolution, ends held.

    Keys, IEEE Trans. ASSP 29 (1981), a = -1/2.
    """
    whole = np.floor(positions)
    t = (positions - whole).astype(signal.dtype)
    weights = (
        ((2 - t) * t - 1) * t / 2,
        ((3 * t - 5) * t * t + 2) / 2,
        ((4 - 3 * t) * t + 1) * t / 2,
        (t - 1) * t * t / 2,
    )
    taps = np.take(signal, whole.astype(np.int64) + np.arange(-1, 3)[:, None], axis=1, mode="clip")
    taps *= np.stack(weights)
    return taps.sum(axis=1)


def _whole_batch(batch: Any) -> Any:
    """ECGDataset hands the loader whole batches: there is nothing to collate."""
    return batch


def make_loader(
    dataset: ECGDataset,
    *,
    batch_size: int,
    shuffle: bool,
    seed: int,
    epoch: int = 0,
    workers: int = 0,
    start_batch: int = 0,
) -> DataLoader[dict[str, Any]]:
    """A loader over one epoch: its order is a function of (seed, epoch) alone.

    start_batch leaves out that many batches, so that a resumed epoch goes on where it stopped. Sets the epoch
    of the dataset.
    """
    dataset.set_epoch(epoch)
    order = np.arange(len(dataset))
    if shuffle:
        order = np.random.default_rng(derive_seed(seed, "order", epoch)).permutation(order)
    return DataLoader(
        dataset,
        batch_sampler=BatchSampler(order[start_batch * batch_size :], batch_size, drop_last=False),
        num_workers=workers,
        collate_fn=_whole_batch,
        # Not the global random generator, from which a loader draws: a resumed run would differ.
        generator=torch.Generator().manual_seed(derive_seed(seed, "loader", epoch)),
    )
