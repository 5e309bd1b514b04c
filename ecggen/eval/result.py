"""What an evaluation takes (a renderer and a folder of windows) and what it returns."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecggen.data.pipeline import WindowFolder
from ecggen.inference.windows import WindowRenderer as Renderer
from ecggen.utils.errors import EcggenError
from ecggen.utils.files import FACTS, atomic_path, iter_csv, write_csv, write_facts

Array = NDArray[Any]
Rows = list[dict[str, Any]]
ARRAYS = "arrays.npz"


class EvalError(EcggenError):
    """Data that an evaluation cannot be run on."""


@dataclass
class Result:
    """Numbers of one evaluation.

    facts: what no table holds, such as counts and reasons, nested. columns: of each table; tables: name ->
    rows (a table that does not apply has columns and no rows). arrays: what the evaluation on other databases
    needs of this one, if it needs any.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tables: dict[str, Rows] = field(default_factory=dict)
    arrays: dict[str, Array] | None = None

    def __post_init__(self) -> None:
        self.tables = {name: self.tables.get(name, []) for name in self.columns}

    def write(self, folder: str | Path) -> None:
        """One CSV file per table, and facts.csv where there are any.

        Every row must hold nothing but the columns of its table.
        """
        if self.facts:
            write_facts(Path(folder) / FACTS, self.facts)
        for name, rows in self.tables.items():
            extra = {key for row in rows for key in row} - set(self.columns[name])
            assert not extra, f"table {name}: columns {sorted(extra)} are not declared"
            write_csv(Path(folder) / f"{name}.csv", rows, self.columns[name])
        if self.arrays is not None:
            with atomic_path(Path(folder) / ARRAYS) as temporary:
                np.savez(temporary, **self.arrays)  # type: ignore[arg-type]

    @classmethod
    def read(cls, folder: str | Path) -> Result:
        """Tables and arrays that `write` left in a folder; numbers are numbers again."""
        folder = Path(folder)
        tables = {
            path.stem: [{name: _parsed(cell) for name, cell in row.items()} for row in iter_csv(path)]
            for path in folder.glob("*.csv")
            if path.name != FACTS
        }
        with np.load(folder / ARRAYS) as stored:
            arrays = dict(stored)
        return cls(columns=dict.fromkeys(tables, ()), tables=tables, arrays=arrays)


def _parsed(cell: str) -> str | int | float:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(cell)
    return cell


def check_split(folder: WindowFolder, split: str) -> Array:
    """Rows of a split that have at least one recorded lead. Raises EvalError when there are none."""
    rows = np.asarray(folder.rows(split), dtype=np.int64)
    rows = rows[np.asarray(folder.observed[rows], dtype=bool).any(axis=1)]
    if not len(rows):
        raise EvalError(
            f"The {split} split of {folder.root} has no windows: evaluation needs at least one patient in "
            "train, validation and test; use more records or other split shares."
        )
    return rows


def index_column(folder: WindowFolder, column: str) -> dict[str, str]:
    """Record -> what index.csv says of it in that column; empty without such a file or column."""
    path = folder.root / "index.csv"
    rows = iter_csv(path) if path.is_file() else iter(())
    return {row["record"]: row[column] or "" for row in rows if column in row}


def trained_steps(renderer: Renderer) -> int:
    """K, the inner steps that the model was trained with."""
    return int(renderer.config.model.ttt.steps)
