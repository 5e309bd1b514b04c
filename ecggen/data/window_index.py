"""index.csv of a window folder, read row by row into columns."""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecggen.data.window_files import DataError
from ecggen.leads import LEADS
from ecggen.utils.words import Rows, Words, WordsWriter

SPLITS: tuple[str, ...] = ("train", "validation", "test")
_NEEDED = ("record", "patient", "split")
_WORDS = (*_NEEDED, "database")
_NUMBERS = {"start_s": 0.0, "scale": 1.0}  # and what an empty cell stands for


@dataclass(frozen=True)
class Index:
    """Columns of n windows; as in WindowFolder, which says what each is."""

    words: Mapping[str, Words]  # record, patient, split, database
    numbers: Mapping[str, NDArray[np.float64]]  # start_s, scale
    observed: Rows
    labels: Rows
    label_valid: NDArray[np.bool_]
    label_classes: list[str]

    def __len__(self) -> int:
        return len(self.words["record"])


def read_index(path: Path, classes: Sequence[Any] | None) -> Index:
    """Read index.csv; classes: label classes, None = all labels there are. Raises DataError.

    No row is kept as text: 200,000 windows take some 10 MB.
    """
    words = {name: WordsWriter() for name in _WORDS}
    numbers = {name: array("d") for name in _NUMBERS}
    observed, labels = _Distinct(), _Distinct()
    for line, row in _rows(path):
        for name, column in words.items():
            column.add(row.get(name, ""))
        for name, values in numbers.items():
            values.append(_number(path, line, name, row.get(name, "")))
        observed.add(row.get("observed") or "1" * len(LEADS))
        labels.add(row.get("labels", ""))
    made = {name: column.words() for name, column in words.items()}
    unknown = sorted(set(made["split"].distinct()) - set(SPLITS))
    if unknown:
        raise DataError(f"{path} names the split {unknown[0]!r}: use {', '.join(SPLITS)}.")
    bits = [_observed_bits(path, text) for text in observed.numbers]
    sets = [set(filter(None, text.split(";"))) for text in labels.numbers]
    names = [str(name) for name in (sorted(set().union(*sets)) if classes is None else classes)]
    table = np.array([[name in own for name in names] for own in sets], dtype=np.float32)
    label_codes = np.asarray(labels.codes)
    return Index(
        words=made,
        numbers={name: np.asarray(values) for name, values in numbers.items()},
        observed=Rows(np.array(bits, dtype=bool).reshape(-1, len(LEADS)), np.asarray(observed.codes)),
        labels=Rows(table.reshape(len(sets), len(names)), label_codes),
        label_valid=np.array([bool(text) for text in labels.numbers], dtype=bool)[label_codes],
        label_classes=names,
    )


class _Distinct:
    """Numbers the different texts of a column, of which there are few."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.codes = array("i")

    def add(self, text: str) -> None:
        self.codes.append(self.numbers.setdefault(text, len(self.numbers)))


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, row) of a table with a header line."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.reader(stream)
            header = next(reader, [])
            for cells in reader:
                if missing := sorted(set(_NEEDED) - set(header)):
                    raise DataError(f"{path} lacks the column {', '.join(missing)}: make the windows again.")
                if cells:
                    yield reader.line_num, dict(zip(header, cells, strict=False))
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {path}: {getattr(error, 'strerror', None) or error}.") from error


def _number(path: Path, line: int, name: str, text: str) -> float:
    try:
        return float(text) if text else _NUMBERS[name]
    except ValueError as error:
        raise DataError(f"{path}, line {line}: {name} is {text!r}: a number is needed.") from error


def _observed_bits(path: Path, bits: str) -> list[bool]:
    if len(bits) != len(LEADS) or set(bits) - {"0", "1"}:
        raise DataError(f"{path}: observed is {bits!r}: twelve characters 0 or 1 are needed, one per lead.")
    return [bit == "1" for bit in bits]
