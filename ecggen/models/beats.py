"""Beats of any signal or feature map, aligned at R-peaks."""

from __future__ import annotations

import torch
from torch import Tensor

from ecggen.data.tokenizer import detect_r_peaks_batch

BEFORE_S, AFTER_S = 0.25, 0.45  # around the R-peak


def beats_around(x: Tensor, peaks: Tensor, valid: Tensor, before: int, after: int) -> tuple[Tensor, Tensor]:
    """Every beat of x [B, C, T], from `before` samples before its peak to `after` samples after it.

    peaks, valid [B, M] -> (beats [B, C, M, before + after], whole [B, M] bool, True = all of it lies in x).
    """
    whole = valid & (peaks >= before) & (peaks + after <= x.shape[2])
    offsets = torch.arange(-before, after, device=x.device)
    index = (torch.where(whole, peaks, before)[..., None] + offsets).clamp(0, x.shape[2] - 1).flatten(1)
    beats = x.gather(2, index[:, None].expand(-1, x.shape[1], -1)).unflatten(2, (-1, before + after))
    return beats, whole


def offset_to_peak(peaks: Tensor, valid: Tensor, length: int) -> Tensor:
    """[B, length] long, samples from the nearest of peaks [B, M], negative before it; of two the earlier one.

    Peaks ascend, valid ones first. More than 3 * length where no peak is valid.
    """
    time = torch.arange(length, device=peaks.device).expand(len(peaks), -1)
    both = torch.where(valid[:, 1:], peaks[:, :-1] + peaks[:, 1:], 2 * length)
    # A sample belongs to the next peak once twice its time is beyond the sum of the two.
    nearest = torch.searchsorted(both, 2 * time)
    return time - torch.where(valid, peaks, -4 * length).gather(1, nearest)


def average_beat(x: Tensor, lead: Tensor, fs: float) -> Tensor:
    """Mean over the whole beats of a window, from BEFORE_S before to AFTER_S after the R-peak.

    x [B, C, T], lead [B, T] in mV in which the R-peaks are found, fs in Hz -> [B, C, P], a sample of the beat
    each; zero where a window holds no whole beat.
    """
    assert x.ndim == 3 and lead.shape == (x.shape[0], x.shape[2]), (x.shape, lead.shape)
    before, after = round(BEFORE_S * fs), round(AFTER_S * fs)
    beats, whole = beats_around(x, *detect_r_peaks_batch(lead, fs), before, after)
    return (beats * whole[:, None, :, None]).sum(2) / whole.sum(1).clamp_min(1)[:, None, None]
