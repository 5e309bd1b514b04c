"""A model trained on one database, judged on others: the same protocols and baselines, side by side.

Baselines and probes are fitted on the training split of the home database alone; nothing is fitted, chosen or
scaled on another one. Every table has the columns `train` (home) and `database`; the home's own test split is
among the databases. `difference` is database less home, with the 95 % interval of two independent groups of
patients (`ecggen.eval.bootstrap.difference`); `within` says whether r lies at most MARGIN below home's;
`matched_r` is what home patients of the same diagnoses reach (`ecggen.eval.case_mix`).
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ecggen.eval.bootstrap import SUMMARY, PatientBootstrap, difference
from ecggen.eval.case_mix import MATCHED_COLUMNS, matched, strata
from ecggen.eval.evaluated import Evaluated
from ecggen.eval.judge import Asked, Judged, Scored, judged
from ecggen.eval.lead_sets import LeadSet, all_sets, given_only, named_sets
from ecggen.eval.metrics import LeadScores, nanmean, score_leads
from ecggen.eval.missing_lead import (
    HEADLINE,
    LEAD_COLUMNS,
    SET_COLUMNS,
    fitted_methods,
    lead_rows,
    method_scores,
    set_row,
)
from ecggen.eval.personal import (
    PERSONAL_COLUMNS,
    PROTOCOLS,
    Known,
    known_people,
    pair_draws,
    personal_rows,
)
from ecggen.eval.probe_features import record_labels
from ecggen.eval.reconstruction import best_subspace, fixed_dower
from ecggen.eval.result import (
    Array,
    EvalError,
    FolderLike,
    RendererLike,
    Result,
    Rows,
    check_split,
    rounded,
    sampling_rate,
)
from ecggen.eval.spread import Machines, Spread
from ecggen.eval.transfer_probe import PROBE_COLUMNS, transfer_probe
from ecggen.leads import INDEPENDENT_INDEX, LEADS
from ecggen.utils.config import MissingLeadConfig, TransferConfig
from ecggen.utils.seed import derive_seed

MARGIN = 0.03
WORST = 20  # records listed per database
PAIR = ("train", "database")
AGAINST_HOME = ("home_r", "difference", "difference_low", "difference_high", "within")
MISSING_COLUMNS = (*PAIR, *(c for c in SET_COLUMNS if c != "split"), *AGAINST_HOME, *MATCHED_COLUMNS)
PER_LEAD_COLUMNS = (*PAIR, *LEAD_COLUMNS)
PERSONAL_PAIR_COLUMNS = (*PAIR, *(c for c in PERSONAL_COLUMNS if c != "split"))
RECONSTRUCTION_COLUMNS = (*PAIR, "part", *SUMMARY, "n_windows", "n_patients", *AGAINST_HOME)
RECORD_COLUMNS = (*PAIR, "record", "labels", "r", "linear_regression", "best_subspace_3", "n_windows")
COUNTED = (
    *("records_listed", "records_absent", "records_unreadable", "records_without_window", "records"),
    *("patients", "windows", "windows_rejected"),
)
DATABASE_COLUMNS = (*PAIR, "kind", *COUNTED, "windows_rejected_by_reason")
TABLES = {
    "databases": DATABASE_COLUMNS,
    "missing_lead": MISSING_COLUMNS,
    "per_lead": PER_LEAD_COLUMNS,
    "reconstruction": RECONSTRUCTION_COLUMNS,
    "personal": PERSONAL_PAIR_COLUMNS,
    "probe": PROBE_COLUMNS,
    "worst_records": RECORD_COLUMNS,
}
#: What must agree between the windows that the model was trained on and those that it is tested on.
_PREPROCESSING = ("fs", "low_hz", "high_hz", "order")


@dataclass
class Database:
    """The test split of one database and what was measured on it."""

    name: str
    folder: FolderLike
    data: Evaluated
    rows: Rows = field(default_factory=list)  # MISSING_COLUMNS, without the comparison
    per_lead: Rows = field(default_factory=list)
    personal: Rows = field(default_factory=list)
    drawn: dict[tuple[str, str], tuple[float, Array]] = field(
        default_factory=dict
    )  # method or part, lead set
    model_r: dict[str, Array] = field(default_factory=dict)  # lead set -> [n, 12]
    record_r: dict[str, list[Array]] = field(default_factory=lambda: defaultdict(list))  # method -> [n] each


def transfer(
    renderer: RendererLike,
    home: FolderLike,
    others: Mapping[str, FolderLike],
    rules: TransferConfig,
    missing_lead: MissingLeadConfig,
    *,
    processes: int | Machines = 1,
) -> Result:
    """Tables TABLES, metrics by database. home: the folder the model was trained on; others: name -> folder.

    missing_lead: which lead sets, context and protocols. processes: see `ecggen.eval.spread.Spread`; the
    numbers do not depend on it. Without others the tables are empty and the metrics say so. Raises EvalError:
    an empty split, windows that were prepared in another way than the model's, or of the people whom it was
    trained on.
    """
    name = _home_name(home, others)
    result = Result()
    if not others:
        for table, columns in TABLES.items():
            result.add_table(table, columns, [])
        result.metrics = {"train": name, "databases": {}, "skipped": "no other database was named"}
        return result
    for other, folder in others.items():
        check_preprocessing(renderer, home, folder, other)
        check_other_people(home, folder, other)
    protocol = replace(missing_lead, batch_size=rules.batch_size, bootstrap=rules.bootstrap, seed=rules.seed)
    databases = [
        # A seed of its own: differences between databases are differences of independent draws.
        Database(n, f, Evaluated.read(f, "test", replace(protocol, seed=derive_seed(rules.seed, n))))
        for n, f in {name: home, **others}.items()
    ]
    check_split(home, "train")
    folders = {d.name: d.folder for d in databases}
    context = Judged(renderer, folders, fitted_methods(renderer, home, protocol), rules.batch_size)
    with Spread(context, renderer.device, processes) as spread:
        _judge_all(spread, databases, protocol)
        reconstructed = _reconstruction(spread, databases)
    tables: dict[str, Rows] = {
        "databases": [_counts(d) for d in databases],
        "missing_lead": _missing_lead(databases),
        "per_lead": [row for d in databases for row in d.per_lead],
        "reconstruction": reconstructed,
        "personal": [row for d in databases for row in d.personal],
        "worst_records": [row for d in databases for row in _worst(d)],
    }
    tables["probe"], probes = transfer_probe(renderer, home, others, name, rules, processes)
    for table, columns in TABLES.items():
        rows = [{"train": name, **row} for row in tables[table]]
        result.add_table(table, columns, rows)
    result.metrics = _metrics(name, result.tables, probes)
    return result


def check_preprocessing(renderer: RendererLike, home: FolderLike, folder: FolderLike, name: str) -> None:
    """Raises EvalError where a folder's windows were not made as the model's training windows were."""
    trained = dict(getattr(renderer, "preprocessing", None) or home.meta.get("preprocessing") or {})
    trained.setdefault("fs", sampling_rate(home))
    made = {"fs": sampling_rate(folder), **dict(folder.meta.get("preprocessing") or {})}
    pairs = {key: (trained.get(key), made.get(key)) for key in _PREPROCESSING}
    pairs["time_len"] = (home.windows.shape[2], folder.windows.shape[2])
    for key, (wanted, found) in pairs.items():
        if wanted is not None and found is not None and wanted != found:
            raise EvalError(
                f"The windows of database {name} were made with {key} {found:g}, those of the checkpoint "
                f"with {wanted:g}: make them again with the checkpoint's own preprocessing."
            )


def check_other_people(home: FolderLike, folder: FolderLike, name: str) -> None:
    """Raises EvalError where both folders hold recordings of the same people, as far as they say whose."""
    shared = _cohorts(home) & _cohorts(folder)
    if shared:
        raise EvalError(
            f"Database {name} holds recordings of {', '.join(sorted(shared))}, and so do the windows that "
            "the model was trained on: a test on them would be no test; leave it out."
        )


def _source(folder: FolderLike) -> Mapping[str, Any]:
    """What the windows' meta.json says of their source; empty where it says nothing."""
    source = folder.meta.get("source")
    return source if isinstance(source, Mapping) else {}


def _cohorts(folder: FolderLike) -> set[str]:
    return set(_source(folder).get("cohorts") or ())


def _home_name(home: FolderLike, others: Iterable[str]) -> str:
    name = str(_source(home).get("name") or "home")
    while name in others:
        name += " (trained on)"
    return name


def _counts(database: Database) -> dict[str, Any]:
    """What was listed, rejected and used, as the folder's own meta.json counts it."""
    meta = database.folder.meta
    counts = dict(meta.get("counts") or {})
    source = _source(database.folder)
    reasons = counts.get("windows_rejected_by_reason") or {}
    return {
        "database": database.name,
        "kind": str(source.get("kind") or source.get("source") or ""),
        **{key: counts.get(key, "") for key in COUNTED},
        "windows_rejected_by_reason": "; ".join(f"{word} {count}" for word, count in reasons.items()),
    }


def _judge_all(spread: Spread[Judged], databases: list[Database], rules: MissingLeadConfig) -> None:
    """Every method on every lead set of every database, kept in `databases`.

    Personal rendering on the named lead sets: with one precordial lead missing little is left to learn.
    """
    named = {leads.name for leads in named_sets(rules.lead_sets)}
    asked: list[tuple[Database, Asked, list[Known], dict[str, PatientBootstrap]]] = []
    for d in databases:
        known = known_people(spread, d.name, d.data.rows) if rules.personal else []
        draws = pair_draws(d.folder, known, rules.bootstrap, rules.seed)
        records = np.array([str(d.folder.record[row]) for row in d.data.rows])
        alone = d.data.cut(d.name, records, rules.batch_size, [])
        whole = d.data.cut(d.name, records, rules.batch_size, known)
        for leads in all_sets(rules.lead_sets, rules.leave_one_out):
            people = known if leads.name in named else []
            asked.append((d, Asked(whole if people else alone, leads), people, draws))
    scores = judged(spread, [each for _, each, _, _ in asked])
    for (d, each, known, draws), scored in zip(asked, scores, strict=True):
        for method in spread.context.methods:
            _judge(d, method.name, each.leads, scored)
        for row in personal_rows("test", each.leads, known, d.data.rows, scored, draws):
            d.personal.append({"database": d.name, **{key: row[key] for key in row if key != "split"}})
    for d in databases:
        d.personal.sort(key=lambda row: PROTOCOLS.index(row["protocol"]))


def _missing_lead(databases: list[Database]) -> Rows:
    home, rows = databases[0], []
    for d in databases:
        groups = strata(home.folder, home.data, d.folder, d.data)
        for row in d.rows:
            what, name = str(row["method"]), str(row["lead_set"])
            found = {"database": d.name, **row, **_against_home(home, d, what, name)}
            if d is not home and what == "model":
                found |= matched(groups, home.model_r[name], home.data.draws, d.model_r[name], d.data.draws)
            rows.append(found)
    return rows


def _judge(database: Database, method: str, leads: LeadSet, scored: Scored) -> None:
    """One method on one lead set, kept in `database`."""
    data = database.data
    scores = method_scores(scored, method, len(data.rows))
    row = set_row(method, data, leads, scores, scored.covered)
    del row["split"]
    database.rows.append(row)
    shown = lead_rows(method, leads, scores, data.draws)
    database.per_lead += [{"database": database.name, **found} for found in shown]
    headline = scores.select(leads.headline)
    database.drawn[method, leads.name] = data.draws.sampled(headline.r)
    if method == "model":
        database.model_r[leads.name] = headline.r
    if method in ("model", "linear_regression"):
        database.record_r[method].append(_row_means(headline))


def _row_means(scores: LeadScores) -> Array:
    """[n] mean r of each window; NaN where nothing was scored."""
    return np.array([nanmean(row) for row in scores.r])


def _against_home(home: Database, other: Database, what: str, lead_set: str) -> dict[str, Any]:
    first, second = other.drawn[what, lead_set], home.drawn[what, lead_set]
    if other is home:
        return {"home_r": second[0]}
    apart, low, high = difference(first, second)
    within = "" if np.isnan(apart) else "yes" if apart >= -MARGIN else "no"
    return {
        "home_r": second[0],
        "difference": apart,
        "difference_low": low,
        "difference_high": high,
        "within": within,
    }


def _all_leads(context: Judged, job: tuple[str, Array]) -> dict[str, LeadScores]:
    """A job: all leads of rows [k] given; the rendering, its dipole, the best that three dimensions do."""
    name, rows = job
    folder = context.folders[name]
    observed = np.asarray(folder.observed[rows], dtype=bool)
    ecg = given_only(np.asarray(folder.windows[rows]), observed)
    out = context.renderer.render_windows(ecg, observed, batch_size=context.batch_size)
    eight = np.isin(np.arange(len(LEADS)), INDEPENDENT_INDEX)
    whole: Array = np.asarray(observed[:, eight].all(axis=1))
    complete = observed & whole[:, None]
    parts = {
        "leads": (np.asarray(out["leads"]), observed),
        "dipole": (np.asarray(out["dipole"]), observed),
        "fixed_dower": (fixed_dower(ecg), complete),
        "best_subspace_3": (best_subspace(ecg, 3), complete),
    }
    return {part: score_leads(ecg, rendered, scored & eight) for part, (rendered, scored) in parts.items()}


def _reconstruction(spread: Spread[Judged], databases: list[Database]) -> Rows:
    rows: Rows = []
    most = spread.context.batch_size
    cuts = {
        d.name: [np.arange(at, min(at + most, len(d.data.rows))) for at in range(0, len(d.data.rows), most)]
        for d in databases
    }
    results = spread.map(_all_leads, [(d.name, d.data.rows[at]) for d in databases for at in cuts[d.name]])
    for database in databases:
        data, places = database.data, cuts[database.name]
        found = list(itertools.islice(results, len(places)))
        for part in found[0]:
            parts = [(at, each[part]) for at, each in zip(places, found, strict=True)]
            scores = LeadScores.joined(parts, len(data.rows))
            used: Array = np.asarray(np.isfinite(scores.rmse).any(axis=1))
            database.drawn[part, ""] = data.draws.sampled(scores.r)
            if part == "best_subspace_3":
                database.record_r[part].append(_row_means(scores))
            row = {"database": database.name, "part": part, **data.draws.summary(scores)}
            row |= {"n_windows": int(used.sum()), "n_patients": data.draws.patients_in(used)}
            rows.append(row | _against_home(databases[0], database, part, ""))
    return rows


def _worst(database: Database) -> Rows:
    """The records with the lowest mean r of the model over all lead sets.

    Beside it linear regression's, and the best that any three dimensions do for all eight leads of the
    record: where that is low as well, the record holds what no dipole makes.
    """
    names = np.asarray(database.folder.record, dtype=str)[database.data.rows]
    means = {
        method: np.array([nanmean(values) for values in np.stack(found, axis=1)])
        for method, found in database.record_r.items()
    }
    labels = record_labels(database.folder)
    rows: Rows = []
    for name in np.unique(names):
        own = names == name
        row: dict[str, Any] = {"database": database.name, "record": name, "n_windows": int(own.sum())}
        row["labels"] = ";".join(sorted(labels.get(str(name), ())))
        row |= {"r" if key == "model" else key: nanmean(values[own]) for key, values in means.items()}
        if np.isfinite(row["r"]):
            rows.append(row)
    return sorted(rows, key=lambda row: row["r"])[:WORST]


def _metrics(name: str, tables: Mapping[str, Rows], probes: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {
        "train": name,
        "margin": MARGIN,
        "databases": {},
        "missing_lead": {},
        "reconstruction": {},
    }
    out |= {"personal": {}, "probe": probes}
    for row in tables["databases"]:
        shown = (*COUNTED, "windows_rejected_by_reason")
        out["databases"][row["database"]] = {key: row[key] for key in shown if row[key] != ""}
    measures = ("r", "r_low", "r_high", "rmse_mv", "mae_mv", "snr_db", "coverage")
    kept = (*measures, *AGAINST_HOME[1:-1], *MATCHED_COLUMNS)
    for row in tables["missing_lead"]:
        if row["method"] in HEADLINE:
            of_set = out["missing_lead"].setdefault(row["database"], {}).setdefault(row["lead_set"], {})
            names = kept if row["method"] == "model" else ("r", "difference")
            of_set[row["method"]] = {key: row[key] for key in names if key in row}
    for row in tables["reconstruction"]:
        of_database = out["reconstruction"].setdefault(row["database"], {})
        of_database[row["part"]] = {key: row[key] for key in ("r", "difference") if key in row}
    for row in tables["personal"]:
        of_database = out["personal"].setdefault(row["database"], {})
        of_set = of_database.setdefault(row["protocol"], {}).setdefault(row["lead_set"], {})
        of_set[row["method"]] = row["r"]
    judged = [r for r in tables["missing_lead"] if r["method"] == "model" and r.get("within")]
    out["lead_sets_within"] = {
        database: {
            "within": sum(r["within"] == "yes" for r in judged if r["database"] == database),
            "of": sum(r["database"] == database for r in judged),
        }
        for database in dict.fromkeys(r["database"] for r in judged)
    }
    return rounded(out)
