"""A run in words, from what its stages left."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ecggen.eval.verdict import FEWEST_PATIENTS
from ecggen.utils.files import FileError, read_json

RESULT_STAGES = ("train", "reconstruction", "missing_lead", "linear_probe", "transfer")
Metrics = Mapping[str, Any]


def run_in_words(results: Path) -> list[str]:
    """What the last pipeline run achieved, line by line; stages without results are left out."""
    metrics = {stage: _metrics(results, stage) for stage in RESULT_STAGES}
    lines = []
    if train := metrics["train"]:
        lines.append(
            f"Trained {train.get('epochs', '?')} epochs on {train.get('train_windows', '?')} windows "
            f"({train.get('parameters', '?')} parameters); best validation r of hidden leads "
            f"{_number(train.get('validation_r'))}."
        )
    if whole := metrics["reconstruction"]:
        leads, dipole = (_number(_at(whole, "test", part, "r")) for part in ("leads", "dipole"))
        lines.append(
            f"All leads given: rendered leads r {leads}, the three-dimensional dipole alone {dipole} (test "
            "patients)."
        )
    if vcg := _at(whole, "vcg", "all"):
        others = ", ".join(f"{name} {_number(value)}" for name, value in vcg.items() if name != "model")
        lines.append(f"VCG against the recorded Frank leads: r {_number(vcg.get('model'))} ({others}).")
    missing = metrics["missing_lead"]
    lines += _table("Hidden leads, mean r on test patients", _at(missing, "test") or {})
    lines += _verdict_words(_at(missing, "test") or {})
    title = "Second half of a record, W held from its first half with all leads (model_personal)"
    lines += _table(title, _at(missing, "personal", "halves") or {})
    return lines + _probe_words(metrics["linear_probe"]) + _transfer_words(metrics["transfer"])


def _verdict_words(test: Metrics) -> list[str]:
    """What the paired intervals of the model's r less that of its best baseline show, by lead set."""
    sets: dict[str, list[str]] = {}
    for name in _named_sets(test):
        if verdict := _at(test, name, "model", "verdict"):
            patients = _at(test, name, "model", "n_patients")
            sets.setdefault(f"{verdict} ({patients})" if _few(patients) else verdict, []).append(name)
    each = "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in sets.items())
    return [f"Against the best baseline of each (paired, 95 % interval): {each}."] if each else []


def _probe_words(probe: Metrics) -> list[str]:
    scores, patients = _at(probe, "test") or {}, _at(probe, "patients", "test")
    if _few(patients):
        return [f"Linear probe: {patients} test patients are too few to state its AUROC."]
    each = ", ".join(f"{name} {_number(_at(scores, name, 'macro_auroc'))}" for name in scores)
    verdict, best = (_at(scores, "model", name) for name in ("verdict", "best_baseline"))
    against = f"; against {best}: {verdict}" if verdict else ""
    return [f"Linear probe, macro AUROC on test patients: {each}{against}."] if each else []


def _transfer_words(metrics: Metrics) -> list[str]:
    """One line per other database."""
    home, missing, lines = metrics.get("train", ""), metrics.get("missing_lead", {}), []
    for database, within in (metrics.get("lead_sets_within") or {}).items():
        each = ", ".join(
            f"{name} {_number(_at(missing, database, name, 'model', 'r'))} "
            f"({_number(_at(missing, home, name, 'model', 'r'))})"
            for name in _named_sets(missing.get(database, {}))
        )
        lines.append(
            f"Trained on {home}, tested on {database}: r is shown to be at most "
            f"{_number(metrics.get('margin'), 2)} below the own test in {within['within']} of {within['of']} "
            f"lead sets; r (own test): {each}."
        )
    return lines


def _table(title: str, test: Metrics) -> list[str]:
    """Lead sets down, methods across; r is the value of a method or its entry "r"."""
    import pandas as pd  # after the stages have set up threads

    sets = _named_sets(test)
    if not sets:
        return []
    table = pd.DataFrame({name: pd.Series(test[name], dtype=object) for name in sets}).T
    table = table.map(lambda value: _number(value.get("r") if isinstance(value, Mapping) else value))
    few = any(_few(_at(test, name, "model", "n_patients")) for name in sets)
    note = " (too few patients to conclude from)" if few else ""
    return [
        f"{title}{note}:",
        *(f"  {line}" for line in table.rename_axis("leads given", axis=1).to_string().split("\n")),
    ]


def _named_sets(test: Metrics) -> list[str]:
    """The lead sets but those that leave one lead out ("-V3")."""
    return [name for name in test if not name.startswith("-")]


def _metrics(results: Path, stage: str) -> Metrics:
    with suppress(FileError):
        content = read_json(results / stage / "metrics.json")
        return content if isinstance(content, dict) else {}
    return {}


def _at(metrics: Metrics, *keys: str) -> Any:
    value: Any = metrics
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _number(value: Any, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if isinstance(value, (int, float)) else "n/a"


def _few(patients: Any) -> bool:
    """Whether a known number of patients is too small to conclude anything."""
    return isinstance(patients, (int, float)) and patients < FEWEST_PATIENTS
