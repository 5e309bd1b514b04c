"""Does test-time training help? Error at every inner step, beside its start and what it could replace.

kind ttt: W after so many steps on a window's own given leads (0: the start, with what is remembered of
them); w0: the learned start, nothing remembered; record: one W from all windows of a record, as many steps as
trained; closed_form: no network. gain: how much higher r is than that of the row named in `against`, paired
window by window, with a 95 % interval over patients.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ecggen.eval.evaluated import Evaluated
from ecggen.eval.lead_sets import LeadSet, given_only, leave_one_out, named_sets
from ecggen.eval.metrics import LeadScores
from ecggen.eval.result import Array, RendererLike, Rows
from ecggen.utils.config import MissingLeadConfig

TTT_COLUMNS = ("lead_set", "step", "kind", "r", "rmse_mv", "against", "gain", "gain_low", "gain_high")


def start_state(renderer: RendererLike) -> Array | None:
    """[S], the learned start W0 of a renderer's model, nothing guessed or remembered; None without one."""
    start = getattr(renderer.model, "start", None)
    return None if start is None else np.asarray(start.detach().cpu().numpy())


def trained_steps(renderer: RendererLike) -> int:
    """K, the inner steps that the model was trained with."""
    return int(renderer.config.model.ttt.steps)


def judged_steps(trained: int, last: int) -> list[int]:
    """0 to K one by one, then twice and four times as many and so on up to `last`."""
    steps = set(range(trained + 1)) | {max(last, trained)}
    beyond = 2 * max(1, trained)
    while beyond <= last:
        steps.add(beyond)
        beyond *= 2
    return sorted(steps)


def ttt(
    renderer: RendererLike, data: Evaluated, records: Array, rules: MissingLeadConfig
) -> tuple[Rows, dict[str, float]]:
    """(rows of TTT_COLUMNS for one split, gain of r at the trained steps by lead set).

    records [n]: the record of every row of data.
    """
    rows: Rows = []
    gains: dict[str, float] = {}
    sets = named_sets(rules.lead_sets)
    if rules.leave_one_out:
        sets += [leads for leads in leave_one_out() if leads.name == "-V3"]
    for leads in sets:
        usable = np.flatnonzero(leads.usable(data.observed))
        if len(usable):
            one = _LeadSetSteps(renderer, data, leads, usable, rules.batch_size)
            rows += one.rows(judged_steps(trained_steps(renderer), rules.ttt_steps), records[usable])
            gains[leads.name] = one.gain
    return rows, gains


class _LeadSetSteps:
    """The rows of one lead set."""

    def __init__(
        self, renderer: RendererLike, data: Evaluated, leads: LeadSet, usable: Array, batch_size: int
    ) -> None:
        self.renderer, self.data, self.leads, self.usable = renderer, data, leads, usable
        self.ecg = given_only(data.ecg[usable], leads.mask)
        self.batch_size, self.gain = batch_size, 0.0

    def rows(self, steps: list[int], records: Array) -> Rows:
        """One row per kind and step."""
        trained = trained_steps(self.renderer)
        path = self._state_path(steps[-1])
        scores = {}
        for step in steps:
            # A held state renders as the loop that led to it would, without running the loop again.
            choice: dict[str, Any] = {"steps": step} if path is None else {"state": path[step]}
            scores[step] = self._rendered(**choice)
        first, last = scores[0], scores[trained]
        out = [
            self._row("ttt", step, own, "step 0" if step else "", first if step else None)
            for step, own in scores.items()
        ]
        self.gain = last.means()["r"] - first.means()["r"]
        start = start_state(self.renderer)
        if start is not None:
            own = self._rendered(state=np.tile(start, (len(self.ecg), 1)))
            out.insert(0, self._row("w0", "", own, "step 0", first))
        whole = self._record_states(records)
        if whole is not None:
            own = self._rendered(state=whole)
            out.append(self._row("record", trained, own, f"step {trained}", last))
        closed = self._scores(self.renderer.closed_form_windows(self.ecg, self.leads.mask))
        return [*out, self._row("closed_form", "", closed, "step 0", first)]

    def _rendered(self, **choice: Any) -> LeadScores:
        out = self.renderer.render_windows(self.ecg, self.leads.mask, batch_size=self.batch_size, **choice)
        return self._scores(out["leads"])

    def _scores(self, rendered: Array) -> LeadScores:
        return self.data.scores(rendered, self.usable, self.leads).select(self.leads.headline)

    def _row(
        self, kind: str, step: int | str, own: LeadScores, against: str, other: LeadScores | None
    ) -> dict[str, Any]:
        means = own.means()
        gain: tuple[float | str, ...] = ("", "", "")
        if other is not None:
            gain = self.data.draws.mean(own.r - other.r)
        row: dict[str, Any] = {"lead_set": self.leads.name, "step": step, "kind": kind}
        row |= {"r": means["r"], "rmse_mv": means["rmse_mv"], "against": against}
        return row | dict(zip(("gain", "gain_low", "gain_high"), gain, strict=True))

    def _state_path(self, steps: int) -> Array | None:
        """[steps + 1, n, S], the state after each step of one run; None if the renderer cannot tell."""
        path = getattr(self.renderer, "state_path", None)
        if path is None:
            return None
        return np.asarray(path(self.ecg, self.leads.mask, steps=steps, batch_size=self.batch_size))

    def _record_states(self, records: Array) -> Array | None:
        """[n, S], one W per record from all its windows; None where records have one window each."""
        shared = getattr(self.renderer, "shared_state", None)
        if shared is None or len(np.unique(records)) == len(records):
            return None
        found: dict[str, Array] = {}
        for record in np.unique(records):
            found[record] = np.asarray(shared(self.ecg[records == record], self.leads.mask))
        return np.stack([found[record] for record in records])
