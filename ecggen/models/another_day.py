"""Rendering with a state of another day.

Between two records of a patient electrodes move and beats change, so a state held over days misleads where
the given leads say enough by themselves. What the reference adds to a rendering without it is therefore
shortened by weights of inverse variance: on one side the error that the model expects of itself, on the other
what changes between days.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ecggen.models.ecggen import ECGGen, Rendering

#: Share of the power of the median beat by which two records of a patient differ, about: .23 is the median
#: over the 43 patients of PTB-XL's training folds here who have two, .24 over all 66 (printed by
#: benchmarks/another_day.py, with --prepare and without).
CHANGED = 0.24


def another_day(
    model: ECGGen, ecg: Tensor, observed: Tensor, state: Tensor, window_states: Tensor | None = None
) -> Rendering:
    """Render ecg [B, 12, T] seen through observed [B, 12] with state [B, S] of the same people's other day.

    Two estimates of what the reference adds, averaged: the rendering with the state held less the one
    without it, and what the one without it gets wrong on the remembered beats, put where today's are. VCG
    and dipole lie between those of both renderings; the residual is the rest. `std` takes the errors of both
    as fully correlated. window_states: the state [B, S] that the windows lead to by themselves, where it is
    at hand.
    """
    alone, held = model(ecg, observed, state=window_states), model(ecg, observed, state=state)
    placed = model.placed(ecg, observed, state)
    shortfall = placed - model(placed, observed).leads
    share = trust(alone)

    def between(a: Tensor, b: Tensor) -> Tensor:
        return a + share * (b - a)

    dipole = between(alone.dipole, held.dipole)
    leads = alone.leads + 0.5 * share * (held.leads - alone.leads + shortfall)
    return replace(
        held,
        vcg=between(alone.vcg, held.vcg),
        dipole=dipole,
        residual=leads - dipole,
        leads=leads,
        std=between(alone.std, held.std),
    )


def trust(alone: Rendering) -> Tensor:
    """How much of what a reference adds is used, [B, 1, 1] from 0 to 1; alone: the rendering without it."""
    hidden = alone.std.mean(-1, keepdim=True) > 0
    variance, power = ((x.square() * hidden).sum((1, 2), keepdim=True) for x in (alone.std, alone.leads))
    return variance / (variance + CHANGED * power).clamp_min(torch.finfo(variance.dtype).tiny)
