"""What a forward pass of `ECGGen` returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Rendering:
    """The flow of one forward pass, readable as fields. Signals in mV.

    tokens [B, N, D]; token_valid [B, N] bool; token_start and token_duration [B, N] in samples;
    state [B, S]; states [K + 1, B, F], the part of W that the inner loop trains, at every step; vcg
    [B, 3, T], Frank axes; beats [B, N, 3, P], the basis part, and features [B, C, T], both relative to scale
    [B, 1, 1] in mV; field [B, 8, 3], the patient's lead field; dipole, residual and leads = dipole + residual
    [B, 12, T]; remembered [B, 12, T]: the leads as the remembered part of the state completes them;
    log_spread [B, 8, T], the logarithm of the standard deviation of the eight independent leads' error over
    the scale, not calibrated; std [B, 12, T] in mV, calibrated, 0 where the recording fixes a lead.
    """

    tokens: Tensor
    token_valid: Tensor
    token_start: Tensor
    token_duration: Tensor
    state: Tensor
    states: Tensor
    vcg: Tensor
    beats: Tensor
    features: Tensor
    scale: Tensor
    field: Tensor
    dipole: Tensor
    residual: Tensor
    leads: Tensor
    remembered: Tensor
    log_spread: Tensor
    std: Tensor
