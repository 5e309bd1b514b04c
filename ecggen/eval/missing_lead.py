"""Leads hidden and rendered: the model beside every baseline, by the same code.

Headline: hidden independent leads (I, II, V1..V6) that no algebra gives. Leads derivable by algebra are
reported apart (`algebra_r`). A lead that was in truth not recorded is never given and never scored; a window
that lacks a lead of the set is left out of that set, and `n_windows` says how many remain.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ecggen.eval.baselines import ClosedFormMethod, Method, ModelMethod, Training, baselines
from ecggen.eval.bootstrap import SUMMARY, PatientBootstrap
from ecggen.eval.evaluated import Evaluated
from ecggen.eval.lead_sets import LeadSet, all_sets, given_only, named_sets
from ecggen.eval.metrics import LeadScores, nanmean
from ecggen.eval.personal import PERSONAL_COLUMNS, OwnStates, personal
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
from ecggen.eval.ttt import TTT_COLUMNS, ttt
from ecggen.leads import LEADS
from ecggen.models.blocks import GAUSSIAN_90
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


def missing_lead(renderer: RendererLike, folder: FolderLike, rules: MissingLeadConfig) -> Result:
    """Tables lead_sets, per_lead, ttt, personal; headline metrics. Raises EvalError for an empty split."""
    check_split(folder, "train")
    splits = [Evaluated.read(folder, name, rules) for name in ("validation", "test")]
    training, methods = fitted_methods(renderer, folder, rules)
    result = Result()
    own = OwnStates()
    rows: Rows = []
    per_lead: Rows = []
    for leads in all_sets(rules.lead_sets, rules.leave_one_out):
        for data in splits:
            for method in methods:
                row, scores = evaluate(method, data, leads)
                rows.append(row)
                if isinstance(method, ModelMethod) and method.last_state is not None and row["n_windows"]:
                    own.keep(
                        data.split, leads.name, data.rows[leads.usable(data.observed)], method.last_state
                    )
                if data.split == "test":
                    per_lead += lead_rows(method.name, leads, scores, data.draws)
    result.add_table("lead_sets", SET_COLUMNS, rows)
    result.add_table("per_lead", LEAD_COLUMNS, per_lead)
    names = np.asarray(folder.record, dtype=str)[splits[1].rows]
    ttt_rows, gains = ttt(renderer, splits[1], names, rules)
    result.add_table("ttt", TTT_COLUMNS, ttt_rows)
    personal_rows = personal(renderer, folder, rules, training, own) if rules.personal else []
    result.add_table("personal", PERSONAL_COLUMNS, personal_rows)
    result.metrics = _metrics(rows, personal_rows, gains)
    result.arrays = {"fs": np.asarray(sampling_rate(folder)), **_examples(renderer, splits[1], rules)}
    return result


def fitted_methods(
    renderer: RendererLike, folder: FolderLike, rules: MissingLeadConfig
) -> tuple[Training, list[Method]]:
    """The training split, and the model and every baseline, fitted on it."""
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
    return training, methods


def evaluate(method: Method, data: Evaluated, leads: LeadSet) -> tuple[dict[str, Any], LeadScores]:
    """One row of SET_COLUMNS, and the scores [n, 12] of every hidden, truly recorded lead behind it."""
    rows = np.flatnonzero(leads.usable(data.observed))
    rendered = method.predict(data.ecg[rows], leads.mask) if len(rows) else data.ecg[rows]
    scores = data.scores(rendered, rows, leads)
    headline = scores.select(leads.headline)
    scored: Array = np.asarray(np.isfinite(headline.rmse).any(axis=1))
    rank, condition = leads.geometry
    std = method.last_std if isinstance(method, ModelMethod) and len(rows) else None
    row = {
        "split": data.split,
        "method": method.name,
        "lead_set": leads.name,
        **data.draws.summary(headline),
        "algebra_r": nanmean(scores.select(leads.derivable).r),
        "coverage": float("nan") if std is None else _coverage(data, rendered, std, rows, leads),
        "rank": rank,
        "condition": condition,
        "n_windows": int(scored.sum()),
        "n_patients": data.draws.patients_in(scored),
        "n_constant": int(headline.constant.sum()),
    }
    return row, scores


def _coverage(data: Evaluated, rendered: Array, std: Array, rows: Array, leads: LeadSet) -> float:
    """Share of samples of hidden independent leads within the interval that should hold 90 %."""
    inside = np.abs(data.ecg[rows] - rendered) <= GAUSSIAN_90 * std
    there = leads.headline & data.observed[rows]
    return float(inside[there].mean()) if there.any() else float("nan")


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
    out = renderer.render_windows(
        given_only(data.ecg[rows], leads.mask), leads.mask, batch_size=rules.batch_size
    )
    return {
        "example_recorded": data.ecg[rows],
        "example_rendered": np.asarray(out["leads"]),
        "example_vcg": np.asarray(out["vcg"]),
        "example_given": leads.mask,
    }
