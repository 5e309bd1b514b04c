"""Files that are either whole or absent: everything is written beside its place and moved there."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecggen.utils.errors import EcggenError

# Not NumPy itself: what uses these files first says how its threads wait (ecggen.utils.threads).
if TYPE_CHECKING:
    import numpy as np

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

#: In the name of every temporary: .NAME.tmp-RANDOM and the suffix of a file.
_MARK = "tmp-"
_STALE = re.compile(r"\..+\.tmp-[a-z0-9_]{8}(\.[^.]*)?")
_OF_WRITING = {errno.ENOSPC, errno.EFBIG, errno.EIO, errno.EROFS, getattr(errno, "EDQUOT", errno.ENOSPC)}
_LITTLE_SPACE = 1 << 20  # bytes; a disk with less is full
_cleaned: set[Path] = set()  # folders that this process has looked through


class FileError(EcggenError):
    """A file that cannot be read."""


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path in the folder of `path`; moved to `path` on success, removed on failure."""
    path = Path(path)
    with _naming(path), _temporary(path, path.suffix, folder=False) as temporary:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)


@contextmanager
def fresh_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder beside `path`; takes its place on success, is removed on failure."""
    path = Path(path)
    with _naming(path), _temporary(path, "", folder=True) as temporary:
        yield temporary
        temporary.chmod(0o755)
        if path.exists() or path.is_symlink():
            # Aside first, so that no moment shows a folder that is removed by half.
            with _temporary(path, "", folder=True) as old:
                path.replace(old / path.name)
                temporary.replace(path)
        else:
            temporary.replace(path)


@contextmanager
def scratch_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder beside `path` that is removed in any case."""
    with _naming(Path(path)), _temporary(Path(path), "", folder=True) as temporary:
        yield temporary


@contextmanager
def _temporary(path: Path, suffix: str, folder: bool) -> Iterator[Path]:
    """A new hidden file or folder beside `path`, locked while it is in use; what the block leaves goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path.parent)
    temporary, handle = _locked(path, suffix, folder)
    try:
        yield temporary
    finally:
        if folder:
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        _close(handle)


def _locked(path: Path, suffix: str, folder: bool) -> tuple[Path, int]:
    """The new temporary and the handle that holds its lock."""
    prefix = f".{path.name}.{_MARK}"
    while True:
        if folder:
            name = tempfile.mkdtemp(dir=path.parent, prefix=prefix)
            handle = os.open(name, os.O_RDONLY) if fcntl is not None else -1
        else:
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=suffix)
        if fcntl is None:  # an open file cannot be moved there
            _close(handle)
            return Path(name), -1
        flock(handle)
        if Path(name).exists():  # else another process took it for stale before it was locked
            return Path(name), handle
        os.close(handle)


def _remove_stale(folder: Path) -> None:
    """Remove temporaries of processes that were killed, once for each folder that this process writes to.

    A temporary is in use as long as somebody holds its lock, which the operating system drops with the
    process. Where there are no such locks (some network disks) it cannot be told, and all of them stay.
    """
    here = folder.absolute()
    if here in _cleaned or fcntl is None:
        return
    _cleaned.add(here)
    for found in [entry for entry in os.scandir(here) if _STALE.fullmatch(entry.name)]:
        try:
            handle = os.open(found.path, os.O_RDONLY)
        except OSError:
            continue
        if flock(handle):
            if found.is_dir(follow_symlinks=False):
                shutil.rmtree(found.path, ignore_errors=True)
            else:
                Path(found.path).unlink(missing_ok=True)
        os.close(handle)


def flock(handle: int) -> bool | None:
    """Lock an open file or folder until it is closed, or its process ends: True where that was possible.

    False where somebody else has it; None where there are no such locks (some network disks, Windows).
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextmanager
def locked(path: Path) -> Iterator[bool | None]:
    """As `flock`, of a file or folder that is there, within the block. Raises OSError."""
    if fcntl is None:  # a folder cannot be opened there
        yield None
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        yield flock(handle)
    finally:
        os.close(handle)


def _close(handle: int) -> None:
    if handle >= 0:
        os.close(handle)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in errors of writing (a full disk), which do not know it, or know a temporary name."""
    try:
        yield
    except OSError as error:
        named = error.filename
        if error.errno is None and re.fullmatch(r"\d+ requested and \d+ written", str(error)):  # NumPy's own
            full = shutil.disk_usage(path.parent).free < _LITTLE_SPACE
            number = errno.ENOSPC if full else errno.EIO
            raise OSError(number, os.strerror(number), str(path)) from error
        unnamed = named is None and error.errno in _OF_WRITING
        if unnamed or (isinstance(named, str) and f".{path.name}.{_MARK}" in named):
            error.filename = str(path)
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
    except json.JSONDecodeError as error:
        raise FileError(f"{path} is not valid JSON: {error}.") from error


def write_csv(path: str | Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write a table with a header line; floats with six significant digits."""
    with atomic_path(path) as temporary, csv_rows(temporary, columns) as add:
        for row in rows:
            add(row)


@contextmanager
def csv_rows(path: str | Path, columns: Sequence[str]) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that adds a row to a table like write_csv's, in a folder that is not yet in its place."""
    with Path(path).open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        yield lambda row: writer.writerow([_cell(row.get(name, "")) for name in columns])


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """Read a table with a header line. Raises FileError."""
    try:
        with Path(path).open(encoding="utf-8", newline="") as stream:
            return list(csv.DictReader(stream))
    except OSError as error:
        raise FileError(f"Cannot read {path}: {error.strerror or error}.") from error


def iter_csv(path: str | Path) -> Iterator[dict[str, str]]:
    """The rows of `read_csv` one at a time, for tables of any length. Raises FileError."""
    try:
        with Path(path).open(encoding="utf-8", newline="") as stream:
            yield from csv.DictReader(stream)
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        words = getattr(error, "strerror", None) or error
        raise FileError(f"Cannot read {path}: {words}.") from error


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
    if isinstance(value, (str, int)):  # most are, and the question below is a slow one
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
