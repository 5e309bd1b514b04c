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
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from ecggen.prepare.download.checksums import Manifest, checked_name, reserved, short
from ecggen.prepare.download.connection import Limits, Origin
from ecggen.prepare.download.part import is_file
from ecggen.prepare.download.progress import Progress
from ecggen.prepare.download.session import BY_HAND, Job, MissingError, Session
from ecggen.prepare.download.source import PTBXL_CSV, Source, SourceError, ptbxl_choices, record_lines
from ecggen.utils.files import FileError, locked, read_json, sha256_file, write_json

PHYSIONET = "https://physionet.org/files/"
LIMITS = Limits()
SUMS = "SHA256SUMS.txt"
MARKER, MANIFEST = ".download.json", ".download.sqlite"
MAX_SUMS = 1 << 30  # bytes; that of MIMIC-IV-ECG has less than 0.2e9
MAX_LIST = 64 << 20  # bytes of a RECORDS file: 800,000 records take 40e6
MAX_HEADER = 16 << 20
MAX_TABLE = 1 << 30
MAX_RECORDS = 5_000_000
MAX_LISTS = 100_000
MAX_DEPTH = 8  # of RECORDS files that name folders with RECORDS files
SAVE_EVERY = 500  # files
INCART_TXT = "files-patients-diagnoses.txt"


class Physionet:
    """One download of one database into out/records.

    database: slug/version; url: a server with the same layout, empty = PhysioNet; fs: Hz, chooses between the
    two rates of PTB-XL; limit: first records only, 0 = all. Raises SourceError for what cannot be asked for.
    """

    def __init__(
        self, database: str, url: str, out: Path, *, fs: float, limit: int, limits: Limits | None = None
    ) -> None:
        self.out, self.folder = Path(out), Path(out) / "records"
        self.fs, self.limit = fs, limit
        self.database = database.strip("/ ")
        if not re.fullmatch(r"[A-Za-z0-9_-]+/[0-9A-Za-z][0-9A-Za-z._-]*", self.database):
            raise SourceError(
                f"data.database is {database!r}: slug/version is needed, for example ptb-xl/1.0.3."
            )
        base = url or PHYSIONET
        try:
            Origin.of(base)
            if re.search(r"[?#\s\\]", base):
                raise ValueError("an address without blanks, ? and # is needed")
        except ValueError as error:  # not echoed whole: it may hold a password
            raise SourceError(f"data.url is {re.sub(r'//[^/]*@', '//...@', base)!r}: {error}.") from None
        self.base = f"{base.rstrip('/')}/"
        self.url = f"{self.base}{self.database}/"
        self.session = Session(self.url, self.folder, limits or LIMITS)

    def run(self) -> Source:
        """Fetch what is missing, verify it, remove what an earlier run with other settings left.

        Raises SourceError; what has arrived is then kept for the next run.
        """
        path = self.out / MANIFEST
        try:
            with self._claim(), contextlib.closing(Manifest(path)) as self.files:
                return self._run()
        except sqlite3.Error as error:
            raise SourceError(f"Cannot keep the list of files in {path} ({error}): remove it.") from error

    def _run(self) -> Source:
        self._fetch_sums()
        tables = [name for name in self.files.at_root() if _is_table(name)]
        self._fetch(tables, "tables")
        records, absent = self._records()
        self._fetch((f"{name}.hea" for name in records), "headers")
        self._fetch(self._segments(records), "headers of segments")
        self._fetch(self._signals(records), "signals")
        self._prune()
        return Source("physionet", self.database, self.folder, records, absent)

    @contextlib.contextmanager
    def _claim(self) -> Iterator[None]:
        """Keep what an earlier run of the same download left, remove anything else; alone in the folder."""
        with contextlib.ExitStack() as stack:
            try:
                self.out.mkdir(parents=True, exist_ok=True)
                free = stack.enter_context(locked(self.out))
            except OSError as error:
                raise SourceError(f"Cannot write to {self.out}: {error.strerror or error}.") from error
            if not free:
                raise SourceError(
                    f"Another process downloads into {self.out}: wait for its end, or choose another folder."
                )
            self._empty_unless_ours()
            yield

    def _empty_unless_ours(self) -> None:
        identity = {"source": "physionet", "database": self.database, "url": self.base}
        marker = self.out / MARKER
        try:
            ours = is_file(marker) and read_json(marker) in (
                identity,
                {**identity, "url": self.base.rstrip("/")},
            )
        except (FileError, UnicodeDecodeError):
            ours = False
        for path in [] if ours else self.out.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        if self.folder.is_symlink():
            raise SourceError(f"{self.folder} is a link: remove it, because downloads stay below {self.out}.")
        self.folder.mkdir(exist_ok=True)
        write_json(marker, identity)

    def _fetch_sums(self) -> None:
        """Fetch the checksums, unless the server says that they have not changed, and read them."""
        path, known = self.folder / SUMS, self.files.said("sums")
        # Beginning anew where the file at hand is not the one that was read.
        unchanged = bool(known) and is_file(path) and sha256_file(path) == known
        tag = self.files.said("tag") if unchanged else ""
        progress = Progress(f"{self.database} {SUMS}", 1, alone=True)
        try:
            new_tag = self.session.fetch(Job(self.url + SUMS, SUMS, "", MAX_SUMS), progress, tag)
        except MissingError:
            slug, version = self.database.split("/")
            raise SourceError(
                f"No database {slug!r} in version {version!r} with a {SUMS} at {self.url}: check "
                f"data.database against https://physionet.org/about/database, or {BY_HAND}."
            ) from None
        finally:
            self.session.close()
        if new_tag is None:
            return
        found = sha256_file(path)
        if found != known:
            self.files.say("sums", "")
            self.files.read_sums(path, self.url + SUMS)
            if not self.files.count():
                raise SourceError(f"{self.url}{SUMS} lists no file: nothing can be verified, so {BY_HAND}.")
        self.files.say("sums", found)
        self.files.say("tag", new_tag)
        self.files.save()

    def _records(self) -> tuple[list[str], int]:
        """(names of the records to fetch, how many of the list so far are not there)."""
        names: dict[str, None] = {}
        absent = 0
        listed = self._ptbxl() if self.files.sha256(PTBXL_CSV) else self._listed("", 0, set())
        for number, name in enumerate(listed):
            if number >= MAX_RECORDS:
                raise SourceError(f"{self.url} lists more than {MAX_RECORDS:,} records: set data.limit.")
            if name in names:
                continue
            if not (name and self.files.sha256(f"{name}.hea")):
                absent += 1
                continue
            names[name] = None
            if len(names) == self.limit:
                break
        if not names:
            raise SourceError(
                f"The database {self.database} at {self.url} has no WFDB record that RECORDS names: "
                "choose another one."
            )
        return list(names), absent

    def _ptbxl(self) -> Iterator[str]:
        """Records of PTB-XL: each is there at two rates, one is enough. Empty where neither is there."""
        try:
            for choices in ptbxl_choices(self.folder / PTBXL_CSV, self.fs):
                yield next((name for name in choices if self.files.sha256(f"{name}.hea")), "")
        except FileError as error:
            raise SourceError(f"{self.url}{PTBXL_CSV} is not a table: {error}") from error

    def _listed(self, below: str, depth: int, read: set[str]) -> Iterator[str]:
        """Records that below/RECORDS names, in its order; empty for a folder whose list is not there."""
        path = f"{below}RECORDS"
        where = self.url + path
        if not self.files.sha256(path):
            if below:
                yield ""
            return
        if path in read or depth > MAX_DEPTH or len(read) >= MAX_LISTS:
            raise SourceError(
                f"{where} names itself, or is one of more than {MAX_LISTS:,} lists or more than "
                f"{MAX_DEPTH} deep: {BY_HAND}."
            )
        read.add(path)
        self._fetch([path], path)
        if not self.limit:  # they are all needed: some databases have hundreds
            folders = (below + line for line in self._lines(path) if line.endswith("/"))
            self._fetch((f"{self._name(folder, where)}/RECORDS" for folder in folders), "lists")
        for line in self._lines(path):
            name = self._name(below + line, where)
            if line.endswith("/"):
                yield from self._listed(f"{name}/", depth + 1, read)
            else:
                yield name

    def _lines(self, path: str) -> Iterator[str]:
        return record_lines(self.folder / path)

    def _name(self, name: str, where: str) -> str:
        return checked_name(name.rstrip("/"), where)

    def _segments(self, records: Iterable[str]) -> Iterator[str]:
        """Headers of the segments of multi-segment records."""
        for record in records:
            for name in self._named(record)[0]:
                yield f"{name}.hea"

    def _signals(self, records: Iterable[str]) -> Iterator[str]:
        """Signal files that the headers name, segments included, and annotations beside them."""
        for record in records:
            yield from self.files.beside(record)
            segments, files = self._named(record)
            yield from files
            for name in segments:
                yield from self._named(name)[1]

    def _named(self, record: str) -> tuple[list[str], list[str]]:
        """(segments, signal files) that a record's header names, as paths below the database's root."""
        path = self.folder / f"{record}.hea"
        if not is_file(path):
            return [], []
        with path.open(encoding="utf-8", errors="replace") as stream:
            segments, files = header_names(stream)
        below = PurePosixPath(record).parent
        paths = (str(below / name) for name in segments)
        return [name for name in paths if self.files.sha256(f"{name}.hea")], [str(below / f) for f in files]

    def _fetch(self, names: Iterable[str], what: str) -> None:
        """Fetch those of the files that the database has and that are not known to be here and whole."""
        first, count = self.files.want(self._free(names))
        if not count:
            return
        if (self.out / MARKER.upper()).exists() and (pair := self.files.clash()):
            raise SourceError(
                f"{self.url} has {short(pair[0])} and {short(pair[1])}, one name where "
                f"{self.out} lies: choose a folder on a disk that tells upper case from lower."
            )
        progress = Progress(f"{self.database} {what}", count)
        fetched = 0

        def done(job: Job) -> None:
            nonlocal fetched
            self.files.verified(self.folder, job.name, job.sha256)
            fetched += 1
            if fetched % SAVE_EVERY == 0:
                self.files.save()

        try:
            self.session.fetch_all(self._jobs(first, progress), progress, done)
        except MissingError as error:
            raise SourceError(f"{error} {SUMS} lists it: try again later, or {BY_HAND}.") from None
        finally:
            self.files.save()

    def _jobs(self, first: int, progress: Progress) -> Iterator[Job]:
        for name, sha256, known in self.files.wanted_from(self.folder, first):
            if known:
                progress.file(kept=True)
                progress.draw()
            else:
                yield Job(self.url + quote(name), name, sha256, _size_limit(name))

    def _free(self, names: Iterable[str]) -> Iterator[str]:
        for name in names:
            if reserved(name) and self.files.sha256(name):
                raise SourceError(
                    f"{self.url} has {short(name)}, a name that unfinished downloads use: {BY_HAND}."
                )
            yield name

    def _prune(self) -> None:
        """Remove what an earlier run with other settings left. Links are removed, not followed."""
        for at, folders, files in os.walk(self.folder, topdown=False):
            for name in [*files, *(name for name in folders if Path(at, name).is_symlink())]:
                path = Path(at, name)
                relative = path.relative_to(self.folder).as_posix()
                if relative != SUMS and (path.is_symlink() or not self.files.wanted(relative)):
                    path.unlink()
            if Path(at) != self.folder:
                with contextlib.suppress(OSError):  # not empty
                    Path(at).rmdir()


def header_names(lines: Iterable[str]) -> tuple[list[str], list[str]]:
    """(segments, signal files) named by the lines of a WFDB header, `~` (none) left out.

    The first line is `name[/segments] signals ...`; then follow one line per segment or per signal, each with
    its name first (header(5) of the WFDB Applications Guide). A header that makes no sense names what it may:
    only files that the database has are fetched, and the next stage rejects the record with a reason.
    """
    words = (line.split(maxsplit=1) for line in lines if line.strip() and not line.lstrip().startswith("#"))
    first = next(words, [""])
    names = list(dict.fromkeys(word[0] for word in words if word[0] != "~"))
    return (names, []) if "/" in first[0] else ([], names)


def _is_table(name: str) -> bool:
    """Files at the root that go with any selection of records: labels, lists, licence."""
    return "/" not in name and (
        name.lower().endswith(".csv") or name in ("RECORDS", "ANNOTATORS", "LICENSE.txt", INCART_TXT)
    )


def _size_limit(name: str) -> int:
    """Bytes that a file may have, by what it is read for; signals as much as a session accepts."""
    if name.rpartition("/")[2] == "RECORDS":
        return MAX_LIST
    if name.endswith(".hea"):
        return MAX_HEADER
    return MAX_TABLE if _is_table(name) else LIMITS.file_bytes
