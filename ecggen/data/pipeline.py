"""The dataset over a window folder, and its loader."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

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


class ECGDataset(Dataset[dict[str, Any]]):
    """Windows of one split, each with another window of the same record as support.

    Training windows of patients with several records take their support from another record half of the
    time. limit > 0 keeps a seeded choice of that many windows; warp: see `_crop`. Raises DataError when the
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

        The training split has crop [12, T] as well, of the same leads (see `_crop`).
        """
        row = int(self.row_numbers[index])
        ecg, observed = self._read(row)
        others = self._supports(row)
        has_support = len(others) > 0
        if has_support:
            other = int(others[derive_seed(self.seed, "support", self.epoch, row) % len(others)])
            support, support_observed = self._read(other)
        else:
            support, support_observed = ecg.clone(), observed.clone()
        crop = {"crop": self._crop(row, ecg)} if self.split == "train" else {}
        return crop | {
            "ecg": ecg,
            "observed": observed,
            "labels": torch.from_numpy(self.folder.labels[row].copy()),
            "row": row,
            "support": support,
            "support_observed": support_observed,
            "has_support": has_support,
        }

    def collate(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """Items as one batch; none at all as a batch of no rows, with the same keys and types."""
        if items:
            return dict(default_collate(items))
        return {key: value[:0] for key, value in default_collate([self[0]]).items()}

    def _supports(self, row: int) -> np.ndarray:
        """Rows that may stand for the person of this window."""
        later = self.folder.other_records(row) if self.split == "train" else np.empty(0, np.int64)
        if len(later) and derive_seed(self.seed, "record", self.epoch, row) % 2:
            return later
        return self.folder.supports(row)

    def _crop(self, row: int, ecg: torch.Tensor) -> torch.Tensor:
        """A window [12, T] cut anywhere between this window and the next (or, at a record's end, the one
        before), at another speed: a factor exp(N(0, warp)), as far as the signal there is long enough.

        Two windows of a record that overlap or touch hold the signal between their starts.
        """
        first, second, gap = self.folder.stretch(row)
        before, after = (ecg if other == row else self._read(other)[0] for other in (first, second))
        length = before.shape[1]
        signal = torch.cat([before, after[:, length - gap :]], 1)
        rng = np.random.default_rng(derive_seed(self.seed, "crop", self.epoch, row))
        speed = min(math.exp(self.warp * rng.standard_normal()), (length + gap - 1) / (length - 1))
        latest = length + gap - 1 - speed * (length - 1)
        if not self.warp:
            start = int(rng.integers(gap + 1))
            return signal[:, start : start + length]
        return resampled(signal, rng.random() * latest + speed * np.arange(length))

    def _read(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        ecg = np.array(self.folder.windows[row], dtype=np.float32)
        observed = self.folder.observed[row]
        ecg[~observed] = 0.0
        if not np.isfinite(ecg).all():
            lead = LEADS[int(np.flatnonzero(~np.isfinite(ecg).all(axis=1))[0])]
            raise DataError(
                f"Window {row} of {self.folder.root} (record {self.folder.record[row]}) has NaN or infinite "
                f"samples in lead {lead}, which is marked as observed: make the windows again."
            )
        return torch.from_numpy(ecg), torch.from_numpy(observed.copy())


def resampled(signal: torch.Tensor, positions: np.ndarray) -> torch.Tensor:
    """signal [..., T] at real-valued sample positions [n] -> [..., n]; cubic convolution, ends held.

    Keys, IEEE Trans. ASSP 29 (1981), a = -1/2.
    """
    whole = np.floor(positions)
    t = torch.from_numpy(positions - whole).to(signal.dtype)
    weights = (
        ((2 - t) * t - 1) * t / 2,
        ((3 * t - 5) * t * t + 2) / 2,
        ((4 - 3 * t) * t + 1) * t / 2,
        (t - 1) * t * t / 2,
    )
    index = torch.from_numpy(whole).long()
    last = signal.shape[-1] - 1
    taps = (signal[..., (index + k).clamp(0, last)] for k in (-1, 0, 1, 2))
    return torch.stack([weight * tap for weight, tap in zip(weights, taps, strict=True)]).sum(0)


class _Batches(Sampler[list[int]]):
    """Batches in an order that is fixed beforehand."""

    def __init__(self, batches: list[list[int]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


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
    batches = [order[at : at + batch_size].tolist() for at in range(0, len(order), batch_size)]
    if drop_last and len(batches) > 1 and len(batches[-1]) < batch_size:
        batches.pop()  # a single short batch stays: an epoch without any batch would train nothing
    if take is not None:
        sizes = [-(-len(batch) // shards) for batch in batches]
        batches = [b[take.start * n : take.stop * n] for b, n in zip(batches, sizes, strict=True)]
    # A generator of its own: a loader otherwise draws from the global one, and resuming would differ.
    generator = torch.Generator().manual_seed(derive_seed(seed, "loader", epoch))
    return DataLoader(
        dataset,
        batch_sampler=_Batches(batches[start_batch:]),
        num_workers=workers,
        collate_fn=dataset.collate,
        generator=generator,
        pin_memory=torch.cuda.is_available(),
    )
