"""The few numbers that runs are compared by, and a run in words: python -m ecggen.report.summary."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ecggen.utils.config import flatten
from ecggen.utils.files import FileError, read_json

#: Stage -> (pattern over its flattened metrics, name of the number). "{stage}." is put in front.
_HEADLINES: dict[str, tuple[tuple[str, str], ...]] = {
    "window": ((r"counts\.windows|windows", "windows"),),
    "train": ((r"(validation_r|validation_r_personal|best_epoch|parameters)", r"\1"),),
    "reconstruction": (
        (r"test\.(leads|dipole)\.r", r"\1.r"),
        (r"vcg\.all\.(model)", r"vcg.\1.r"),
    ),
    "missing_lead": (
        (r"test\.([^-].*)\.model\.r", r"\1.r"),
        (r"personal\.(.+)\.model_personal", r"personal.\1.r"),
        (r"ttt_gain_r\.(.+)", r"ttt_gain_r.\1"),
    ),
    "linear_probe": ((r"test\.(model|random_encoder)\.macro_auroc", r"\1.macro_auroc"),),
    "transfer": (
        (r"missing_lead\.([^.]+)\.([^-].*)\.model\.(r|difference)", r"\1.\2.\3"),
        (r"lead_sets_within\.([^.]+)\.within", r"\1.lead_sets_within"),
    ),
}
TOO_FEW = "too few patients"  # as ecggen.eval.bootstrap.verdict has it
RESULT_STAGES = ("train", "reconstruction", "missing_lead", "linear_probe", "transfer")


def headline(stage: str, metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of one stage that runs are compared by, named "stage.number"; unknown metrics give none."""
    out = {}
    for key, value in flatten(dict(metrics)).items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        for pattern, name in _HEADLINES.get(stage, ()):
            found = re.fullmatch(pattern, key)
            if found and "-V" not in key:  # leave-one-out sets stay in the tables
                out[f"{stage}.{found.expand(name)}"] = float(value)
    return out


def headlines(results: Path) -> dict[str, float]:
    """The numbers of every stage that has written results/STAGE/metrics.json."""
    out: dict[str, float] = {}
    for stage in RESULT_STAGES:
        out |= headline(stage, _metrics(results, stage))
    return out


def _metrics(results: Path, stage: str) -> dict[str, Any]:
    try:
        found = read_json(results / stage / "metrics.json")
    except FileError:
        return {}
    return found if isinstance(found, dict) else {}


def _at(metrics: Mapping[str, Any], *keys: str) -> Any:
    value: Any = metrics
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _number(value: Any, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if isinstance(value, (int, float)) else "n/a"


def words(results: Path) -> list[str]:
    """What the last pipeline run achieved, line by line; stages without results are left out."""
    lines = []
    train, whole = _metrics(results, "train"), _metrics(results, "reconstruction")
    missing, probe = _metrics(results, "missing_lead"), _metrics(results, "linear_probe")
    if train:
        lines.append(
            f"Trained {train.get('epochs', '?')} epochs on {train.get('train_windows', '?')} windows "
            f"({train.get('parameters', '?')} parameters); best validation r of hidden leads "
            f"{_number(train.get('validation_r'))}."
        )
    if whole:
        lines.append(
            f"All leads given: rendered leads r {_number(_at(whole, 'test', 'leads', 'r'))}, the "
            f"three-dimensional dipole alone {_number(_at(whole, 'test', 'dipole', 'r'))} (test patients)."
        )
    vcg = _at(whole, "vcg", "all") or {}
    if vcg:
        beside = ", ".join(f"{name} {_number(value)}" for name, value in vcg.items() if name != "model")
        lines.append(f"VCG against the recorded Frank leads: r {_number(vcg.get('model'))} ({beside}).")
    table = _missing_table(_at(missing, "test") or {})
    if table:
        lines += ["Hidden leads, mean r on test patients:", *table]
        lines += _verdict_words({name: row.get("model") or {} for name, row in missing["test"].items()})
    table = _missing_table(_at(missing, "personal", "halves") or {})
    if table:
        lines += [
            "Second half of a record, W held from its first half with all leads (model_personal):",
            *table,
        ]
    scores = _at(probe, "test") or {}
    verdict = _at(scores, "model", "verdict")
    if verdict == TOO_FEW:
        lines.append(f"Linear probe: {_at(probe, 'patients', 'test')} test patients are too few to say.")
    elif scores:
        each = ", ".join(f"{name} {_number(_at(scores, name, 'macro_auroc'))}" for name in scores)
        best = f"; against {_at(scores, 'model', 'best_baseline')}: {verdict}" if verdict else ""
        lines.append(f"Linear probe, macro AUROC on test patients: {each}{best}.")
    return lines + _transfer_words(_metrics(results, "transfer"))


def _verdict_words(models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the paired intervals of the model's r less that of its best baseline show, by lead set."""
    sets: dict[str, list[str]] = {}
    for name, row in models.items():
        if row.get("verdict") and not name.startswith("-"):
            words = (
                f"too few patients ({row.get('n_patients')})" if row["verdict"] == TOO_FEW else row["verdict"]
            )
            sets.setdefault(words, []).append(name)
    each = "; ".join(f"{words}: {', '.join(names)}" for words, names in sets.items())
    return [f"Against the best baseline of each (paired, 95 % interval): {each}."] if each else []


def _transfer_words(metrics: Mapping[str, Any]) -> list[str]:
    """One line per other database."""
    home, missing = metrics.get("train", ""), _at(metrics, "missing_lead") or {}
    lines = []
    for database, within in (_at(metrics, "lead_sets_within") or {}).items():
        r = {
            name: [_number(_at(missing, place, name, "model", "r")) for place in (database, home)]
            for name in missing.get(database, {})
            if not name.startswith("-")
        }
        each = ", ".join(f"{name} {there} ({here})" for name, (there, here) in r.items())
        lines.append(
            f"Trained on {home}, tested on {database}: r is shown to be at most "
            f"{_number(metrics.get('margin'), 2)} below the own test in {within['within']} of {within['of']} "
            f"lead sets; r (own test): {each}."
        )
    return lines


def _r(value: Any) -> Any:
    return value.get("r") if isinstance(value, Mapping) else value


def _missing_table(test: Mapping[str, Any]) -> list[str]:
    sets = [name for name in test if not name.startswith("-")]
    methods = list(dict.fromkeys(method for name in sets for method in test[name]))
    if not sets:
        return []
    wide = max(len(name) for name in (*sets, "leads given"))
    width = max(17, *(len(method) for method in methods))
    out = ["  " + "leads given".ljust(wide) + "".join(f"  {method:>{width}}" for method in methods)]
    for name in sets:
        cells = "".join(f"  {_number(_r(_at(test, name, method))):>{width}}" for method in methods)
        out.append("  " + name.ljust(wide) + cells)
    return out


def main() -> int:
    """Print the words. Exit code 1 when there are no results."""
    results = Path("results")
    lines = words(results)
    if not lines:
        print("error: no results in ./results: run dvc repro (or make run) first.", file=sys.stderr)
        return 1
    print("\n" + "\n".join(lines))
    print("\nWhere to look")
    print("  results/report/report.html   the run on one page: tables and figures")
    print("  results/*/metrics.json       the numbers; *.csv beside them: the tables")
    print("  mlflow ui                    parameters, curves and files of every run (http://127.0.0.1:5000)")
    print("  dvc exp run -S model.tokenizer_mode=rr    a next experiment; dvc exp show compares")
    return 0


if __name__ == "__main__":
    sys.exit(main())
