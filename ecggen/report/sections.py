"""The results that the report shows and what its page needs besides their tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ecggen.data.quality.flags import FLAGS
from ecggen.eval.verdict import TOO_FEW
from ecggen.leads import parse_lead_set
from ecggen.report.summary import numbers
from ecggen.report.tables import Cell, Table, cell, column, label, number_text, of_split, read_frame
from ecggen.utils.config import Config, config_to_dict, flatten
from ecggen.utils.errors import EcggenError
from ecggen.utils.files import FACTS, read_facts, read_json

STAGES = ("train", "reconstruction", "missing_lead", "linear_probe", "transfer")
SPLITS = ("train", "validation", "test")
NO_SPLIT = "in no split"
#: Tables about records and windows: name -> folder, file.
QUALITY_FILES = {
    "records": ("records", "records.csv"),
    "spans": ("records", "spans.csv"),
    "rejected_records": ("records", "rejected.csv"),
    "rejected_labels": ("records", "rejected_labels.csv"),
    "unknown_leads": ("records", "unknown_leads.csv"),
    "index": ("windows", "index.csv"),
    "rejected_windows": ("windows", "rejected.csv"),
}


class ReportError(EcggenError):
    """Results or a sample that cannot be reported."""


@dataclass(frozen=True)
class Results:
    """What the stages left on disk; whatever is absent is empty."""

    folder: Path
    tables: dict[str, dict[str, pd.DataFrame]]  # stage -> table
    facts: dict[str, dict[str, str]]  # stage -> what no table holds
    meta: dict[str, Any]  # meta.json of the windows
    records_meta: dict[str, Any]  # meta.json of the records
    quality: dict[str, pd.DataFrame]  # see QUALITY_FILES

    @classmethod
    def read(cls, results: Path, windows: Path) -> Results:
        """Raises ReportError where no stage has left anything, FileError for a broken file."""
        tables = {
            stage: {
                path.stem: read_frame(path)
                for path in sorted((results / stage).glob("*.csv"))
                if path.name != FACTS
            }
            for stage in STAGES
        }
        facts = {stage: read_facts(results / stage / FACTS) for stage in STAGES}
        if not any(tables.values()) and not any(facts.values()):
            raise ReportError(
                f"There are no results in {results}: run the evaluations first, for example with dvc repro."
            )
        folders = {"records": windows.parent / "records", "windows": windows}
        quality = {name: read_frame(folders[key] / file) for name, (key, file) in QUALITY_FILES.items()}
        meta, records_meta = (_json(folders[key] / "meta.json") for key in ("windows", "records"))
        return cls(results, tables, facts, meta, records_meta, quality)

    def table(self, stage: str, name: str) -> pd.DataFrame:
        """Test-split rows of a table."""
        return of_split(self.tables.get(stage, {}).get(name, pd.DataFrame()))


def _json(path: Path) -> dict[str, Any]:
    content = read_json(path) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


#: What the first screen shows: title, number and its margin (ecggen.report.summary).
_CARDS = (
    ("Hidden leads from {}, mean r", "r_{}", "margin"),
    ("The same with the person known", "person_{}", "person_margin"),
    ("Linear probe, macro AUROC", "auroc", "auroc_margin"),
)


def headline(results: Results, config: Config) -> dict[str, Any]:
    """Three numbers of the run with their intervals and paired margins, on `report.lead_set`.

    cards: title, text (empty: not measured), interval, few (too few patients), n_patients; margin, verdict
    and baseline where there is a difference.
    """
    lead_set = "+".join(parse_lead_set(config.report.lead_set))
    known = {number.name: number for number in numbers(results.folder, lead_set)}
    if f"r_{lead_set}" not in known:  # not scored: the largest set that is
        lead_set = next((name[2:] for name in reversed(known) if name.startswith("r_")), lead_set)
    cards = []
    for title, name, margin in _CARDS:
        card: dict[str, Any] = {"title": title.format(lead_set), "text": ""}
        number, difference = known.get(name.format(lead_set)), known.get(margin)
        if number:
            shown = cell({"r": number.value, "r_low": number.low, "r_high": number.high}, "r")
            card |= {"text": shown.text, "interval": shown.interval, "few": number.verdict == TOO_FEW}
            card["n_patients"] = number_text(number.n_patients, 0)
        if number and difference:
            values = {"gain": difference.value, "gain_low": difference.low, "gain_high": difference.high}
            card |= {"margin": cell(values, "gain"), "verdict": difference.verdict}
            card["baseline"] = difference.words.rpartition("less that of ")[2].removeprefix("the ")
        cards.append(card)
    return {"lead_set": lead_set, "cards": cards}


def source(results: Results, config: Config) -> str:
    """The data source in words."""
    given = results.meta.get("source") or config.data.source
    facts = given if isinstance(given, Mapping) else {"kind": given}
    kind, name = str(facts.get("kind") or facts.get("source", "")), str(facts.get("name", ""))
    if "synthetic" in (kind, name):
        return "the embedded synthetic data set"
    # The folder name only: a path says more about a machine than about the data.
    name = name if kind in ("physionet", "several") else Path(name).name
    words = {
        "wfdb": "local WFDB records",
        "physionet": "the PhysioNet database",
        "table": "the records listed in",
        "several": "the databases",
    }.get(kind, kind or "unnamed records")
    return f"{words} {name}".strip()


def plain_facts(mapping: Mapping[str, Any], names: Callable[[str], str] = label) -> dict[str, str]:
    """Names in words, values as text; nothing nested by name, and no place on somebody's disk."""

    def text(value: Any) -> str:
        if isinstance(value, str):  # as a table holds it
            with suppress(ValueError):
                value = float(value)
        if isinstance(value, (list, tuple)):
            return ", ".join(map(text, value))
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return f"{value:g}" if abs(value) < 1e5 or value != int(value) else number_text(value, 0)
        if isinstance(value, Mapping):
            return ", ".join(f"{name} {text(item)}" for name, item in value.items())
        return str(value)

    shown = {names(name): text(value) for name, value in mapping.items() if name != "by_database"}
    return {
        name: value
        for name, value in shown.items()
        if value and not re.search(r"(^|[\s:,])(/|[A-Za-z]:\\|~)", value)
    }


def data_facts(results: Results, config: Config) -> dict[str, dict[str, str]]:
    """What the windows are, how they were made, and every setting, by title."""
    meta = results.meta
    described = {
        "Source": source(results, config),
        "Sampling rate": f"{float(meta.get('fs', config.data.fs)):g} Hz",
        "Window": f"{meta.get('time_len', config.data.time_len)} samples",
        "Split": str(meta.get("split_rule") or ""),
        "Label system": str(meta.get("label_system") or ""),
        "Classes": ", ".join(map(str, meta.get("label_classes", []))),
        "Fingerprint of the windows (SHA-256)": str(meta.get("fingerprint") or ""),
    }
    settings = {
        name: value for name, value in flatten(config_to_dict(config)).items() if value not in ("", [])
    }
    return {
        "Windows and fingerprint": {name: value for name, value in described.items() if value},
        "Preprocessing": plain_facts(meta.get("preprocessing") or {}),
        "Settings": plain_facts(settings, str),
    }


def counts_in_words(counts: Mapping[str, Any]) -> list[str]:
    """Sentences on how many records, patients and windows there are."""
    if "windows" not in counts:
        return []
    told = [f"{counts.get('records', '?')} records of {counts.get('patients', '?')} patients"]
    told += [f"give {counts['windows']} windows; {counts.get('windows_rejected', 0)} were left out."]
    kinds = ("windows", "records", "patients")
    splits = [
        f"{split} {', '.join(f'{n} {kind}' for kind, n in numbers.items())}"
        for split in SPLITS
        if (numbers := {k: n for k in kinds if (n := counts.get(f"{k}_by_split", {}).get(split))})
    ]
    out = [" ".join(told)] + ["By split: " + "; ".join(splits) + "."] * bool(splits)
    lost = {
        "unreadable": "cannot be read",
        "absent": "are absent",
        "without_window": "are too short for a window",
    }
    words = [f"{n} {word}" for name, word in lost.items() if (n := counts.get(f"records_{name}"))]
    return out + ["Of the records listed, " + ", ".join(words) + "."] * bool(words)


def patient_notes(results: Results) -> list[tuple[str, int, int]]:
    """(database, records that count as patients of their own, records) where nothing says whose they are."""
    for meta in (results.meta, results.records_meta):
        databases = {**meta, **(meta.get("counts") or {})}.get("by_database") or {}
        notes = [
            (name, int(alone), int(counts.get("records", alone)))
            for name, counts in databases.items()
            if (alone := (counts.get("patients_from") or {}).get("record"))
        ]
        if notes:
            return notes
    return []


def reason_tables(results: Results) -> list[Table]:
    """Reasons of what was dropped and flags of what was kept: counted by split, and by database if known."""
    records, index = results.quality["records"], results.quality["index"]

    def entries(data: pd.DataFrame, key: str, value: str) -> dict[str, str]:
        return dict(zip(column(data, key), column(data, value), strict=True))

    split_of, split_of_patient = entries(index, "record", "split"), entries(index, "patient", "split")
    patient_of, database_of = entries(records, "record", "patient"), entries(records, "record", "database")
    parts = {
        "Dropped": results.quality["rejected_windows"],
        "Kept with a flag": index[column(index, "reasons") != ""].rename(columns={"reasons": "reason"}),
    }
    out = []
    for title, rows in parts.items():
        if rows.empty:
            continue
        record = rows["record"]
        split = record.map(split_of).fillna(record.map(patient_of).map(split_of_patient)).replace("", None)
        database = column(rows, "database").replace("", None).fillna(record.map(database_of)).fillna("")
        out.append(_reason_table(rows["reason"], split.fillna(NO_SPLIT), f"{title}, by split"))
        if (database != "").any():
            out.append(_reason_table(rows["reason"], database, f"{title}, by database"))
    return out


def _reason_table(texts: pd.Series, groups: pd.Series, caption: str) -> Table:
    """One line per reason, one column per group, and the leads it most often names.

    texts: flags such as "algebra;noise:V2", or a sentence about a record.
    """
    each = pd.DataFrame({"reason": texts.map(_reasons), "group": groups, "row": range(len(texts))})
    each = each.explode("reason").dropna(subset="reason")
    each = each.assign(lead=each["reason"].str[1], reason=each["reason"].str[0])
    once = each.drop_duplicates(["row", "reason"])
    counts = pd.crosstab(once["reason"], once["group"])
    order = [*SPLITS, *sorted(set(counts) - {*SPLITS, NO_SPLIT, ""}), NO_SPLIT]
    shown = [name for name in order if name in counts]
    rows = []
    for reason in sorted(counts.index, key=lambda reason: (-counts.loc[reason].sum(), reason)):
        leads = each["lead"][(each["reason"] == reason) & (each["lead"] != "")].value_counts().head(4)
        most = ", ".join(f"{lead} {n}" for lead, n in leads.items())
        numbers = [counts.loc[reason].sum(), *counts.loc[reason, shown]]
        rows.append([Cell(str(entry)) for entry in (reason, *numbers, most)])
    return Table(caption, ["Reason", "All", *shown, "Most often"], rows)


def _reasons(text: str) -> list[tuple[str, str]]:
    """Flags and the leads that they name; a sentence is one reason."""
    words = [word.partition(":")[::2] for word in text.split(";") if word]
    return words if all(flag in FLAGS for flag, _ in words) else [(text, "")]


def ttt_steps(rows: pd.DataFrame) -> pd.DataFrame:
    """The table `ttt` with columns step_name, r_step and rmse_step: steps differ in the fourth digit only."""
    words = {"closed_form": "closed form", "w0": "start W0", "record": "all windows of the record"}
    steps = column(rows, "step").map(lambda step: f"step {step:.0f}")
    names = column(rows, "kind").map(words).fillna(steps)
    return rows.assign(step_name=names, r_step=column(rows, "r"), rmse_step=column(rows, "rmse_mv"))
