"""Training, validation and test by patient: nobody is in two of them.

Where every record has a fold (PTB-XL's strat_fold) and there are at least three folds, the highest is test,
the next lower one validation, the rest training. A patient whose records lie in several folds follows the
highest of them. Where every record says its split by name, that holds. Otherwise patients are drawn by a
seeded hash of their name. Several databases are split one by one, each by its own rule.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from ecggen.utils.config import SPLITS, WindowConfig
from ecggen.utils.errors import EcggenError

Members = Sequence[tuple[str, str]]  # (patient, fold) of each record of a database; fold "" = none


class SplitError(EcggenError):
    """A data set that cannot be split by patient."""


def assign_splits(
    patients: Sequence[str],
    folds: Sequence[int | str | None],
    config: WindowConfig,
    databases: Sequence[str] | None = None,
) -> tuple[dict[str, str], str]:
    """patients, folds and databases: one entry per record; a fold is a number or the name of a split.

    Returns (patient -> split, the rule in words). Raises SplitError where a split would be empty, or a
    patient is named for two of them or found in two databases.
    """
    if config.split != "auto":
        return dict.fromkeys(patients, config.split), f"all in {config.split}, as window.split says"
    members: dict[str, list[tuple[str, str]]] = {}
    for patient, fold, database in zip(patients, folds, databases or [""] * len(patients), strict=True):
        members.setdefault(database, []).append((patient, "" if fold is None else str(fold)))
    split_of: dict[str, str] = {}
    rules = []
    for database in sorted(members):
        splits, rule = _split_database(members[database], config, alone=len(members) == 1)
        if both := splits.keys() & split_of.keys():
            raise SplitError(
                f"Patient {min(both)!r} is in {database} and in another database: names must differ."
            )
        split_of |= splits
        rules.append(rule if len(members) == 1 else f"{database}: {rule}")
    return split_of, "; ".join(rules)


def _split_database(members: Members, config: WindowConfig, alone: bool) -> tuple[dict[str, str], str]:
    """alone: no other database is there. Returns and raises as assign_splits."""
    folds = {fold for _, fold in members}
    named = {fold for fold in folds if fold and not fold.removeprefix("-").isdecimal()}
    if named and named != folds:
        raise SplitError(
            "Some records name their split and some do not: name it for all of them or for none."
        )
    if named:
        split_of: dict[str, str] = {}
        for patient, name in members:
            if name not in SPLITS:
                raise SplitError(f"Patient {patient!r} is in split {name!r}: use one of {', '.join(SPLITS)}.")
            if (other := split_of.setdefault(patient, name)) != name:
                raise SplitError(
                    f"Patient {patient!r} is in {other} and in {name}: one split for all records of a person "
                    "is needed."
                )
        return split_of, "as the source says"
    patients = list(dict.fromkeys(patient for patient, _ in members))
    if not alone and len(patients) < len(SPLITS):
        # Too few people for three splits: beside other databases, that is no reason to stop.
        return dict.fromkeys(patients, "train"), f"all {len(patients)} in train, too few to be split"
    if "" not in folds:
        highest: dict[str, int] = {}
        for patient, fold in members:
            highest[patient] = max(int(fold), highest.get(patient, int(fold)))
        levels = sorted(set(highest.values()))
        if len(levels) >= len(SPLITS):
            validation, test = levels[-2:]
            held_out = {test: "test", validation: "validation"}
            rule = f"by fold: {test} test, {validation} validation, the others train"
            return {patient: held_out.get(fold, "train") for patient, fold in highest.items()}, rule
    return _draw(patients, config), f"by patient, drawn with seed {config.split_seed}"


def _draw(patients: Iterable[str], config: WindowConfig) -> dict[str, str]:
    """By a hash, not a random generator: one more patient leaves most others in their split."""

    def place(patient: str) -> bytes:
        return hashlib.sha256(f"{config.split_seed}\x1f{patient}".encode()).digest()

    names = sorted(patients, key=place)
    if len(names) < len(SPLITS):
        raise SplitError(
            f"The records come from {len(names)} patient(s): at least 3 are needed for training, "
            "validation and test, each patient in one of them only; add records, or set window.split to "
            "train, validation or test to put all of them there."
        )
    test = max(1, round(config.test_share * len(names)))
    validation = max(1, round(config.validation_share * len(names)))
    if test + validation > len(names) - 1:
        test = max(1, min(test, len(names) - 2))
        validation = len(names) - 1 - test
    split_of = dict.fromkeys(names, "train")
    split_of |= dict.fromkeys(names[:test], "test")
    return split_of | dict.fromkeys(names[test : test + validation], "validation")


def check_splits(counts: Mapping[str, int], config: WindowConfig) -> None:
    """Raises SplitError if training, validation or test has no window (only the one asked for is checked)."""
    wanted = SPLITS if config.split == "auto" else (config.split,)
    empty = [name for name in wanted if not counts.get(name)]
    if empty:
        listed = ", ".join(f"{name} {counts.get(name, 0)}" for name in SPLITS)
        raise SplitError(
            f"Empty split: {', '.join(empty)} (windows: {listed}); use more records, other shares or "
            "fewer rules in window.exclude."
        )
