"""Tables as spreadsheets and databases write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ecggen.io.tables import iter_table, numbered_rows, table_columns
from ecggen.utils.files import FileError

TEXT = 'name,value,note\nMüller,1,"a, b"\n\nµV;x,2,\n'
ROWS = [{"name": "Müller", "value": "1", "note": "a, b"}, {"name": "µV;x", "value": "2", "note": ""}]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_every_encoding(tmp_path: Path, encoding: str, line_end: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(TEXT.replace("\n", line_end).encode(encoding))
    assert list(iter_table(path)) == ROWS and table_columns(path) == ["name", "value", "note"]
    assert [number for number, _ in numbered_rows(path)] == [2, 4]


@pytest.mark.parametrize("separator", [";", "\t"])
def test_other_separators(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(separator.join(("name", "value")) + "\n" + separator.join(('"a;b\tc"', "-1,5")) + "\n")
    value = "-1.5" if separator == ";" else "-1,5"  # spreadsheets that write ; have a decimal comma
    assert list(iter_table(path)) == [{"name": "a;b\tc", "value": value}]


def test_a_row_that_is_cut_short_lacks_its_last_columns(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1\n,\n2,3,,\n")
    assert list(iter_table(path)) == [{"a": "1"}, {"a": "2", "b": "3"}]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a,b\n1,2,3\n", r"line 2: 3 cells for 2 columns"),
        (b"a,b,a\n1,2,3\n", "has the column 'a' twice"),
        (b"a,b\n\x00,1\n", "NUL bytes"),
        ("a,b\n1,2\n".encode("utf-16-le"), "NUL bytes"),
        (b"\xff\xfea\x00,", "Cannot read"),
        (b"a,b\n" + b"x" * 200_000 + b",1\n", "Cannot read"),
        (None, "Cannot read"),
    ],
)
def test_what_is_no_table(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "t.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FileError, match=words) as error:
        list(iter_table(path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)
