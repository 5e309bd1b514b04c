"""What training minimises: hidden leads above all, plus the regularisers, one function each."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ecggen.leads import KORS
from ecggen.models.ecggen import ECGGen, Rendering
from ecggen.models.vcg import basis_orthogonality, closed_loop, energy, quasi_static, smoothness
from ecggen.utils.config import TrainConfig

#: Of the spread's likelihood in the loss. Nothing else learns from it.
SPREAD_WEIGHT = 0.05
#: Added to relative mean squares under their root, whose slope is endless at nothing.
FLOOR = 1e-3


@dataclass
class Target:
    """Recorded leads as slots: values [B, 8, T] mV, rows [B, 8, 8], scale [B, 1, 1] mV.

    weight [B, 8] sums to 1 per sample; recorded [B, 8] bool; hidden [B, 8] bool: recorded, but neither given
    to the model nor fixed by what was given.
    """

    values: Tensor
    rows: Tensor
    weight: Tensor
    recorded: Tensor
    hidden: Tensor
    scale: Tensor


def make_target(
    model: ECGGen, ecg: Tensor, recorded: Tensor, observed: Tensor, observed_weight: float
) -> Target:
    """ecg [B, 12, T] mV, recorded and observed [B, 12] bool (observed is a part of recorded)."""
    truth, given = model.slots(ecg, recorded), model.slots(ecg, observed)
    same = (truth.rows - given.rows).abs().sum(-1) < 1e-6
    known = given.mask & same
    hidden = truth.mask & ~known
    weight = hidden + observed_weight * (truth.mask & known)
    weight = weight / weight.sum(-1, keepdim=True).clamp_min(1e-6)
    return Target(truth.values, truth.rows, weight, truth.mask, hidden, truth.rms())


def _independent(leads: Tensor) -> Tensor:
    """I, II, V1 ... V6 of leads [..., 12, T], whose gradient is a copy, not a scatter."""
    return torch.cat([leads[..., :2, :], leads[..., 6:, :]], -2)


def slot_errors(target: Target, leads: Tensor) -> tuple[Tensor, Tensor]:
    """RMSE relative to the recording's RMS and Pearson r, both [..., B, 8], of leads [..., B, 12, T].

    What the evaluation counts, and what a few hard recordings do not outvote the others in, as they do in
    mean squares.
    """
    with torch.autocast(leads.device.type, enabled=False):
        rendered = target.rows @ _independent(leads) / target.scale
    values = target.values / target.scale
    error = ((rendered - values).square().mean(-1) + FLOOR).sqrt() - math.sqrt(FLOOR)
    a, b = rendered - rendered.mean(-1, keepdim=True), values - values.mean(-1, keepdim=True)
    product = a.square().mean(-1) * b.square().mean(-1)
    correlation = (a * b).mean(-1) / (product + 1e-8).sqrt()
    return error, correlation


def training_loss(
    model: ECGGen, out: Rendering, target: Target, config: TrainConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss (a scalar) and its terms (scalars, detached)."""
    errors, correlations = slot_errors(target, torch.stack([out.leads, out.dipole, out.remembered]))
    error, dipole_error, memory_error = errors.unbind(0)
    correlation, _, memory_correlation = correlations.unbind(0)
    memory_loss = memory_error + config.correlation_weight * (1 - memory_correlation)
    weight, reg = target.weight, config.reg
    terms = {
        "rmse": (error * weight).sum(-1).mean(),
        "decorrelation": config.correlation_weight * ((1 - correlation) * weight).sum(-1).mean(),
        "dipole": config.dipole_weight * (dipole_error * weight).sum(-1).mean(),
        "memory": config.memory_weight * (memory_loss * weight).sum(-1).mean(),
        "spread": SPREAD_WEIGHT * spread_loss(out, target).mean(),
    }
    vcg = out.vcg / out.scale
    extra = {
        "smooth": (reg.smooth, lambda: smoothness(vcg).mean()),
        "energy": (reg.energy, lambda: energy(vcg).mean()),
        "closed": (reg.closed, lambda: closed_loop(out.beats, out.token_valid).mean()),
        "ortho": (reg.ortho, lambda: basis_orthogonality(model.generator.basis)),
        "drift": (reg.drift, lambda: quasi_static(out.state[:, : model.fast.size], model.fast.start).mean()),
        "residual": (reg.residual, lambda: (out.residual / out.scale).square().mean()),
        "gauge": (reg.gauge, lambda: gauge(out.vcg, target).mean()),
        "field": (reg.field, lambda: (out.field - model.projection.field).square().mean()),
    }
    terms |= {name: factor * make() for name, (factor, make) in extra.items() if factor > 0}
    loss = torch.stack(list(terms.values())).sum()
    return loss, {name: value.detach() for name, value in terms.items()}


def spread_loss(out: Rendering, target: Target) -> Tensor:
    """Negative log likelihood of the errors of hidden slots under the rendering's own spread, [B].

    Gaussian (Nix & Weigend, ICNN 1994). The errors are constants: only the spread learns here.
    """
    square, variance = _errors_and_variance(out, target)
    count = target.hidden.sum(-1).clamp_min(1)
    return (0.5 * (variance.log() + square / variance).mean(-1) * target.hidden).sum(-1) / count


@torch.no_grad()
def standardised_errors(out: Rendering, target: Target, every: int = 8) -> Tensor:
    """|error| over the uncalibrated standard deviation, every eighth sample, all slots: [B, 8, n]."""
    square, variance = _errors_and_variance(out, target)
    return (square / variance).sqrt()[..., ::every]


def _errors_and_variance(out: Rendering, target: Target) -> tuple[Tensor, Tensor]:
    """Squared errors and their variance by the spread, both [B, 8, T], relative to the observed power."""
    with torch.autocast(out.leads.device.type, enabled=False):
        rendered = target.rows @ _independent(out.leads.detach())
        square = ((rendered - target.values) / out.scale.detach()).square()
        return square, (target.rows.square() @ (2 * out.log_spread).exp()).clamp_min(1e-8)


def gauge(vcg: Tensor, target: Target) -> Tensor:
    """Mean square distance of the VCG from Kors' regression of the recorded leads, per their power, [B].

    A dipole and its lead field are known only up to a 3 x 3 matrix. This fixes it where measured Frank leads
    lie (Kors et al., 1990, fitted to them), so that the VCG has anatomical axes. Zero where a lead is
    missing.
    """
    frank = torch.tensor(KORS, dtype=vcg.dtype, device=vcg.device) @ target.values
    distance = ((vcg - frank) / target.scale).square().mean((1, 2))
    return distance * target.recorded.all(-1)


def mean_hidden_r(target: Target, leads: Tensor) -> Tensor:
    """Mean Pearson r over the hidden slots, [B]; 1 where nothing is hidden."""
    _, correlation = slot_errors(target, leads)
    count = target.hidden.sum(-1)
    mean = (correlation * target.hidden).sum(-1) / count.clamp_min(1)
    return torch.where(count > 0, mean, torch.ones_like(mean))
