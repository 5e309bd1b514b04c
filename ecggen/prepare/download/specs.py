"""A source in one line, and the sources that a configuration names. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ecggen.prepare import databases
from ecggen.utils.config import DataConfig
from ecggen.utils.errors import EcggenError

OTHER = "other"
_T = TypeVar("_T")


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
    other synthetic people on another device. Raises SourceError.
    """
    kind, colon, place = (part.strip() for part in text.strip().partition(":"))
    shown = (
        "physionet:NAME, wfdb:FOLDER, table:FILE.csv, a database's name and :FOLDER, synthetic, or "
        "synthetic:other"
    )
    if kind.lower() == "synthetic":
        if place not in ("", OTHER):
            raise SourceError(f"Source {text!r}: synthetic takes nothing after it but :{OTHER}.")
        return SourceSpec("synthetic", place, "-".join(filter(None, ("synthetic", place))))
    if not colon or not place:
        hint = f" physionet:{kind} downloads it." if databases.find(kind) else ""
        raise SourceError(f"Source {text!r} has no place: write {shown}.{hint}")
    if kind.lower() == "physionet":
        address = _known(databases.physionet_address, place)
        base = databases.by_slug(address)
        return SourceSpec("physionet", address, base.key if base else "")
    if kind.lower() in ("wfdb", "table"):
        return SourceSpec(kind.lower(), place)
    if databases.find(kind) is None:
        try:
            databases.get(kind)
        except databases.DatabaseError as error:
            raise SourceError(f"Source {text!r}: write {shown}. {error}") from None
    return SourceSpec("wfdb", place, databases.get(kind).key)


def configured_sources(data: DataConfig) -> list[SourceSpec]:
    """The sources that a configuration names: data.sources, else the single one. Raises SourceError."""
    if data.sources:
        return [parse_source(line) for line in data.sources]
    if data.source == "physionet":
        return [parse_source(f"physionet:{data.database}")]
    if data.source == "wfdb" and data.database:
        return [SourceSpec("wfdb", data.path, _known(databases.get, data.database).key)]
    if data.source in ("wfdb", "table"):
        return [SourceSpec(data.source, data.path)]
    return [SourceSpec("synthetic", database="synthetic")]


def part_keys(specs: Iterable[SourceSpec]) -> list[str]:
    """What each of several sources is called: its database, else the last part of its place, each once."""
    keys: list[str] = []
    for spec in specs:
        base = spec.database or plain_key(Path(spec.place.rstrip("/")).stem or spec.kind)
        if spec.kind == "physionet" and not spec.database:
            base = plain_key(spec.place.partition("/")[0])
        number = 2
        key = base
        while key in keys:
            key, number = f"{base}-{number}", number + 1
        keys.append(key)
    return keys


def _known(look_up: Callable[[str], _T], name: str) -> _T:
    try:
        return look_up(name)
    except databases.DatabaseError as error:
        raise SourceError(str(error)) from None


def plain_key(name: str) -> str:
    """A name of a folder, table or database as it stands in front of records: lower case, no blanks."""
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower().partition("/")[0]).strip("-") or "records"
