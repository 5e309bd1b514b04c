"""Windows to beat tokens and back.

Sample i of a time line covers [i, i + 1): a token [start, start + duration) is read at the centres of its
`length` equal parts, so that a feature map at half the rate uses the same grid, scaled.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ecggen.data.rpeaks import FS_RANGE, detect_r_peaks, detect_r_peaks_batch, max_beats
from ecggen.data.windows import DataError

__all__ = ["BeatTokenizer", "TokenGrid", "detect_r_peaks", "detect_r_peaks_batch"]


@dataclass(frozen=True)
class TokenGrid:
    """Where the tokens of a batch lie; valid tokens cover [0, time_len) without gap or overlap."""

    start: Tensor  # [B, N] float, samples
    duration: Tensor  # [B, N] float, samples; 0 where not valid
    valid: Tensor  # [B, N] bool, True = the token holds signal; valid tokens come first


class BeatTokenizer(nn.Module):
    """Cuts windows into tokens of beat_len samples; no parameters.

    mode "equidistant": consecutive pieces of beat_len samples, an exact copy. "rr": one token per beat,
    borders midway between R-peaks, each resampled to beat_len. fs in Hz, time_len in samples. Every result
    depends on one window of the batch only, and on observed leads only.
    """

    def __init__(self, mode: str, beat_len: int, fs: float, time_len: int) -> None:
        super().__init__()
        if mode not in ("equidistant", "rr"):
            raise DataError(f"The tokenizer mode is {mode!r}: use equidistant or rr.")
        if not 1 <= beat_len <= time_len:
            raise DataError(f"beat_len is {beat_len}: allowed are 1 to time_len ({time_len} samples).")
        if mode == "rr" and not FS_RANGE[0] <= fs <= FS_RANGE[1]:
            raise DataError(
                f"The tokenizer mode rr needs a rate of {FS_RANGE[0]:g} to {FS_RANGE[1]:g} Hz but data.fs is "
                f"{fs:g} Hz: use model.tokenizer_mode=equidistant."
            )
        self.mode, self.beat_len, self.fs, self.time_len = mode, beat_len, float(fs), time_len
        #: N, tokens of a window, the same for every input
        self.n_tokens = -(-time_len // beat_len) if mode == "equidistant" else max_beats(time_len, fs)

    def check_fs(self, fs: float) -> None:
        """Raises DataError unless the data are sampled at the tokenizer's own rate."""
        if abs(fs - self.fs) > 1e-6 * self.fs:
            raise DataError(
                f"The data are sampled at {fs:g} Hz but the tokenizer works at {self.fs:g} Hz: "
                "resample the data, or use a model trained at this rate."
            )

    def forward(self, ecg: Tensor, observed: Tensor) -> tuple[Tensor, TokenGrid]:
        """ecg [B, 12, T] mV, observed [B, 12] bool -> (tokens [B, N, 12, beat_len], hidden leads 0; grid)."""
        grid = self.grid(ecg, observed)
        shown = torch.where(observed[:, :, None], ecg, torch.zeros_like(ecg))
        return self.tokenize(shown, grid, self.beat_len), grid

    @torch.no_grad()
    def grid(self, ecg: Tensor, observed: Tensor) -> TokenGrid:
        """The token borders of ecg [B, 12, T], read from all observed leads (observed [B, 12] bool)."""
        assert ecg.ndim == 3 and ecg.shape[2] == self.time_len, f"[B, L, {self.time_len}]: {tuple(ecg.shape)}"
        assert observed.shape == ecg.shape[:2], f"{tuple(observed.shape)} against {tuple(ecg.shape)}"
        batch = ecg.shape[0]
        if self.mode == "equidistant":
            start = torch.arange(self.n_tokens, device=ecg.device, dtype=torch.float32) * self.beat_len
            start = start.expand(batch, -1)
            duration = (self.time_len - start).clamp(max=self.beat_len)
            return TokenGrid(start, duration, torch.ones_like(start, dtype=torch.bool))
        positions, valid = detect_r_peaks_batch(ecg, self.fs, observed)
        both = valid[:, 1:]
        middle = (positions[:, :-1] + positions[:, 1:] + 1).float() / 2
        end = torch.full((batch, 1), float(self.time_len), device=ecg.device)
        borders = torch.cat([end * 0, torch.where(both, middle, end), end], dim=1)
        start, duration = borders[:, :-1], borders.diff(dim=1)
        return TokenGrid(start, duration, duration > 0)

    def tokenize(self, x: Tensor, grid: TokenGrid, length: int) -> Tensor:
        """x [B, C, T'] -> [B, N, C, length]; T' samples stand for time_len, tokens that are not valid are 0.

        Linear interpolation, differentiable in x; an exact copy for equidistant tokens at one sample each.
        """
        batch, channels, n = x.shape
        count = grid.start.shape[1]
        if self._copies(n, length):
            padded = functional.pad(x, (0, count * length - n)) if n < count * length else x
            return padded.reshape(batch, channels, count, length).transpose(1, 2)
        where = self._sample_times(grid, length, n)  # [B, N, length]
        inside = where.flatten(1).clamp(0, n - 1)
        low = inside.floor().long()
        # Tokens that are not valid lie at the window's end, and so does the padding of the last token.
        keep = (grid.valid[:, :, None] & (where < n - 0.5 + 1e-4)).flatten(1)
        tokens = _interpolate(x, low, (low + 1).clamp(max=n - 1), inside - low, keep)
        return tokens.unflatten(2, (count, length)).transpose(1, 2)

    def untokenize(self, tokens: Tensor, grid: TokenGrid, out_len: int) -> Tensor:
        """tokens [B, N, C, length] -> [B, C, out_len], the inverse of tokenize.

        Between the last sample of a token and the first of the next the line is straight as well.
        """
        batch, count, channels, length = tokens.shape
        flat = tokens.transpose(1, 2).reshape(batch, channels, count * length)
        if self._copies(out_len, length):
            return flat[:, :, :out_len]
        scale = out_len / self.time_len
        times = (torch.arange(out_len, device=tokens.device) + 0.5) / scale
        times = times.expand(batch, out_len).contiguous()
        # The token of each output sample, then its place among the samples of all tokens.
        token = (torch.searchsorted(grid.start.contiguous(), times, right=True) - 1).clamp(min=0)
        token = torch.minimum(token, grid.valid.sum(dim=1, keepdim=True) - 1)
        span = self._span(grid)
        inside = (times - grid.start.gather(1, token)) / span.gather(1, token) * length - 0.5
        last = grid.valid.sum(dim=1, keepdim=True) * length - 1
        low = torch.minimum((token * length + inside.floor().long()).clamp(min=0), last)
        high = torch.minimum(low + 1, last)
        centres = self._sample_times(grid, length, self.time_len).flatten(1) + 0.5
        first = centres.gather(1, low)
        width = centres.gather(1, high) - first
        weight = ((times - first) / width.clamp(min=1e-6)).clamp(0, 1)
        return _interpolate(flat, low, high, weight)

    def _copies(self, n: int, length: int) -> bool:
        return self.mode == "equidistant" and n * self.beat_len == length * self.time_len

    def _span(self, grid: TokenGrid) -> Tensor:
        """Samples that a token's parts stand for: equidistant tokens are padded, not stretched."""
        if self.mode == "equidistant":
            return torch.full_like(grid.duration, float(self.beat_len))
        return torch.where(grid.valid, grid.duration, torch.ones_like(grid.duration))

    def _sample_times(self, grid: TokenGrid, length: int, n: int) -> Tensor:
        """Positions [B, N, length] of the token samples on a time line of n samples."""
        part = (torch.arange(length, device=grid.start.device) + 0.5) / length
        times = grid.start[:, :, None] + self._span(grid)[:, :, None] * part
        return times * (n / self.time_len) - 0.5


def _interpolate(x: Tensor, low: Tensor, high: Tensor, weight: Tensor, keep: Tensor | None = None) -> Tensor:
    """x [B, C, T] between the samples low and high [B, M]: x[low] + weight * (x[high] - x[low]) as [B, C, M].

    Places where keep [B, M] is False are 0.
    """
    batch, channels, n = x.shape
    # Whole rows of all channels are copied at once: several times faster than gather along the last axis.
    table = x.transpose(1, 2).reshape(batch * n, channels)
    offset = torch.arange(batch, device=x.device)[:, None] * n
    below = table.index_select(0, (low + offset).flatten())
    above = table.index_select(0, (high + offset).flatten())
    values = below.lerp_(above, weight.reshape(-1, 1).to(x.dtype))
    if keep is not None:
        values = values.mul_(keep.reshape(-1, 1))
    return values.view(batch, -1, channels).transpose(1, 2)
