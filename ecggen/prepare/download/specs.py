"""A source in one line, the sources that a configuration names, and where they may lie."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from ecggen.prepare import databases
from ecggen.utils.config import Config, DataConfig
from ecggen.utils.errors import EcggenError

OTHER = "other"
#: Folders of the project that stages replace as a whole.
STAGE_FOLDERS = ("data/raw", "data/records", "data/windows", "data/transfer_raw", "data/transfer", "results")
_FORMS = (
    "physionet:NAME, wfdb:FOLDER, table:FILE.csv, a database's name and :FOLDER, synthetic, synthetic:other"
)


class SourceError(EcggenError):
    """Records that cannot be found or fetched."""


@dataclass(frozen=True)
class SourceSpec:
    """Where records come from, before they are there.

    kind: synthetic, physionet, wfdb or table; place: the folder, the table, PhysioNet's slug/version, or
    OTHER: the other synthetic population; database: its name, "" = to be recognised by its files.
    """

    kind: str
    place: str = ""
    database: str = ""


def parse_source(text: str) -> SourceSpec:
    """A source in one line, KIND:PLACE.

    KIND is physionet (PLACE = a database's name, or slug/version), wfdb (a folder), table (a CSV file), or
    the name of a database, of which PLACE is a local copy. `synthetic` has no place; `synthetic:other` are
    other synthetic people on another device. Raises SourceError, DatabaseError.
    """
    kind, colon, place = (part.strip() for part in text.strip().partition(":"))
    if kind.lower() == "synthetic":
        if place not in ("", OTHER):
            raise SourceError(f"Source {text!r}: synthetic takes nothing after it but :{OTHER}.")
        return SourceSpec("synthetic", place, "-".join(filter(None, ("synthetic", place))))
    if not colon or not place:
        hint = f" physionet:{kind} downloads it." if databases.find(kind) else ""
        raise SourceError(f"Source {text!r} has no place: write {_FORMS}.{hint}")
    if kind.lower() == "physionet":
        address = databases.physionet_address(place)
        base = databases.by_slug(address)
        return SourceSpec("physionet", address, base.key if base else "")
    if kind.lower() in ("wfdb", "table"):
        return SourceSpec(kind.lower(), place)
    try:
        return SourceSpec("wfdb", place, databases.get(kind).key)
    except databases.DatabaseError as error:
        raise SourceError(f"Source {text!r}: write {_FORMS}. {error}") from None


def configured_sources(data: DataConfig) -> list[SourceSpec]:
    """The sources that a configuration names: data.sources, else the single one; raises as parse_source."""
    if data.sources:
        return [parse_source(line) for line in data.sources]
    if data.source == "physionet":
        return [parse_source(f"physionet:{data.database}")]
    if data.source == "wfdb" and data.database:
        return [SourceSpec("wfdb", data.path, databases.get(data.database).key)]
    if data.source in ("wfdb", "table"):
        return [SourceSpec(data.source, data.path)]
    return [SourceSpec("synthetic", database="synthetic")]


def check_sources(config: Config, folders: Iterable[str | Path] = ()) -> list[SourceSpec]:
    """The sources of `data`, after all checks that need no record.

    Each must be well formed, be there, and neither lie in a folder that a stage replaces (STAGE_FOLDERS and
    `folders`) nor hold one. Raises SourceError, DatabaseError.
    """
    specs = configured_sources(config.data)
    for spec in specs:
        _check_place(spec, [*STAGE_FOLDERS, *folders])
    return specs


def check_transfer_sources(config: Config, folders: Iterable[str | Path] = ()) -> list[SourceSpec]:
    """As `check_sources`, of transfer.sources; a database that the model is trained on is refused as well."""
    home = configured_sources(config.data)
    specs = []
    for line in config.transfer.sources:
        try:
            spec = parse_source(line)
            _check_place(spec, [*STAGE_FOLDERS, *folders])
            places = [other.place for other in home if other.kind == spec.kind and spec.kind != "synthetic"]
            same = spec.database and spec.database in (other.database for other in home)
            if same or overlap(spec.place, places):
                raise SourceError(
                    "the model is trained on its recordings: a test on them would be no test; leave it out."
                )
        except EcggenError as error:
            raise SourceError(f"transfer.sources names {line!r}: {error}") from None
        specs.append(spec)
    return specs


def _check_place(spec: SourceSpec, replaced: Iterable[str | Path]) -> None:
    if spec.kind not in ("wfdb", "table"):
        return
    path = local_path(spec.place, is_table=spec.kind == "table")
    if spec.database:
        databases.require(databases.get(spec.database), path)
    refuse_overlap(f"The source {spec.place}", path, replaced)


def local_path(place: str | Path, *, is_table: bool = False) -> Path:
    """The folder of records, or the table, at a place as `resolve_folder` reads it. Raises SourceError."""
    path = resolve_folder(place)
    if is_table and not path.is_file():
        raise SourceError(f"No table of records at {place}: name a CSV file.")
    if not is_table and not path.is_dir():
        raise SourceError(f"No folder of records at {place}: name a folder with WFDB records.")
    return path


def refuse_overlap(what: str, path: str | Path, replaced: Iterable[str | Path]) -> None:
    """Raises SourceError where `path` lies in a folder that is going to be replaced, or holds one."""
    folder = overlap(path, replaced)
    if folder is not None:
        raise SourceError(
            f"{what} and the folder {folder}, which is replaced as a whole, lie one in the other: move the "
            "records elsewhere, so that they are not deleted."
        )


def overlap(path: str | Path, folders: Iterable[str | Path]) -> str | Path | None:
    """The first folder that holds `path`, is it, or lies in it, whether links are followed or not."""
    forms = absolute_forms(path)
    for folder in folders:
        pairs = product(forms, absolute_forms(folder))
        if any(one.is_relative_to(other) or other.is_relative_to(one) for one, other in pairs):
            return folder
    return None


def absolute_forms(path: str | Path) -> set[Path]:
    """A path with and without its links; a relative one here and in DVC's main repository."""
    path = Path(path).expanduser()
    paths = {path, Path(os.environ.get("DVC_ROOT", "")) / path}
    forms = (os.path.abspath, os.path.realpath)
    return {Path(os.path.normcase(form(path))) for path in paths for form in forms}


def resolve_folder(path: str | Path) -> Path:
    """The folder meant by a path of the configuration.

    A relative path that does not exist here is looked up from DVC's main repository, because temporary and
    queued experiments run in a copy of it elsewhere.
    """
    path = Path(path).expanduser()
    main = os.environ.get("DVC_ROOT")
    if main and not path.is_absolute() and not path.exists() and (Path(main) / path).exists():
        return Path(main) / path
    return path


def part_keys(specs: Iterable[SourceSpec]) -> list[str]:
    """What each of several sources is called: its database, else the last part of its place, each once."""
    keys: list[str] = []
    for spec in specs:
        slug, _, _ = spec.place.partition("/")
        name = slug if spec.kind == "physionet" else Path(spec.place.rstrip("/")).stem
        base = key = spec.database or plain_key(name or spec.kind)
        number = 1
        while key in keys:
            number += 1
            key = f"{base}-{number}"
        keys.append(key)
    return keys


def plain_key(name: str) -> str:
    """A name of a folder, table or database as it stands in front of records: lower case, no blanks."""
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower().partition("/")[0]).strip("-") or "records"
