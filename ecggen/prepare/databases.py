"""Databases by name, and the name of a folder that holds one. The facts are in databases.yaml.

python -m ecggen.prepare.databases docs/databases.md     # write the description of all of them
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ecggen.io.tables import table_columns
from ecggen.prepare.labels.record_info import LABEL_SYSTEMS
from ecggen.utils.errors import EcggenError
from ecggen.utils.files import FileError, write_text

FACTS = Path(__file__).with_name("databases.yaml")


class DatabaseError(EcggenError):
    """A database that is not known, or a folder that does not hold it."""


@dataclass(frozen=True)
class Database:
    """One database.

    key: its name here; slug and version: its place on PhysioNet, empty = none of its own; part_of: the key of
    the database that contains it there; layout: how its files lie; files: side tables at its root that tell
    it apart, columns: columns the first of them has; leads: names in the order and spelling of the headers;
    fs in Hz; labels: label system -> what it says; default_labels: the system that window.labels=auto takes;
    patients: what tells people apart; split: the published one; flags: quality flags that hold for every
    record; cohorts: whose recordings it holds, so that nothing is combined with its own copy;
    record_names: pattern of the names that tell it apart, challenge_names: of those that its records have in
    the PhysioNet/CinC Challenges; sources: where the facts were looked up; tested: on what this project reads
    it.
    """

    key: str
    title: str
    layout: str
    leads: tuple[str, ...]
    fs: tuple[float, ...]
    length: str
    units: str
    records: str
    labels: Mapping[str, str]
    default_labels: str
    patients: str
    split: str
    licence: str
    cohorts: tuple[str, ...]
    sources: tuple[str, ...]
    tested: str
    slug: str = ""
    version: str = ""
    part_of: str = ""
    aliases: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    defects: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    record_names: str = ""
    challenge_names: str = ""

    @property
    def place(self) -> str:
        """Where it is on PhysioNet."""
        return f"{self.slug}/{self.version}" if self.slug else f"in {self.part_of}"

    @property
    def rates(self) -> str:
        """Its sampling rates, in words."""
        return ", ".join(f"{rate:g}" for rate in self.fs)


@functools.cache
def databases() -> tuple[Database, ...]:
    """All of them, in the order of databases.yaml."""
    bases = []
    for key, facts in _facts()["databases"].items():
        values: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in facts.items()}
        bases.append(Database(key=key, **values))
    return tuple(bases)


@functools.cache
def _facts() -> Any:
    return yaml.load(FACTS.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def find(name: str) -> Database | None:
    """The database of that name or alias, in any case; None for an unknown one."""
    name = name.strip().lower()
    return next((base for base in databases() if name in (base.key, *base.aliases)), None)


def get(name: str) -> Database:
    """As `find`. Raises DatabaseError, with the known and the nearest, for an unknown name."""
    base = find(name)
    if base is None:
        keys = {alias: base.key for base in databases() for alias in (base.key, *base.aliases)}
        near = difflib.get_close_matches(name.strip().lower(), keys, n=1)
        hint = f" Did you mean {keys[near[0]]!r}?" if near else ""
        known = ", ".join(base.key for base in databases())
        raise DatabaseError(f"Unknown database {name!r}: known by name are {known}.{hint}")
    return base


def by_slug(text: str) -> Database | None:
    """The database of a PhysioNet address slug/version, in any version."""
    slug = text.strip("/ ").partition("/")[0].lower()
    return next((base for base in databases() if base.slug == slug), None)


def physionet_address(text: str) -> str:
    """slug/version of a name (the registered version) or of slug/version as given, registered or not.

    Raises DatabaseError for a name that is not known, or that has no place of its own on PhysioNet.
    """
    text = text.strip("/ ")
    name, _, version = text.partition("/")
    if find(name) is None and version:
        return text
    try:
        base = get(name)
    except DatabaseError as error:
        raise DatabaseError(f"{error} Any other: write slug/version, for example ptb-xl/1.0.3.") from None
    if not base.slug:
        raise DatabaseError(
            f"{base.key} has no place of its own on PhysioNet: it is part of {base.part_of}; download that, "
            f"or point to a copy of the part with {base.key}:/its/folder."
        )
    return f"{base.slug}/{version or base.version}"


def find_above(folder: Path, name: str) -> Path | None:
    """A file in a folder or up to two folders above it."""
    for place in (folder, *list(folder.resolve().parents)[:2]):
        if (place / name).is_file():
            return place / name
    return None


def recognise(folder: Path, names: Sequence[str]) -> Database | None:
    """Which database a folder is a copy of, or a part of: by its side tables, else by its records' names.

    names: records below the folder, without suffix. None = plain WFDB records.
    """
    for base in databases():
        table = find_above(folder, base.files[0]) if base.files else None
        with contextlib.suppress(FileError):
            if table and set(base.columns) <= set(table_columns(table)):
                return base
    if not names:
        return None
    here = folder.resolve().name
    for base in databases():
        pattern = re.compile(rf"(^|/)({base.record_names})$")
        if base.record_names and all(pattern.search(f"{here}/{name}") for name in names):
            annotated = all((folder / f"{name}.atr").is_file() for name in names)
            if annotated or base.default_labels != "beats":
                return base
    return _of_challenge(folder, names)


def require(base: Database, folder: Path) -> None:
    """Raises DatabaseError where a folder lacks the side tables of the database it is said to hold."""
    for name in base.files[:1]:
        if find_above(folder, name) is None:
            raise DatabaseError(
                f"{folder} is said to be {base.key} but has no {name}: copy it there from the database, or "
                "leave data.database empty to read the folder as plain WFDB records."
            )


def cohorts(base: Database | None, names: Iterable[str]) -> set[str]:
    """Whose recordings are among the records of a database."""
    if base is None:
        return set()
    if len(base.cohorts) == 1:
        return set(base.cohorts)
    return {cohort(name) for name in names} - {""} or set(base.cohorts)


def cohort(name: str) -> str:
    """Whose recording a record of the Challenge is, by its name; "" for another name."""
    stem = name.rpartition("/")[2]
    named = (base for base in databases() if base.challenge_names)
    return next((base.key for base in named if re.fullmatch(base.challenge_names, stem)), "")


def _of_challenge(folder: Path, names: Sequence[str]) -> Database | None:
    keys = {cohort(name) for name in names}
    if "" in keys:
        return None
    header, text = folder / f"{names[0]}.hea", ""
    with contextlib.suppress(OSError):
        text = header.read_text(encoding="utf-8", errors="replace") if header.is_file() else ""
    if not re.search(r"^#\s*Dx\s*:", text, re.IGNORECASE | re.MULTILINE):
        return None
    places = (str(folder.resolve()), *names)
    if keys == {"chapman-shaoxing", "ningbo"} or (
        keys <= {"chapman-shaoxing", "ningbo"} and any("WFDBRecords" in Path(name).parts for name in places)
    ):
        return get("ecg-arrhythmia")
    if len(keys) == 1 and (base := get(keys.pop())).part_of:
        return base
    # The Challenge's copies of ptb-xl, ptbdb and incartdb have its names and codes, not their own tables.
    return get("challenge-2021")


def document() -> str:
    """docs/databases.md."""
    lines = [
        "# Databases",
        "",
        "Written by `python -m ecggen.prepare.databases docs/databases.md` from",
        "ecggen/prepare/databases.yaml (a test keeps the two equal). Counts with the source ECGBench were",
        "made there from the files, not here.",
        "",
        "| name | what | on PhysioNet | leads | Hz | labels of `auto` | read here |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| `{base.key}` | {base.title} | {base.place} | {len(base.leads)} | {base.rates} | "
        f"{base.default_labels} | {base.tested} |"
        for base in databases()
    ]
    lines += ["", _facts()["guide"].rstrip("\n"), "", "Label systems (`window.labels`):", ""]
    lines += [f"- `{name}`: {words}" for name, words in LABEL_SYSTEMS.items()]
    return "\n".join([*lines, *(_section(base) for base in databases())]) + "\n"


def _section(base: Database) -> str:
    """What docs/databases.md says of one database."""
    facts = {
        "also called": ", ".join(base.aliases),
        "on PhysioNet": base.place,
        "files": base.layout,
        "leads, in this order": " ".join(base.leads),
        "rate, length": f"{base.rates} Hz, {base.length}",
        "units": base.units,
        **{f"labels `{name}`": words for name, words in base.labels.items()},
        "labels of `auto`": base.default_labels,
        "who is who": base.patients,
        "split": base.split,
        "licence": base.licence,
        "always flagged": ", ".join(base.flags),
        "recordings of": ", ".join(base.cohorts) if base.cohorts != (base.key,) else "",
    }
    lines = ["", f"## {base.key}", "", f"{base.title}: {base.records}.", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {words} |" for name, words in facts.items() if words]
    if base.defects:
        lines += ["", "Known defects:", "", *(f"- {words}" for words in base.defects)]
    return "\n".join([*lines, "", "Looked up: " + ", ".join(f"<{place}>" for place in base.sources) + "."])


def main(argv: Sequence[str]) -> int:
    """Write the document to the path given, or to standard output."""
    if argv:
        write_text(argv[0], document())
    else:
        print(document(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
