"""What W remembers of a recording in closed form: the beat, and how the leads follow each other in time.

Both are statistics of the support recording (all leads of a reference, or the few leads at hand): the median
beat of every lead, aligned at R, and the covariances of what the beat leaves over, between all leads and
across a few lags. They complete later recordings of any leads: the remembered beat is placed at every beat
found, aligned by the given leads, and the rest is predicted by the Wiener filter that the covariances give,
E[x(t) | y(t + taps)] (Wiener, Extrapolation, Interpolation, and Smoothing of Stationary Time Series, 1949).
With one lead remembered and nothing else known this is plain regression; no network is asked.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecggen.data.tokenizer import detect_r_peaks_batch
from ecggen.leads import DOWER
from ecggen.models.beats import beats_around, offset_to_peak
from ecggen.models.slots import SLOTS, Observation

BEFORE_S, AFTER_S = 0.3, 0.6  # of the beat, around R
TAP_S, REACH = 0.01, 4  # the filter sees +-4 taps, a hundredth of a second apart
ALIGN_S = 0.06  # reach of the alignment around a detected R-peak


@dataclass
class Recall:
    """What a memory says of a recording over its RMS.

    known [B, 8]: 1 = this lead was in the support; fit [B, 8]: share of a given lead's power that the
    remembered beat explains, 0 for leads not given and where nothing is remembered; placed [B, 8, T]: the
    remembered beat at every beat found; completed [B, 8, T]: the same plus what the given leads tell of the
    rest.
    """

    known: Tensor
    fit: Tensor
    placed: Tensor
    completed: Tensor


@dataclass
class Statistics:
    """What a support recording says by itself, over its RMS.

    seen: the median beat of the slots, values [B, 8, P]; linear [B, 8, P]: that of the leads, as recorded or,
    where the support lacks them, by the population's filter; covariances [B, lags, 8, 8] of what the beat
    leaves over; rate [B], beats a second; beats: R-peaks [B, M] and which of them are, of every window.
    """

    seen: Observation
    linear: Tensor
    covariances: Tensor
    rate: Tensor
    beats: tuple[Tensor, Tensor] | None = None

    @property
    def there(self) -> Tensor:
        """[B] bool, True = the support holds a whole beat."""
        return (self.seen.values != 0).any(2).any(1)

    def rows(self, chosen: Tensor) -> Statistics:
        """Of some of the recordings; chosen [n], their numbers."""
        seen = self.seen.chosen(chosen)
        return Statistics(seen, self.linear[chosen], self.covariances[chosen], self.rate[chosen])


class BeatMemory(nn.Module):
    """The closed-form part of W, a flat vector of `size` numbers.

    Layout: known [8] (1 = this lead was in the support), beat [8, P], covariances [lags, 8, 8]. All zero:
    nothing is remembered, and the population's covariances stand in. Learned: how far to trust a recording.
    """

    population: Tensor

    def __init__(self, fs: float, time_len: int) -> None:
        super().__init__()
        self.fs, self.time_len = fs, time_len
        self.before, self.after = max(2, round(BEFORE_S * fs)), max(2, round(AFTER_S * fs))
        step = max(1, round(TAP_S * fs))
        self.taps = [step * tap for tap in range(-REACH, REACH + 1)]
        self.lags = [step * lag for lag in range(2 * REACH + 1)]
        self.reach = max(1, round(ALIGN_S * fs))
        self.length = self.before + self.after
        self.sizes = [SLOTS, SLOTS * self.length, SLOTS * SLOTS * len(self.lags)]
        self.size = sum(self.sizes)
        moments = torch.tensor(DOWER @ DOWER.T, dtype=torch.float32)
        moments = moments / moments.diagonal().mean() + 0.05 * torch.eye(SLOTS)
        fading = torch.exp(-((torch.arange(len(self.lags)) * TAP_S / 0.02) ** 2))
        #: Covariances [lags, 8, 8] of nobody in particular: Dower's until `learn` has seen recordings.
        self.register_buffer("population", fading[:, None, None] * moments)
        self.share = nn.Parameter(torch.tensor(-3.0))  # of the population in a person's covariances, logit
        self.log_noise = nn.Parameter(torch.tensor(-4.0))  # relative to the mean power of the leads

    def split(self, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """known [B, 8], beat [B, 8, P], covariances [B, lags, 8, 8]."""
        known, beat, rest = memory.split(self.sizes, -1)
        return known, beat.unflatten(-1, (SLOTS, -1)), rest.unflatten(-1, (len(self.lags), SLOTS, SLOTS))

    @torch.no_grad()
    def learn(self, leads: Tensor) -> None:
        """Take the population's covariances from recordings [n, 8, T] with all leads, in mV."""
        scaled = leads / leads.square().mean((1, 2), keepdim=True).clamp_min(1e-8).sqrt()
        self.population.copy_(self._products(scaled).mean(0))

    @torch.no_grad()
    def statistics(self, seen: Observation) -> Statistics:
        """Of a support recording, values divided by their RMS. No gradient.

        Leads that the support lacks are completed by the population's filter, and what that filter leaves
        open stays in their covariances: one step of expectation-maximisation (Little & Rubin, Statistical
        Analysis with Missing Data, ch. 11; the open part is taken to fade with the lag as the leads do).
        """
        with torch.autocast(seen.values.device.type, enabled=False):
            seen = Observation(seen.values.float(), seen.mask, seen.rows.float())
            present = self._present(seen)
            weights, explained = self._population_filter(present)
            whole = seen.known().all(1)[:, None, None]
            peaks, valid = self._beats(seen)
            beat = Observation(self._median_beat(seen.values, peaks, valid), seen.mask, seen.rows)
            linear = self._filled(beat, self._present(beat), weights)
            rest = self._filled(seen, present, weights) - self._place(linear, peaks, valid)
            power = seen.values.square().sum((1, 2), keepdim=True) / (
                seen.mask.sum(1).clamp_min(1)[:, None, None] * self.time_len
            )
            open_part = torch.where(whole, 0.0, (self.population[0] - explained) * power)
            strength = self.population.diagonal(dim1=1, dim2=2).sum(1)
            fading = strength / strength[0]
            covariances = self._products(rest) + fading[:, None, None] * open_part[:, None]
            rate = valid.sum(1) * (self.fs / self.time_len)
            return Statistics(beat, linear, covariances, rate, (peaks, valid))

    def linear(self, beat: Observation) -> Tensor:
        """Leads [B, 8, P] of a beat: as recorded, or by the population's filter."""
        with torch.no_grad(), torch.autocast(beat.values.device.type, enabled=False):
            present = self._present(beat)
            return self._filled(beat, present, self._population_filter(present)[0])

    def packed(self, statistics: Statistics, beat: Tensor) -> Tensor:
        """The flat memory [B, size], with beat [B, 8, P] as that of the leads."""
        known = statistics.seen.known()
        return torch.cat([known, beat.flatten(1), statistics.covariances.flatten(1)], 1)

    def merged(self, each: Statistics, people: int = 1) -> Statistics:
        """One for each of `people`, from those of as many windows of each, of the same leads; windows without
        a whole beat say nothing about it. The first windows of all people come first, then the second ones.
        """

        def by_window(x: Tensor) -> Tensor:
            return x.unflatten(0, (-1, people))

        there = by_window(each.there[:, None, None].to(each.linear.dtype))
        slots, linear = (
            (by_window(x) * there).sum(0) / there.sum(0).clamp_min(1) for x in (each.seen.values, each.linear)
        )
        mask = by_window(each.seen.mask).all(0)
        seen = Observation(slots * mask[..., None], mask, each.seen.rows[:people])
        covariances, rate = by_window(each.covariances).mean(0), by_window(each.rate).mean(0)
        return Statistics(seen, linear, covariances, rate, each.beats)

    def _population_filter(self, seen: Observation) -> tuple[Tensor, Tensor]:
        """`_filter` by the population's covariances, once for recordings that lack the same leads."""
        view = seen.rows * seen.mask[..., None]
        kinds, kind = view.flatten(1).unique(dim=0, return_inverse=True)
        kinds = kinds.unflatten(1, (-1, SLOTS))
        population = self.population.expand(len(kinds), -1, -1, -1)
        weights, explained = self._filter(population, kinds, kinds.any(2))
        return weights[kind], explained[kind]

    def _present(self, seen: Observation) -> Observation:
        """What a filter is asked about. Training keeps empty slots, and with them every bit of its sums."""
        return seen if self.training else seen.present()

    def _filled(self, seen: Observation, present: Observation, weights: Tensor) -> Tensor:
        """Leads [B, 8, T]: recorded ones as they are, the others by a filter of what is present."""
        known = seen.known()[..., None] > 0
        return torch.where(known, seen.values, weights @ self._lagged(present.values))

    def _products(self, x: Tensor) -> Tensor:
        """Covariances [B, lags, 8, 8] of x [B, 8, T] with itself as many samples earlier, over the length."""
        n = x.shape[-1]
        return torch.stack([torch.bmm(x[..., lag:], x[..., : n - lag].mT) for lag in self.lags], 1) / n

    def forward(
        self, seen: Observation, memory: Tensor, beats: tuple[Tensor, Tensor] | None = None
    ) -> Recall:
        """What memory [B, size] says of a recording, values divided by their RMS.

        beats: those of `statistics`, where the recording is its own support.
        """
        with torch.autocast(seen.values.device.type, enabled=False):
            known, beat, covariances = self.split(memory.float())
            values = seen.values.float()
            with torch.no_grad():
                given = (seen.rows.float() * seen.mask[..., None]) @ beat
                peaks, valid = self._beats(seen) if beats is None else beats
                peaks = self._aligned(values, given, peaks, valid)
                # The scale of this recording is that of its own leads; the memory's was that of others.
                template = self._place(given, peaks, valid)
                power = template.square().sum((1, 2))
                gain = (template * values).sum((1, 2)) / power.clamp_min(1e-6)
                gain = gain.clamp(0.05, 20.0)[:, None, None]
                rest = values - template * gain
                unexplained = rest.square().mean(-1) / values.square().mean(-1).clamp_min(1e-6)
                fit = (1 - unexplained).clamp_min(-1.0) * seen.mask * (power > 0)[:, None]
            placed = self._place(beat, peaks, valid) * gain
            remainder = self._present(Observation(rest, seen.mask, seen.rows.float()))
            view = remainder.rows * remainder.mask[..., None]
            weights, _ = self._filter(self._trusted(covariances), view, remainder.mask)
            return Recall(known, fit, placed, placed + weights @ self._lagged(remainder.values))

    def _beats(self, seen: Observation) -> tuple[Tensor, Tensor]:
        """R-peaks that the filled slots show together: positions [B, M], valid [B, M]."""
        present = self._present(seen)
        # The detector's floor is in mV; an RMS of 1 here is that of an ordinary ECG of 0.2 mV.
        peaks, valid = detect_r_peaks_batch(0.2 * present.values, self.fs, present.mask)
        # Drops the padding of the detector's fixed-size output.
        most = max(1, int(valid.sum(1).max()))
        return peaks[:, :most].clamp(min=0), valid[:, :most]

    def _median_beat(self, leads: Tensor, peaks: Tensor, valid: Tensor) -> Tensor:
        """[B, 8, P]: over the beats that lie whole within [B, 8, T]; zero without one."""
        beats, whole = beats_around(leads, peaks, valid, self.before, self.after)
        beats = beats.masked_fill(~whole[:, None, :, None], float("nan"))
        return torch.nan_to_num(beats.nanmedian(2).values)

    def _aligned(self, values: Tensor, given: Tensor, peaks: Tensor, valid: Tensor) -> Tensor:
        """Peaks moved by up to `reach` samples to where the remembered beat of the given leads fits best."""
        length, reach = values.shape[-1], self.reach
        shift = torch.arange(-reach, reach + 1, device=values.device)
        start = peaks.clamp(0, length - 1)[..., None] + shift
        # Windows long enough for every shift of the beat, [B, 8, M, P + 2 reach], and the beat at every shift
        # within such a window: their inner products are one product of matrices.
        padded = F.pad(values, (self.before + reach, self.after + reach))
        offset = torch.arange(self.length + 2 * reach, device=values.device)
        index = (start[..., :1] + reach + offset).flatten(1)[:, None].expand(-1, SLOTS, -1)
        windows = padded.gather(2, index).unflatten(2, (peaks.shape[1], -1)).transpose(1, 2)
        shifted = F.pad(given, (2 * reach, 2 * reach)).unfold(2, len(offset), 1).flip(2)
        product = windows.flatten(2) @ shifted.transpose(2, 3).flatten(1, 2)
        energy = windows.square().sum(2).unfold(2, self.length, 1).mean(3)
        fit = product / energy.clamp_min(1e-4).sqrt()
        fit = fit.masked_fill((start < 0) | (start >= length), -torch.inf)
        best = fit.argmax(2, keepdim=True)
        moved = start.gather(2, best)[..., 0]
        nothing = (given == 0).all(2).all(1)[:, None]
        return torch.where(valid & ~nothing, moved, peaks)

    def _place(self, beat: Tensor, peaks: Tensor, valid: Tensor) -> Tensor:
        """[B, 8, T]: the beat [B, 8, P] at every peak; each sample belongs to the nearest one."""
        offset = offset_to_peak(peaks, valid, self.time_len) + self.before
        inside = (offset >= 0) & (offset < self.length)
        index = offset.clamp(0, self.length - 1)[:, None].expand(-1, SLOTS, -1)
        return beat.gather(2, index) * inside[:, None]

    def _trusted(self, covariances: Tensor) -> Tensor:
        """Covariances [B, lags, 8, 8] at mean power 1, mixed with the population's; those alone for none."""
        power = covariances[:, 0].diagonal(dim1=1, dim2=2).mean(1)[:, None, None, None]
        share = torch.where(power > 1e-6, torch.sigmoid(self.share), 1.0)
        return (1 - share) * covariances / power.clamp_min(1e-6) + share * self.population

    def _filter(self, covariances: Tensor, view: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(weights [B, 8, taps * u] of leads on given slots, covariance [B, 8, 8] that they explain).

        covariances [B, lags, 8, 8] of leads; view [B, u, 8]: slot = view @ leads; mask [B, u] bool, True =
        filled.
        """
        count, slots = len(self.taps), view.shape[1]
        # One block per lag, the longest first, then the negative ones: [B, 8, 2 count - 1, 8].
        lags = torch.cat([covariances.flip(1), covariances[:, 1:].transpose(2, 3)], 1).transpose(1, 2)
        half = (view @ lags.flatten(2)).unflatten(2, (2 * count - 1, SLOTS))
        seen = (half @ view.transpose(1, 2)[:, None]).flatten(2)
        # Between taps a and b the lag is a - b: row a of the block Toeplitz matrix is a stretch of blocks.
        inside = seen.unfold(2, count * slots, slots).flip(2).transpose(1, 2).flatten(1, 2)
        middle = count // 2
        cross = half[:, :, middle : middle + count].flip(2).transpose(1, 2).flatten(1, 2)
        noise = torch.where(mask, self.log_noise.exp(), torch.ones_like(view[:, :, 0])).repeat(1, count)
        weights = torch.linalg.solve(inside + torch.diag_embed(noise), cross).transpose(1, 2)
        return weights, weights @ cross

    def _lagged(self, x: Tensor) -> Tensor:
        """[B, taps * u, T]: x [B, u, T] at every tap, its ends held."""
        reach = max(self.taps)
        padded = F.pad(x, (reach, reach), mode="replicate")
        return torch.cat([padded[..., reach + tap : reach + tap + x.shape[-1]] for tap in self.taps], 1)
