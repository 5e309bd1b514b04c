"""A model trained on one database, scored on others: the same protocols and baselines, side by side.

Baselines and probes are fitted on the training split of the home database alone; nothing is fitted, chosen or
scaled on another one. Every table has the columns `train` (home) and `database`; the home's own test split is
among the databases. `difference` is database less home, with the 95 % interval of two independent groups of
patients; `within` says whether that interval shows r to be at most MARGIN below home's ("yes"), further below
("no") or neither ("not shown"); `matched_r` is what home patients of the same diagnoses reach, see
`ecggen.eval.case_mix`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ecggen.eval.bootstrap import SUMMARY, Estimate
from ecggen.eval.case_mix import MATCHED_COLUMNS, matched, strata
from ecggen.eval.lead_sets import all_sets, independent, recorded_windows
from ecggen.eval.linear_probe import linear_probe
from ecggen.eval.metrics import LeadScores, nanmean, row_means, score_leads
from ecggen.eval.missing_lead import (
    LEAD_COLUMNS,
    SET_COLUMNS,
    fitted_methods,
    lead_rows,
    missing_lead,
    set_rows,
)
from ecggen.eval.personal import PERSONAL_COLUMNS, PROTOCOLS, people, personal_rows
from ecggen.eval.probe_features import record_labels
from ecggen.eval.reconstruction import part_row, rendered_parts
from ecggen.eval.result import Array, EvalError, Renderer, Result, Rows, WindowFolder, check_split
from ecggen.eval.score import Scoring, Split, score_sets
from ecggen.eval.transfer_probe import PROBE_COLUMNS, transfer_probe
from ecggen.eval.verdict import FEWEST_PATIENTS
from ecggen.eval.workers import Workers, row_task
from ecggen.utils.config import LinearProbeConfig, MissingLeadConfig, TransferConfig
from ecggen.utils.seed import derive_seed

MARGIN = 0.03
WORST = 20  # records listed per database
WORST_METHODS = ("model", "linear_regression")  # of these
PAIR = ("train", "database")
AGAINST_HOME = ("home_r", "difference", "difference_low", "difference_high", "within")
COUNTED = (
    *("records_listed", "records_absent", "records_unreadable", "records_without_window", "records"),
    *("patients", "windows", "windows_rejected"),
)
TABLES = {
    "databases": (*PAIR, "kind", *COUNTED, "windows_rejected_by_reason", "not_compared"),
    "missing_lead": (*PAIR, *(c for c in SET_COLUMNS if c != "split"), *AGAINST_HOME, *MATCHED_COLUMNS),
    "per_lead": (*PAIR, *LEAD_COLUMNS),
    "reconstruction": (*PAIR, "part", *SUMMARY, "n_windows", "n_patients", "n_constant", *AGAINST_HOME),
    "personal": (*PAIR, *(c for c in PERSONAL_COLUMNS if c != "split")),
    "probe": PROBE_COLUMNS,
    "worst_records": (
        *(*PAIR, "record", "labels", "r", "linear_regression", "best_subspace_3", "n_windows"),
    ),
}
#: Parts of the rendering from all leads that are scored, see `rendered_parts`.
PARTS = ("leads", "dipole", "fixed_dower", "best_subspace_3")
#: What must agree between the windows that the model was trained on and those that it is tested on.
_PREPROCESSING = ("fs", "low_hz", "high_hz", "order")


@dataclass
class Database:
    """The test split of one database and what was measured on it."""

    name: str
    folder: WindowFolder
    data: Split
    not_compared: list[str]  # what neither side says: see `check_preprocessing`
    r: dict[tuple[str, str], Estimate] = field(default_factory=dict)  # method or part, lead set
    #: Method or part -> lead set -> r [n, 12].
    window_r: dict[str, dict[str, Array]] = field(default_factory=lambda: defaultdict(dict))


@dataclass
class AtHome:
    """What was measured on the folder that the model was trained on."""

    missing_lead: Result
    linear_probe: Result

    @classmethod
    def of(
        cls, renderer: Renderer, home: WindowFolder, protocol: MissingLeadConfig, processes: int | str = 1
    ) -> AtHome:
        """Measured now. Raises EvalError for an empty split."""
        protocol = replace(protocol, ttt_lead_sets=[], validation=False)
        probe = LinearProbeConfig()
        return cls(
            missing_lead(renderer, home, protocol, processes=processes),
            linear_probe(renderer, home, probe, processes=processes),
        )

    @classmethod
    def read(cls, results: str | Path) -> AtHome:
        """From the folders that the evaluations wrote."""
        return cls(*(Result.read(Path(results) / name) for name in ("missing_lead", "linear_probe")))


def transfer(
    renderer: Renderer,
    home: WindowFolder,
    others: Mapping[str, WindowFolder],
    config: TransferConfig,
    protocol: MissingLeadConfig,
    at_home: AtHome | None = None,
    *,
    processes: int | str = 1,
) -> Result:
    """Tables TABLES. home: the folder the model was trained on; others: name -> folder.

    protocol: which lead sets, context and protocols. at_home: what was measured on the home folder, computed
    now where it is not at hand. processes: see `ecggen.eval.workers.Workers`; the numbers do not depend on
    it. Without others the tables are empty and the facts say so. Raises EvalError: an empty split, windows
    that were prepared in another way than the model's, or of the people whom it was trained on.
    """
    name = str(_source(home).get("name") or "home")
    while name in others:
        name += " (trained on)"
    result = Result(columns=TABLES)
    if not others:
        result.facts = {"train": name, "skipped": "no other database was named"}
        return result
    unknown = {
        other: check_preprocessing(renderer, home, folder, other) + check_other_people(home, folder, other)
        for other, folder in others.items()
    }
    folders = {name: home, **others}
    databases = []
    for database, folder in folders.items():
        # A seed of its own: differences between databases are differences of independent draws.
        data = Split.read(folder, "test", config.bootstrap, derive_seed(config.seed, database))
        databases.append(Database(database, folder, data, unknown.get(database, [])))
    check_split(home, "train")
    at_home = at_home or AtHome.of(renderer, home, protocol, processes)
    context = Scoring(renderer, folders, fitted_methods(renderer, home, protocol), config.batch_size)
    with Workers(context, renderer.device, processes) as workers:
        tables = _hidden_leads(workers, databases, config, protocol, at_home.missing_lead)
        tables["reconstruction"] = _reconstruction(workers, databases)
    tables["databases"] = [_counts(d) for d in databases]
    tables["worst_records"] = [row for d in databases for row in _worst(d)]
    tables["probe"], unprobed = transfer_probe(
        renderer, home, others, name, config, at_home.linear_probe, processes
    )
    result.tables = {table: [{"train": name, **row} for row in tables[table]] for table in TABLES}
    result.facts = {"train": name, "margin": MARGIN, "not_probed": unprobed}
    return result


def check_preprocessing(renderer: Renderer, home: WindowFolder, folder: WindowFolder, name: str) -> list[str]:
    """What could not be compared, because one side does not say it. Raises EvalError where a folder's windows
    were not made as the model's training windows were."""
    trained = dict(getattr(renderer, "preprocessing", None) or home.meta.get("preprocessing") or {})
    trained.setdefault("fs", home.fs)
    other = {"fs": folder.fs, **dict(folder.meta.get("preprocessing") or {})}
    pairs = {key: (trained.get(key), other.get(key)) for key in _PREPROCESSING}
    pairs["time_len"] = (home.windows.shape[2], folder.windows.shape[2])
    for key, (needed, actual) in pairs.items():
        if needed is not None and actual is not None and needed != actual:
            raise EvalError(
                f"The windows of database {name} were made with {key} {actual:g}, those of the checkpoint "
                f"with {needed:g}: make them again with the checkpoint's own preprocessing."
            )
    return [key for key, pair in pairs.items() if None in pair]


def check_other_people(home: WindowFolder, folder: WindowFolder, name: str) -> list[str]:
    """["people"] where a side does not say whose recordings it holds. Raises EvalError where both hold
    recordings of the same people."""
    cohorts = [set(_source(each).get("cohorts") or ()) for each in (home, folder)]
    shared = cohorts[0] & cohorts[1]
    if shared:
        raise EvalError(
            f"Database {name} holds recordings of {', '.join(sorted(shared))}, and so do the windows that "
            "the model was trained on: a test on them would be no test; leave it out."
        )
    return [] if all(cohorts) else ["people"]


def _source(folder: WindowFolder) -> Mapping[str, Any]:
    """What the windows' meta.json says of their source; empty where it says nothing."""
    source = folder.meta.get("source")
    return source if isinstance(source, Mapping) else {}


def _counts(database: Database) -> dict[str, Any]:
    """What was listed, rejected and used, as the folder's own meta.json counts it."""
    counts = dict(database.folder.meta.get("counts") or {})
    source = _source(database.folder)
    reasons = counts.get("windows_rejected_by_reason") or {}
    return {
        "database": database.name,
        "kind": str(source.get("kind") or source.get("source") or ""),
        **{key: counts.get(key, "") for key in COUNTED},
        "windows_rejected_by_reason": "; ".join(f"{word} {count}" for word, count in reasons.items()),
        "not_compared": ", ".join(database.not_compared),
    }


def _home_rows(home: Database, measured: Result) -> dict[str, Rows]:
    """The rows of the home database, from what `missing_lead` measured on its test split."""
    for name, r in (measured.arrays or {}).items():
        lead_set, method = name.split("/")
        home.r[method, lead_set] = home.data.draws.estimate(r)
        if method in WORST_METHODS:
            home.window_r[method][lead_set] = r
    tables: dict[str, Rows] = {}
    for table, source in (("missing_lead", "lead_sets"), ("per_lead", "per_lead"), ("personal", "personal")):
        rows = [dict(row) for row in measured.tables[source] if row.pop("split", "test") == "test"]
        tables[table] = [{"database": home.name, **row} for row in rows]
    for row in tables["missing_lead"]:
        row["home_r"] = row["r"]
    tables["personal"] = [row for row in tables["personal"] if not row["lead_set"].startswith("-")]
    return tables


def _hidden_leads(
    workers: Workers[Scoring],
    databases: list[Database],
    config: TransferConfig,
    protocol: MissingLeadConfig,
    at_home: Result,
) -> dict[str, Rows]:
    """Tables missing_lead, per_lead and personal: every method on every lead set of every database.

    Personal rendering on the named lead sets: with one precordial lead missing little is left to learn.
    """
    home, *others = databases
    names = [d.name for d in databases]
    tables = _home_rows(home, at_home)
    sets = []
    for d in others:
        if protocol.personal:
            d.data.people = people(workers, d.name, d.data.rows, config)
        for leads in all_sets(protocol.lead_sets, protocol.leave_one_out):
            data = replace(d.data, people=()) if leads.leaves_one_out else d.data
            sets.append((d.name, data, leads, ()))
    mixes = {d.name: strata(home.folder, home.data, d.folder, d.data) for d in others}
    for scores in score_sets(workers, sets):
        d, name = databases[names.index(scores.folder)], scores.leads.name
        rows, r = set_rows(scores)
        d.r |= {(method, name): estimate for method, estimate in r.items()}
        for method in WORST_METHODS:
            d.window_r[method][name] = scores.headline(method).r
        for row in rows:
            row |= _against_home(home, d, row["method"], name, row["n_patients"])
            if row["method"] == "model":
                there = d.window_r["model"][name], d.data.draws
                row |= matched(mixes[d.name], home.window_r["model"][name], home.data.draws, *there)
        parts = {"missing_lead": rows, "per_lead": lead_rows(scores), "personal": personal_rows(scores)}
        for table, part in parts.items():
            tables[table] += [{"database": d.name, **row} for row in part]
    tables["personal"].sort(key=lambda row: (names.index(row["database"]), PROTOCOLS.index(row["protocol"])))
    return tables


def _against_home(home: Database, other: Database, what: str, lead_set: str, patients: int) -> dict[str, Any]:
    """AGAINST_HOME of a method or part on a lead set; patients: those scored in the other database."""
    at_home, there = home.r[what, lead_set], other.r[what, lead_set]
    if other is home:
        return {"home_r": at_home.value}
    difference = there - at_home
    within = _within(*difference.interval, patients) if np.isfinite(difference.value) else ""
    return {"home_r": at_home.value, **difference.cells(*AGAINST_HOME[1:4]), "within": within}


def _within(low: float, high: float, patients: int) -> str:
    """What the interval of a difference shows about MARGIN."""
    if patients < FEWEST_PATIENTS:
        return "not shown"
    return "yes" if low >= -MARGIN else "no" if high < -MARGIN else "not shown"


def _all_leads(context: Scoring, job: tuple[str, Array]) -> dict[str, Array]:
    """A job: all leads of rows [k] given; scores [k, 12, 4] of the rendering, its dipole, the best that three
    dimensions do."""
    name, rows = job
    ecg, observed = recorded_windows(context.folders[name], rows)
    out = context.renderer.render_windows(ecg, observed, batch_size=context.batch_size)
    parts = rendered_parts(ecg, observed, out)
    return {part: score_leads(ecg, parts[part][0], parts[part][1] & independent()).values for part in PARTS}


def _reconstruction(workers: Workers[Scoring], databases: list[Database]) -> Rows:
    size = workers.context.batch_size
    tasks = [row_task(_all_leads, d.data.rows, size, d.name) for d in databases]
    rows: Rows = []
    for d, measured in zip(databases, workers.measure(tasks), strict=True):
        for part in PARTS:
            scores = LeadScores(measured[part])
            d.r[part, ""] = d.data.draws.estimate(scores.r)
            if part == "best_subspace_3":
                d.window_r[part][""] = scores.r
            row = {"database": d.name, "part": part, **part_row(scores, d.data.draws)}
            rows.append(row | _against_home(databases[0], d, part, "", row["n_patients"]))
    return rows


def _worst(database: Database) -> Rows:
    """The records with the lowest mean r of the model over all lead sets.

    Beside it linear regression's, and the best that any three dimensions do for all eight leads of the
    record: where that is low as well, no dipole makes what the record holds.
    """
    records, labels = database.data.records, record_labels(database.folder)
    means = {
        method: row_means(np.stack([row_means(r) for r in of_sets.values()], axis=1))
        for method, of_sets in database.window_r.items()
    }
    rows: Rows = []
    for name in np.unique(records):
        windows = records == name
        row: dict[str, Any] = {"database": database.name, "record": name, "n_windows": int(windows.sum())}
        row["labels"] = ";".join(sorted(labels.get(str(name), ())))
        row |= {"r" if key == "model" else key: nanmean(values[windows]) for key, values in means.items()}
        if np.isfinite(row["r"]):
            rows.append(row)
    return sorted(rows, key=lambda row: row["r"])[:WORST]
