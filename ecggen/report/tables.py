"""Reading result tables: rows of text (from CSV) or of numbers (fresh from an evaluation), tolerantly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Rows = Sequence[Row]

#: Names under which the model itself stands in the column "method"; everything else is a baseline.
MODEL_NAMES = ("ecggen", "model")


def number(value: Any) -> float:
    """A table cell as a number; NaN where it is empty or not a number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def is_model(name: Any) -> bool:
    """Whether a method (or feature set) is the model and not a baseline: "ecggen", "ecggen held state" ..."""
    words = str(name).lower().replace("_", " ").split()
    return bool(words) and words[0] in MODEL_NAMES and "random" not in words


def label(name: Any) -> str:
    """A method as readers see it: the model under its own name, underscores as blanks."""
    words = str(name).replace("_", " ")
    return "ecggen" + words[len("model") :] if is_model(name) and words.startswith("model") else words


def ordered(rows: Rows, key: str) -> list[str]:
    """The distinct entries of a column, in the order in which they first appear."""
    return list(dict.fromkeys(str(row[key]) for row in rows if row.get(key) not in (None, "")))


def model_first(rows: Rows, key: str = "method") -> list[str]:
    """The methods of a table, the model before the baselines."""
    return sorted(ordered(rows, key), key=lambda name: not is_model(name))


def of_split(rows: Rows, split: str = "") -> list[Row]:
    """Rows of one split: the one asked for, else test, else the last one named; all where none is named."""
    names = ordered(rows, "split")
    if not names:
        return list(rows)
    chosen = next((name for name in (split, "test") if name in names), names[-1])
    return [row for row in rows if str(row.get("split", "")) == chosen]


def left_out(lead_set: Any) -> bool:
    """Whether a lead set is one of the leave-one-out sets ("-V3" hides V3)."""
    return str(lead_set).startswith("-")


def lead_set_words(name: Any) -> str:
    """ "-V3" as "all but V3"; other sets as they stand."""
    return f"all but {str(name)[1:]}" if left_out(name) else str(name)


def protocol_words(protocol: Any) -> str:
    """What a personal reference was."""
    words = {"halves": "first half of the same record", "records": "another record of the patient"}
    return words.get(str(protocol), str(protocol).replace("_", " "))


def lowest(rows: Rows, key: str, default: float = 0.0) -> float:
    """The smallest finite entry of a column."""
    values = [number(row.get(key)) for row in rows]
    return min((value for value in values if math.isfinite(value)), default=default)
