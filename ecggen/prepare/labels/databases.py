"""Databases by name, and the name of a folder that holds one.

    python -m ecggen.prepare.labels.databases docs/databases.md     # write the description of all of them

Standard library only.
"""

from __future__ import annotations

import csv
import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from ecggen.prepare.labels.database import LABEL_SYSTEMS, Database
from ecggen.prepare.labels.registry import DATABASES
from ecggen.utils.errors import EcggenError
from ecggen.utils.files import write_text


class DatabaseError(EcggenError):
    """A database that is not known, or a folder that does not hold it."""


_BY_NAME = {name: base for base in DATABASES for name in (base.key, *base.aliases)}
_MITDB = {
    str(number)
    for start, stop in ((100, 110), (111, 120), (121, 125), (200, 235))
    for number in range(start, stop)
} - {str(number) for number in (204, 206, 211, 216, 218, 224, 225, 226, 227, 229)}
#: Names of the Challenge's records -> whose recordings they are. JS: see `cohort`.
_CHALLENGE = (
    (re.compile(r"A\d{4}"), "cpsc2018"),
    (re.compile(r"Q\d{4}"), "cpsc2018-extra"),
    (re.compile(r"I\d{4}"), "incartdb"),
    (re.compile(r"S\d{4}"), "ptbdb"),
    (re.compile(r"HR\d{5}"), "ptb-xl"),
    (re.compile(r"E\d{5}"), "georgia"),
)
_JS = re.compile(r"J?S(\d{5})")
_LAST_CHAPMAN = 10_646


def find(name: str) -> Database | None:
    """The database of that name or alias, in any case; None for an unknown one."""
    return _BY_NAME.get(name.strip().lower())


def get(name: str) -> Database:
    """As `find`. Raises DatabaseError, with the known and the nearest, for an unknown name."""
    found = find(name)
    if found is None:
        near = difflib.get_close_matches(name.strip().lower(), _BY_NAME, n=1)
        hint = f" Did you mean {_BY_NAME[near[0]].key!r}?" if near else ""
        known = ", ".join(base.key for base in DATABASES)
        raise DatabaseError(f"Unknown database {name!r}: known by name are {known}.{hint}")
    return found


def by_slug(text: str) -> Database | None:
    """The database of a PhysioNet address slug/version, in any version."""
    slug = text.strip("/ ").partition("/")[0].lower()
    return next((base for base in DATABASES if base.slug == slug), None)


def physionet_address(text: str) -> str:
    """slug/version of a name (the registered version) or of slug/version as given, registered or not.

    Raises DatabaseError for a name that is not known, or that has no place of its own on PhysioNet.
    """
    text = text.strip("/ ")
    name, _, version = text.partition("/")
    base = find(name)
    if base is None:
        if version:
            return text
        try:
            get(name)
        except DatabaseError as error:
            raise DatabaseError(f"{error} Any other: write slug/version, for example ptb-xl/1.0.3.") from None
    assert base is not None
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
    for base in DATABASES:
        table = find_above(folder, base.files[0]) if base.files else None
        if table is not None and set(base.columns) <= set(_columns(table) if base.columns else ()):
            return base
    if not names:
        return None
    if all(name.rpartition("/")[2] in _MITDB for name in names) and all(
        (folder / f"{name}.atr").is_file() for name in names
    ):
        return _BY_NAME["mitdb"]
    own = folder.resolve().name
    if all(re.search(r"(^|/)patient\d{3}/s\d{4}(_re|lre)$", f"{own}/{name}") for name in names):
        return _BY_NAME["ptbdb"]
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
    found = {cohort(name) for name in names}
    return {name for name in found if name} or set(base.cohorts)


def cohort(name: str) -> str:
    """Whose recording a record of the Challenge is, by its name; "" for another name."""
    stem = name.rpartition("/")[2]
    number = _JS.fullmatch(stem)
    if number:
        return "chapman-shaoxing" if int(number[1]) <= _LAST_CHAPMAN else "ningbo"
    return next((key for pattern, key in _CHALLENGE if pattern.fullmatch(stem)), "")


def _of_challenge(folder: Path, names: Sequence[str]) -> Database | None:
    found = {cohort(name) for name in names}
    if "" in found or not _has_dx(folder / f"{names[0]}.hea"):
        return None
    if found <= {"chapman-shaoxing", "ningbo"} and (
        len(found) == 2 or any("WFDBRecords" in Path(name).parts for name in (str(folder.resolve()), *names))
    ):
        return _BY_NAME["ecg-arrhythmia"]
    if len(found) == 1 and (only := _BY_NAME[found.pop()]).part_of:
        return only
    # The Challenge's copies of ptb-xl, ptbdb and incartdb have its names and codes, not their own tables.
    return _BY_NAME["challenge-2021"]


def _has_dx(header: Path) -> bool:
    try:
        text = header.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return re.search(r"^#\s*Dx\s*:", text, re.IGNORECASE | re.MULTILINE) is not None


def _columns(table: Path) -> list[str]:
    try:
        with table.open(encoding="utf-8", errors="replace", newline="") as stream:
            return next(csv.reader(stream), [])
    except (OSError, csv.Error):
        return []


_USE = """

## One source, or several

```sh
dvc exp run -S data.source=physionet -S data.database=ptb-xl              # downloaded, in the version above
dvc exp run -S data.source=wfdb -S data.path=/my/copy                     # recognised by its files
dvc exp run -S data.source=wfdb -S data.path=/my/copy -S data.database=ludb
dvc exp run -S data.source=table -S data.path=/my/list.csv                # arrays and records of your own
dvc exp run -S 'data.sources=[ptb-xl:/my/ptb-xl,wfdb:/my/records,physionet:ludb,table:/my/list.csv]'
dvc exp run -S "data.sources=['wfdb:~/records','synthetic']"              # a place with ~ ( ) or , in quotes
```

Each entry of `data.sources` is `KIND:PLACE`: `physionet:` and a name or slug/version, `wfdb:` and a
folder, `table:` and a CSV file, a name from the table above and a local copy of it, or `synthetic`.
`data.limit` counts for each. Records are then called `KEY/record` and people `KEY:patient`; each database
is split by its own rule, nobody is in two splits, and sources that hold the same recordings are refused.
Labels have to be of one system: `window.labels`.

A folder that no name fits is plain WFDB: leads by name, units from the header, `Dx:`, `Age:`, `Sex:` and
`Patient:` from the comments. What is known by name only adds labels, people, splits and known defects.

Columns of a table: `path` (.npy or .npz, [leads, n] or [n, leads], or a WFDB record; relative to the
file's folder), `fs` (Hz), `leads` (names separated by `;`, in the array's order), `unit` (mV, uV, V, nV),
and if wanted `row` (of an array [records, leads, n]), `patient`, `labels` (separated by `;`, of another
system as `system/label`), `split` (train, validation, test) or `fold`, `age`, `sex`, `recorded`. A WFDB
record leaves `fs`, `leads` and `unit` empty.
"""


def document() -> str:
    """docs/databases.md."""
    lines = [
        "# Databases",
        "",
        "Written from ecggen/prepare/labels/registry.py by",
        "`python -m ecggen.prepare.labels.databases docs/databases.md`",
        "(a test keeps the two equal). Counts with",
        "the source ECGBench were made there from the files, not",
        "here.",
        "",
        "| name | what | on PhysioNet | leads | Hz | labels of `auto` | read here |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| `{base.key}` | {base.title} | {_place(base)} | {len(base.leads)} | {_rates(base)} | "
        f"{base.default_labels} | {base.tested} |"
        for base in DATABASES
    ]
    lines += ["", *_USE.strip("\n").split("\n")]
    lines += ["", "Label systems (`window.labels`):", ""]
    lines += [f"- `{name}`: {words}" for name, words in LABEL_SYSTEMS.items()]
    for base in DATABASES:
        lines += ["", f"## {base.key}", "", f"{base.title}: {base.records}.", ""]
        facts = {
            "also called": ", ".join(base.aliases),
            "on PhysioNet": _place(base),
            "files": base.layout,
            "leads, in this order": " ".join(base.leads),
            "rate, length": f"{_rates(base)} Hz, {base.length}",
            "units": base.units,
            **{f"labels `{name}`": words for name, words in base.labels.items()},
            "labels of `auto`": base.default_labels,
            "who is who": base.patient,
            "split": base.split,
            "licence": base.licence,
            "always flagged": ", ".join(base.flags),
            "recordings of": ", ".join(base.cohorts) if base.cohorts != (base.key,) else "",
        }
        lines += ["| | |", "|---|---|", *(f"| {name} | {words} |" for name, words in facts.items() if words)]
        lines += ["", "Known defects:", "", *(f"- {words}" for words in base.defects)] if base.defects else []
        lines += ["", "Looked up: " + ", ".join(f"<{place}>" for place in base.sources) + "."]
    return "\n".join(lines) + "\n"


def _place(base: Database) -> str:
    return f"{base.slug}/{base.version}" if base.slug else f"in {base.part_of}"


def _rates(base: Database) -> str:
    return ", ".join(f"{rate:g}" for rate in base.fs)


def main(argv: Sequence[str]) -> int:
    """Write the document to the path given, or to standard output."""
    if argv:
        write_text(argv[0], document())
    else:
        print(document(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
