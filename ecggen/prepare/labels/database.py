"""What is known of a database before a byte of it is read: one frozen description. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

STANDARD_LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
UPPER_LEADS = tuple(name.upper() for name in STANDARD_LEADS)
CHALLENGE_LEADS = STANDARD_LEADS

#: What window.labels may name, in words. "dx" is what the source says itself, in its own words or codes.
LABEL_SYSTEMS: Mapping[str, str] = {
    "superclass": "PTB-XL's five diagnostic superclasses",
    "subclass": "PTB-XL's diagnostic subclasses",
    "form": "PTB-XL's form statements (SCP-ECG)",
    "rhythm": "PTB-XL's rhythm statements (SCP-ECG)",
    "snomed": "SNOMED CT, as the PhysioNet/CinC Challenges abbreviate it",
    "beats": "beat classes of ANSI/AAMI EC57 present in a window",
    "dx": "the source's own words or codes",
}


@dataclass(frozen=True)
class Database:
    """One database.

    key: its name here; slug and version: its place on PhysioNet, empty = none of its own; part_of: the key of
    the database that contains it there; layout: how its files lie; files: side tables at its root that tell
    it apart, columns: columns the first of them has; leads: names in the order and spelling of the headers;
    fs in Hz; labels: label system -> what it says; default_labels: the system that window.labels=auto takes;
    patient: what tells people apart; split: the published one; flags: quality flags that hold for every
    record; cohorts: whose recordings it holds, so that nothing is combined with its own copy; sources: where
    the facts were looked up; tested: on what this project reads it.
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
    patient: str
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
    defects: tuple[str, ...] = field(default=())
    flags: tuple[str, ...] = ()
