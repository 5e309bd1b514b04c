"""Training, validation and test by patient: nobody is in two of them.

Where every record has a fold (PTB-XL's strat_fold) and there are at least three folds, the highest is test,
the next lower one validation, the rest training. A patient whose records lie in several folds follows the
highest of them. Where every record says its split by name, that holds. Otherwise patients are drawn by a
seeded hash of their name. Several databases are split one by one, each by its own rule.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ecggen.utils.config import WindowConfig
from ecggen.utils.errors import EcggenError
from ecggen.utils.words import Words

SPLITS = ("train", "validation", "test")
_TRAIN, _VALIDATION, _TEST = range(3)
_NONE = -1  # no split yet, or no fold


class SplitError(EcggenError):
    """A data set that cannot be split by patient."""


def assign_splits(
    patients: Sequence[str],
    folds: Sequence[int | str | None],
    rules: WindowConfig,
    databases: Sequence[str] | None = None,
) -> tuple[dict[str, str], str]:
    """patients, folds and databases: one entry per record; a fold is a number or the name of a split.

    Returns (patient -> split, the rule in words). Raises SplitError where a split would be empty, or a
    patient is named for two of them or found in two databases.
    """
    if len(patients) != len(folds) or len(patients) != len(databases or patients):
        raise SplitError(
            f"{len(patients)} patients and {len(folds)} folds: one of each per record is needed."
        )
    names = Words.of(patients)
    said = Words.of("" if fold is None else str(fold) for fold in folds)
    split, rule = split_codes(names, said, rules, None if databases is None else Words.of(databases))
    return {name: SPLITS[of] for name, of in zip(names.distinct(), split.tolist(), strict=True)}, rule


def split_codes(
    patients: Words, folds: Words, rules: WindowConfig, databases: Words | None = None
) -> tuple[NDArray[np.int8], str]:
    """As assign_splits, for columns: (number in SPLITS of each of patients.distinct(), the rule in words).

    folds: as text, empty = none.
    """
    split = np.full(patients.count_distinct, _NONE, dtype=np.int8)
    if rules.split != "auto":
        split[:] = SPLITS.index(rules.split)
        return split, f"all in {rules.split}, as window.split says"
    groups = [] if databases is None else sorted(databases.distinct())
    if databases is None or len(groups) < 2:
        return split, _assign(patients, folds, rules, split)
    words = []
    for group in groups:
        rows = np.flatnonzero(databases.codes == databases.code(group))
        own = _present(patients[rows])
        if (split[own] != _NONE).any():
            both = min(patients.word(int(code)) for code in np.flatnonzero(own & (split != _NONE)))
            raise SplitError(f"Patient {both!r} is in {group} and in another database: names must differ.")
        if own.sum() < len(SPLITS) and not any(_is_name(fold) for fold in folds[rows].used()):
            # Too few people for three splits: in one run with others, that is no reason to stop.
            split[own] = _TRAIN
            rule = f"all {own.sum()} in train, too few to be split"
        else:
            rule = _assign(patients[rows], folds[rows], rules, split)
        words.append(f"{group}: {rule}")
    return split, "; ".join(words)


def _present(words: Words) -> NDArray[np.bool_]:
    """[words.count_distinct] whether a row has that word."""
    out = np.zeros(words.count_distinct, dtype=bool)
    out[words.codes] = True
    return out


def _is_name(fold: str) -> bool:
    """Whether a fold is the name of a split (a right one or not), rather than a number or nothing."""
    return bool(fold) and not fold.removeprefix("-").isdecimal()


def _assign(patients: Words, folds: Words, rules: WindowConfig, split: NDArray[np.int8]) -> str:
    """Set the split of the patients of these records, all in one database; returns the rule in words."""
    used = folds.used()
    if used and all(_is_name(fold) for fold in used):
        _assign_named(patients, folds, split)
        return "as the source says"
    if any(_is_name(fold) for fold in used):
        raise SplitError(
            "Some records name their split and some do not: name it for all of them or for none."
        )
    own = _present(patients)
    if "" not in used:
        number_of = np.array([int(fold) if fold in used else _NONE for fold in folds.distinct()])
        highest = np.full(len(split), np.iinfo(np.int64).min, dtype=np.int64)
        np.maximum.at(highest, patients.codes, number_of[folds.codes])
        levels = np.unique(highest[own])
        if len(levels) >= len(SPLITS):
            test, validation = int(levels[-1]), int(levels[-2])
            split[own] = _TRAIN
            split[own & (highest == validation)] = _VALIDATION
            split[own & (highest == test)] = _TEST
            return f"by fold: {test} test, {validation} validation, the others train"
    split[own] = _draw(patients, own, rules)
    return f"by patient, drawn with seed {rules.split_seed}"


def _assign_named(patients: Words, folds: Words, split: NDArray[np.int8]) -> None:
    codes, said = patients.codes, folds.codes
    own, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    number_of = np.array([SPLITS.index(f) if f in SPLITS else _NONE for f in folds.distinct()], dtype=np.int8)
    two = said != said[first][inverse.reshape(-1)]
    wrong = number_of[said] == _NONE
    if (two | wrong).any():
        at = int((two | wrong).argmax())
        patient, name = patients[at], folds[at]
        if two[at]:
            other = folds.word(int(said[first][inverse.reshape(-1)[at]]))
            raise SplitError(
                f"Patient {patient!r} is in {other} and in {name}: one split for all records of a "
                "person is needed."
            )
        raise SplitError(f"Patient {patient!r} is in split {name!r}: use one of {', '.join(SPLITS)}.")
    split[own] = number_of[said[first]]


def _draw(patients: Words, own: NDArray[np.bool_], rules: WindowConfig) -> NDArray[np.int8]:
    """The split of each patient of `own` (by code), in their order, by a seeded hash of the name."""
    total = int(own.sum())
    if total < len(SPLITS):
        raise SplitError(
            f"The records come from {total} patient(s): at least 3 are needed for training, "
            "validation and test, each patient in one of them only; add records, or set window.split to "
            "train, validation or test to put all of them there."
        )
    # A hash, not a generator's stream: the same everywhere, and one more patient leaves most others in place.
    seed = f"{rules.split_seed}\x1f"
    names = (patients.word(code) for code in range(len(own)) if own[code])
    hashes = (hashlib.sha256(f"{seed}{name}".encode()).digest() for name in names)
    # The first 8 bytes order as the whole does, unless two were alike: one chance in 1e7 for a million names.
    leading = np.fromiter((int.from_bytes(h[:8], "big") for h in hashes), np.uint64, total)
    test = max(1, round(rules.test_share * total))
    validation = max(1, round(rules.validation_share * total))
    if test + validation > total - 1:
        test = max(1, min(test, total - 2))
        validation = max(1, total - 1 - test)
    first, second = np.partition(leading, (test, test + validation))[[test, test + validation]]
    out = np.full(total, _TRAIN, dtype=np.int8)
    out[leading < second] = _VALIDATION
    out[leading < first] = _TEST
    return out


def check_splits(counts: Mapping[str, int], rules: WindowConfig) -> None:
    """Raises SplitError if training, validation or test has no window (only the one asked for is checked)."""
    wanted = SPLITS if rules.split == "auto" else (rules.split,)
    empty = [name for name in wanted if not counts.get(name)]
    if empty:
        listed = ", ".join(f"{name} {counts.get(name, 0)}" for name in SPLITS)
        raise SplitError(
            f"Empty split: {', '.join(empty)} (windows: {listed}); use more records, other shares or "
            "fewer rules in window.exclude."
        )
