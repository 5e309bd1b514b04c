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
from ecggen.eval.bootstrap import MARGIN_COLUMNS, SUMMARY, Drawn, PatientBootstrap, margin
from ecggen.eval.lead_sets import LeadSet, all_sets, given_only, named_sets
from ecggen.eval.metrics import LeadScores, nanmean
from ecggen.eval.personal import PERSONAL_COLUMNS, PROTOCOLS, personal_rows, reference_pairs
from ecggen.eval.result import (
    Array,
    Renderer,
    Result,
    Rows,
    WindowFolder,
    check_split,
    rounded,
    trained_steps,
)
from ecggen.eval.score import Scores, Scoring, Split, Task, scored
from ecggen.eval.workers import Workers
from ecggen.leads import LEADS
from ecggen.utils.config import MissingLeadConfig

SET_COLUMNS = (
    *("split", "method", "lead_set", *SUMMARY, "algebra_r", "coverage", "rank", "condition"),
    *("n_windows", "n_patients", "n_constant", *MARGIN_COLUMNS),
)
LEAD_COLUMNS = ("method", "lead_set", "lead", *SUMMARY)
TTT_COLUMNS = ("lead_set", "step", "kind", "r", "rmse_mv", "against", "gain", "gain_low", "gain_high")
HEADLINE = ("model", "closed_form", "linear_regression", "linear_regression_context", "mean_beat")
EXAMPLES = 3


def missing_lead(
    renderer: Renderer, folder: WindowFolder, config: MissingLeadConfig, *, processes: int | str = 1
) -> Result:
    """Tables lead_sets, per_lead, ttt, personal; headline metrics. Raises EvalError for an empty split.

    processes: see `ecggen.eval.workers.Workers`; the numbers do not depend on it.
    """
    check_split(folder, "train")
    splits = [Split.read(folder, name, config.bootstrap, config.seed) for name in ("validation", "test")]
    sets = all_sets(config.lead_sets, config.leave_one_out)
    context = Scoring(renderer, {"": folder}, fitted_methods(renderer, folder, config), config.batch_size)
    tables: dict[str, Rows] = {"lead_sets": [], "per_lead": [], "ttt": [], "personal": []}
    gains: dict[str, float] = {}
    with Workers(context, renderer.device, processes) as workers:
        pairs = {
            data.name: reference_pairs(workers, "", data.rows, config, config.personal) for data in splits
        }
        tasks = []
        for leads in sets:
            for data in splits:
                steps = scored_steps(renderer, leads, config) if data.name == "test" else ()
                by_record = bool(steps) and data.several_windows(leads)
                tasks.append(Task("", data, leads, steps, by_record, pairs[data.name]))
        for task, scores in zip(tasks, scored(workers, tasks), strict=True):
            data, leads = task.split, task.leads
            tables["lead_sets"] += [
                {"split": data.name, **row} for row in set_rows(data, leads, scores, context)
            ]
            if data.name == "test":
                tables["per_lead"] += lead_rows(leads, scores, context, data.draws)
            if task.steps:
                rows, gain = ttt_rows(leads, scores, data.draws, trained_steps(renderer))
                tables["ttt"] += rows
                gains |= {leads.name: gain} if rows else {}
            tables["personal"] += personal_rows(leads, task.pairs, data.rows, scores, split=data.name)
    tables["personal"].sort(key=lambda row: (row["split"] == "test", PROTOCOLS.index(row["protocol"])))
    result = Result()
    columns = {"lead_sets": SET_COLUMNS, "per_lead": LEAD_COLUMNS, "ttt": TTT_COLUMNS}
    for name, rows in tables.items():
        result.add_table(name, columns.get(name, PERSONAL_COLUMNS), rows)
    result.metrics = _metrics(tables["lead_sets"], tables["personal"], gains)
    result.metrics["windows_without_lead"] = {
        data.name: len(folder.rows(data.name)) - len(data.rows) for data in splits
    }
    result.arrays = {"fs": np.asarray(folder.fs), **_examples(renderer, splits[1], config)}
    return result


def fitted_methods(renderer: Renderer, folder: WindowFolder, config: MissingLeadConfig) -> list[Method]:
    """The model and every baseline, fitted on the training split, ready for every lead set."""
    rows, observed = folder.rows("train"), np.asarray(folder.observed)
    training = Training(folder.windows, rows, observed, folder.fs, config.context)
    model = ModelMethod(renderer, config.batch_size), ClosedFormMethod(renderer)
    methods: list[Method] = [*model, *baselines(config.context)]
    for method in methods:
        method.fit(training)
        for leads in all_sets(config.lead_sets, config.leave_one_out):
            method.prepare(leads.mask)
    return methods


def set_rows(data: Split, leads: LeadSet, scores: Scores, context: Scoring) -> Rows:
    """Rows of SET_COLUMNS without the split, one per method; the model's with its margin."""
    drawn = headline_draws(data, leads, scores, context)
    rank, condition = leads.geometry
    rows: Rows = []
    for method in drawn:
        every = scores.method(method)
        headline = every.select(leads.headline)
        inside, samples = scores.covered.sum(axis=0).tolist() if method == "model" else (0, 0)
        row: dict[str, Any] = {
            "method": method,
            "lead_set": leads.name,
            **data.draws.summary(headline),
            "algebra_r": nanmean(every.select(leads.derivable).r),
            "coverage": inside / samples if samples else float("nan"),
            "rank": rank,
            "condition": condition,
            **data.draws.counts(headline),
            "n_constant": int(headline.constant.sum()),
        }
        if method == "model":
            others = {name: values for name, values in drawn.items() if name != "model"}
            row |= margin(drawn["model"], others, row["n_patients"])
        rows.append(row)
    return rows


def headline_draws(data: Split, leads: LeadSet, scores: Scores, context: Scoring) -> dict[str, Drawn]:
    """Mean r of hidden independent leads and its bootstrap draws, by method."""
    return {
        method.name: data.draws.drawn(scores.method(method.name).select(leads.headline).r)
        for method in context.methods
    }


def lead_rows(leads: LeadSet, scores: Scores, context: Scoring, draws: PatientBootstrap) -> Rows:
    """Rows of LEAD_COLUMNS, one per method and hidden lead."""
    out: Rows = []
    for method in context.methods:
        every = scores.method(method.name)
        for index in np.flatnonzero(leads.hidden):
            summary = draws.summary(every.select(np.arange(len(LEADS)) == index))
            out.append({"method": method.name, "lead_set": leads.name, "lead": LEADS[index], **summary})
    return out


def step_numbers(trained: int, last: int) -> list[int]:
    """0 to K one by one, then twice and four times as many and so on up to `last`."""
    steps = set(range(trained + 1)) | {max(last, trained)}
    beyond = 2 * max(1, trained)
    while beyond <= last:
        steps.add(beyond)
        beyond *= 2
    return sorted(steps)


def scored_steps(renderer: Renderer, leads: LeadSet, config: MissingLeadConfig) -> tuple[int, ...]:
    """Inner steps to score on one lead set: named sets, and V3 for all that leave one lead out."""
    if leads.leaves_one_out and leads.name != "-V3":
        return ()
    return tuple(step_numbers(trained_steps(renderer), config.ttt_steps))


def ttt_rows(leads: LeadSet, scores: Scores, draws: PatientBootstrap, trained: int) -> tuple[Rows, float]:
    """(rows of TTT_COLUMNS, gain of r at the trained steps) of one lead set; no rows without a window."""
    by_step = {key: values for (kind, key), values in scores.leads.items() if kind == "ttt"}
    steps = [key for key in by_step if isinstance(key, int)]
    if not steps:
        return [], 0.0
    first, last = by_step[0], by_step[trained]
    closed = scores.method("closed_form").select(leads.headline)
    rows: Rows = []

    def add(kind: str, step: int | str, values: LeadScores, against: str, other: LeadScores | None) -> None:
        means = values.means()
        gain: tuple[float | str, ...] = ("", "", "") if other is None else draws.mean(values.r - other.r)
        row: dict[str, Any] = {"lead_set": leads.name, "step": step, "kind": kind, "against": against}
        row |= {"r": means["r"], "rmse_mv": means["rmse_mv"]}
        rows.append(row | dict(zip(("gain", "gain_low", "gain_high"), gain, strict=True)))

    add("w0", "", by_step["w0"], "step 0", first)
    for step in steps:
        add("ttt", step, by_step[step], "step 0" if step else "", first if step else None)
    if "record" in by_step:
        add("record", trained, by_step["record"], f"step {trained}", last)
    add("closed_form", "", closed, "step 0", first)
    return rows, last.means()["r"] - first.means()["r"]


def _metrics(rows: Rows, personal: Rows, gains: dict[str, float]) -> dict[str, Any]:
    out: dict[str, Any] = {"test": {}, "validation": {}, "ttt_gain_r": gains, "personal": {}}
    figures = ("r", "r_low", "r_high", "rmse_mv")
    for row in rows:
        if row["method"] in HEADLINE:
            names: tuple[str, ...] = figures if row["split"] == "test" else ("r",)
            if row["split"] == "test" and row["method"] == "model":
                names = (*figures, "coverage", "n_patients", *MARGIN_COLUMNS)
            of_set = out[row["split"]].setdefault(row["lead_set"], {})
            of_set[row["method"]] = {name: row[name] for name in names if name in row}
    for row in personal:
        if row["split"] == "test":
            of_set = out["personal"].setdefault(row["protocol"], {}).setdefault(row["lead_set"], {})
            of_set[row["method"]] = row["r"]
    return rounded(out)


def _examples(renderer: Renderer, data: Split, config: MissingLeadConfig) -> dict[str, Array]:
    """A few test windows of the best conditioned named set, for figures."""
    leads = min(named_sets(config.lead_sets), key=lambda s: s.geometry[1])
    rows = np.flatnonzero(leads.usable(data.observed) & data.observed.all(axis=1))
    rows = rows[:: max(1, len(rows) // EXAMPLES)][:EXAMPLES]
    if not len(rows):
        return {}
    ecg = data.read_ecg(rows)
    out = renderer.render_windows(given_only(ecg, leads.mask), leads.mask, batch_size=config.batch_size)
    return {
        "example_recorded": ecg,
        "example_rendered": np.asarray(out["leads"]),
        "example_vcg": np.asarray(out["vcg"]),
        "example_given": leads.mask,
    }
