"""From any subset of the twelve leads to the eight observation slots that the model works in.

Limb leads are rank two. Two or more observed limb leads determine I and II (least squares), which then fill
slots 0 and 1; a single observed limb lead fills slot 0, with its own coefficients on (I, II). Precordial
leads fill slots 2 to 7. Hidden leads are zeroed before anything else happens and cannot leak.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor, nn

from ecggen.leads import EXPAND

SLOTS = 8


@dataclass
class Observation:
    """What was recorded, in slots. values in mV, or relative to their RMS after `scaled`.

    values [B, 8, T]; mask [B, 8] bool, True = filled; rows [B, 8, 8]: slot = rows @ independent leads.
    """

    values: Tensor
    mask: Tensor
    rows: Tensor

    def reduced(self, keep: Tensor) -> Observation:
        """The same recording with fewer slots; keep [B, 8] bool."""
        mask = self.mask & keep
        return Observation(self.values * mask[..., None], mask, self.rows)

    def repeated(self, count: int) -> Observation:
        """The same batch `count` times, one block after the other."""
        parts = (self.values, self.mask, self.rows)
        return Observation(*(x.repeat(count, *[1] * (x.ndim - 1)) for x in parts))

    def chosen(self, rows: Tensor) -> Observation:
        """Of some of the batch; rows [n], their numbers."""
        return Observation(self.values[rows], self.mask[rows], self.rows[rows])

    def present(self) -> Observation:
        """Without the slots, of 8, that are empty in the whole batch: values [B, u, T], rows [B, u, 8]."""
        used = self.mask.any(0).nonzero()[:, 0]
        if len(used) == self.mask.shape[1]:
            return self
        return Observation(self.values[:, used], self.mask[:, used], self.rows[:, used])

    def split(self, sizes: list[int]) -> list[Observation]:
        """Parts of the batch, of these sizes."""
        parts = (x.split(sizes) for x in (self.values, self.mask, self.rows))
        return [Observation(*each) for each in zip(*parts, strict=True)]

    @staticmethod
    def joined(parts: list[Observation]) -> Observation:
        """The batches one after the other."""
        return Observation(*(torch.cat([getattr(x, name) for x in parts]) for name in _FIELDS))

    def rms(self) -> Tensor:
        """[B, 1, 1] root mean square in mV over the filled slots; 1 where nothing but zeros was recorded."""
        power = self.values.square().mean(-1).sum(-1) / self.mask.sum(-1).clamp_min(1)
        return torch.where(power > 1e-8, power, torch.ones_like(power)).sqrt()[:, None, None]

    def known(self) -> Tensor:
        """[B, 8], 1 where the recording fixes an independent lead: a lone aVR fixes neither I nor II."""
        eye = torch.eye(SLOTS, dtype=self.rows.dtype, device=self.rows.device)
        return (self.mask & ((self.rows - eye).abs().sum(2) < 1e-6)).to(self.values.dtype)

    def scaled(self) -> tuple[Observation, Tensor]:
        """(values divided by their RMS, the RMS [B, 1, 1] in mV)."""
        scale = self.rms()
        return Observation(self.values / scale, self.mask, self.rows), scale


_FIELDS = tuple(field.name for field in fields(Observation))


class LimbSlots(nn.Module):
    """ecg [B, 12, T], observed [B, 12] -> Observation, by a table over the 64 limb-lead subsets."""

    fill: Tensor
    rows: Tensor
    filled: Tensor
    code: Tensor

    def __init__(self) -> None:
        super().__init__()
        limb = EXPAND[:6, :2]
        fill, coefficients, filled = np.zeros((64, 2, 6)), np.zeros((64, 2, 2)), np.zeros((64, 2), bool)
        for subset in range(64):
            seen = [lead for lead in range(6) if subset >> lead & 1]
            if len(seen) >= 2:
                fill[subset][:, seen] = np.linalg.pinv(limb[seen])
                coefficients[subset] = np.eye(2)
                filled[subset] = True
                if {0, 1} <= set(seen):  # as recorded: no averaging with leads that only repeat them
                    fill[subset] = 0
                    fill[subset][[0, 1], [0, 1]] = 1
            elif seen:
                # Lead II alone keeps its own slot; any other single limb lead stands in slot 0.
                at = 1 if seen == [1] else 0
                fill[subset][at, seen[0]] = 1
                coefficients[subset][at] = limb[seen[0]]
                filled[subset][at] = True
        self.register_buffer("fill", torch.tensor(fill, dtype=torch.float32), persistent=False)
        rows = torch.eye(SLOTS).repeat(64, 1, 1)
        rows[:, :2, :2] = torch.tensor(coefficients, dtype=torch.float32)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("filled", torch.tensor(filled), persistent=False)
        self.register_buffer("code", torch.tensor([1, 2, 4, 8, 16, 32]), persistent=False)

    def forward(self, ecg: Tensor, observed: Tensor) -> Observation:
        assert ecg.ndim == 3 and ecg.shape[1] == 12, ecg.shape
        assert observed.shape == ecg.shape[:2] and observed.dtype == torch.bool, observed.shape
        # `where`, not a product: a hidden NaN times zero would still be NaN.
        seen = torch.where(observed[..., None], ecg, torch.zeros_like(ecg))
        subset = (observed[:, :6] * self.code).sum(-1)
        limb = self.fill[subset].to(ecg.dtype) @ seen[:, :6]
        mask = torch.cat([self.filled[subset], observed[:, 6:]], -1)
        return Observation(torch.cat([limb, seen[:, 6:]], 1), mask, self.rows[subset].to(ecg.dtype))

    def mask(self, observed: Tensor) -> Tensor:
        """The slots that observed [B, 12] bool fills, [B, 8] bool."""
        return torch.cat([self.filled[(observed[:, :6] * self.code).sum(-1)], observed[:, 6:]], -1)
