"""Training, validation and test by patient: nobody is in two of them.

Where every record has a fold (PTB-XL's strat_fold) and there are at least three folds, the highest is test,
the next lower one validation, the rest training. A patient whose records lie in several folds follows the
highest of them. Where every record says its split by name, that holds. Otherwise patients are drawn by a
seeded hash of their name. Several databases are split one by one, each by its own rule.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from ecggen.utils.config import WindowConfig
from ecggen.utils.errors import EcggenError

SPLITS = ("train", "validation", "test")


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
    if rules.split != "auto":
        return dict.fromkeys(
            sorted(set(patients)), rules.split
        ), f"all in {rules.split}, as window.split says"
    groups = sorted(set(databases or ()))
    if databases is None or len(groups) < 2:
        return _assign(patients, folds, rules)
    split: dict[str, str] = {}
    words = []
    for group in groups:
        rows = [row for row, name in enumerate(databases) if name == group]
        own, said = [patients[row] for row in rows], [folds[row] for row in rows]
        if len(set(own)) < len(SPLITS) and not any(isinstance(fold, str) for fold in said):
            # Too few people for three splits: in one run with others, that is no reason to stop.
            found, rule = dict.fromkeys(own, "train"), f"all {len(set(own))} in train, too few to be split"
        else:
            found, rule = _assign(own, said, rules)
        both = split.keys() & found.keys()
        if both:
            raise SplitError(
                f"Patient {min(both)!r} is in {group} and in another database: names must differ."
            )
        split |= found
        words.append(f"{group}: {rule}")
    return split, "; ".join(words)


def _assign(
    patients: Sequence[str], folds: Sequence[int | str | None], rules: WindowConfig
) -> tuple[dict[str, str], str]:
    names = sorted(set(patients))
    if folds and all(isinstance(fold, str) for fold in folds):
        return _named(patients, folds), "as the source says"
    if any(isinstance(fold, str) for fold in folds):
        raise SplitError(
            "Some records name their split and some do not: name it for all of them or for none."
        )
    numbers = [fold for fold in folds if not isinstance(fold, str)]
    highest: dict[str, int] = {}
    for patient, fold in zip(patients, numbers, strict=True):
        if fold is not None:
            highest[patient] = max(fold, highest.get(patient, fold))
    levels = sorted(set(highest.values()))
    if all(fold is not None for fold in numbers) and len(levels) >= 3:
        test, validation = levels[-1], levels[-2]
        split = {p: {test: "test", validation: "validation"}.get(highest[p], "train") for p in names}
        return split, f"by fold: {test} test, {validation} validation, the others train"
    split = _draw(names, rules)
    return split, f"by patient, drawn with seed {rules.split_seed}"


def _named(patients: Sequence[str], folds: Sequence[int | str | None]) -> dict[str, str]:
    split: dict[str, str] = {}
    for patient, name in zip(patients, folds, strict=True):
        if split.setdefault(patient, str(name)) != name:
            raise SplitError(
                f"Patient {patient!r} is in {split[patient]} and in {name}: one split for all records of a "
                "person is needed."
            )
        if name not in SPLITS:
            raise SplitError(f"Patient {patient!r} is in split {name!r}: use one of {', '.join(SPLITS)}.")
    return split


def _draw(names: Sequence[str], rules: WindowConfig) -> dict[str, str]:
    if len(names) < len(SPLITS):
        raise SplitError(
            f"The records come from {len(names)} patient(s): at least 3 are needed for training, "
            "validation and test, each patient in one of them only; add records, or set window.split to "
            "train, validation or test to put all of them there."
        )
    # A hash, not a generator's stream: the same everywhere, and one more patient leaves most others in place.
    order = sorted(names, key=lambda name: hashlib.sha256(f"{rules.split_seed}\x1f{name}".encode()).digest())
    total = len(order)
    test = max(1, round(rules.test_share * total))
    validation = max(1, round(rules.validation_share * total))
    if test + validation > total - 1:
        test = max(1, min(test, total - 2))
        validation = max(1, total - 1 - test)
    kinds = ["test"] * test + ["validation"] * validation + ["train"] * (total - test - validation)
    return dict(zip(order, kinds, strict=True))


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
