"""What W remembers of a recording in closed form: the beat, and how the leads follow each other in time.

Both are statistics of the support recording (all leads of a reference, or the few leads at hand): the median
beat of every lead, aligned at R, and the covariances of what the beat leaves over, between all leads and
across a few lags. They complete later recordings of any leads: the remembered beat is placed at every beat
found, aligned by the given leads, and the rest is predicted by the Wiener filter that the covariances give,
E[x(t) | y(t + taps)] (Wiener, Extrapolation, Interpolation, and Smoothing of Stationary Time Series, 1949).
With one lead remembered and nothing else known this is plain regression; no network is asked.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecggen.data.tokenizer import detect_r_peaks_batch
from ecggen.leads import DOWER
from ecggen.models.slots import SLOTS, Observation

BEFORE_S, AFTER_S = 0.3, 0.6  # of the beat, around R
TAP_S, REACH = 0.01, 4  # the filter sees +-4 taps, a hundredth of a second apart
ALIGN_S = 0.06  # reach of the alignment around a detected R-peak


class BeatMemory(nn.Module):
    """The closed-form part of W, a flat vector of `size` numbers.

    Layout: known [8] (1 = this lead was in the support), beat [8, P], covariances [lags, 8, 8]. All zero:
    nothing is remembered. Learned: the population's covariance and how far to trust one recording.
    """

    def __init__(self, fs: float, time_len: int) -> None:
        super().__init__()
        self.fs, self.time_len = fs, time_len
        self.before, self.after = max(2, round(BEFORE_S * fs)), max(2, round(AFTER_S * fs))
        step = max(1, round(TAP_S * fs))
        self.taps = [step * tap for tap in range(-REACH, REACH + 1)]
        self.lags = [step * lag for lag in range(2 * REACH + 1)]
        self.reach = max(1, round(ALIGN_S * fs))
        self.length = self.before + self.after
        self.size = SLOTS + SLOTS * self.length + SLOTS * SLOTS * len(self.lags)
        moments = torch.tensor(DOWER @ DOWER.T, dtype=torch.float32)
        moments = moments / moments.diagonal().mean() + 0.05 * torch.eye(SLOTS)
        self.root = nn.Parameter(torch.linalg.cholesky(moments))
        #: Correlation time of the population, in steps of the taps (log), trust and noise (logit, log).
        self.log_width = nn.Parameter(torch.tensor(0.3))
        self.share = nn.Parameter(torch.tensor(-3.0))
        self.log_noise = nn.Parameter(torch.tensor(-4.0))

    def split(self, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """known [B, 8], beat [B, 8, P], covariances [B, lags, 8, 8]."""
        known, beat, rest = memory.split([SLOTS, SLOTS * self.length, SLOTS * SLOTS * len(self.lags)], -1)
        return known, beat.unflatten(-1, (SLOTS, -1)), rest.unflatten(-1, (len(self.lags), SLOTS, SLOTS))

    def population(self) -> Tensor:
        """Covariances [lags, 8, 8] of nobody in particular: one shape, fading with the lag; mean power 1."""
        root = self.root.tril()
        moments = root @ root.T
        moments = moments / moments.diagonal().mean()
        lag = torch.arange(len(self.lags), device=root.device, dtype=root.dtype)
        return torch.exp(-((lag / self.log_width.exp()) ** 2))[:, None, None] * moments

    @torch.no_grad()
    def estimate(self, seen: Observation) -> Tensor:
        """[B, size] from a support recording, values divided by their RMS. A statistic: no gradient.

        Leads that the support lacks are completed by the population's covariance; `known` tells them apart.
        """
        with torch.autocast(seen.values.device.type, enabled=False):
            values, rows = seen.values.float(), seen.rows.float()
            view = rows * seen.mask[..., None]
            moments = self.population()[0]
            inside = view @ moments @ view.transpose(1, 2)
            noise = torch.where(seen.mask, self.log_noise.exp(), torch.ones_like(values[:, :, 0]))
            gain = torch.linalg.solve(inside + torch.diag_embed(noise), view @ moments).transpose(1, 2)
            whole = (view.abs().sum(2) > 0).all(1)[:, None, None]
            leads = torch.where(whole, values, gain @ values)
            peaks, valid = self._beats(seen)
            beat = self._median_beat(leads, peaks, valid)
            rest = leads - self._place(beat, peaks, valid)
            power = leads.square().mean((1, 2), keepdim=True).clamp_min(1e-6)
            lost = (moments - gain @ view @ moments) * power
            fading = self.population()[:, 0, 0] / moments[0, 0]
            covariances = []
            for index, lag in enumerate(self.lags):
                late, early = rest[..., lag:], rest[..., : rest.shape[-1] - lag]
                product = late @ early.transpose(1, 2) / rest.shape[-1]
                covariances.append(product + torch.where(whole, 0.0, fading[index] * lost))
            known = self._known(seen)
            parts = (known, beat.flatten(1), torch.stack(covariances, 1).flatten(1))
            return torch.cat(parts, 1)

    def forward(self, seen: Observation, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(known [B, 8], placed beats [B, 8, T], completed leads [B, 8, T]) for a recording over its RMS."""
        with torch.autocast(seen.values.device.type, enabled=False):
            known, beat, covariances = self.split(memory.float())
            values, rows = seen.values.float(), seen.rows.float()
            view = rows * seen.mask[..., None]
            with torch.no_grad():
                given = view @ beat
                peaks, valid = self._beats(seen)
                peaks = self._aligned(values, given, peaks, valid)
                placed = self._place(beat, peaks, valid)
                # The scale of this recording is that of its own leads; the memory's was that of others.
                mine = view @ placed
                power = mine.square().sum((1, 2))
                gain = (mine * values).sum((1, 2)) / power.clamp_min(1e-6)
                placed = placed * gain.clamp(0.05, 20.0)[:, None, None]
                rest = values - view @ placed
            weights = self._filter(covariances, view, seen.mask)
            return known, placed, placed + weights @ self._lagged(rest)

    def _known(self, seen: Observation) -> Tensor:
        """[B, 8]: which of the eight leads the recording fixes: a lone aVR fixes neither I nor II."""
        whole = (seen.rows - torch.eye(SLOTS, device=seen.rows.device)).abs().sum(2) < 1e-6
        return (seen.mask & whole).to(seen.values.dtype)

    def _beats(self, seen: Observation) -> tuple[Tensor, Tensor]:
        """R-peaks of the first filled slot: positions [B, M], valid [B, M]."""
        first = seen.mask.int().argmax(1)
        lead = seen.values[torch.arange(len(first), device=first.device), first]
        # The detector's floor is in mV; an RMS of 1 here is that of an ordinary ECG of 0.2 mV.
        peaks, valid = detect_r_peaks_batch(0.2 * lead, self.fs)
        return peaks.clamp(min=0), valid

    def _median_beat(self, leads: Tensor, peaks: Tensor, valid: Tensor) -> Tensor:
        """[B, 8, P]: over the beats that lie whole within [B, 8, T]; zero without one."""
        whole = valid & (peaks >= self.before) & (peaks + self.after <= leads.shape[2])
        offsets = torch.arange(-self.before, self.after, device=leads.device)
        index = (torch.where(whole, peaks, self.before)[..., None] + offsets).clamp(0, leads.shape[2] - 1)
        beats = leads.gather(2, index.flatten(1)[:, None].expand(-1, SLOTS, -1)).unflatten(2, index.shape[1:])
        beats = beats.masked_fill(~whole[:, None, :, None], float("nan"))
        return torch.nan_to_num(beats.nanmedian(2).values)

    def _aligned(self, values: Tensor, given: Tensor, peaks: Tensor, valid: Tensor) -> Tensor:
        """Peaks moved by up to `reach` samples to where the remembered beat of the given leads fits best."""
        batch, _, length = values.shape
        padded = F.pad(values, (self.before, self.after))
        # One filter per sample of the batch: the inner product of beat and signal at every position.
        product = F.conv1d(padded.reshape(1, batch * SLOTS, -1), given, groups=batch)[0, :, :length]
        energy = F.avg_pool1d(padded.square().sum(1, keepdim=True), self.length, 1)[:, 0, :length]
        fit = product / energy.clamp_min(1e-4).sqrt()
        shift = torch.arange(-self.reach, self.reach + 1, device=values.device)
        around = (peaks[..., None] + shift).clamp(0, length - 1)
        best = fit.gather(1, around.flatten(1)).unflatten(1, around.shape[1:]).argmax(2, keepdim=True)
        moved = around.gather(2, best)[..., 0]
        nothing = (given == 0).all(2).all(1)[:, None]
        return torch.where(valid & ~nothing, moved, peaks)

    def _place(self, beat: Tensor, peaks: Tensor, valid: Tensor) -> Tensor:
        """[B, 8, T]: the beat [B, 8, P] at every peak; each sample belongs to the nearest one."""
        time = torch.arange(self.time_len, device=beat.device)
        distance = time - torch.where(valid, peaks, -4 * self.time_len)[..., None]  # [B, M, T]
        nearest = distance.abs().argmin(1, keepdim=True)
        offset = distance.gather(1, nearest)[:, 0] + self.before
        inside = (offset >= 0) & (offset < self.length)
        index = offset.clamp(0, self.length - 1)[:, None].expand(-1, SLOTS, -1)
        return beat.gather(2, index) * inside[:, None]

    def _filter(self, covariances: Tensor, view: Tensor, mask: Tensor) -> Tensor:
        """Weights [B, 8, taps * 8] of the eight leads on the given slots at every tap."""
        count = len(self.taps)
        share = torch.sigmoid(self.share)
        # To the mean power of the memory, so that trust and noise are relative; 1 where there is none.
        power = covariances[:, 0].diagonal(dim1=1, dim2=2).mean(1)[:, None, None, None]
        mixed = (1 - share) * covariances / power.clamp_min(1e-6) + share * self.population()
        by_lag = {}
        for index in range(count):
            by_lag[index], by_lag[-index] = mixed[:, index], mixed[:, index].transpose(1, 2)
        # Between taps a and b the lag is a - b: a block Toeplitz matrix.
        blocks = [[by_lag[a - b] for b in range(count)] for a in range(count)]
        middle = count // 2
        slots = view[:, None, None] @ torch.stack([torch.stack(row, 1) for row in blocks], 1)
        cross = torch.stack([view @ by_lag[a - middle] for a in range(count)], 1).flatten(1, 2)
        inside = (slots @ view.transpose(1, 2)[:, None, None]).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        noise = torch.where(mask, self.log_noise.exp(), torch.ones_like(view[:, :, 0])).repeat(1, count)
        return torch.linalg.solve(inside + torch.diag_embed(noise), cross).transpose(1, 2)

    def _lagged(self, x: Tensor) -> Tensor:
        """[B, taps * 8, T]: x [B, 8, T] at every tap, its ends held."""
        reach = max(self.taps)
        padded = F.pad(x, (reach, reach), mode="replicate")
        return torch.cat([padded[..., reach + tap : reach + tap + x.shape[-1]] for tap in self.taps], 1)
