"""SNOMED CT codes of 12-lead ECGs, and what stands for them elsewhere.

snomed.csv is the code table of the PhysioNet/CinC Challenges 2020 and 2021: dx_mapping_scored.csv and
dx_mapping_unscored.csv of github.com/physionetchallenges/evaluation-2020 and evaluation-2021 (BSD 2-Clause).
Columns: code, name, abbreviation, scored_2020 and scored_2021 (1 = part of that Challenge's score), same_as
(the Challenge scores this code as that one: "We score 713427006 and 59118001 as the same diagnosis"),
ptb_xl (records of PTB-XL 1.0.1 that the organisers gave the code).

scp_to_snomed.csv maps PTB-XL's SCP-ECG statements, and its column heart_axis, to these codes. The organisers
published the labels, not the mapping: it was reconstructed from the names on both sides. Its codes are just
those that the Challenge counts in PTB-XL, but for 251200008 (indeterminate axis, 156 records), which no
statement stands for. Unlike the two files above it was not compared with the organisers record by record.

Standard library only.
"""

from __future__ import annotations

import csv
import functools
import re
from collections.abc import Iterable
from pathlib import Path

CODES = Path(__file__).with_name("snomed.csv")
SCP = Path(__file__).with_name("scp_to_snomed.csv")
AXIS = "heart_axis="  # in front of a value of PTB-XL's column of that name

#: Labels of the China Physiological Signal Challenge 2018 by name, as some copies of its headers have them.
#: The codes are those that the Challenge gave the same records.
CPSC_NAMES = {
    "normal": "426783006",
    "af": "164889003",
    "i-avb": "270492004",
    "lbbb": "164909002",
    "rbbb": "59118001",
    "pac": "284470004",
    "pvc": "164884008",
    "std": "429622005",
    "ste": "164931005",
}
#: SNOMED CT identifiers have 6 to 18 digits; spreadsheets write them as 426783006.0.
_CODE = re.compile(r"(\d{6,18})(?:\.0*)?")


@functools.cache
def concepts() -> dict[str, dict[str, str]]:
    """Code -> its row of snomed.csv."""
    with CODES.open(encoding="utf-8", newline="") as stream:
        return {row["code"]: row for row in csv.DictReader(stream)}


@functools.cache
def abbreviations() -> frozenset[str]:
    """What codes are shown as."""
    return frozenset(concept["abbreviation"] for concept in concepts().values())


@functools.cache
def scp_codes() -> dict[str, str]:
    """SCP-ECG statement, or "heart_axis=" and its value -> SNOMED CT code."""
    with SCP.open(encoding="utf-8", newline="") as stream:
        return {row["scp"]: row["snomed"] for row in csv.DictReader(stream)}


def code(text: str) -> str:
    """The SNOMED CT identifier that a label is, "" for any other label."""
    match = _CODE.fullmatch(text.strip())
    return match[1] if match else ""


def class_name(identifier: str) -> str:
    """The label that a code is shown as: its abbreviation, or that of the code it counts as.

    A code that the table lacks is shown as it is.
    """
    if identifier not in concepts():
        return identifier
    return concepts()[concepts()[identifier]["same_as"] or identifier]["abbreviation"]


def classes(entries: Iterable[str]) -> tuple[list[str], list[str]]:
    """(labels in alphabetical order, entries that no table knows) of a record's codes or CPSC names.

    Unknown codes and words stay labels as they are.
    """
    codes = {entry: CPSC_NAMES.get(entry.lower()) or code(entry) or entry for entry in entries}
    unknown = [entry for entry, identifier in codes.items() if identifier not in concepts()]
    return sorted({class_name(identifier) for identifier in codes.values()}), unknown
