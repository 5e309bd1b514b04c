"""Result tables as data frames, and as tables of text for the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

#: Columns of text; all others hold numbers.
_TEXT = (
    "split method class lead lead_set protocol descriptor axis part source kind database record labels "
    "best_baseline verdict within against train window reason reasons patient flag name example file "
    "windows_rejected_by_reason not_compared over step_name line words"
)
TEXT = frozenset(_TEXT.split())
#: Value column -> its interval columns, shown in one cell.
INTERVALS = {
    "r": ("r_low", "r_high"),
    "rmse_mv": ("rmse_low", "rmse_high"),
    "auroc": ("low", "high"),
    "model_gain": ("gain_low", "gain_high"),
    "personal_gain": ("gain_low", "gain_high"),
    "gain": ("gain_low", "gain_high"),
    "margin": ("margin_low", "margin_high"),
    "difference": ("difference_low", "difference_high"),
    "matched_difference": ("matched_low", "matched_high"),
}
#: Digits after the point where a column's numbers are no whole ones and need other than three.
DIGITS = {"snr_db": 1, "condition": 1, "chance": 4, "r_step": 4, "rmse_step": 4, "share": 2, "days": 0}
#: Names that blanks alone do not make words.
_WORDS = {
    "linear_regression_context": "linear regression with context",
    "linear_regression_reference": "linear regression on the reference",
    "random_encoder": "untrained encoder",
    "memory": "the remembered beat alone",
    "pca": "principal components",
    "dower": "Dower",
    "fixed_dower": "Dower, fixed",
    "inverse_dower": "inverse Dower",
    "kors": "Kors",
    "best_subspace_3": "best three dimensions",
    "best_subspace_4": "best four dimensions",
}
ABSENT = "–"  # noqa: RUF001


def frame(rows: Iterable[Mapping[str, Any]] | pd.DataFrame) -> pd.DataFrame:
    """Rows of text (from CSV) or of numbers (fresh from an evaluation) with columns of text and of floats."""
    data = pd.DataFrame(rows if isinstance(rows, pd.DataFrame) else list(rows))
    for name in data:
        is_text = name in TEXT
        data[name] = data[name].fillna("").astype(str) if is_text else pd.to_numeric(data[name], "coerce")
    return data


def read_frame(path: Path) -> pd.DataFrame:
    """A CSV file as a frame; a file that is not there is an empty one."""
    return frame(pd.read_csv(path, dtype=str, keep_default_na=False)) if path.is_file() else pd.DataFrame()


def column(data: pd.DataFrame, name: str) -> pd.Series:
    """A column; empty text or NaN where the table lacks it."""
    return data[name] if name in data else pd.Series("" if name in TEXT else math.nan, data.index)


def of_split(data: pd.DataFrame, split: str = "test") -> pd.DataFrame:
    """Rows of one split, or of the last one named; all where none is named."""
    splits = column(data, "split")
    names = [name for name in splits.unique() if name]
    return data[splits == (split if split in names else names[-1])] if names else data


def only(data: pd.DataFrame, name: str, value: str) -> pd.DataFrame:
    """Rows with one entry in a column."""
    return data[column(data, name) == value]


def of_model(data: pd.DataFrame) -> pd.DataFrame:
    """Rows whose method is the model."""
    return data[column(data, "method").map(is_model).astype(bool)]


def of_lead_sets(data: pd.DataFrame, leaves_one_out: bool) -> pd.DataFrame:
    """Rows of the sets that leave one lead out, or of the named ones."""
    return data[column(data, "lead_set").map(left_out).astype(bool) == leaves_one_out]


def distinct(data: pd.DataFrame, name: str, *, model_first: bool = False) -> list[str]:
    """The distinct entries of a text column in the order in which they first appear."""
    names = [entry for entry in column(data, name).unique() if entry]
    return sorted(names, key=lambda entry: not is_model(entry)) if model_first else names


def is_model(name: Any) -> bool:
    """Whether a method is the model and not a baseline: "model", "model_personal" ..."""
    return str(name).split("_")[0] == "model"


def label(name: Any) -> str:
    """A name as readers see it: the model as ecggen, underscores as blanks, "-V3" as "all but V3"."""
    words = _WORDS.get(str(name), str(name)).replace("_", " ")
    if left_out(words):
        return f"all but {words[1:]}"
    return "ecggen" + words[len("model") :] if words.startswith("model") else words


def left_out(lead_set: Any) -> bool:
    """Whether a lead set is one of those that leave one lead out: "-V3" hides V3."""
    return str(lead_set).startswith("-V")


def protocol_words(protocol: str) -> str:
    """What a personal reference was."""
    words = {"halves": "first half of the same record", "records": "another record of the patient"}
    return words.get(protocol, label(protocol))


class Cell(NamedTuple):
    """Text, an interval in brackets or nothing, and whether it is the best of its row."""

    text: str
    interval: str = ""
    best: bool = False

    def __str__(self) -> str:
        return f"{self.text} {self.interval}".strip()


@dataclass(frozen=True)
class Table:
    """head: column names, of which the template knows the headings; the first column heads its row.

    model: the column of the model, which stays in view.
    """

    caption: str
    head: list[str]
    rows: list[list[Cell]]
    model: int | None = None


def number_text(value: Any, digits: int = 3) -> str:
    """A number with fixed digits and a typographic minus; infinity as a sign; NaN as a dash."""
    value = float(value)
    if not math.isfinite(value):
        return ABSENT if math.isnan(value) else "∞" if value > 0 else "−∞"  # noqa: RUF001
    return f"{value:,.{digits}f}".replace(",", "\u202f").replace("-", "−")  # noqa: RUF001


def cell(row: Mapping[str, Any] | pd.Series, name: str, whole: bool = False, best: bool = False) -> Cell:
    """One cell of a row; whole: the column holds whole numbers only."""
    value = row.get(name, math.nan)
    if name in TEXT:
        return Cell(str(value) if name in ("record", "labels", "database", "class") else label(value))
    digits = DIGITS.get(name, 0 if whole else 3)
    low, high = (float(row.get(bound, math.nan)) for bound in INTERVALS.get(name, ("", "")))
    known = math.isfinite(low) and math.isfinite(high)
    bounds = f"[{number_text(low, digits)}, {number_text(high, digits)}]" if known else ""
    return Cell(number_text(value, digits), bounds, best)


def whole_columns(data: pd.DataFrame) -> set[str]:
    """Columns of counts."""
    return {name for name in data if name.startswith("n_") or name in ("n", "rank", "dimensions", "step")} | {
        name for name in data if name not in TEXT and name.startswith(("records", "windows", "patients"))
    }


def listing(data: pd.DataFrame, columns: Sequence[str] = (), caption: str = "") -> Table:
    """One line per row: those of `columns` that the table has; all, intervals aside, where none is named."""
    folded = {bound for pair in INTERVALS.values() for bound in pair}
    names = [name for name in columns or data.columns if name in data and (columns or name not in folded)]
    whole = whole_columns(data)
    rows = [[cell(row, name, name in whole) for name in names] for row in data.to_dict("records")]
    return Table(caption, names, rows)


def pivot(
    data: pd.DataFrame, down: str, across: str, value: str, extra: Sequence[str] = (), caption: str = "",
    mark: str = "max",
) -> Table:  # fmt: skip
    """One line per `down`, one column per `across` (the model first), `value` inside.

    mark: "max" or "min" of a line is the best; empty = none. extra: last columns, which belong to the line
    and are taken from its first row.
    """
    series = distinct(data, across, model_first=True)
    names = [name for name in extra if name in data and data[name].notna().any()]
    whole, rows = whole_columns(data), []
    for item in distinct(data, down):
        line = data[data[down] == item]
        best = line[value].agg(mark) if mark and line[value].nunique() > 1 else math.nan
        entries = {row[across]: row for row in line.to_dict("records")}
        cells = [cell(line.iloc[0], down)]
        for entry in (entries.get(name, {}) for name in series):
            cells.append(cell(entry, value, best=bool(entry.get(value) == best)))
        rows.append(cells + [cell(line.iloc[0], name, name in whole) for name in names])
    model = 1 if series and is_model(series[0]) else None
    return Table(caption, [down, *map(label, series), *names], rows, model)
