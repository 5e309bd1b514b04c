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

ALL_BUT = 2  # as often as so many of these, all leads but one precordial are shown

SLOW_S = 0.11  # a moving average this long holds the T wave and not the QRS


@dataclass
class Shown:
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

    def to(self, device: torch.device) -> Shown:
        """The same on a device."""
        return Shown(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))

    def parts(self, count: int) -> list[Shown]:
        """`count` parts of nearly equal size, fewer where there are fewer samples."""
        size = -(-len(self) // count)
        pieces = (getattr(self, field.name).split(size) for field in fields(self))
        return [Shown(*each) for each in zip(*pieces, strict=True)]


def show(batch: dict[str, Tensor], config: Config, rng: np.random.Generator, slots: LimbSlots) -> Shown:
    """Draw what one step shows of a loader's batch, on the CPU.

    A share of the samples (`train.personal_share`) takes its state from the support window with all its
    leads; the others from their own observed leads, and these are cut anywhere in the record.
    """
    rules = config.train
    recorded = batch["observed"]
    observed = torch.from_numpy(random_leads(recorded.numpy(), rng))
    personal = torch.from_numpy(rng.random(len(recorded)) < rules.personal_share) & batch["has_support"]
    ecg = torch.where(personal[:, None, None], batch["ecg"], batch["crop"])
    ecg, support = _jittered(ecg, batch, config, rng)
    # Now and then a mismatched reference, of another patient: the model learns to use it only where it fits.
    mismatched = torch.from_numpy(rng.random(len(recorded)) < rules.stranger_share)
    source = torch.arange(len(recorded)) - mismatched.int()
    reference = torch.where(personal[:, None, None], support[source], ecg)
    reference_observed = torch.where(personal[:, None], batch["support_observed"][source], observed)
    filled = slots.mask(reference_observed)
    view = random_view(filled, config.model.ttt.inner_dropout, rng)
    return Shown(ecg, recorded, observed, reference, reference_observed, view)


@functools.cache
def _lead_sets() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Masks [12] of TYPICAL, and of the limb leads with all precordial leads but one."""
    typical = [observed_mask(parse_lead_set(name)) for name in TYPICAL]
    return typical, [observed_mask(("I", "II", *others)) for others in OTHER_PRECORDIAL.values()]


def random_leads(recorded: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A subset of the recorded leads for every sample, [B, 12] bool; never empty."""
    typical, all_but = _lead_sets()
    out = np.zeros_like(recorded)
    for row, there in enumerate(recorded):
        number = rng.integers(len(typical) + ALL_BUT)
        choice = (typical[number] if number < len(typical) else all_but[rng.integers(len(all_but))]) & there
        if rng.random() < 0.5 or not choice.any():
            leads = np.flatnonzero(there)
            choice = np.zeros(12, bool)
            choice[rng.permutation(leads)[: rng.integers(1, max(2, min(len(leads), 8)))]] = True
        out[row] = choice
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


def jitter_field(eight: Tensor, sigma: float | np.ndarray, rng: np.random.Generator) -> Tensor:
    """What another patient's lead field would have recorded of the same heart.

    eight [..., B, 8, T] mV -> the same shape: the part that Dower's field spans is rotated by a random vector
    of `sigma` radians per axis, and every lead gets a gain exp(N(0, sigma)); one draw per sample of B.
    sigma: one number, or one per sample [B].
    """
    return field_change(eight.shape[-3], sigma, rng).to(eight.dtype) @ eight


def field_change(batch: int, sigma: float | np.ndarray, rng: np.random.Generator) -> Tensor:
    """The matrices [B, 8, 8], float64, by which `jitter_field` changes leads."""
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
    rows = moving_average(eight.flatten(0, 1), 2 * (window // 2) + 1, silent_outside=True)
    # Outside is not known to be silent: there are fewer samples to average at the ends.
    there = moving_average(
        torch.ones(1, eight.shape[-1], dtype=eight.dtype), 2 * (window // 2) + 1, silent_outside=True
    )
    slow = (rows / there).view_as(eight)
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
    rules = config.train
    whole = (batch["observed"] & batch["support_observed"]).all(-1)[:, None, None]
    index = torch.tensor(INDEPENDENT_INDEX)
    change = field_change(len(ecg), rules.field_jitter, rng)
    sigma = rules.reference_jitter * rng.random(len(ecg)) ** 2
    support_change = field_change(len(ecg), sigma, rng) @ change
    support = support_change.to(ecg.dtype) @ batch["support"].index_select(1, index)
    support = change_waves(support, sigma, rng, round(SLOW_S * config.data.fs))
    expand = torch.tensor(EXPAND)
    if rules.field_jitter:
        moved = (expand @ change).to(ecg.dtype) @ ecg.index_select(1, index)
        ecg = torch.where(whole, moved, ecg)
    if rules.field_jitter or rules.reference_jitter:
        return ecg, torch.where(whole, expand.to(ecg.dtype) @ support, batch["support"])
    return ecg, batch["support"]
