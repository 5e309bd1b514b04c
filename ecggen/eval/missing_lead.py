"""Leads hidden and rendered: the model beside every baseline, by the same code.

Headline: hidden independent leads (I, II, V1..V6) that no algebra gives. Leads derivable by algebra are
reported apart (`algebra_r`). A lead that was in truth not recorded is never given and never scored; a window
that lacks a lead of the set is left out of that set, and `n_windows` says how many remain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ecggen.eval.baselines import ClosedFormMethod, Method, ModelMethod, Training, baselines
from ecggen.eval.bootstrap import SUMMARY, PatientBootstrap
from ecggen.eval.evaluated import Evaluated
from ecggen.eval.judge import Asked, Judged, Scored, judged, trained_steps
from ecggen.eval.lead_sets import LeadSet, all_sets, given_only, named_sets
from ecggen.eval.metrics import LeadScores, nanmean
from ecggen.eval.personal import PERSONAL_COLUMNS, PROTOCOLS, known_people, pair_draws, personal_rows
from ecggen.eval.result import (
    Array,
    FolderLike,
    RendererLike,
    Result,
    Rows,
    check_split,
    rounded,
    sampling_rate,
)
from ecggen.eval.spread import Machines, Spread
from ecggen.eval.ttt import TTT_COLUMNS, asked_steps, ttt_rows
from ecggen.leads import LEADS
from ecggen.utils.config import MissingLeadConfig

SET_COLUMNS = (
    "split",
    "method",
    "lead_set",
    *SUMMARY,
    "algebra_r",
    "coverage",
    "rank",
    "condition",
    "n_windows",
    "n_patients",
    "n_constant",
)
LEAD_COLUMNS = ("method", "lead_set", "lead", *SUMMARY)
HEADLINE = ("model", "closed_form", "linear_regression", "linear_regression_context", "mean_beat")
EXAMPLES = 3


def missing_lead(
    renderer: RendererLike, folder: FolderLike, rules: MissingLeadConfig, *, processes: int | Machines = 1
) -> Result:
    """Tables lead_sets, per_lead, ttt, personal; headline metrics. Raises EvalError for an empty split.

    processes: see `ecggen.eval.spread.Spread`; the numbers do not depend on it.
    """
    check_split(folder, "train")
    splits = [Evaluated.read(folder, name, rules) for name in ("validation", "test")]
    sets = all_sets(rules.lead_sets, rules.leave_one_out)
    context = Judged(renderer, {"": folder}, fitted_methods(renderer, folder, rules), rules.batch_size)
    tables: dict[str, Rows] = {"lead_sets": [], "per_lead": [], "ttt": [], "personal": []}
    gains: dict[str, float] = {}
    with Spread(context, renderer.device, processes) as spread:
        known = {d.split: known_people(spread, "", d.rows) if rules.personal else [] for d in splits}
        draws = {name: pair_draws(folder, each, rules.bootstrap, rules.seed) for name, each in known.items()}
        # Test first: its jobs are the longest.
        pairs = [(leads, data) for leads in sets for data in splits[::-1]]
        records = {d.split: np.array([str(folder.record[row]) for row in d.rows]) for d in splits}
        cuts = {d.split: d.cut("", records[d.split], rules.batch_size, known[d.split]) for d in splits}
        asked = []
        for leads, data in pairs:
            steps = asked_steps(renderer, leads, rules) if data.split == "test" else ()
            each = bool(steps) and data.several(records[data.split], leads)
            asked.append(Asked(cuts[data.split], leads, steps, each))
        for (leads, data), scored in zip(pairs, judged(spread, asked), strict=True):
            for method in context.methods:
                scores = method_scores(scored, method.name, len(data.rows))
                tables["lead_sets"].append(set_row(method.name, data, leads, scores, scored.covered))
                if data.split == "test":
                    tables["per_lead"] += lead_rows(method.name, leads, scores, data.draws)
            if data.split == "test":
                rows, gain = ttt_rows(leads, scored, data.draws, trained_steps(renderer))
                tables["ttt"] += rows
                gains |= {leads.name: gain} if rows else {}
            own = known[data.split], data.rows, scored, draws[data.split]
            tables["personal"] += personal_rows(data.split, leads, *own)
    result = Result()
    _in_order(tables, sets)
    columns = {"lead_sets": SET_COLUMNS, "per_lead": LEAD_COLUMNS, "ttt": TTT_COLUMNS}
    for name, rows in tables.items():
        result.add_table(name, columns.get(name, PERSONAL_COLUMNS), rows)
    result.metrics = _metrics(tables["lead_sets"], tables["personal"], gains)
    result.arrays = {"fs": np.asarray(sampling_rate(folder)), **_examples(renderer, splits[1], rules)}
    return result


def _in_order(tables: dict[str, Rows], sets: Sequence[LeadSet]) -> None:
    """Sort rows as the tables are read; they came in the order in which jobs are best begun."""
    at = {leads.name: index for index, leads in enumerate(sets)}
    splits = ("validation", "test")
    tables["lead_sets"].sort(key=lambda row: (at[row["lead_set"]], splits.index(row["split"])))
    tables["personal"].sort(
        key=lambda row: (splits.index(row["split"]), PROTOCOLS.index(row["protocol"]), at[row["lead_set"]])
    )


def fitted_methods(renderer: RendererLike, folder: FolderLike, rules: MissingLeadConfig) -> list[Method]:
    """The model and every baseline, fitted on the training split, ready for every lead set."""
    rows = folder.rows("train")
    training = Training(
        folder.windows, rows, np.asarray(folder.observed), sampling_rate(folder), rules.context
    )
    methods: list[Method] = [
        ModelMethod(renderer, rules.batch_size),
        ClosedFormMethod(renderer),
        *baselines(rules.context),
    ]
    for method in methods:
        method.fit(training)
        for leads in all_sets(rules.lead_sets, rules.leave_one_out):
            method.prepare(leads.mask)
    return methods


def method_scores(scored: Scored, method: str, count: int) -> LeadScores:
    """Scores [count, 12] of one method; NaN where no window holds the given leads."""
    found = scored.scores.get(("method", method))
    return LeadScores.joined([], count) if found is None else found


def set_row(
    method: str, data: Evaluated, leads: LeadSet, scores: LeadScores, covered: Array | None
) -> dict[str, Any]:
    """One row of SET_COLUMNS from the scores [n, 12] of every hidden, truly recorded lead.

    covered [n, 2], of the model: samples within its own 90 % interval, and all.
    """
    headline = scores.select(leads.headline)
    scored: Array = np.asarray(np.isfinite(headline.rmse).any(axis=1))
    rank, condition = leads.geometry
    inside, every = (0, 0) if covered is None or method != "model" else covered.sum(axis=0).tolist()
    return {
        "split": data.split,
        "method": method,
        "lead_set": leads.name,
        **data.draws.summary(headline),
        "algebra_r": nanmean(scores.select(leads.derivable).r),
        "coverage": inside / every if every else float("nan"),
        "rank": rank,
        "condition": condition,
        "n_windows": int(scored.sum()),
        "n_patients": data.draws.patients_in(scored),
        "n_constant": int(headline.constant.sum()),
    }


def lead_rows(method: str, leads: LeadSet, scores: LeadScores, draws: PatientBootstrap) -> Rows:
    """Rows of LEAD_COLUMNS, one per hidden lead."""
    out = []
    for index in np.flatnonzero(leads.hidden):
        summary = draws.summary(scores.select(np.arange(len(LEADS)) == index))
        out.append({"method": method, "lead_set": leads.name, "lead": LEADS[index], **summary})
    return out


def _metrics(rows: Rows, personal_rows: Rows, gains: dict[str, float]) -> dict[str, Any]:
    keep = ("r", "r_low", "r_high", "rmse_mv")
    out: dict[str, Any] = {"test": {}, "validation": {}, "ttt_gain_r": gains, "personal": {}}
    for row in rows:
        if row["method"] in HEADLINE:
            of_set = out[row["split"]].setdefault(row["lead_set"], {})
            names = keep if row["split"] == "test" else ("r",)
            of_set[row["method"]] = {name: row[name] for name in names}
            if row["split"] == "test" and row["method"] == "model":
                of_set["model"]["coverage"] = row["coverage"]
    for row in personal_rows:
        if row["split"] == "test":
            of_set = out["personal"].setdefault(row["protocol"], {}).setdefault(row["lead_set"], {})
            of_set[row["method"]] = row["r"]
    return rounded(out)


def _examples(renderer: RendererLike, data: Evaluated, rules: MissingLeadConfig) -> dict[str, Array]:
    """A few test windows of the best conditioned named set, for figures."""
    leads = min(named_sets(rules.lead_sets), key=lambda s: s.geometry[1])
    rows = np.flatnonzero(leads.usable(data.observed) & data.observed.all(axis=1))
    rows = rows[:: max(1, len(rows) // EXAMPLES)][:EXAMPLES]
    if not len(rows):
        return {}
    ecg = data.read_ecg(rows)
    out = renderer.render_windows(given_only(ecg, leads.mask), leads.mask, batch_size=rules.batch_size)
    return {
        "example_recorded": ecg,
        "example_rendered": np.asarray(out["leads"]),
        "example_vcg": np.asarray(out["vcg"]),
        "example_given": leads.mask,
    }
