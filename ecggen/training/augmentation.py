"""What a training step shows the model: leads hidden at random, references, jittered lead fields, views.

Every choice comes from the generator that the trainer hands in, which is a function of (seed, step).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from ecggen.data.sliding import moving_average
from ecggen.leads import (
    DOWER,
    EXPAND,
    INDEPENDENT_INDEX,
    OTHER_PRECORDIAL,
    observed_mask,
    parse_lead_set,
)
from ecggen.models import so3
from ecggen.models.slots import LimbSlots
from ecggen.utils.config import Config

#: Lead sets that half of the training samples show; the other half shows random subsets.
TYPICAL = ("I", "II", "I+II", "I+II+V2", "I+II+V3", "I+II+V1+V4", "II+V2+V5")
TYPICAL_MASKS = [observed_mask(parse_lead_set(name)) for name in TYPICAL]
ALL_BUT = 2  # as often as so many of these, all leads but one precordial are shown
ALL_BUT_MASKS = [observed_mask(("I", "II", *others)) for others in OTHER_PRECORDIAL.values()]
SLOW_S = 0.11  # a moving average this long holds the T wave and not the QRS


@dataclass
class Batch:
    """One training batch. B samples.

    ecg, reference [B, 12, T] mV; recorded, observed, reference_observed [B, 12] bool, True = there (observed:
    given to the model); view [B, 8] bool, the slots of the reference that the inner loop's view keeps.
    """

    ecg: Tensor
    recorded: Tensor
    observed: Tensor
    reference: Tensor
    reference_observed: Tensor
    view: Tensor

    def __len__(self) -> int:
        return len(self.ecg)

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return Batch(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))

    def parts(self, count: int) -> list[Batch]:
        """`count` parts of nearly equal size, fewer where there are fewer samples."""
        size = -(-len(self) // count)
        pieces = (getattr(self, field.name).split(size) for field in fields(self))
        return [Batch(*each) for each in zip(*pieces, strict=True)]


def augment(batch: dict[str, Tensor], config: Config, rng: np.random.Generator, slots: LimbSlots) -> Batch:
    """Draw what one step shows of a loader's batch, on the CPU.

    A share of the samples (`train.personal_share`) takes its state from the support window with all its
    leads; the others from their own observed leads, and these are cut anywhere in the record.
    """
    options = config.train
    recorded = batch["observed"]
    observed = torch.from_numpy(random_leads(recorded.numpy(), rng))
    personal = torch.from_numpy(rng.random(len(recorded)) < options.personal_share) & batch["has_support"]
    ecg = torch.where(personal[:, None, None], batch["ecg"], batch["crop"])
    ecg, support = _jittered(ecg, batch, config, rng)
    # Now and then a mismatched reference, of another patient: the model learns to use it only where it fits.
    mismatched = torch.from_numpy(rng.random(len(recorded)) < options.stranger_share)
    source = torch.arange(len(recorded)) - mismatched.int()
    reference = torch.where(personal[:, None, None], support[source], ecg)
    reference_observed = torch.where(personal[:, None], batch["support_observed"][source], observed)
    filled = slots.mask(reference_observed)
    view = random_view(filled, config.model.ttt.inner_dropout, rng)
    return Batch(ecg, recorded, observed, reference, reference_observed, view)


def random_leads(recorded: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A subset of the recorded leads for every sample, [B, 12] bool; never empty."""
    out = np.zeros_like(recorded)
    for row, there in enumerate(recorded):
        number = rng.integers(len(TYPICAL) + ALL_BUT)
        all_but = number >= len(TYPICAL)
        out[row] = there & (ALL_BUT_MASKS[rng.integers(6)] if all_but else TYPICAL_MASKS[number])
        if rng.random() < 0.5 or not out[row].any():
            leads = rng.permutation(np.flatnonzero(there))
            out[row] = False
            out[row, leads[: rng.integers(1, max(2, min(len(leads), 8)))]] = True
    return out


def random_view(mask: Tensor, dropout: float, rng: np.random.Generator) -> Tensor:
    """A view of the inner loop, [B, 8] bool: some filled slots of mask left out, at least one kept."""
    filled = mask.numpy()
    rate = np.clip(rng.random(len(filled)) * 2 * dropout, 0, 0.9)[:, None]
    score = np.where(filled, rng.random(filled.shape), np.inf)
    keep = filled & (score >= rate)
    last = np.where(filled, score, -np.inf).argmax(1)
    keep[np.arange(len(keep)), last] = filled[np.arange(len(keep)), last]
    return torch.from_numpy(keep)


def field_change(batch: int, sigma: float | np.ndarray, rng: np.random.Generator) -> Tensor:
    """Matrices [B, 8, 8], float64, that give what another lead field would have recorded of the same heart.

    The part of the eight leads that Dower's field spans is rotated by a random vector of `sigma` radians per
    axis, and every lead gets a gain exp(N(0, sigma)). sigma: one number, or one per sample [B].
    """
    field = torch.tensor(DOWER)
    size = np.broadcast_to(sigma, batch)
    omega = torch.from_numpy(rng.normal(size=(batch, 3)) * size[:, None])
    gain = torch.from_numpy(rng.normal(size=(batch, 8, 1)) * size[:, None, None]).exp()
    turn = so3.exp(omega) - torch.eye(3, dtype=field.dtype)
    return gain * (torch.eye(8, dtype=field.dtype) + field @ turn @ torch.linalg.pinv(field))


def change_waves(eight: Tensor, sigma: np.ndarray, rng: np.random.Generator, window: int) -> Tensor:
    """What the same leads might record in another session: slow waves (ST-T) and fast ones (QRS) keep their
    shape but not their relative size.

    eight [B, 8, T] mV -> the same shape; every lead's moving average over `window` samples and what it leaves
    over get gains of their own, exp(N(0, sigma)), sigma [B], half of it common to all leads.
    """
    average = functools.partial(moving_average, width=2 * (window // 2) + 1, silent_outside=True)
    present = average(torch.ones(1, eight.shape[-1], dtype=eight.dtype))  # fewer samples at the ends
    slow = (average(eight.flatten(0, 1)) / present).view_as(eight)
    draw = rng.normal(size=(2, len(eight), 8, 1)) + rng.normal(size=(2, len(eight), 1, 1))
    gain = torch.from_numpy(np.exp(draw * sigma[:, None, None] / math.sqrt(2))).to(eight.dtype)
    return torch.addcmul(gain[1] * eight, gain[0] - gain[1], slow)


def _jittered(
    ecg: Tensor, batch: dict[str, Tensor], config: Config, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """(ecg, support) with the same random lead field, and the support with a small change besides.

    Electrodes never return to the same place, and T waves not to the same size: up to `reference_jitter`,
    mostly much less. Recordings that lack a lead stay as they were.
    """
    options = config.train
    whole = (batch["observed"] & batch["support_observed"]).all(-1)[:, None, None]
    index, expand = torch.tensor(INDEPENDENT_INDEX), torch.tensor(EXPAND)
    change = field_change(len(ecg), options.field_jitter, rng)
    sigma = options.reference_jitter * rng.random(len(ecg)) ** 2
    support_change = field_change(len(ecg), sigma, rng) @ change
    support = support_change.to(ecg.dtype) @ batch["support"].index_select(1, index)
    support = change_waves(support, sigma, rng, round(SLOW_S * config.data.fs))
    if options.field_jitter:
        moved = (expand @ change).to(ecg.dtype) @ ecg.index_select(1, index)
        ecg = torch.where(whole, moved, ecg)
    if options.field_jitter or options.reference_jitter:
        return ecg, torch.where(whole, expand.to(ecg.dtype) @ support, batch["support"])
    return ecg, batch["support"]
