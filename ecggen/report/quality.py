"""The report's page of what was dropped and what was kept with a flag: counted, listed, and shown.

Pictures are drawn from data/records as they lie there, after the band-pass. Records that were rejected
before they had signals have only words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ecggen.data.quality.flags import FLAGS, concerned, kinds
from ecggen.leads import LEADS, LIMB, PRECORDIAL
from ecggen.report import figures
from ecggen.report import html as h
from ecggen.report.sections import Results
from ecggen.utils.config import Config

Row = Mapping[str, str]

#: What each flag means, for the captions.
WORDS = {
    "flat": "the lead hardly moves",
    "saturated": "the lead sticks at its largest or smallest value",
    "algebra": "the limb leads contradict each other (Einthoven, Goldberger)",
    "amplitude": "beyond what a heart can do",
    "gap": "samples are missing",
    "noise": "noise between the beats, or motion that no other lead shows",
    "swap": "the shape of the beats is likelier with these electrodes interchanged",
    "polarity": "the lead fits the others better upside down",
    "checksum": "the signal is not the one whose sum the header states",
    "uncalibrated": "the header gives no gain",
}
SPLITS = ("train", "validation", "test")
NO_SPLIT = "in no split"
_SECONDS = 10.0  # of a picture
_LISTED = 100


def dropped_and_why(found: Results, config: Config, records: Path, scratch: Path) -> str:
    """The whole section as HTML; records: data/records; scratch: a folder for the pictures."""
    parts = [_in_short(found, config), _tables(found)]
    for kind, rows in found.rejected.items():
        parts.append(h.paragraph(f"Rejected {kind}: {len(rows)}." if rows else f"No {kind} were rejected."))
        if rows:
            listed = h.table(rows[:_LISTED], ("record", "window", "reason"))
            parts.append(h.details(f"The first {min(len(rows), _LISTED)} {kind}", listed))
    return "\n".join([*parts, *_pictures(found, records, scratch)])


def _in_short(found: Results, config: Config) -> str:
    counts = found.meta.get("counts", {})
    listed, unreadable = counts.get("records_listed"), counts.get("records_unreadable")
    names = ", ".join(config.window.exclude) or "none"
    text = (
        f"A window that overlaps a flag of window.exclude ({names}) is left out; with any other flag it is "
    )
    text += "kept, and the index says so. A lead that is flat or missing in a window is not observed there. "
    text += "The tables count windows, and records that have none."
    if listed is None or unreadable is None:
        return h.paragraph(text)
    kept, gone = counts.get("windows", 0), counts.get("windows_rejected", 0)
    return h.paragraph(
        f"Of {listed} records listed, {unreadable} cannot be used; of {kept + gone} windows, {gone} are left "
        f"out. {text}"
    )


def _tables(found: Results) -> str:
    """Reasons of what was dropped and flags of what was kept: counted by split, and by database if known."""
    by_record = {row["record"]: row for row in found.judged.get("records", ())}
    index = found.judged.get("index", ())
    patient_split = {row.get("patient", ""): row.get("split", "") for row in index}
    record_split = {row["record"]: row.get("split", "") for row in index if "record" in row}

    def split_of(row: Row) -> str:
        patient = by_record.get(row.get("record", ""), {}).get("patient", "")
        return record_split.get(row.get("record", "")) or patient_split.get(patient) or NO_SPLIT

    def database_of(row: Row) -> str:
        return row.get("database") or by_record.get(row.get("record", ""), {}).get("database", "")

    out = []
    gone, flagged = found.rejected.get("windows", []), [row for row in index if row.get("reasons")]
    groups: list[tuple[str, Callable[[Row], str], tuple[str, ...]]] = [
        ("by split", split_of, (*SPLITS, NO_SPLIT))
    ]
    databases = tuple(sorted({name for name in map(database_of, [*by_record.values(), *index]) if name}))
    if databases:
        groups.append(("by database", database_of, databases))
    for what, group, names in groups:
        for title, rows, column in (("Dropped", gone, "reason"), ("Kept with a flag", flagged, "reasons")):
            if rows:
                out.append(_counted(rows, column, group, names, f"{title}, {what}"))
    return "\n".join(out)


def _counted(
    rows: Iterable[Row], column: str, group: Callable[[Row], str], names: Sequence[str], caption: str
) -> str:
    """A table of reasons: one line per reason, one column per group that occurs."""
    counts: dict[str, Counter[str]] = {}
    leads: dict[str, Counter[str]] = {}
    for row in rows:
        words = [word for word in row[column].split(";") if word]
        for kind in _reasons(words):
            counts.setdefault(kind, Counter())[group(row)] += 1
        for word in words:
            kind, _, lead = word.partition(":")
            if kind in FLAGS and lead:
                leads.setdefault(kind, Counter())[lead] += 1
    shown = [name for name in names if any(name in count for count in counts.values())]
    body = []
    for kind, count in sorted(counts.items(), key=lambda item: (-item[1].total(), item[0])):
        which = ", ".join(f"{lead} {n}" for lead, n in leads.get(kind, Counter()).most_common(4))
        cells = [kind, str(count.total()), *(str(count.get(name, 0)) for name in shown), which]
        body.append([(cell, False) for cell in cells])
    return h.grid(["Reason", "All", *shown, "Most often"], body, caption)


def _reasons(words: Sequence[str]) -> list[str]:
    """Flags without their leads; a sentence about a record as it stands."""
    if all(word.partition(":")[0] in FLAGS for word in words):
        return sorted(kinds(words))
    return [";".join(words)]


def _pictures(found: Results, records: Path, scratch: Path) -> list[str]:
    """One recording for each flag that has a stretch of time, dropped ones first."""
    by_record = {row["record"]: row for row in found.judged.get("records", ())}
    spans: dict[str, list[Row]] = {}
    for row in found.judged.get("spans", ()):
        if row["record"] in by_record:
            spans.setdefault(row["flag"], []).append(row)
    if not spans or not (records / "signals.npy").is_file():
        return []
    gone = {
        (row["record"], kind)
        for row in found.rejected.get("windows", ())
        for kind in kinds(row["reason"].split(";"))
    }
    signals = np.load(records / "signals.npy", mmap_mode="r")
    fs = float(found.meta.get("fs", 100.0))
    text = "One recording for each flag, as it lies in data/records, after the band-pass; "
    out = [h.paragraph(text + "shaded: where the flag holds.", "soft")]
    for flag in (name for name in FLAGS if name in spans):
        span = next((row for row in spans[flag] if (row["record"], flag) in gone), spans[flag][0])
        same = [row for row in spans[flag] if row["record"] == span["record"]]
        named = f"{flag}:{span['lead']}" if FLAGS[flag] else flag
        title = f"{named}: {WORDS.get(flag, flag)}"
        figure = _strip(signals, by_record[span["record"]], span, same, fs, title)
        if figure is None:
            continue
        figures.save(figure, scratch / f"flag_{flag}.png")
        fate = "dropped" if (span["record"], flag) in gone else "kept with the flag"
        out.append(h.picture(scratch / f"flag_{flag}.png", f"{title}. Record {span['record']}, {fate}."))
    return out


def _strip(
    signals: np.ndarray, record: Row, span: Row, same: Sequence[Row], fs: float, title: str
) -> Any | None:
    """The six limb or precordial leads around a span, all spans of this flag marked; None without signals."""
    first, count = int(record["offset"]), int(record["n_samples"])
    if first + count > len(signals):
        return None  # tables and signals of different runs
    shown = PRECORDIAL if _leads(span) and not _leads(span) & set(LIMB) else LIMB
    start = int(min(max(0.0, float(span["start_s"]) - 2.0), max(0.0, count / fs - _SECONDS)) * fs)
    ecg = np.asarray(signals[first + start : first + min(count, start + int(_SECONDS * fs))]).T
    marks = [
        (leads, float(row["start_s"]), float(row["stop_s"]))
        for row in same
        if not (leads := _leads(row)) or leads & set(shown)
    ]
    return figures.flagged_strip(
        ecg[[LEADS.index(name) for name in shown]], shown, marks, fs, title, start / fs
    )


def _leads(span: Row) -> frozenset[str]:
    """The leads that a span marks; those of the limbs for the algebra; none for all."""
    if span["flag"] == "algebra":
        return frozenset(LIMB)
    return concerned(f"{span['flag']}:{span['lead']}")
