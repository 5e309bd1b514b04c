"""Files that are either whole or absent: everything is written under a temporary name and then moved.

The temporary of `x.csv` is `.x.csv.partial.csv` beside it, that of a folder `out` is `.out.partial`. The name
is always the same, so what a killed process left is overwritten by the next one, and nobody has to look for
it. One process at a time writes a file: stages and runs hold a lock.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecggen.utils.errors import EcggenError

if TYPE_CHECKING:  # NumPy itself is imported late: before it, ecggen.utils.threads sets up its threads
    import numpy as np

_WRITE_ERRORS = {errno.ENOSPC, errno.EFBIG, errno.EIO, errno.EROFS, getattr(errno, "EDQUOT", errno.ENOSPC)}


FACTS = "facts.csv"  # what no table of a stage holds


class FileError(EcggenError):
    """A file that cannot be read."""


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path in the folder of `path`; moved to `path` on success, removed on failure."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.partial{path.suffix}")
    with _errors_name(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def fresh_folder(path: str | Path) -> Iterator[Path]:
    """An empty temporary folder beside `path`; takes its place on success, is removed on failure.

    Raises FileError where another process is writing the same folder.
    """
    path = Path(path)
    temporary, old = (path.with_name(f".{path.name}.{end}") for end in ("partial", "partial.old"))
    with _errors_name(path), locked(path) as free:
        if not free:
            raise FileError(f"{path} is being written by another process: wait for it or end it.")
        for left_over in (temporary, old):
            shutil.rmtree(left_over, ignore_errors=True)
        temporary.mkdir()
        try:
            yield temporary
            if path.is_symlink():
                path.unlink()
            elif path.exists():  # moved aside first: a half-removed folder is never seen under its name
                path.replace(old)
            temporary.replace(path)
        finally:
            if old.exists() and not path.exists():
                old.replace(path)
            for left_over in (temporary, old):
                shutil.rmtree(left_over, ignore_errors=True)


@contextmanager
def locked(path: str | Path) -> Iterator[bool]:
    """Hold the lock of a file or folder, `.NAME.lock` beside it; yields False where another process has it.

    The operating system releases it with the process, however that ends. Raises OSError.
    """
    from filelock import FileLock, Timeout

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        with suppress(OSError):  # Windows keeps a file that is open
            Path(lock.lock_file).unlink()
        lock.release()


@contextmanager
def _errors_name(path: Path) -> Iterator[None]:
    """Errors of writing (a full disk) that name no file, or a temporary one, name this path instead."""
    try:
        yield
    except OSError as error:
        if re.fullmatch(r"\d+ requested and \d+ written", str(error)):  # NumPy's words for a full disk
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        unnamed = error.filename is None and error.errno in _WRITE_ERRORS
        if unnamed or re.search(rf"\.{re.escape(path.name)}\.(partial|lock)", str(error.filename)):
            error.filename, error.filename2 = str(path), None
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write text, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON with sorted keys. NaN and infinity become null, because JSON has no word for them."""
    write_text(path, json.dumps(_plain(value), indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read JSON. Raises FileError."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(f"Cannot read {path}: {error.strerror or error}.") from error
    except ValueError as error:  # no JSON, or no UTF-8
        raise FileError(f"{path} is not valid JSON: {error}.") from error


def write_csv(path: str | Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write a table with a header line; floats with six significant digits."""
    with atomic_path(path) as temporary, csv_rows(temporary, columns) as add:
        for row in rows:
            add(row)


def write_facts(path: str | Path, facts: Mapping[str, Any]) -> None:
    """Write a nested mapping as a table of names ("records.test") and values."""
    write_csv(path, [{"name": name, "value": value} for name, value in _named(facts)], ("name", "value"))


def read_facts(path: str | Path) -> dict[str, str]:
    """Name -> value as written by `write_facts`; nothing where there is no such file. Raises FileError."""
    return {row["name"]: row["value"] for row in iter_csv(path)} if Path(path).is_file() else {}


def _named(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in facts.items():
        if isinstance(value, Mapping):
            yield from _named(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value


@contextmanager
def csv_rows(path: str | Path, columns: Sequence[str]) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that adds a row to a table like write_csv's, in a folder that is not yet in its place."""
    with Path(path).open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        yield lambda row: writer.writerow([_cell(row.get(name, "")) for name in columns])


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """Read a table with a header line. Raises FileError."""
    return list(iter_csv(path))


def iter_csv(path: str | Path) -> Iterator[dict[str, str]]:
    """The rows of `read_csv` one at a time, for tables of any length. Raises FileError."""
    try:
        with Path(path).open(encoding="utf-8", newline="") as stream:
            yield from csv.DictReader(stream)
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FileError(f"Cannot read {path}: {reason}.") from error


def save_npy(path: str | Path, array: np.ndarray) -> None:
    """Write one .npy file, whole or not at all."""
    import numpy as np

    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, array)


def sha256_file(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _cell(value: Any) -> Any:
    if isinstance(value, (str, int)):  # most are, and the check below is slow
        return value
    if isinstance(value, Real) and not isinstance(value, Integral):  # NumPy's numbers too
        return "" if math.isnan(value) else f"{float(value):.6g}"
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):  # NumPy's arrays and numbers
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
