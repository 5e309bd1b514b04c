"""One database in PhysioNet's layout: <url>/<slug>/<version>/SHA256SUMS.txt, RECORDS and what they name.

Only what is needed is fetched: labels and lists at the root, the chosen records' headers, their signal files
and what lies beside them under the same name. Each file is verified against SHA256SUMS.txt, which itself
nothing vouches for but the connection.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from ecggen.prepare import databases
from ecggen.prepare.download.listing import (
    PTBXL_CSV,
    SUFFIXES,
    Listing,
    list_ptbxl,
    list_records_files,
    safe_name,
)
from ecggen.prepare.download.source import Source
from ecggen.prepare.download.specs import SourceError
from ecggen.prepare.download.survey import RecordFiles
from ecggen.prepare.download.transfer import (
    BY_HAND,
    Downloader,
    Limits,
    MissingError,
    RemoteFile,
    is_regular,
)
from ecggen.utils.files import FileError, locked, read_json, write_json

PHYSIONET = "https://physionet.org/files/"
LIMITS = Limits()
SUMS = "SHA256SUMS.txt"
MARKER, VERIFIED = ".download.json", ".download.verified"
INCART_TXT = "files-patients-diagnoses.txt"
MAX_SUMS, MAX_FILE = 1 << 30, 16 << 30  # bytes; MIMIC-IV-ECG's list of checksums has 0.2e9
_SUM_LINE = re.compile(r"([0-9a-fA-F]{64})[ \t]+\*?(\S.*)")


class Physionet:
    """One download of one database into out/records.

    database: slug/version; url: a server with the same layout, empty = PhysioNet; fs: Hz, chooses between the
    two rates of PTB-XL; limit: first records only, 0 = all. Raises SourceError for what cannot be asked for.
    """

    def __init__(self, database: str, url: str, out: Path, *, fs: float, limit: int) -> None:
        self.out, self.folder = Path(out), Path(out) / "records"
        self.fs, self.limit = fs, limit
        self.database = database.strip("/ ")
        if not re.fullmatch(r"[A-Za-z0-9_-]+/[0-9A-Za-z][0-9A-Za-z._-]*", self.database):
            raise SourceError(
                f"data.database is {database!r}: slug/version is needed, for example ptb-xl/1.0.3."
            )
        self.base = f"{(url or PHYSIONET).rstrip('/')}/"
        if not re.fullmatch(r"https?://[^/?#@\s\\]+/[^?#@\s\\]*", self.base):
            shown = re.sub(r"//[^/]*@", "//...@", url)  # it may hold a password
            raise SourceError(
                f"data.url is {shown!r}: an address that starts with http:// or https:// is needed, without "
                "user name, password, blanks, ? and #."
            )
        self.url = f"{self.base}{self.database}/"
        self.downloader = Downloader(self.url, self.folder, LIMITS)
        self.sums: dict[str, bytes] = {}  # file -> SHA-256
        self.files: list[str] = []  # their names, sorted
        self.wanted: set[str] = set()

    def run(self) -> Source:
        """Fetch what is missing, verify it, remove what an earlier run with other settings left.

        Raises SourceError; what has arrived is then kept for the next run.
        """
        with self._claim():
            self._read_sums()
            with self._verified_files():
                self._fetch([name for name in self.files if _is_table(name)], "tables")
                listing = self._list_records()
                records = list(listing.names)[: self.limit or None]
                self._fetch((f"{name}{suffix}" for name in records for suffix in SUFFIXES), "headers")
                segments = [name for record in records for name in self._named(record)[0]]
                self._fetch((f"{name}.hea" for name in segments), "headers of segments")
                signals = (file for name in [*records, *segments] for file in self._named(name)[1])
                beside = (file for name in records for file in self._files_beside(name))
                self._fetch([*signals, *beside], "signals")
            self._prune()
        known = databases.by_slug(self.database)
        name = known.key if known else ""
        return Source("physionet", self.database, self.folder, records, listing.absent, name)

    @contextlib.contextmanager
    def _claim(self) -> Iterator[None]:
        """Keep what an earlier run of the same download left, remove anything else; alone in the folder."""
        with locked(self.out) as free:
            if not free:
                raise SourceError(
                    f"Another process downloads into {self.out}: wait for its end, or choose another folder."
                )
            identity = {"source": "physionet", "database": self.database, "url": self.base}
            marker, keep = self.out / MARKER, {MARKER}
            with contextlib.suppress(FileError):
                if is_regular(marker) and read_json(marker) == identity:
                    keep |= {VERIFIED, self.folder.name}
            write_json(marker, identity)  # first: a folder with a marker is one of this stage
            for path in self.out.iterdir():
                if path.name not in keep:
                    remove(path)
            if self.folder.is_symlink():
                raise SourceError(f"{self.folder} is a link: remove it, downloads stay below {self.out}.")
            self.folder.mkdir(exist_ok=True)
            yield

    def _read_sums(self) -> None:
        """Fetch and read the list of checksums."""
        path, where = self.folder / SUMS, self.url + SUMS
        try:
            self.downloader.fetch(RemoteFile(where, SUMS, "", MAX_SUMS))
        except MissingError:
            slug, version = self.database.split("/")
            raise SourceError(
                f"No database {slug!r} in version {version!r} with a {SUMS} at {self.url}: check "
                f"data.database against https://physionet.org/about/database, or {BY_HAND}."
            ) from None
        with path.open(encoding="utf-8", errors="replace") as stream:
            for match in filter(None, (_SUM_LINE.fullmatch(line.strip()) for line in stream)):
                self.sums[safe_name(match[2].removeprefix("./"), where)] = bytes.fromhex(match[1])
        if not self.sums:
            raise SourceError(f"{where} lists no file: nothing can be verified, so {BY_HAND}.")
        self.files = sorted(self.sums)

    def _list_records(self) -> Listing:
        """The records of the database, as far as data.limit needs them."""
        exists = self.sums.__contains__
        try:
            if exists(PTBXL_CSV):
                listing = list_ptbxl(self.folder / PTBXL_CSV, self.fs, exists)
            else:
                fetch_lists = partial(self._fetch, title="lists")
                listing = list_records_files(self.folder, exists, fetch_lists, self.limit)
        except FileError as error:
            raise SourceError(f"{self.url}{PTBXL_CSV} is not a table: {error}") from error
        if not listing.names:
            words = "has no WFDB record that RECORDS names: choose another one."
            raise SourceError(f"The database {self.database} at {self.url} {words}")
        return listing

    def _named(self, record: str) -> tuple[list[str], list[str]]:
        """(segments that there are, signal files) that a record's header names, below the database's root."""
        files, below = RecordFiles.of(f"{self.folder}/{record}"), PurePosixPath(record).parent
        segments = [str(below / name) for name in files.segments if f"{below / name}.hea" in self.sums]
        return segments, [str(below / PurePosixPath(path).name) for path in files.signals]

    def _files_beside(self, record: str) -> list[str]:
        """Files named record.<suffix> with one suffix: header, signals, annotations."""
        start, stop = (bisect_left(self.files, f"{record}{character}") for character in "./")
        return [name for name in self.files[start:stop] if "." not in name[len(record) + 1 :]]

    @contextlib.contextmanager
    def _verified_files(self) -> Iterator[None]:
        """self.verified: the files whose checksums were verified and that nobody wrote to since.

        They need not be read again: out/.download.verified has a line for each, as it was then.
        """
        with (self.out / VERIFIED).open("a+", encoding="utf-8", errors="replace") as self.stream:
            self.stream.seek(0)
            names = ((line, line.rstrip("\n").split(" ", 3)[-1]) for line in self.stream)
            self.verified = {name for line, name in names if name in self.sums and line == self._state(name)}
            yield

    def _remember(self, name: str) -> None:
        """Remember a file as it is now."""
        self.verified.add(name)
        self.stream.write(self._state(name))

    def _state(self, name: str) -> str:
        """Size, time of modification (ns), SHA-256 and name of a file; "" where it is none."""
        path = self.folder / name
        state = path.lstat() if is_regular(path) else None
        return f"{state.st_size} {state.st_mtime_ns} {self.sums[name].hex()} {name}\n" if state else ""

    def _fetch(self, names: Iterable[str], title: str) -> None:
        """Fetch those of the files that the database has and that are not known to be here and whole."""
        new = [name for name in dict.fromkeys(names) if name in self.sums and name not in self.wanted]
        self.wanted.update(new)
        missing = [name for name in new if name not in self.verified]
        files = (RemoteFile(self.url + quote(n), n, self.sums[n].hex(), MAX_FILE) for n in missing)
        title = f"{self.database} {title}"
        try:
            self.downloader.fetch_all(files, len(missing), title, lambda file: self._remember(file.name))
        except MissingError as error:
            raise SourceError(f"{error} {SUMS} lists it: try again later, or {BY_HAND}.") from None

    def _prune(self) -> None:
        """Remove what an earlier run with other settings left. Links are removed, not followed."""
        for at, folders, files in os.walk(self.folder, topdown=False):
            for path in (Path(at, name) for name in [*files, *folders]):
                name = path.relative_to(self.folder).as_posix()
                if path.is_symlink() or (path.is_file() and name != SUMS and name not in self.wanted):
                    path.unlink()
                elif path.is_dir():
                    with contextlib.suppress(OSError):  # not empty
                        path.rmdir()


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _is_table(name: str) -> bool:
    """Files at the root that go with any selection of records: labels, lists, licence."""
    named = ("RECORDS", "ANNOTATORS", "LICENSE.txt", INCART_TXT)
    return "/" not in name and (name.lower().endswith(".csv") or name in named)
