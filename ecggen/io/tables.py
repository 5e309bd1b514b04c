"""CSV files that come from outside, as spreadsheets and databases write them.

UTF-8 with or without a byte order mark, UTF-16 with one, else Latin-1; columns separated by comma, semicolon
or tabulator. Where it is the semicolon, numbers may have a decimal comma; they are returned with a point.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ecggen.utils.files import FileError

_BLOCK = 1 << 20
_DECIMAL_COMMA = re.compile(r"^(-?\d+),(\d+)$")
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def iter_table(path: str | Path) -> Iterator[dict[str, str]]:
    """The rows of `numbered_rows` without their numbers."""
    return (row for _, row in numbered_rows(path))


def numbered_rows(path: str | Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(number of the line, row) of a table with a header line, one at a time; empty lines are left out.

    A row that is cut short lacks its last columns.

    Raises FileError for a file that is no text, a column that is named twice, and a row with more cells than
    there are columns.
    """
    with _reader(Path(path)) as (rows, columns):
        for row in rows:
            if any(row[len(columns) :]):
                raise FileError(
                    f"{path}, line {rows.line_num}: {len(row)} cells for {len(columns)} columns; a cell that "
                    "holds the separator has to be in quotes."
                )
            if rows.dialect.delimiter == ";":
                row = [_DECIMAL_COMMA.sub(r"\1.\2", cell) for cell in row]
            if any(row):
                yield rows.line_num, dict(zip(columns, row, strict=False))


def table_columns(path: str | Path) -> list[str]:
    """The names of a table's columns. Raises FileError."""
    with _reader(Path(path)) as (_, columns):
        return columns


@contextmanager
def _reader(path: Path) -> Iterator[tuple[Any, list[str]]]:
    """The reader of a table behind its header line, and the columns."""
    try:
        with path.open(encoding=_encoding(path), newline="") as stream:
            header = stream.readline(_BLOCK)
            stream.seek(0)
            rows = csv.reader(stream, delimiter=max(",;\t", key=header.count))
            columns = [name.strip() for name in next(rows, [])]
            twice = [name for name in columns if name and columns.count(name) > 1]
            if twice:
                raise FileError(f"{path} has the column {twice[0]!r} twice: each may appear once.")
            yield rows, columns
    except (OSError, csv.Error, UnicodeError) as error:
        raise FileError(f"Cannot read {path}: {getattr(error, 'strerror', None) or error}.") from error


def _encoding(path: Path) -> str:
    """By the byte order mark; else UTF-8 if all of the file is that; else Latin-1. Raises FileError."""
    with path.open("rb") as stream:
        start = stream.read(4)
        for mark, encoding in _MARKS.items():
            if start.startswith(mark):
                return encoding
        stream.seek(0)
        decoder = codecs.getincrementaldecoder("utf-8")()
        encoding = "utf-8"
        while block := stream.read(_BLOCK):
            if b"\0" in block:
                raise FileError(f"{path} holds NUL bytes, so it is no table: save it as CSV in UTF-8.")
            if encoding == "utf-8":
                try:
                    decoder.decode(block)
                except UnicodeDecodeError:
                    encoding = "latin-1"
    return encoding
