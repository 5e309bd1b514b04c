"""What stands in each section of the report: results in, HTML out. An absent table becomes a sentence."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ecggen.leads import parse_lead_set
from ecggen.report import html as h
from ecggen.report.tables import Row, is_model, label, left_out, number, of_split, ordered, protocol_words
from ecggen.utils.config import Config
from ecggen.utils.errors import EcggenError
from ecggen.utils.files import read_csv, read_json

STAGES = ("train", "reconstruction", "missing_lead", "linear_probe", "transfer")


class ReportError(EcggenError):
    """Results or a sample that cannot be reported."""


@dataclass(frozen=True)
class Results:
    """What the stages left on disk; whatever is absent is empty."""

    tables: dict[str, dict[str, list[dict[str, str]]]]  # stage -> table -> rows
    metrics: dict[str, dict[str, Any]]  # stage -> metrics.json
    meta: dict[str, Any]  # meta.json of the windows
    rejected: dict[str, list[dict[str, str]]]  # "records", "windows" -> rows
    judged: dict[str, list[dict[str, str]]] = field(default_factory=dict)  # records, spans, index -> rows

    @classmethod
    def read(cls, results: Path, windows: Path) -> Results:
        """Raises ReportError where no stage has left anything, FileError for a broken file."""
        folders = {stage: results / stage for stage in STAGES}
        tables = {
            stage: {path.stem: read_csv(path) for path in sorted(folder.glob("*.csv"))}
            for stage, folder in folders.items()
        }
        metrics = {stage: _json(folder / "metrics.json") for stage, folder in folders.items()}
        if not any(tables.values()) and not any(metrics.values()):
            raise ReportError(
                f"There are no results in {results}: run the evaluations first, for example with dvc repro."
            )
        quality = cls.read_quality(windows)
        return cls(tables, metrics, quality.meta, quality.rejected, quality.judged)

    @classmethod
    def read_quality(cls, windows: Path) -> Results:
        """Only what the windows and the records beside them say of themselves."""
        paths = {"records": windows.parent / "records" / "rejected.csv", "windows": windows / "rejected.csv"}
        rejected = {name: read_csv(path) if path.is_file() else [] for name, path in paths.items()}
        paths = {name: windows.parent / "records" / f"{name}.csv" for name in ("records", "spans")}
        paths["index"] = windows / "index.csv"
        judged = {name: read_csv(path) if path.is_file() else [] for name, path in paths.items()}
        return cls({}, {}, _json(windows / "meta.json"), rejected, judged)

    def table(self, stage: str, name: str) -> list[Row]:
        """Test-split rows of a table."""
        return of_split(self.tables[stage].get(name, []))


def _json(path: Path) -> dict[str, Any]:
    content = read_json(path) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


def _value(row: Row, column: str = "r", unit: str = "") -> str:
    return h.cell(row, column) + (f" {unit}" if unit else "")


def headline(found: Results, config: Config, sample: Mapping[str, Any] | None) -> str:
    """The run in a few sentences; sample: numbers of the one real ECG."""
    rows = found.table("missing_lead", "lead_sets")
    sets = ordered(rows, "lead_set")
    lead_set = "+".join(parse_lead_set(config.report.lead_set))
    if sets and lead_set not in sets:
        lead_set = sets[0]
    chosen = [row for row in rows if row.get("lead_set") == lead_set]
    own = next((row for row in chosen if is_model(row.get("method"))), None)
    lines = []
    if own:
        lines.append(
            f"From {lead_set} alone, ecggen renders the hidden leads of {_value(own, 'n_patients')} test "
            f"patients with a mean r of {_value(own)} and an RMSE of {_value(own, 'rmse_mv')} mV."
        )
        others = [
            row for row in chosen if not is_model(row.get("method")) and math.isfinite(number(row.get("r")))
        ]
        if others:
            best = max(others, key=lambda row: number(row.get("r")))
            word = "above" if number(own.get("r")) > number(best.get("r")) else "not above"
            lines.append(f"That is {word} its best baseline, {label(best['method'])} ({_value(best)}).")
    macro = [row for row in found.table("linear_probe", "probe") if row.get("class") == "macro"]
    own = next((row for row in macro if is_model(row.get("method", row.get("features")))), None)
    if own:
        lines.append(
            f"A linear probe on its frozen features reaches a macro AUROC of {_value(own, 'auroc')}."
        )
    if sample:
        lines.append(
            f"One real ECG, rendered from {sample['lead_set']}: mean r {h.format_number(sample['r_mean'])} "
            "over its hidden independent leads."
        )
    where = source(found, config)
    lines.append(f"Trained and tested on {where}.")
    if "synthetic" in where:
        lines.append(
            "A synthetic heart is simpler than a patient: these numbers do not carry over to real records."
        )
    return h.paragraph(" ".join(lines), "lead")


def source(found: Results, config: Config) -> str:
    """The data source in words."""
    given = found.meta.get("source") or config.data.source
    if isinstance(given, Mapping):
        kind, name = str(given.get("kind") or given.get("source", "")), str(given.get("name", ""))
    else:
        kind, name = str(given), ""
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


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(item) for item in value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:g}" if abs(value) < 1e5 or value != int(value) else h.format_number(value, 0)
    return str(value)


def _pairs(mapping: Mapping[str, Any]) -> dict[str, str]:
    """Names with blanks, values as text; nothing that looks like a place on somebody's disk."""
    shown = {str(name).replace("_", " "): _plain(value) for name, value in mapping.items()}
    return {name: text for name, text in shown.items() if not re.match(r"^(/|[A-Za-z]:\\|~)", text)}


def data(found: Results, config: Config) -> str:
    """Source, counts, preprocessing and fingerprint of the windows."""
    meta = found.meta
    described = {
        "Source": source(found, config),
        "Sampling rate": f"{float(meta.get('fs', config.data.fs)):g} Hz",
        "Window": f"{meta.get('time_len', config.data.time_len)} samples",
        "Label system": meta.get("label_system", ""),
        "Classes": ", ".join(map(str, meta.get("label_classes", []))),
        "Fingerprint of the windows (SHA-256)": meta.get("fingerprint", ""),
    }
    counts, preprocessing = meta.get("counts") or {}, meta.get("preprocessing") or {}
    inside = h.facts(described) + "<h3>Counts</h3>" + h.facts(_pairs(counts))
    return inside + "<h3>Preprocessing</h3>" + h.facts(_pairs(preprocessing))


def training(found: Results) -> str:
    """Final numbers of the training."""
    metrics = {
        name: value for name, value in found.metrics["train"].items() if not isinstance(value, Mapping)
    }
    return h.facts(_pairs(metrics))


def missing(found: Results) -> str:
    """Hidden leads by lead set, beside the baselines."""
    rows = found.table("missing_lead", "lead_sets")
    single = [row for row in rows if left_out(row.get("lead_set"))]
    several = [row for row in rows if not left_out(row.get("lead_set"))]
    words = h.paragraph(
        "Judged are hidden independent leads (I, II, V1 to V6) that no algebra gives, in mV on the recorded "
        "scale; limb leads that two given limb leads fix exactly are reported apart. Brackets: 95 % "
        "bootstrap intervals over patients. Rank and condition number say what the given leads can see of a "
        "three-dimensional "
        "source: below rank 3 one direction is invisible, and a large number means that it is barely seen. "
        "Coverage: the share of samples within the model's own 90 % interval.",
        "soft",
    )
    extra = ("coverage", "rank", "condition")
    out = words + h.pivot(several, "lead_set", "method", "r", extra=extra, caption="Mean r, test split")
    if single:
        out += h.pivot(
            single, "lead_set", "method", "r", extra=extra, caption="Mean r, one precordial lead hidden"
        )
    columns = (
        "lead_set",
        "method",
        "r",
        "rmse_mv",
        "mae_mv",
        "snr_db",
        "algebra_r",
        "coverage",
        "n_windows",
        "n_patients",
    )
    if rows:
        out += h.details("All measures", h.table(rows, columns, caption="Test split"))
    leads = [row for row in found.table("missing_lead", "per_lead") if is_model(row.get("method"))]
    if leads:
        caption = "ecggen, r per hidden lead, by leads given"
        out += h.details("Lead by lead", h.pivot(leads, "lead", "lead_set", "r", caption=caption, mark=""))
    return out


def personal(found: Results) -> str:
    """Rendering with a reference of the same person."""
    rows = found.table("missing_lead", "personal")
    words = h.paragraph(
        "All leads are recorded once, the state is estimated from them and held, and a later recording of "
        "few leads is rendered; with a reference of another day the state is trusted as far as that has been "
        "worth it between days. Beside it: the state before the first inner step (one pass); the same model "
        "without a reference; memory, the part of the state that needs no network (the beat and the "
        "covariances of the reference); and linear regression fitted to the reference.",
        "soft",
    )
    if not rows:
        return words + h.paragraph(f"Personal rendering: {h.ABSENT}.")
    parts = []
    for protocol in ordered(rows, "protocol") or [""]:
        chosen = [row for row in rows if str(row.get("protocol") or "") == protocol]
        caption = f"Mean r of hidden leads; reference: {protocol_words(protocol)}"
        parts.append(h.pivot(chosen, "lead_set", "method", "r", extra=("days", "n"), caption=caption))
        own = chosen[0]["method"]  # of the protocol: what the others are compared with
        others = [dict(row) for row in chosen if row.get("gain_low") and row["method"] != own]
        gains = [row | {"over": label(row["method"])} for row in others]
        title = f"How much higher r of “{label(own)}” is, paired by window, 95 % interval over patients"
        columns = ("lead_set", "over", "personal_gain")
        parts.append(h.details(title, h.table(gains, columns)) if gains else "")
    return words + "\n".join(parts)


def ttt(found: Results) -> str:
    """Error at every inner step."""
    rows = [dict(row) for row in found.table("missing_lead", "ttt")]
    words = {"closed_form": "closed form", "w0": "start W0", "record": "all windows of the record"}
    for row in rows:
        kind = str(row.get("kind", "ttt"))
        # Steps can differ in the fourth digit only.
        row["r_step"], row["rmse_step"] = row.get("r"), row.get("rmse_mv")
        row["column"] = words.get(kind, f"step {h.format_number(row.get('step'), 0)}")
    out = "".join(
        h.pivot(rows, "lead_set", "column", column, caption=f"{name} of hidden leads, test split", mark=mark)
        for column, name, mark in (("r_step", "Mean r", "highest"), ("rmse_step", "RMSE (mV)", "lowest"))
    )
    gains = [row | {"what": row["column"]} for row in rows if str(row.get("gain") or "")]
    if gains:
        columns = ("lead_set", "what", "against", "gain", "gain_low", "gain_high")
        title = "Gain of r, paired window by window, 95 % interval over patients"
        out += h.details(title, h.table(gains, columns))
    return out if rows else h.paragraph(f"Inner steps: {h.ABSENT}.")


def reconstruction(found: Results) -> str:
    """All leads given."""
    columns = ("part", "r", "rmse_mv", "mae_mv", "snr_db", "n_windows", "n_patients")
    out = h.table(found.table("reconstruction", "overall"), columns, caption="Independent leads, test split")
    energy = found.table("reconstruction", "energy")
    text = "dipole one pass: before the first inner step of the state; dipole more steps: after as many as "
    out += h.paragraph(text + "reconstruction.ttt_steps says, beyond those of training.", "soft")
    return out + h.table(energy, ("part", "share_median", "explained_median"), caption="Shares of one")


def vcg(found: Results) -> str:
    """Scores against Frank leads."""
    rows = found.table("reconstruction", "vcg")
    if not rows:
        return h.paragraph("These records hold no Frank leads: the VCG is not scored against measured ones.")
    for_mean = [{**row, "line": f"{label(row.get('method'))}, {row.get('lead_set', 'all')}"} for row in rows]
    out = h.pivot(
        for_mean, "line", "axis", "r", caption="r with the Frank leads by axis, test split", mark=""
    )
    loops = found.table("reconstruction", "closed_loop")
    return out + (h.table(loops, ("source", "closure_median", "n_beats", "n_windows")) if loops else "")


def state(found: Results) -> str:
    """Stability of W."""
    columns = ("descriptor", "protocol", "icc_median", "icc_mean", "retrieval", "chance", "n", "n_patients")
    words = h.paragraph(
        "Two windows of one record, or two records of one patient, against other patients: intraclass "
        "correlation per dimension, and how often the nearest state belongs to the same patient; for the "
        "whole state, for the part that test-time training estimates and for the part that is remembered in "
        "closed form. Second moments of the leads and principal components of the median beat stand beside "
        "them as controls.",
        "soft",
    )
    return words + h.table(found.table("reconstruction", "state"), columns, caption="Test split")


def probe(found: Results) -> str:
    """AUROC beside the controls."""
    rows = found.table("linear_probe", "probe")
    if not rows:
        return h.paragraph("There are no labelled records in every split: nothing was probed.")
    across = "features" if "features" in rows[0] else "method"
    found_by_class = h.pivot(
        rows, "class", across, "auroc", extra=("n_positive",), caption="AUROC, test split"
    )
    few = found.table("linear_probe", "label_shares")
    if not few:
        return found_by_class
    columns = ("share", "n_records", "method", "auroc", "low", "high", "model_gain", "gain_low", "gain_high")
    words = h.paragraph(
        "With a share of the training labels: macro AUROC, mean over draws of records, and how much higher "
        "that of the model's features is (paired over patients).",
        "soft",
    )
    return found_by_class + words + h.table(few, columns, caption="Few labels, test split")


def transfer(found: Results) -> str:
    """One table per pair of databases: trained here, tested there."""
    rows = found.table("transfer", "missing_lead")
    home = str(found.metrics["transfer"].get("train", ""))
    if not rows:
        return h.paragraph("The model was tested on no other database: none is named in transfer.sources.")
    margin = h.format_number(found.metrics["transfer"].get("margin"), 2)
    words = h.paragraph(
        f"Trained on {home}; baselines and probes were fitted there as well, and nothing was fitted or "
        "chosen on another database. Difference: less the own test split, with a 95 % interval of two "
        f"independent groups of patients. Within: r is at most {margin} lower. Difference, same labels: less "
        "what own test windows with the same labels reach, in the mix of the other database; counted are its "
        "windows that such labels allow to compare.",
        "soft",
    )
    used = [
        {name: value for name, value in row.items() if name != "train"}
        for row in found.table("transfer", "databases")
    ]
    out = [words, h.table(used, caption="What was listed, left out and used")]
    for database in ordered(rows, "database"):
        if database != home:
            out += [f"<h3>{h.escape(home)} to {h.escape(database)}</h3>", _pair(found, database)]
    return "\n".join(out)


def _pair(found: Results, database: str) -> str:
    """What was measured on one database."""
    tables = {
        name: [row for row in found.table("transfer", name) if row.get("database") == database]
        for name in ("missing_lead", "reconstruction", "personal", "probe", "worst_records")
    }
    shown = ("lead_set", "r", "home_r", "difference", "within", "matched_difference", "n_matched")
    own = [row for row in tables["missing_lead"] if is_model(row.get("method"))]
    out = [h.table(own, (*shown, "rmse_mv", "coverage", "n_patients"), caption="Hidden leads, ecggen")]
    beside = h.pivot(tables["missing_lead"], "lead_set", "method", "r", caption="Hidden leads, mean r")
    out.append(h.details("Beside the baselines", beside))
    parts = ("part", "r", "home_r", "difference", "rmse_mv", "n_patients")
    out.append(h.table(tables["reconstruction"], parts, caption="All leads given"))
    for protocol in ordered(tables["personal"], "protocol"):
        chosen = [row for row in tables["personal"] if row.get("protocol") == protocol]
        caption = f"Personal rendering, mean r; reference: {protocol_words(protocol)}"
        out.append(h.details(caption, h.pivot(chosen, "lead_set", "method", "r", extra=("n",))))
    if tables["probe"]:
        areas = ("class", "method", "auroc", "home_auroc", "difference", "n_positive", "n_records")
        out.append(h.table(tables["probe"], areas, caption="Linear probe, classes that both have"))
    else:
        probes = found.metrics["transfer"].get("probe") or {}
        why = (probes.get(database) or {}).get("skipped") or h.ABSENT
        out.append(h.paragraph(f"Linear probe: {why}."))
    worst = ("record", "labels", "r", "linear_regression", "best_subspace_3", "n_windows")
    out.append(h.details("Records with the lowest r", h.table(tables["worst_records"], worst)))
    return "\n".join(out)
