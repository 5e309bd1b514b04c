"""The download stage: fills data/raw with records, or with the word where they are.

data/raw is marked `persist: true` in dvc.yaml: DVC leaves it in place before a run, so a download that broke
off goes on where it stopped. `.download.json` in it says what it belongs to; another database starts empty.
source.json is removed first and written last, so a folder that has it is whole.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any

from ecggen.prepare import synthetic
from ecggen.prepare.array_table import list_table
from ecggen.prepare.source import (
    PARTS,
    PTBXL_CSV,
    SOURCE_FILE,
    Source,
    SourceError,
    SourceSpec,
    configured_sources,
    list_source,
    ptbxl_choices,
    record_lines,
    safe_name,
    write_parts,
    write_source,
)
from ecggen.prepare.specs import OTHER, part_keys
from ecggen.utils.config import Config
from ecggen.utils.files import fresh_folder, read_json, sha256_file, write_json

PHYSIONET = "https://physionet.org/files/"
MARKER = ".download.json"
SUMS = "SHA256SUMS.txt"
ATTEMPTS = 4
BACKOFF_S = 1.0  # doubled after every failed attempt
TIMEOUT_S = 30.0
CONNECTIONS = 4  # PhysioNet asks for few
INCART_TXT = "files-patients-diagnoses.txt"
BY_HAND = "download it by hand and use data.source=wfdb with data.path set to its folder"


class _TransferError(Exception):
    """An attempt that may succeed when made again."""


def download(config: Config, out: Path) -> dict[str, Any]:
    """Fill `out` from the sources of config.data and return what out/source.json says.

    One source lies in `out` itself, several in out/parts/KEY. Raises SourceError; then there is no
    source.json.
    """
    out = Path(out)
    specs = configured_sources(config.data)
    (out / SOURCE_FILE).unlink(missing_ok=True)
    return prepare_source(specs[0], config, out) if len(specs) == 1 else gather(specs, config, out)


def gather(specs: Sequence[SourceSpec], config: Config, out: Path) -> dict[str, Any]:
    """Fill out/parts/KEY from each of the sources and return what out/source.json says.

    Raises SourceError, also where two of them hold the same recordings; then there is no source.json.
    """
    (out / SOURCE_FILE).unlink(missing_ok=True)
    specs = [_recognised(spec, config) for spec in specs]
    keys = part_keys(specs)
    _keep_only(out, keys)
    for key, spec in zip(keys, specs, strict=True):
        prepare_source(spec, config, out / PARTS / key)
    return write_parts(out, keys)


def prepare_source(spec: SourceSpec, config: Config, raw: Path) -> dict[str, Any]:
    """Fill `raw` from one source and return what raw/source.json says.

    synthetic: writes the embedded data set, or the other population; wfdb and table: list what is there,
    copy nothing; physionet: fetches a database, every file checked against its SHA-256. Raises SourceError;
    then there is no source.json.
    """
    raw, data = Path(raw), config.data
    (raw / SOURCE_FILE).unlink(missing_ok=True)
    if spec.kind == "physionet":
        return Physionet(replace(config, data=replace(data, database=spec.place)), raw).run()
    source = None
    if spec.kind == "wfdb":
        source = list_source(spec.place, fs=data.fs, limit=data.limit, database=spec.database)
    elif spec.kind == "table":
        source = list_table(spec.place, limit=data.limit)
    with fresh_folder(raw) as folder:
        if source is not None:
            return write_source(folder, source)
        if spec.place == OTHER:
            return synthetic.write_other(config.synthetic, folder, limit=data.limit)
        return synthetic.write_dataset(config.synthetic, folder, limit=data.limit)


def _recognised(spec: SourceSpec, config: Config) -> SourceSpec:
    """The same with the database that a local folder turns out to hold: its records are called after it."""
    if spec.kind != "wfdb" or spec.database:
        return spec
    return replace(spec, database=list_source(spec.place, fs=config.data.fs).database)


def _keep_only(out: Path, keys: list[str]) -> None:
    """Empty `out` of everything but the parts that are wanted: these go on where they stopped."""
    for path in [*out.glob("*"), *out.glob(".*"), *(out / PARTS).glob("*")]:
        if path == out / PARTS or (path.parent == out / PARTS and path.name in keys):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


class Physionet:
    """One download of a database in PhysioNet's layout: <url>/<slug>/<version>/SHA256SUMS.txt, ..."""

    def __init__(self, config: Config, out: Path) -> None:
        self.data, self.out, self.folder = config.data, out, out / "records"
        self.database = self.data.database.strip("/ ")
        if not re.fullmatch(r"[A-Za-z0-9_-]+/[0-9A-Za-z][0-9A-Za-z._-]*", self.database):
            raise SourceError(
                f"data.database is {self.data.database!r}: slug/version is needed, for example ptb-xl/1.0.3."
            )
        base = self.data.url or PHYSIONET
        if urllib.parse.urlsplit(base).scheme not in ("http", "https"):
            raise SourceError(
                f"data.url is {base!r}: an address that starts with http:// or https:// is needed."
            )
        self.url = f"{base.rstrip('/')}/{self.database}/"
        self.sums: dict[str, str] = {}

    def run(self) -> dict[str, Any]:
        """Fetch what is missing; see `download`."""
        self._claim()
        self._fetch_sums()
        extra = [name for name in self.sums if _is_table(name)]
        self._fetch_all(extra, "tables")
        names, absent, lists = self._records()
        headers = [f"{name}.hea" for name in names]
        self._fetch_all(headers, "headers")
        wanted = {*extra, *lists, *headers}
        signals = [name for name in self._signal_files(names) if name not in wanted]
        self._fetch_all(signals, "signals")
        self._prune({*wanted, *signals, SUMS})
        return write_source(self.out, Source("physionet", self.database, self.folder, names, absent))

    def _claim(self) -> None:
        """Keep what an earlier run of the same download left; empty the folder of anything else."""
        identity = {"source": "physionet", "database": self.database, "url": self.data.url or PHYSIONET}
        marker = self.out / MARKER
        if self.out.exists() and not (marker.is_file() and read_json(marker) == identity):
            shutil.rmtree(self.out)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(marker, identity)

    def _fetch_sums(self) -> None:
        path = self.folder / SUMS
        path.unlink(missing_ok=True)  # small, and the only file that nothing vouches for
        try:
            _fetch(self.url + SUMS, path, "")
        except FileNotFoundError:
            slug, version = self.database.split("/")
            raise SourceError(
                f"No database {slug!r} in version {version!r} with a {SUMS} at {self.url}: check "
                f"data.database against https://physionet.org/about/database, or {BY_HAND}."
            ) from None
        for line in path.read_text(encoding="utf-8").splitlines():
            match = re.fullmatch(r"([0-9a-fA-F]{64})\s+\*?(.+)", line.strip())
            if match:
                self.sums[safe_name(match[2].removeprefix("./"), self.url + SUMS)] = match[1].lower()
        if not self.sums:
            raise SourceError(f"{self.url}{SUMS} lists no file: nothing can be verified, so {BY_HAND}.")

    def _records(self) -> tuple[list[str], int, list[str]]:
        """(names of the records to fetch, how many of the list are not there, RECORDS files fetched)."""
        lists: list[str] = []
        if PTBXL_CSV in self.sums:  # each record is there at two rates: one is enough
            names = [row[0] for row in ptbxl_choices(self.folder / PTBXL_CSV, self.data.fs) if row]
        else:
            names = self._records_below("", lists)
        names = list(dict.fromkeys(names))
        there = [name for name in names if f"{name}.hea" in self.sums]
        if not there:
            raise SourceError(
                f"The database {self.database} at {self.url} has no WFDB record that RECORDS names: "
                "choose another one."
            )
        return there[: self.data.limit or None], len(names) - len(there), lists

    def _records_below(self, below: str, lists: list[str]) -> list[str]:
        path = f"{below}RECORDS"
        if path not in self.sums:
            return []
        if below:  # the one at the root is there already
            self._fetch_all([path], path)
        lists.append(path)
        names: list[str] = []
        for line in record_lines((self.folder / path).read_text(encoding="utf-8", errors="replace")):
            name = safe_name(below + line, self.url + path)
            if not line.endswith("/"):
                names.append(name)
                continue
            names += self._records_below(f"{name}/", lists)
            if self.data.limit and sum(f"{n}.hea" in self.sums for n in names) >= self.data.limit:
                break  # thousands of folders may follow
        return names

    def _signal_files(self, names: Iterable[str]) -> list[str]:
        """Signal files that the headers name, segments included, and annotations beside them."""
        by_stem: dict[str, list[str]] = {}
        for file in self.sums:
            by_stem.setdefault(str(PurePosixPath(file).with_suffix("")), []).append(file)
        found: dict[str, None] = {}
        for name in names:
            found |= dict.fromkeys(by_stem.get(name, []))
            segments, files = _header_files(self.folder, name)
            segments = [part for part in segments if f"{part}.hea" in self.sums]
            parts = [f"{part}.hea" for part in segments]
            self._fetch_all(parts, name)
            found |= dict.fromkeys(parts)
            for part in segments:
                files += _header_files(self.folder, part)[1]
            found |= dict.fromkeys(file for file in files if file in self.sums)
        return list(found)

    def _fetch_all(self, files: Iterable[str], what: str) -> None:
        """Fetch files that are not there with the right checksum, a few at a time, with a progress bar."""
        from tqdm import tqdm

        todo = list(files)
        if not todo:
            return
        pool = ThreadPoolExecutor(CONNECTIONS)
        try:
            jobs = pool.map(self._fetch_one, todo)
            # disable=None: no bar where standard error is not a terminal.
            hidden = True if len(todo) == 1 else None
            for _ in tqdm(jobs, total=len(todo), desc=f"{self.database} {what}", unit="file", disable=hidden):
                pass
        finally:
            pool.shutdown(cancel_futures=True)

    def _fetch_one(self, file: str) -> None:
        path, checksum = self.folder / file, self.sums[file]
        if path.is_file() and sha256_file(path) == checksum:
            return
        try:
            _fetch(self.url + urllib.parse.quote(file), path, checksum)
        except FileNotFoundError:
            raise SourceError(
                f"{self.url}{file} is listed in {SUMS} but not there: try again later, or {BY_HAND}."
            ) from None

    def _prune(self, wanted: set[str]) -> None:
        """Remove what an earlier run with other settings left."""
        for path in sorted(self.folder.rglob("*"), reverse=True):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
            elif path.is_file() and path.relative_to(self.folder).as_posix() not in wanted:
                path.unlink()


def _is_table(name: str) -> bool:
    """Files at the root that go with any selection of records: labels, lists, licence."""
    return "/" not in name and (
        name.lower().endswith(".csv") or name in ("RECORDS", "ANNOTATORS", "LICENSE.txt", INCART_TXT)
    )


def _header_files(folder: Path, name: str) -> tuple[list[str], list[str]]:
    """(segments, signal files) that a header names, relative to folder; nothing if it cannot be read.

    A header that cannot be read is rejected with its reason by the next stage.
    """
    import wfdb

    try:
        header: Any = wfdb.rdheader(str(folder / name))
    except (ValueError, OSError, IndexError, KeyError):
        return [], []
    below = PurePosixPath(name).parent
    segments = [part for part in getattr(header, "seg_name", None) or [] if part != "~"]
    files = [file for file in getattr(header, "file_name", None) or [] if file not in (None, "~")]
    return [str(below / part) for part in segments], [str(below / file) for file in dict.fromkeys(files)]


def _fetch(url: str, path: Path, checksum: str) -> None:
    """Fetch url to path, by way of path.part; an interrupted part is continued. checksum: SHA-256 or empty.

    Raises FileNotFoundError where the server has no such file, SourceError for anything else.
    """
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    cause = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(BACKOFF_S * 2 ** (attempt - 1))
        resumed = part.stat().st_size if part.is_file() else 0
        try:
            _receive(url, part, resumed)
        except _TransferError as error:
            cause = str(error)
            continue
        if not checksum or sha256_file(part) == checksum:
            part.replace(path)
            return
        found = hashlib.sha256(part.read_bytes()).hexdigest()
        part.unlink()
        if not resumed:
            raise SourceError(
                f"Wrong checksum of {path.name} from {url}: SHA-256 {found[:12]}... instead of "
                f"{checksum[:12]}...; it was removed, try again later, or {BY_HAND}."
            )
        cause = "wrong checksum of a continued part"
    raise SourceError(f"Cannot fetch {url} ({cause}, {ATTEMPTS} attempts): check the network, or {BY_HAND}.")


def _receive(url: str, part: Path, start: int) -> None:
    """Append to `part`, which has `start` bytes, or begin it again where the server does not continue."""
    headers = {"User-Agent": "ecggen"} | ({"Range": f"bytes={start}-"} if start else {})
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
            continued = start and reply.status == 206
            expected = _length(reply.headers)
            received = 0
            with part.open("ab" if continued else "wb") as stream:
                while block := reply.read(1 << 16):
                    stream.write(block)
                    received += len(block)
    except urllib.error.HTTPError as error:
        _judge(error, url, part)
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise _TransferError(str(reason) or type(reason).__name__) from error
    else:
        if expected is not None and received < expected:
            raise _TransferError(f"the transfer broke off after {received} of {expected} bytes")


def _length(headers: Mapping[str, str]) -> int | None:
    text = headers.get("Content-Length")
    return int(text) if text and text.isdigit() else None


def _judge(error: urllib.error.HTTPError, url: str, part: Path) -> None:
    """Turn a refusal into what can be done about it."""
    if error.code == 404:
        raise FileNotFoundError(url) from error
    if error.code in (401, 403):
        raise SourceError(
            f"{url} is not open to everyone (HTTP {error.code}): sign in at PhysioNet, {BY_HAND}."
        ) from error
    if error.code == 416:  # the part is as long as the file, or longer: begin again
        part.unlink(missing_ok=True)
    if error.code == 416 or error.code == 429 or error.code >= 500:
        raise _TransferError(f"HTTP {error.code}") from error
    raise SourceError(f"{url} was refused (HTTP {error.code}): {BY_HAND}.") from error
