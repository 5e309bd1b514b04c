"""The dataset over a window folder, and its loader."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from ecggen.data.window_folder import SPLITS, DataError, WindowFolder, read_window_folder, split_patients
from ecggen.leads import LEADS
from ecggen.utils.seed import derive_seed

__all__ = [
    "SPLITS",
    "DataError",
    "ECGDataset",
    "WindowFolder",
    "make_loader",
    "read_window_folder",
    "split_patients",
]

Ints = NDArray[np.int64]
Signals = NDArray[np.float32]


class ECGDataset(Dataset[dict[str, Any]]):
    """Windows of one split, each with another window of the same record as support.

    Training windows of patients with several records take their support from another record half of the
    time. limit > 0 keeps a seeded choice of that many windows; warp: see `_crops`. Raises DataError when the
    split is empty.
    """

    def __init__(
        self, folder: WindowFolder, split: str, *, seed: int = 0, limit: int = 0, warp: float = 0.0
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
        self.folder, self.split, self.seed, self.warp, self.epoch = folder, split, seed, warp, 0
        self.row_numbers = rows

    def __len__(self) -> int:
        return len(self.row_numbers)

    def set_epoch(self, epoch: int) -> None:
        """Choose the support windows of this epoch."""
        self.epoch = int(epoch)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """ecg [12, T] mV (unobserved leads 0), observed [12], labels [C], row, support [12, T], ...

        The training split has crop [12, T] as well, of the same leads (see `_crops`).
        """
        item = {key: value[0] for key, value in self.__getitems__([index]).items()}
        return item | {"row": int(item["row"]), "has_support": bool(item["has_support"])}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """The items of these indices as one batch [B, ...]; none: a batch of no rows, all keys there.

        Windows that several items need are read once.
        """
        rows = self.row_numbers[np.asarray(indices, dtype=np.int64)]
        support, has_support = self._supports(rows)
        needed = [rows, support]
        if self.split == "train":
            first, second, gap = self.folder.stretches(rows)
            needed += [first, second]
        distinct, at = np.unique(np.concatenate(needed), return_inverse=True)
        ecg, observed = self._read(distinct)
        places = at.reshape(len(needed), len(rows))
        own, other = places[:2]
        batch: dict[str, NDArray[Any]] = {}
        if self.split == "train":
            batch["crop"] = self._crops(rows, ecg, places[2], places[3], gap)
        batch |= {
            "ecg": ecg[own],
            "observed": observed[own],
            "labels": np.asarray(self.folder.labels[rows], dtype=np.float32),
            "row": rows,
            "support": ecg[other],
            "support_observed": observed[other],
            "has_support": has_support,
        }
        return {key: torch.from_numpy(value) for key, value in batch.items()}

    def windows(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """(ecg [B, 12, T], observed [B, 12]) of these indices alone, as in the items."""
        ecg, observed = self._read(self.row_numbers[np.asarray(indices, dtype=np.int64)])
        return torch.from_numpy(ecg), torch.from_numpy(observed)

    def _supports(self, rows: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """(a row that stands for the person of each window, the window itself where there is none; which)."""
        seeds = [derive_seed(self.seed, "support", self.epoch, row) for row in rows.tolist()]
        out, has = _pick(rows, *self.folder.all_supports(rows), seeds)
        if self.split == "train":
            later, has_later = _pick(rows, *self.folder.all_other_records(rows), seeds)
            for i in np.flatnonzero(has_later):
                if derive_seed(self.seed, "record", self.epoch, int(rows[i])) % 2:
                    out[i], has[i] = later[i], True
        return out, has

    def _crops(self, rows: Ints, ecg: Signals, first: Ints, second: Ints, gap: Ints) -> Signals:
        """Windows [B, 12, T] cut anywhere between each window and the next (or, at a record's end, the one
        before), at another speed: a factor exp(N(0, warp)), as far as the signal there is long enough.

        Two windows of a record that overlap or touch hold the signal between their starts. ecg[first[i]] and
        ecg[second[i]] are those of row i, gap[i] samples apart.
        """
        length = ecg.shape[2]
        out = np.empty((len(rows), *ecg.shape[1:]), dtype=np.float32)
        starts, speeds = np.zeros(len(rows)), np.ones(len(rows))
        for i, (row, step) in enumerate(zip(rows.tolist(), gap.tolist(), strict=True)):
            rng = np.random.default_rng(derive_seed(self.seed, "crop", self.epoch, row))
            speed = min(math.exp(self.warp * rng.standard_normal()), (length + step - 1) / (length - 1))
            latest = length + step - 1 - speed * (length - 1)
            starts[i] = rng.random() * latest if self.warp else rng.integers(step + 1)
            speeds[i] = speed
        taps = _cubic(starts[:, None] + speeds[:, None] * np.arange(length)) if self.warp else None
        for i, step in enumerate(gap.tolist()):
            before, after = ecg[first[i]], ecg[second[i]]
            signal = np.concatenate([before, after[:, length - step :]], axis=1) if step else before
            if taps is None:
                out[i] = signal[:, int(starts[i]) : int(starts[i]) + length]
            else:
                _weigh(signal, taps[0][i], taps[1][i], out[i])
        return out

    def _read(self, rows: Ints) -> tuple[Signals, NDArray[np.bool_]]:
        ecg = np.array(self.folder.windows[rows], dtype=np.float32, copy=None)
        observed = np.asarray(self.folder.observed[rows], dtype=bool)
        if not observed.all():
            ecg[~observed] = 0.0
        if not np.isfinite(ecg).all():
            i, lead = (int(where[0]) for where in np.nonzero(~np.isfinite(ecg).all(axis=2)))
            row = int(rows[i])
            raise DataError(
                f"Window {row} of {self.folder.root} (record {self.folder.record[row]}) has NaN or infinite "
                f"samples in lead {LEADS[lead]}, which is marked as observed: make the windows again."
            )
        return ecg, observed


def _pick(rows: Ints, found: Ints, owner: Ints, seeds: Sequence[int]) -> tuple[Ints, NDArray[np.bool_]]:
    """Of what was found for each row, the one with number seed % how many; the row itself where nothing was.

    found [m], owner [m]: for which of rows each is, in order. Also returns which rows had any.
    """
    counts = np.bincount(owner, minlength=len(rows))
    has = counts > 0
    chosen = (np.cumsum(counts) - counts + np.array(seeds, dtype=np.int64) % np.maximum(counts, 1))[has]
    out = rows.copy()
    out[has] = found[chosen]
    return out, has


def resampled(signal: NDArray[Any], positions: NDArray[np.float64]) -> NDArray[Any]:
    """signal [C, T] at real-valued sample positions [n] -> [C, n]; cubic convolution, ends held.

    Keys, IEEE Trans. ASSP 29 (1981), a = -1/2.
    """
    index, weights = _cubic(positions, signal.dtype)
    return _weigh(signal, index, weights, np.empty((len(signal), len(positions)), signal.dtype))


def _cubic(positions: NDArray[np.float64], dtype: Any = np.float32) -> tuple[Ints, NDArray[Any]]:
    """The four samples [..., 4, n] around positions [..., n], which may not exist, and their weights."""
    whole = np.floor(positions)
    t = (positions - whole).astype(dtype)
    weights = (
        ((2 - t) * t - 1) * t / 2,
        ((3 * t - 5) * t * t + 2) / 2,
        ((4 - 3 * t) * t + 1) * t / 2,
        (t - 1) * t * t / 2,
    )
    return whole.astype(np.int64)[..., None, :] + np.arange(-1, 3)[:, None], np.stack(weights, axis=-2)


def _weigh(signal: NDArray[Any], index: Ints, weights: NDArray[Any], out: NDArray[Any]) -> NDArray[Any]:
    """out [C, n]: sum over k of weights[k] * signal[:, index[k]]; beyond the ends the last sample holds."""
    taps = np.take(signal, index, axis=1, mode="clip")
    taps *= weights
    np.add(taps[:, 0], taps[:, 1], out=out)
    out += taps[:, 2]
    out += taps[:, 3]
    return out


class _Batches(Sampler[list[int]]):
    """Batches, or parts of them, in an order that is fixed beforehand."""

    def __init__(self, order: Ints, batch_size: int, numbers: range, shards: int, take: range) -> None:
        """order: indices; numbers: of the batches to give; shards, take: see make_loader."""
        self.order, self.batch_size, self.numbers = order, batch_size, numbers
        self.shards, self.take = shards, take

    def __iter__(self) -> Iterator[list[int]]:
        for number in self.numbers:
            batch = self.order[number * self.batch_size : (number + 1) * self.batch_size]
            size = -(-len(batch) // self.shards)
            yield batch[self.take.start * size : self.take.stop * size].tolist()

    def __len__(self) -> int:
        return len(self.numbers)


def _as_it_is(batch: Any) -> Any:
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
    drop_last: bool = False,
    start_batch: int = 0,
    shards: int = 1,
    take: range | None = None,
) -> DataLoader[dict[str, Any]]:
    """A loader over one epoch: its order is a function of (seed, epoch) alone.

    start_batch leaves out that many batches, so that a resumed epoch goes on where it stopped. take: of each
    batch, cut into `shards` parts as `augment.Shown.parts` cuts it, the parts of these numbers alone, one
    after the other. A short batch may lack them: it is then there with no rows, so that every reader counts
    the same batches. Sets the epoch of the dataset.
    """
    assert shards >= 1 and (take is None or (take.step == 1 and 0 <= take.start <= take.stop <= shards))
    dataset.set_epoch(epoch)
    order = np.arange(len(dataset))
    if shuffle:
        order = np.random.default_rng(derive_seed(seed, "order", epoch)).permutation(order)
    count = -(-len(order) // batch_size)
    if drop_last and count > 1 and len(order) % batch_size:
        count -= 1  # a single short batch stays: an epoch without any batch would train nothing
    # A generator of its own: a loader otherwise draws from the global one, and resuming would differ.
    generator = torch.Generator().manual_seed(derive_seed(seed, "loader", epoch))
    parts = range(shards) if take is None else take
    return DataLoader(
        dataset,
        batch_sampler=_Batches(order, batch_size, range(start_batch, count), shards, parts),
        num_workers=workers,
        collate_fn=_as_it_is,
        generator=generator,
    )
