"""ECGGen: observed leads -> tokens -> state W -> VCG -> leads.

Inside, everything is divided by the RMS of what was observed and multiplied back at the end, so amplitude
ratios between leads (geometry) survive and the scale of a recording does not matter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecggen.data.tokenizer import BeatTokenizer, TokenGrid
from ecggen.leads import EXPAND, INDEPENDENT_INDEX
from ecggen.models.beat_net import BeatNet, BeatView, Look
from ecggen.models.beats import average_beat
from ecggen.models.blocks import (
    ConvStem,
    LeadProjection,
    LocalDecoder,
    ResidualHead,
    SpreadHead,
    TokenEncoder,
)
from ecggen.models.closed_form import ClosedFormLift
from ecggen.models.inner_gradient import InnerGradient
from ecggen.models.memory import BeatMemory, Recall, Statistics
from ecggen.models.rendering import Rendering
from ecggen.models.slots import SLOTS, LimbSlots, Observation
from ecggen.models.ttt import FastState, Modulation, StateGuess, TTTUpdater
from ecggen.models.vcg import VCGGenerator
from ecggen.models.views import Views, evaluation_views
from ecggen.utils.config import ModelConfig

#: Numbers that say what is known: filled slots, what slot 0 measures, remembered leads, how well they fit.
KNOWN = SLOTS + 2 + SLOTS + SLOTS
# In a view of the inner loop, leads that the view still holds say less than those left out.
_GIVEN_WEIGHT = 0.3
FEATURE_BINS = 14  # of the average beat of the local features, in `ECGGen.features`


@dataclass
class _Encoding:
    seen: Observation  # divided by scale
    scale: Tensor
    grid: TokenGrid
    tokens: Tensor
    features: Tensor
    leads: Tensor  # [B, KNOWN], see there
    completed: Tensor  # [B, 8, T], the leads as W remembers them
    modulation: Modulation
    field: Tensor  # [B, 8, 3], the patient's lead field
    lifted: Tensor  # [B, 3, T], the dipole in closed form


@dataclass
class _Adapted:
    """What the inner loop hands on: what the support says, states [K + 1, B, F], the rows of it whose beat
    the states have yet to complete, and this beat as the network reads it."""

    support: Statistics
    states: Tensor
    rows: Tensor
    completing: BeatView


class ECGGen(nn.Module):
    """The assembly. model: architecture; fs in Hz and time_len T in samples of the windows it renders."""

    expand: Tensor
    calibration: Tensor
    gauge: Tensor

    def __init__(self, model: ModelConfig, fs: float, time_len: int) -> None:
        super().__init__()
        self.config, self.fs, self.time_len = model, fs, time_len
        channels = list(model.channels)
        self.halvings = len(channels) - 1
        self.patch = model.beat_len >> self.halvings
        self.slots = LimbSlots()
        self.tokenizer = BeatTokenizer(model.tokenizer_mode, model.beat_len, fs, time_len)
        self.fast = FastState(model.state_kind, model.state_dim, channels[0], model.basis)
        ttt = model.ttt
        self.guess = StateGuess(self.fast.size) if ttt.amortised else None
        self.updater = TTTUpdater(
            self.fast.size, steps=ttt.steps, step_size=ttt.step_size, prior=ttt.prior, order=ttt.order
        )
        self.lift = ClosedFormLift()
        self.memory = BeatMemory(fs, time_len)
        self.beat = BeatNet(list(model.beat_channels), channels[0], model.residual)
        self.stem = ConvStem(SLOTS + 3 + 2 * SLOTS, channels, KNOWN)
        deep, code = channels[-1] * self.patch, model.state_dim
        self.encoder = TokenEncoder(deep, KNOWN, model.width, model.depth, model.heads, code, model.dropout)
        self.unembed = nn.Linear(model.width, deep)
        self.decoder = LocalDecoder(channels, code)
        self.generator = VCGGenerator(model.width, channels[0], model.basis, model.beat_len)
        self.projection = LeadProjection(model.angle)
        self.residual = ResidualHead(channels[0], KNOWN + code) if model.residual else None
        self.spread = SpreadHead(channels[0], KNOWN + code)
        #: [slots given - 1, lead]: factors of the standard deviation, set by `calibration.calibrate`.
        self.register_buffer("calibration", torch.ones(SLOTS - 1, SLOTS))
        #: [3, 3], from the dipole that was trained to Frank's axes, set by `calibration.align_axes`.
        self.register_buffer("gauge", torch.eye(3))
        self.register_buffer("expand", torch.tensor(EXPAND, dtype=torch.float32), persistent=False)

    @property
    def state_dim(self) -> int:
        """S, numbers in W: what the inner loop trains, then what is remembered in closed form."""
        return self.fast.size + self.memory.size

    @property
    def start(self) -> Tensor:
        """W0 [S]: the learned start, nothing remembered."""
        return torch.cat([self.fast.start, self.fast.start.new_zeros(self.memory.size)])

    def forward(
        self,
        ecg: Tensor,
        observed: Tensor,
        *,
        reference: Tensor | None = None,
        reference_observed: Tensor | None = None,
        state: Tensor | None = None,
        steps: int | None = None,
        views: Tensor | None = None,
        people: int = 0,
    ) -> Rendering:
        """Render twelve leads from the observed ones.

        ecg [B, 12, T] in mV (hidden leads are never read), observed [B, 12] bool. W comes, in this order,
        from `state` [B, S] (held: no inner step), from a reference recording [B, 12, T] of the same person,
        or from the observed leads themselves. steps: inner steps (default: as trained). views [V, B, 8] bool:
        slots that each inner view keeps (default: the fixed evaluation views). people: as `estimate` has it,
        of ecg and of the reference; who they are is up to the order of both alone.
        """
        assert ecg.shape[1:] == (12, self.time_len), (ecg.shape, self.time_len)
        seen, beats = self.slots(ecg, observed), None
        if state is None:
            support = seen
            if reference is not None:
                assert reference_observed is not None and reference.shape == ecg.shape, reference.shape
                support = self.slots(reference, reference_observed)
            adapted = self._adapt(support, steps, views, people)
            states = adapted.states
            beats = adapted.support.beats if support is seen else None
            # What the steps before the last would remember is asked of `estimate` alone.
            state = torch.cat([states[-1:], self._remember(adapted, states[-1:])], -1)[0]
            if people:
                state, states = state.repeat(len(ecg) // people, 1), states.repeat(1, len(ecg) // people, 1)
        else:
            assert state.shape == (len(ecg), self.state_dim), state.shape
            states = state[None, :, : self.fast.size]
        return self._render(seen, state, states, beats)

    def estimate(
        self,
        support: Observation,
        *,
        steps: int | None = None,
        views: Tensor | None = None,
        people: int = 0,
    ) -> Tensor:
        """States [K + 1, B, S]: the inner loop on a support recording, from its observed leads only.

        people: the batch holds as many windows of each of so many people, who have one W each: the first
        windows of all, then the second ones, and so on; [K + 1, people, S]. A person's windows have the same
        leads; W is looked for in the mean of their median beats. 0: every window has its own.
        """
        adapted = self._adapt(support, steps, views, people)
        return torch.cat([adapted.states, self._remember(adapted, adapted.states)], -1)

    def _adapt(
        self, support: Observation, steps: int | None, views: Tensor | None, people: int = 0
    ) -> _Adapted:
        batch = len(support.mask)
        scaled, _ = support.scaled()
        each = self.memory.statistics(scaled)
        whole = self.memory.merged(each, people) if people else each
        start = self.fast.start.expand(batch, -1)
        if self.guess is not None:
            start = start + self.guess(scaled, self.projection.field)
        if people:
            start = start.unflatten(0, (-1, people)).mean(0)
        steps = self.updater.steps if steps is None else steps
        # A support of all leads leaves nothing to complete, one without a whole beat nothing to do it from.
        rows = (whole.there & (whole.seen.known() == 0).any(1)).nonzero()[:, 0]
        part = whole.rows(rows)
        seen, scale = part.seen.scaled()
        looks = [Look(seen, scale, part.linear / scale, part.rate)]
        if not steps:
            return _Adapted(whole, start[None], rows, self.beat.views(looks)[0])
        mask = whole.seen.mask
        views = evaluation_views(mask, self.config.ttt.views) if views is None else views
        assert views.shape[1:] == mask.shape and views.dtype == torch.bool, views.shape
        # A view that repeats another one costs nothing but where training counts every bit.
        inner_views = Views.every(views) if torch.is_grad_enabled() else Views.distinct(views)
        recorded = inner_views.of(whole.seen)
        reduced, scale = recorded.reduced(inner_views.keep).scaled()
        looks.append(Look(reduced, scale, self.memory.linear(reduced), inner_views.spread(whole.rate)))
        completing, view = self.beat.views(looks)
        loss, gradient = self._inner_loss(recorded, inner_views, view)
        states = self.updater(start, loss, steps, gradient)
        return _Adapted(whole, states, rows, completing)

    def _inner_loss(
        self, support: Observation, views: Views, view: BeatView
    ) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor] | None]:
        """The loss [people] of states [people, S], and its gradient [people, S] where that is written out.

        The dipole alone must explain the beats of the observed leads, those included that a view leaves out.
        support: the beats as recorded, view: as read, both with a row for each of views.
        """
        weight = support.mask * torch.where(views.keep, _GIVEN_WEIGHT, 1.0)
        weight = weight / weight.sum(-1, keepdim=True).clamp_min(1e-6)

        def loss(state: Tensor) -> Tensor:
            rendered = support.rows @ self.beat.dipole(view, *self._lifted(view.seen, views.spread(state)))
            error = (rendered - support.values).square().mean(-1)
            return views.mean((error * weight).sum(-1))

        if self.fast.kind != "vector":
            return loss, None
        modules = (self.fast, self.projection, self.lift, self.beat.detail)
        each = InnerGradient(modules, support, view, weight)
        return loss, lambda state: views.mean(each(views.spread(state)))

    def _lifted(self, seen: Observation, state: Tensor) -> tuple[Tensor, Tensor, Modulation]:
        """The closed-form dipole [B, 3, T] through the lead field [B, 8, 3] of a state, and what it means."""
        # Many small products: half precision would cast every operand anew, and blur what is fitted.
        with torch.autocast(state.device.type, enabled=False):
            modulation = self.fast(state)
            field = self.projection.patient_field(modulation.field, modulation.omega, modulation.log_gain)
            return self.lift(seen, field, modulation.prior), field, modulation

    def _remember(self, adapted: _Adapted, states: Tensor) -> Tensor:
        """Memories [K + 1, B, size]: the beat of a lead that the support lacks is what each state renders."""
        support, rows, count = adapted.support, adapted.rows, len(states)
        beats = support.linear.expand(count, *support.linear.shape)
        if len(rows):
            view = adapted.completing.repeated(count)
            rendered = self.beat.leads(view, *self._lifted(view.seen, states[:, rows].flatten(0, 1)))
            known = adapted.completing.seen.known()[..., None] > 0
            filled = torch.where(known, support.linear[rows], rendered.unflatten(0, (count, -1)))
            beats = beats.index_copy(1, rows, filled.to(beats.dtype))
        return torch.stack([self.memory.packed(support, beat) for beat in beats])

    def features(self, ecg: Tensor, observed: Tensor, *, steps: int | None = None) -> Tensor:
        """[B, F] frozen features: the mean token, and the average beat of the local features, relative to the
        scale and times it (a high voltage means something), and of the eight rendered leads in mV.

        Beats are found in the rendered lead II, which exists whatever was observed. steps: as `forward`.
        """
        out = self(ecg, observed, steps=steps)
        count = out.token_valid.sum(1, keepdim=True).clamp_min(1)
        token = (out.tokens * out.token_valid[..., None]).sum(1) / count
        both = torch.cat([out.features, out.leads[:, list(INDEPENDENT_INDEX)]], 1)
        beat = average_beat(both, out.leads[:, 1], self.fs)
        local, leads = beat.split([out.features.shape[1], SLOTS], 1)
        local = F.adaptive_avg_pool1d(local, FEATURE_BINS)
        return torch.cat([token, *(x.flatten(1) for x in (local, local * out.scale, leads))], -1)

    def closed_form(self, ecg: Tensor, observed: Tensor) -> Tensor:
        """Leads [B, 12, T] in mV of the closed-form lift alone, with the learned start as state."""
        scaled, scale = self.slots(ecg, observed).scaled()
        vcg, field, _ = self._lifted(scaled, self.fast.start.expand(len(ecg), -1))
        return self.expand @ (field @ vcg) * scale

    def remembered(self, ecg: Tensor, observed: Tensor, state: Tensor) -> Tensor:
        """Leads [B, 12, T] in mV as the closed-form part of state [B, S] completes them.

        No network runs here; of a support that lacked leads, one has completed the remembered beat.
        """
        recall, scale = self._recall(ecg, observed, state)
        return self.expand @ recall.completed * scale

    def placed(self, ecg: Tensor, observed: Tensor, state: Tensor) -> Tensor:
        """Leads [B, 12, T] in mV: the beat that state [B, S] remembers, at every beat of the recording."""
        recall, scale = self._recall(ecg, observed, state)
        return self.expand @ recall.placed * scale

    def _recall(self, ecg: Tensor, observed: Tensor, state: Tensor) -> tuple[Recall, Tensor]:
        scaled, scale = self.slots(ecg, observed).scaled()
        return self.memory(scaled, state[:, self.fast.size :]), scale

    def _encode(
        self, seen: Observation, state: Tensor, beats: tuple[Tensor, Tensor] | None = None
    ) -> _Encoding:
        scaled, scale = seen.scaled()
        fast, memory = state.split([self.fast.size, self.memory.size], -1)
        lifted, field, modulation = self._lifted(scaled, fast)
        recall = self.memory(scaled, memory, beats)
        filled = scaled.mask.to(scaled.values.dtype)
        leads = torch.cat([filled, scaled.rows[:, 0, :2], recall.known, recall.fit], -1)
        waves = torch.cat([scaled.values, lifted, recall.placed, recall.completed], 1)
        maps = self.stem(waves, leads)
        grid = self.tokenizer.grid(scaled.values.detach(), scaled.mask)
        patches = self.tokenizer.tokenize(maps[-1], grid, self.patch).flatten(2)
        code = state[:, : self.config.state_dim]
        tokens = self.encoder(patches, grid.start / self.fs, grid.duration / self.fs, grid.valid, leads, code)
        deep = self.unembed(tokens).unflatten(-1, (maps[-1].shape[1], self.patch))
        deep = self.tokenizer.untokenize(deep, grid, maps[-1].shape[-1])
        features = self.decoder(deep, maps, code).float()
        meaning = (recall.completed, modulation, field, lifted)
        return _Encoding(scaled, scale, grid, tokens.float(), features, leads, *meaning)

    def _dipole(self, encoding: _Encoding) -> tuple[Tensor, Tensor]:
        """VCG [B, 3, T] over the scale and its beats [B, N, 3, P]."""
        beats = self.generator.beats(encoding.tokens, encoding.modulation)
        vcg = encoding.lifted + self.tokenizer.untokenize(beats, encoding.grid, self.time_len)
        return vcg + self.generator.detail(encoding.features, encoding.modulation), beats

    def _render(
        self,
        seen: Observation,
        state: Tensor,
        states: Tensor,
        beats: tuple[Tensor, Tensor] | None = None,
    ) -> Rendering:
        encoding = self._encode(seen, state, beats)
        with torch.autocast(state.device.type, enabled=False):
            return self._rendering(encoding, state, states)

    def _rendering(self, encoding: _Encoding, state: Tensor, states: Tensor) -> Rendering:
        vcg, beats = self._dipole(encoding)
        field, scale, grid = encoding.field, encoding.scale, encoding.grid
        eight = field @ vcg
        rest = torch.zeros_like(eight)
        trust = torch.cat([encoding.leads, state[:, : self.config.state_dim]], -1)
        if self.residual is not None:
            linear = encoding.completed - field @ encoding.lifted
            rest = self.residual(encoding.features, linear, trust)
        parts = self.expand @ (torch.stack([eight, rest, encoding.completed]) * scale)
        dipole, residual, remembered = parts.unbind(0)
        log_spread = self.spread(encoding.features, trust)
        with torch.no_grad():
            # Errors of I and II are taken as independent; a lead that was recorded has none.
            given = encoding.seen.mask.sum(-1).clamp(1, SLOTS - 1)
            factor = self.calibration[given - 1] * (1 - encoding.seen.known())
            std = (self.expand.square() @ ((2 * log_spread).exp() * factor.square()[..., None])).sqrt()
        return Rendering(
            tokens=encoding.tokens,
            token_valid=grid.valid,
            token_start=grid.start,
            token_duration=grid.duration,
            state=state,
            states=states,
            vcg=self.gauge @ vcg * scale,
            beats=self.gauge @ beats,
            features=encoding.features,
            scale=scale,
            field=field @ torch.linalg.inv(self.gauge),
            dipole=dipole,
            residual=residual,
            leads=dipole + residual,
            remembered=remembered,
            log_spread=log_spread,
            std=std * scale,
        )
