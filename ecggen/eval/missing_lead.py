"""Leads hidden and rendered: the model beside every baseline, by the same code.

Headline: hidden independent leads (I, II, V1..V6) that no algebra gives. Leads derivable by algebra are
reported apart (`algebra_r`). A lead that was in truth not recorded is never given and never scored; a window
that lacks a lead of the set is left out of that set, and `n_windows` says how many remain. `margin` is the
model's r less that of its best baseline, paired by window, with a 95 % interval over patients; `verdict` says
what that interval shows.

Table `ttt`: does test-time training help? kind ttt: W after so many steps on a window's own given leads (0:
the start, with what is remembered of them); w0: the learned start, nothing remembered; record: one W from all
windows of a record, as many steps as trained; closed_form: no network. gain: how much higher r is than that
of the row named in `against`, paired likewise.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ecggen.eval.baselines import ClosedFormMethod, Method, ModelMethod, Training, baselines
from ecggen.eval.bootstrap import MARGIN_COLUMNS, SUMMARY, Estimate, margin
from ecggen.eval.lead_sets import LeadSet, all_sets
from ecggen.eval.metrics import LeadScores, nanmean
from ecggen.eval.personal import PERSONAL_COLUMNS, PROTOCOLS, people, personal_rows
from ecggen.eval.result import (
    Array,
    Renderer,
    Result,
    Rows,
    WindowFolder,
    check_split,
    trained_steps,
)
from ecggen.eval.score import COVERAGE, Scoring, SetScores, Split, score_sets
from ecggen.eval.workers import Workers
from ecggen.leads import LEADS
from ecggen.utils.config import MissingLeadConfig
from ecggen.utils.display import track

SET_COLUMNS = (
    *("split", "method", "lead_set", *SUMMARY, "algebra_r", "coverage", "rank", "condition"),
    *("n_windows", "n_patients", "n_constant", *MARGIN_COLUMNS),
)
LEAD_COLUMNS = ("method", "lead_set", "lead", *SUMMARY)
COLUMNS = {
    "lead_sets": SET_COLUMNS,
    "per_lead": LEAD_COLUMNS,
    "ttt": ("lead_set", "step", "kind", "r", "rmse_mv", "against", "gain", "gain_low", "gain_high"),
    "personal": PERSONAL_COLUMNS,
}


def missing_lead(
    renderer: Renderer, folder: WindowFolder, config: MissingLeadConfig, *, processes: int | str = 1
) -> Result:
    """Tables COLUMNS; arrays: r [n, 12] of the headline leads of each test window by
    "lead set/method". Raises EvalError for an empty split.

    processes: see `ecggen.eval.workers.Workers`; the numbers do not depend on it.
    """
    check_split(folder, "train")
    names = ("validation", "test") if config.validation else ("test",)
    splits = [Split.read(folder, name, config.bootstrap, config.seed) for name in names]
    context = Scoring(renderer, {"": folder}, fitted_methods(renderer, folder, config), config.batch_size)
    arrays: dict[str, Array] = {}
    result = Result(columns=COLUMNS, arrays=arrays)
    tables = result.tables
    with Workers(context, renderer.device, processes) as workers:
        if config.personal:
            for data in splits:
                data.people = people(workers, "", data.rows, config)
        sets = [
            ("", data, leads, scored_steps(renderer, leads, config) if data.name == "test" else ())
            for leads in all_sets(config.lead_sets, config.leave_one_out)
            for data in splits
        ]
        for scores in score_sets(workers, sets):
            split = {"split": scores.data.name}
            rows, _ = set_rows(scores)
            tables["lead_sets"] += [split | row for row in rows]
            tables["personal"] += [split | row for row in personal_rows(scores)]
            if scores.data.name == "test":
                tables["per_lead"] += lead_rows(scores)
                arrays |= {
                    f"{scores.leads.name}/{method}": scores.headline(method).r.astype(np.float32)
                    for method in scores.methods
                }
            if scores.steps:
                tables["ttt"] += ttt_rows(scores, trained_steps(renderer))
    tables["personal"].sort(key=lambda row: (row["split"] == "test", PROTOCOLS.index(row["protocol"])))
    result.facts["windows_without_lead"] = {
        data.name: len(folder.rows(data.name)) - len(data.rows) for data in splits
    }
    return result


def fitted_methods(renderer: Renderer, folder: WindowFolder, config: MissingLeadConfig) -> list[Method]:
    """The model and every baseline, fitted on the training split, ready for every lead set."""
    rows, observed = folder.rows("train"), np.asarray(folder.observed)
    training = Training(folder.windows, rows, observed, folder.fs, config.context)
    model = ModelMethod(renderer, config.batch_size), ClosedFormMethod(renderer)
    methods: list[Method] = [*model, *baselines(config.context)]
    for method in track("baselines", methods, len(methods)):
        method.fit(training)
        for leads in all_sets(config.lead_sets, config.leave_one_out):
            method.prepare(leads.mask)
    return methods


def set_rows(scores: SetScores) -> tuple[Rows, dict[str, Estimate]]:
    """(rows of SET_COLUMNS without the split, one per method, the model's with its margin; r by method)."""
    draws, leads = scores.data.draws, scores.leads
    rank, condition = leads.geometry
    headline = {method: scores.headline(method) for method in scores.methods}
    r = {method: draws.estimate(part.r) for method, part in headline.items()}
    rows: Rows = []
    for method, part in headline.items():
        row: dict[str, Any] = {
            "method": method,
            "lead_set": leads.name,
            **draws.summary(part),
            "algebra_r": nanmean(scores.method(method).select(leads.derivable).r),
            "coverage": nanmean(scores.values.get(COVERAGE, np.array([])))
            if method == "model"
            else float("nan"),
            "rank": rank,
            "condition": condition,
            **draws.counts(part),
        }
        if method == "model":
            others = {name: estimate for name, estimate in r.items() if name != "model"}
            row |= margin(r["model"], others, row["n_patients"])
        rows.append(row)
    return rows, r


def lead_rows(scores: SetScores) -> Rows:
    """Rows of LEAD_COLUMNS, one per method and hidden lead."""
    names, draws = {"lead_set": scores.leads.name}, scores.data.draws
    return [
        {"method": method, **names, "lead": LEADS[at], **draws.summary(scores.method(method).lead(int(at)))}
        for method in scores.methods
        for at in np.flatnonzero(scores.leads.hidden)
    ]


def step_numbers(trained: int, last: int) -> list[int]:
    """0 to K one by one, then twice and four times as many and so on up to `last`."""
    steps = set(range(trained + 1)) | {max(last, trained)}
    beyond = 2 * max(1, trained)
    while beyond <= last:
        steps.add(beyond)
        beyond *= 2
    return sorted(steps)


def scored_steps(renderer: Renderer, leads: LeadSet, config: MissingLeadConfig) -> tuple[int, ...]:
    """Inner steps to score on one lead set; none where it is not asked for."""
    if leads.name not in config.ttt_lead_sets:
        return ()
    return tuple(step_numbers(trained_steps(renderer), config.ttt_steps))


def ttt_rows(scores: SetScores, trained: int) -> Rows:
    """Rows of the table `ttt` of one lead set; none without a window."""
    parts = {key: LeadScores(values) for (kind, key), values in scores.values.items() if kind == "ttt"}
    if not parts:
        return []
    parts["closed_form"] = scores.headline("closed_form")
    steps = [key for key in parts if isinstance(key, int)]
    kinds = [("w0", "", "w0", 0), *(("ttt", step, step, 0 if step else None) for step in steps)]
    kinds += [("record", trained, "record", trained), ("closed_form", "", "closed_form", 0)]
    rows: Rows = []
    for kind, step, key, against in kinds:
        if key not in parts:
            continue
        part = parts[key]
        row: dict[str, Any] = {"lead_set": scores.leads.name, "step": step, "kind": kind, "against": ""}
        row |= {name: part.means()[name] for name in ("r", "rmse_mv")}
        if against is not None:
            gain = scores.data.draws.estimate(part.r - parts[against].r)
            row |= {"against": f"step {against}", **gain.cells("gain", "gain_low", "gain_high")}
        rows.append(row)
    return rows
