"""The items of ECGDataset, one window at a time and in the plainest words: what its batches must equal.

Reads np.load and read_csv; nothing of ecggen.data.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ecggen.utils.files import read_csv, read_json
from ecggen.utils.seed import derive_seed


class PlainDataset:
    """One split of a window folder."""

    def __init__(self, root: Path, split: str, seed: int, epoch: int, time_scaling: float) -> None:
        self.ecg = np.load(root / "windows.npy")
        self.table, self.meta = read_csv(root / "index.csv"), read_json(root / "meta.json")
        self.split, self.seed, self.epoch, self.time_scaling = split, seed, epoch, time_scaling
        self.rows = [i for i, row in enumerate(self.table) if split in ("all", row["split"])]

    def item(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        ecg, observed = self.read(row)
        others = self.supports(row)
        if self.split == "train":
            patient, record = self.table[row]["patient"], self.table[row]["record"]
            later = [i for i, t in enumerate(self.table) if t["patient"] == patient and t["record"] != record]
            if later and derive_seed(self.seed, "record", self.epoch, row) % 2:
                others = later
        if others:
            chosen = others[derive_seed(self.seed, "support", self.epoch, row) % len(others)]
            support, support_observed = self.read(chosen)
        else:
            support, support_observed = ecg, observed
        labels = self.table[row]["labels"].split(";")
        item = {
            "ecg": ecg,
            "observed": observed,
            "labels": np.array([name in labels for name in self.meta["label_classes"]], dtype=np.float32),
            "row": np.int64(row),
            "support": support,
            "support_observed": support_observed,
            "has_support": np.bool_(bool(others)),
        }
        return ({"crop": self.crop(row)} if self.split == "train" else {}) | item

    def read(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        observed = np.array([bit == "1" for bit in self.table[row]["observed"]])
        return np.where(observed[:, None], self.ecg[row], np.float32(0)), observed

    def start(self, row: int) -> float:
        return float(self.table[row]["start_s"])

    def partners(self, row: int) -> list[int]:
        record = self.table[row]["record"]
        return [i for i, other in enumerate(self.table) if other["record"] == record and i != row]

    def supports(self, row: int) -> list[int]:
        far = 0.9 * self.ecg.shape[2]
        return [i for i in self.partners(row) if abs(self.start(i) - self.start(row)) * 100 >= far]

    def stretch(self, row: int) -> tuple[int, int, int]:
        gaps = {
            i: round((self.start(i) - self.start(row)) * 100)
            for i in self.partners(row)
            if self.table[i]["observed"] == self.table[row]["observed"] and self.meta.get("stride")
        }
        for sign in (1, -1):
            near = [i for i, gap in gaps.items() if 0 < sign * gap <= self.ecg.shape[2]]
            if near:
                best = min(near, key=lambda i: abs(gaps[i]))
                return (row, best, gaps[best]) if sign > 0 else (best, row, -gaps[best])
        return row, row, 0

    def crop(self, row: int) -> np.ndarray:
        first, second, gap = self.stretch(row)
        before, after = (torch.from_numpy(self.read(i)[0]) for i in (first, second))
        length = before.shape[1]
        signal = torch.cat([before, after[:, length - gap :]], 1)
        rng = np.random.default_rng(derive_seed(self.seed, "crop", self.epoch, row))
        speed = min(math.exp(self.time_scaling * rng.standard_normal()), (length + gap - 1) / (length - 1))
        if not self.time_scaling:
            start = int(rng.integers(gap + 1))
            return signal[:, start : start + length].numpy()
        latest = length + gap - 1 - speed * (length - 1)
        positions = rng.random() * latest + speed * np.arange(length)
        whole = np.floor(positions)
        t = torch.from_numpy(positions - whole).float()
        weights = (
            ((2 - t) * t - 1) * t / 2,
            ((3 * t - 5) * t * t + 2) / 2,
            ((4 - 3 * t) * t + 1) * t / 2,
            (t - 1) * t * t / 2,
        )
        index = torch.from_numpy(whole).long()
        taps = [signal[:, (index + k).clamp(0, signal.shape[1] - 1)] for k in (-1, 0, 1, 2)]
        return torch.stack([w * tap for w, tap in zip(weights, taps, strict=True)]).sum(0).numpy()
