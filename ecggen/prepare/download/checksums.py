"""What a database consists of, what is wanted of it, and which files were verified: one SQLite file.

MIMIC-IV-ECG has about 1.6 million files. Held in memory their names and checksums take half a gigabyte; here
they take the disk, and memory stays at SQLite's cache. The file may be deleted between two runs: then
everything is hashed again. A file counts as verified without being read again as long as its size and its
time of modification (nanoseconds) are those it had when its SHA-256 was checked; a write changes the latter.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from ecggen.prepare.download.part import SUFFIX, is_file
from ecggen.prepare.download.source import SourceError, safe_name

BATCH = 2000
MAX_LINE = 4096  # bytes of a line of SHA256SUMS.txt
MAX_NAME, MAX_WORD, MAX_DEPTH = 1024, 200, 32  # bytes of a name, bytes between slashes, folders
_PLAIN = re.compile(r"(?:[A-Za-z0-9_-](?:[A-Za-z0-9_.+=, -]{0,180}[A-Za-z0-9_+=-])?/){0,16}"
                    r"[A-Za-z0-9_-](?:[A-Za-z0-9_.+=, -]{0,180}[A-Za-z0-9_+=-])?")  # fmt: skip
_LINE = re.compile(r"([0-9a-fA-F]{64})[ \t]+\*?(\S.*)")
_TABLES = """
create table if not exists files (name text primary key, sha256 blob not null) without rowid;
create table if not exists seen
    (name text primary key, size integer, mtime_ns integer, sha256 blob) without rowid;
create table if not exists said (key text primary key, value text) without rowid;
create temp table wanted (id integer primary key, name text unique not null);
"""


class Manifest:
    """Checksums by name (`files`), what was verified (`seen`), what this run wants (`wanted`)."""

    def __init__(self, path: Path) -> None:
        try:
            self._open(path)
        except sqlite3.DatabaseError:  # not a database, or one that a power cut damaged
            self._db.close()
            for suffix in ("", "-journal"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            self._open(path)

    def _open(self, path: Path) -> None:
        # The folder is locked by its owner; SQLite's own locks fail on some network file systems.
        address = f"{path.absolute().as_uri()}?nolock=1"
        self._db = sqlite3.connect(address, uri=True, isolation_level=None)
        # A killed process loses nothing by this, and what a power cut loses is hashed again.
        self._db.execute("pragma synchronous = off")
        self._db.execute("pragma cache_size = -65536")
        self._db.executescript(_TABLES)
        self._db.execute("begin")

    def close(self) -> None:
        """Keep what is known."""
        self._db.execute("commit")
        self._db.close()

    def save(self) -> None:
        """Let a process that is killed from now on find what is known by now."""
        self._db.execute("commit")
        self._db.execute("begin")

    def said(self, key: str) -> str:
        """What was remembered under a key, empty if nothing."""
        row = self._db.execute("select value from said where key = ?", (key,)).fetchone()
        return row[0] if row else ""

    def say(self, key: str, value: str) -> None:
        """Remember a value."""
        self._db.execute("insert or replace into said values (?, ?)", (key, value))

    def read_sums(self, path: Path, where: str) -> None:
        """Take the checksums from a SHA256SUMS.txt, one line after the other. Raises SourceError.

        A name that leaves the folder, that a file system cannot hold, or that has two checksums is refused.
        """
        self.save()
        try:
            self._db.execute("delete from files")
            self._db.executemany(
                "insert into files values (?, ?) on conflict (name) do update "
                "set sha256 = case when sha256 = excluded.sha256 then sha256 else x'' end",
                _sums(path, where),
            )
            row = self._db.execute("select name from files where sha256 = x'' limit 1").fetchone()
            if row:
                raise SourceError(
                    f"{where} gives two checksums for {short(row[0])}: nothing can be verified."
                )
        except BaseException:
            self._db.execute("rollback")
            self._db.execute("begin")
            raise

    def count(self) -> int:
        """Files of the database."""
        return self._db.execute("select count(*) from files").fetchone()[0]

    def sha256(self, name: str) -> str:
        """The checksum of a file, empty if the database has no such file."""
        row = self._db.execute("select sha256 from files where name = ?", (name,)).fetchone()
        return row[0].hex() if row else ""

    def beside(self, record: str) -> list[str]:
        """Files named record.<suffix> with one suffix: header, signals, annotations."""
        found = self._db.execute(
            "select name from files where name > ? and name < ?", (f"{record}.", f"{record}/")
        )
        return [
            name for (name,) in found if "/" not in name[len(record) :] and "." not in name[len(record) + 1 :]
        ]

    def at_root(self) -> Iterator[str]:
        """Files that lie in no folder."""
        # Reading all names would take a second per million; this jumps over each folder.
        at = ""
        while True:
            row = self._db.execute("select name from files where name > ? limit 1", (at,)).fetchone()
            if row is None:
                return
            if "/" in row[0]:
                at = row[0].split("/", 1)[0] + "0"  # "0" is the character after "/"
                if self.sha256(at):
                    yield at
            else:
                at = row[0]
                yield at

    def want(self, names: Iterable[str]) -> tuple[int, int]:
        """Add files to what is wanted, each once, those that the database has. Returns (first id, count)."""
        (last,) = self._db.execute("select coalesce(max(id), 0) from wanted").fetchone()
        self._db.executemany(
            "insert or ignore into wanted (name) select name from files where name = ?",
            ((name,) for name in names),
        )
        (count,) = self._db.execute("select count(*) from wanted where id > ?", (last,)).fetchone()
        return last + 1, count

    def wanted(self, name: str) -> bool:
        """Whether this run wants a file."""
        return self._db.execute("select 1 from wanted where name = ?", (name,)).fetchone() is not None

    def clash(self) -> tuple[str, str] | None:
        """Two wanted names that differ in case alone, if there are any."""
        return self._db.execute(
            "select min(name), max(name) from wanted group by lower(name) having count(*) > 1 limit 1"
        ).fetchone()

    def wanted_from(self, root: Path, first: int) -> Iterator[tuple[str, str, bool]]:
        """(name, SHA-256, whether it is known to be there) of wanted files, from an id on."""
        while True:
            rows = self._db.execute(
                "select wanted.id, name, files.sha256, size, mtime_ns, seen.sha256 from wanted "
                "join files using (name) left join seen using (name) where wanted.id >= ? "
                f"order by wanted.id limit {BATCH}",
                (first,),
            ).fetchall()
            if not rows:
                return
            for _, name, sha256, size, mtime_ns, seen in rows:
                yield name, sha256.hex(), seen == sha256 and _state(root / name) == (size, mtime_ns)
            first = rows[-1][0] + 1

    def verified(self, root: Path, name: str, sha256: str) -> None:
        """Remember that root/name has this checksum now."""
        self._db.execute(
            "insert or replace into seen values (?, ?, ?, ?)",
            (name, *_state(root / name), bytes.fromhex(sha256)),
        )


def checked_name(name: str, where: str) -> str:
    """A path that stays below its root and that every file system can hold. Raises SourceError."""
    if _PLAIN.fullmatch(name) and len(name) <= MAX_NAME:
        return name
    if len(name) > MAX_NAME or not name.isprintable():
        raise SourceError(
            f"{where} names {short(name)}: a name of printable characters, {MAX_NAME} at most, is needed."
        )
    name = safe_name(name, where)
    words = name.split("/")
    if len(words) > MAX_DEPTH or any(not _fits(word) for word in words):
        raise SourceError(
            f"{where} names {short(name)}: at most {MAX_DEPTH} folders of {MAX_WORD} bytes each, "
            "no colon, and no dot or blank at an end of a word."
        )
    return name


def short(name: str) -> str:
    """A name in quotes, on one line, its end left out if it is long."""
    return repr(name if len(name) <= 80 else f"{name[:80]}...")


def _fits(word: str) -> bool:
    size = len(word.encode("utf-8", errors="replace"))
    return size <= MAX_WORD and ":" not in word and word == word.strip(" ") and not word.endswith(".")


def _sums(path: Path, where: str) -> Iterator[tuple[str, bytes]]:
    """(name, SHA-256) for each line of a list of checksums."""
    with path.open("rb") as stream:
        while line := stream.readline(MAX_LINE + 1):
            if len(line) > MAX_LINE:
                raise SourceError(
                    f"{where} has a line of more than {MAX_LINE} bytes: it is no list of checksums."
                )
            try:
                match = _LINE.fullmatch(line.decode("utf-8").strip())
            except UnicodeDecodeError:
                raise SourceError(f"{where} is not text in UTF-8: it is no list of checksums.") from None
            if match:
                yield checked_name(match[2].removeprefix("./"), where), bytes.fromhex(match[1])


def _state(path: Path) -> tuple[int, int]:
    """(size, time of modification in ns) of a file of its own; (-1, -1) if there is none."""
    if not is_file(path):
        return -1, -1
    state = path.lstat()
    return state.st_size, state.st_mtime_ns


def reserved(name: str) -> bool:
    """Names that files on their way use themselves."""
    return name.endswith((SUFFIX, f"{SUFFIX}.etag"))
