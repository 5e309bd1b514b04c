"""Markdown for pages that benchmarks write."""

from __future__ import annotations

import shlex
from collections.abc import Sequence


def short(value: float, signed: bool = False) -> str:
    """Three digits, no zero in front: .123, -.123; with a plus sign where `signed`."""
    text = f"{value:+.3f}" if signed else f"{value:.3f}"
    return text.replace("0.", ".", 1) if text.lstrip("+-").startswith("0.") else text


def interval(values: Sequence[float], signed: bool = False) -> str:
    """(mean, low, high) as ".123 [.120, .126]"."""
    mean, low, high = (short(value, signed) for value in values)
    return f"{mean} [{low}, {high}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; ends with a line feed. Raises ValueError for a row of another length."""
    for row in rows:
        if len(row) != len(head):
            raise ValueError(f"A row of {len(row)} cells below {len(head)} columns: {list(row)}.")
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def section(title: str, argv: Sequence[str]) -> str:
    """A heading and the command that made what follows; argv: as sys.argv, the script first."""
    return f"## {title}\n\n```sh\npython {shlex.join(argv)}\n```\n"
