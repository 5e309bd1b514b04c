"""Does test-time training help? Error at every inner step, beside its start and what it could replace.

kind ttt: W after so many steps on a window's own given leads (0: the start, with what is remembered of
them); w0: the learned start, nothing remembered; record: one W from all windows of a record, as many steps as
trained; closed_form: no network. gain: how much higher r is than that of the row named in `against`, paired
window by window, with a 95 % interval over patients.
"""

from __future__ import annotations

from typing import Any

from ecggen.eval.bootstrap import PatientBootstrap
from ecggen.eval.judge import Scored, trained_steps
from ecggen.eval.lead_sets import LeadSet
from ecggen.eval.metrics import LeadScores
from ecggen.eval.result import RendererLike, Rows
from ecggen.utils.config import MissingLeadConfig

TTT_COLUMNS = ("lead_set", "step", "kind", "r", "rmse_mv", "against", "gain", "gain_low", "gain_high")


def judged_steps(trained: int, last: int) -> list[int]:
    """0 to K one by one, then twice and four times as many and so on up to `last`."""
    steps = set(range(trained + 1)) | {max(last, trained)}
    beyond = 2 * max(1, trained)
    while beyond <= last:
        steps.add(beyond)
        beyond *= 2
    return sorted(steps)


def asked_steps(renderer: RendererLike, leads: LeadSet, rules: MissingLeadConfig) -> tuple[int, ...]:
    """Inner steps to judge of one lead set: named sets, and V3 for all that leave one lead out."""
    if leads.name.startswith("-") and leads.name != "-V3":
        return ()
    return tuple(judged_steps(trained_steps(renderer), rules.ttt_steps))


def ttt_rows(leads: LeadSet, scored: Scored, draws: PatientBootstrap, trained: int) -> tuple[Rows, float]:
    """(rows of TTT_COLUMNS, gain of r at the trained steps) of one lead set; no rows without a window."""
    found = {key: scores for (kind, key), scores in scored.scores.items() if kind == "ttt"}
    steps = [key for key in found if isinstance(key, int)]
    if not steps:
        return [], 0.0
    first, last = found[0], found[trained]
    closed = scored.scores["method", "closed_form"].select(leads.headline)
    asked: list[tuple[str, int | str, LeadScores, str, LeadScores | None]] = []
    if "w0" in found:
        asked.append(("w0", "", found["w0"], "step 0", first))
    asked += [("ttt", s, found[s], "step 0" if s else "", first if s else None) for s in steps]
    if "record" in found:
        asked.append(("record", trained, found["record"], f"step {trained}", last))
    asked.append(("closed_form", "", closed, "step 0", first))
    rows: Rows = []
    for kind, step, own, against, other in asked:
        means = own.means()
        gain: tuple[float | str, ...] = ("", "", "") if other is None else draws.mean(own.r - other.r)
        row: dict[str, Any] = {"lead_set": leads.name, "step": step, "kind": kind}
        row |= {"r": means["r"], "rmse_mv": means["rmse_mv"], "against": against}
        rows.append(row | dict(zip(("gain", "gain_low", "gain_high"), gain, strict=True)))
    return rows, last.means()["r"] - first.means()["r"]
