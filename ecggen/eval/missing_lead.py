"""Leads hidden and rendered: the model beside every baseline, by the same code.

Headline: hidden independent leads (I, II, V1..V6) that no algebra gives. Leads derivable by algebra are
reported apart (`algebra_r`). A lead that was in truth not recorded is never given and never scored; a window
that lacks a lead of the set is left out of that set, and `n_windows` says how many remain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ecggen.eval.baselines import ClosedFormMethod, Method, ModelMethod, Training, baselines
from ecggen.eval.bootstrap import SUMMARY, PatientBootstrap
from ecggen.eval.lead_sets import LeadSet, all_sets, given_only, named_sets
from ecggen.eval.metrics import LeadScores, nanmean, score_leads
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
TTT_COLUMNS = ("lead_set", "step", "kind", "r", "rmse_mv")
HEADLINE = ("model", "closed_form", "linear_regression", "linear_regression_context", "mean_beat")
EXAMPLES = 3


@dataclass
class Evaluated:
    """One split, read once, with the draws that all methods share."""

    split: str
    rows: Array  # [n] rows of the folder, ascending
    ecg: Array  # [n, 12, T] mV
    observed: Array  # [n, 12] bool
    draws: PatientBootstrap

    @classmethod
    def read(cls, folder: FolderLike, split: str, rules: MissingLeadConfig) -> Evaluated:
        """Raises EvalError when the split is empty."""
        rows = check_split(folder, split)
        patients = np.asarray(folder.patient, dtype=str)[rows].tolist()
        return cls(
            split,
            rows,
            np.asarray(folder.windows[rows], dtype=np.float32),
            np.asarray(folder.observed[rows], dtype=bool),
            PatientBootstrap(patients, rules.bootstrap, rules.seed),
        )

    def scores(self, rendered: Array, rows: Array, leads: LeadSet) -> LeadScores:
        """rendered [len(rows), 12, T] -> scores [n, 12] of hidden, truly recorded leads of these rows."""
        part = score_leads(self.ecg[rows], rendered, leads.hidden & self.observed[rows])
        full: list[Array] = []
        for values in (part.r, part.mse, part.mae, part.snr):
            whole = np.full(self.observed.shape, np.nan)
            whole[rows] = values
            full.append(whole)
        constant = np.zeros(self.observed.shape, dtype=bool)
        constant[rows] = part.constant
        return LeadScores(full[0], full[1], full[2], full[3], constant)


def missing_lead(renderer: RendererLike, folder: FolderLike, rules: MissingLeadConfig) -> Result:
    """Tables lead_sets, per_lead, ttt, personal; headline metrics. Raises EvalError for an empty split."""
    check_split(folder, "train")
    splits = [Evaluated.read(folder, name, rules) for name in ("validation", "test")]
    training = Training(
        folder.windows,
        folder.rows("train"),
        np.asarray(folder.observed),
        sampling_rate(folder),
        rules.context,
    )
    methods: list[Method] = [
        ModelMethod(renderer, rules.batch_size),
        ClosedFormMethod(renderer),
        *baselines(rules.context),
    ]
    for method in methods:
        method.fit(training)
    result = Result()
    own = OwnStates()
    rows: Rows = []
    per_lead: Rows = []
    for leads in all_sets(rules.lead_sets, rules.leave_one_out):
        for data in splits:
            for method in methods:
                row, scores = _evaluate(method, data, leads)
                rows.append(row)
                if isinstance(method, ModelMethod) and method.last_state is not None and row["n_windows"]:
                    own.keep(
                        data.split, leads.name, data.rows[leads.usable(data.observed)], method.last_state
                    )
                if data.split == "test":
                    per_lead += _lead_rows(method.name, leads, scores, data.draws)
    result.add_table("lead_sets", SET_COLUMNS, rows)
    result.add_table("per_lead", LEAD_COLUMNS, per_lead)
    ttt_rows, gains = _ttt(renderer, splits[1], rules)
    result.add_table("ttt", TTT_COLUMNS, ttt_rows)
    personal_rows = personal(renderer, folder, rules, training, own) if rules.personal else []
    result.add_table("personal", PERSONAL_COLUMNS, personal_rows)
    result.metrics = _metrics(rows, personal_rows, gains)
    result.arrays = {"fs": np.asarray(sampling_rate(folder)), **_examples(renderer, splits[1], rules)}
    return result


def _evaluate(method: Method, data: Evaluated, leads: LeadSet) -> tuple[dict[str, Any], LeadScores]:
    rows = np.flatnonzero(leads.usable(data.observed))
    rendered = method.predict(data.ecg[rows], leads.mask) if len(rows) else data.ecg[rows]
    scores = data.scores(rendered, rows, leads)
    headline = scores.select(leads.headline)
    scored: Array = np.asarray(np.isfinite(headline.mse).any(axis=1))
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


def _lead_rows(method: str, leads: LeadSet, scores: LeadScores, draws: PatientBootstrap) -> Rows:
    out = []
    for index in np.flatnonzero(leads.hidden):
        summary = draws.summary(scores.select(np.arange(len(LEADS)) == index))
        out.append({"method": method, "lead_set": leads.name, "lead": LEADS[index], **summary})
    return out


def start_state(renderer: RendererLike) -> Array | None:
    """[S], the learned start W0 of a renderer's model, nothing guessed or remembered; None without one."""
    start = getattr(renderer.model, "start", None)
    return None if start is None else np.asarray(start.detach().cpu().numpy())


def trained_steps(renderer: RendererLike) -> int:
    """K, the inner steps that the model was trained with."""
    return int(renderer.config.model.ttt.steps)


def _ttt(renderer: RendererLike, data: Evaluated, rules: MissingLeadConfig) -> tuple[Rows, dict[str, float]]:
    """Error at W0, at every inner step (0 = W0 plus the guess) and of the closed form, on the test split."""
    rows: Rows = []
    gains: dict[str, float] = {}
    trained = trained_steps(renderer)
    start = start_state(renderer)
    for leads in named_sets(rules.lead_sets):
        usable = np.flatnonzero(leads.usable(data.observed))
        ecg = given_only(data.ecg[usable], leads.mask)

        def add(
            kind: str, step: int | str, rendered: Array, leads: LeadSet = leads, usable: Array = usable
        ) -> float:
            means = data.scores(rendered, usable, leads).select(leads.headline).means()
            row = {"lead_set": leads.name, "step": step, "kind": kind}
            rows.append(row | {"r": means["r"], "rmse_mv": means["rmse_mv"]})
            return means["r"]

        if not len(usable):
            continue
        if start is not None:
            held = np.tile(start, (len(ecg), 1))
            out = renderer.render_windows(ecg, leads.mask, state=held, batch_size=rules.batch_size)
            add("w0", "", out["leads"])
        by_step = {}
        last = max(rules.ttt_steps, trained)
        path = _state_path(renderer, ecg, leads.mask, last, rules.batch_size)
        for step in range(last + 1):
            # A held state renders as the loop that led to it would, without running the loop again.
            choice: dict[str, Any] = {"steps": step} if path is None else {"state": path[step]}
            out = renderer.render_windows(ecg, leads.mask, batch_size=rules.batch_size, **choice)
            by_step[step] = add("ttt", step, out["leads"])
        add("closed_form", "", renderer.closed_form_windows(ecg, leads.mask))
        gains[leads.name] = by_step[trained] - by_step[0]
    return rows, gains


def _state_path(
    renderer: RendererLike, ecg: Array, given: Array, steps: int, batch_size: int
) -> Array | None:
    """[steps + 1, n, S], the state after each step of one run; None if the renderer cannot tell."""
    path = getattr(renderer, "state_path", None)
    return None if path is None else np.asarray(path(ecg, given, steps=steps, batch_size=batch_size))


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
