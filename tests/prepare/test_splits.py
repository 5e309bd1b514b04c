"""Nobody is in two splits, whatever the data."""

from __future__ import annotations

import random

import numpy as np
import pytest

from ecggen.prepare.window.splits import SplitError, assign_splits, check_splits
from ecggen.utils.config import SPLITS, WindowConfig

RULES = WindowConfig()


@pytest.mark.parametrize("seed", range(30))
def test_every_patient_has_one_split_and_none_is_empty(seed):
    rng = random.Random(seed)
    pool = [f"p{i}" for i in range(rng.randint(3, 60))]
    patients = pool + [rng.choice(pool) for _ in range(rng.randint(0, 80))]
    folds = [rng.choice([None, 1, 2, 3, 9]) if seed % 3 else rng.randint(1, 9) for _ in patients]
    rules = WindowConfig(
        split_seed=seed, test_share=rng.uniform(0.05, 0.6), validation_share=rng.uniform(0.05, 0.39)
    )
    split, _ = assign_splits(patients, folds, rules)
    seen: dict[str, set[str]] = {}
    for patient in patients:
        seen.setdefault(patient, set()).add(split[patient])
    assert all(len(kinds) == 1 for kinds in seen.values())
    if seed % 3:
        assert set(split.values()) == {"train", "validation", "test"}


def test_folds_rule():
    folds = [1, 2, 7, 9, 10, 10]
    split, rule = assign_splits([f"p{i}" for i in range(6)], folds, RULES)
    assert list(split.values()) == ["train", "train", "train", "validation", "test", "test"]
    assert "10 test, 9 validation" in rule


def test_highest_existing_folds_are_held_out():
    split, _ = assign_splits(list("abcd"), [1, 2, 5, 7], RULES)
    assert split == {"a": "train", "b": "train", "c": "validation", "d": "test"}


def test_patient_in_two_folds_follows_the_higher():
    split, _ = assign_splits(["a", "a", "b", "c", "d"], [1, 10, 9, 1, 10], RULES)
    assert split["a"] == "test" and split["c"] == "train"


def test_too_few_folds_are_drawn_by_patient():
    split, rule = assign_splits([f"p{i}" for i in range(10)], [1] * 10, RULES)
    assert "drawn with seed 1" in rule and set(split.values()) == {"train", "validation", "test"}


def test_shares_seed_and_order():
    patients = [f"p{i}" for i in range(1000)]
    none = [None] * 1000
    split, _ = assign_splits(patients, none, RULES)
    kinds = list(split.values())
    assert kinds.count("test") == 200 and kinds.count("validation") == 150
    assert assign_splits(patients[::-1], none, RULES)[0] == split
    other, _ = assign_splits(patients, none, WindowConfig(split_seed=2))
    assert sum(other[p] != split[p] for p in patients) > 200
    more, _ = assign_splits([*patients, "new"], [*none, None], RULES)
    assert sum(more[p] != split[p] for p in patients) <= 3


def test_all_in_one():
    split, _ = assign_splits(["a", "a"], [1, 2], WindowConfig(split="test"))
    assert split == {"a": "test"}
    check_splits({"test": 2}, WindowConfig(split="test"))


def test_refusals_in_words():
    with pytest.raises(SplitError, match=r"2 patient\(s\): at least 3"):
        assign_splits(["a", "b", "b"], [None] * 3, RULES)
    with pytest.raises(SplitError, match="Empty split: validation"):
        check_splits({"train": 5, "test": 2}, RULES)


def test_splits_named_by_the_source():
    said = ["train", "train", "validation", "test"]
    assert assign_splits(["a", "a", "b", "c"], said, RULES) == (
        {"a": "train", "b": "validation", "c": "test"},
        "as the source says",
    )
    with pytest.raises(SplitError, match="Patient 'a' is in train and in test"):
        assign_splits(["a", "a", "b"], ["train", "test", "validation"], RULES)
    with pytest.raises(SplitError, match="Some records name their split"):
        assign_splits(["a", "b"], ["train", None], RULES)


def test_one_database_is_split_as_without_its_name():
    patients, folds = ["a", "b", "c", "d"], [1, 2, 9, 10]
    assert assign_splits(patients, folds, RULES, ["x"] * 4) == assign_splits(patients, folds, RULES)


def test_nobody_is_in_two_splits_whatever_is_combined():
    """Random databases, people, folds: one split each, and each database as if it were alone."""
    rng = np.random.default_rng(0)
    for trial in range(300):
        patients, folds, databases = [], [], []
        for base in rng.permutation(["x", "y", "z"])[: rng.integers(1, 4)]:
            kind = rng.integers(3)
            for person in range(rng.integers(1, 30)):
                for _ in range(rng.integers(1, 4)):
                    patients.append(f"{base}:{person}")
                    fold = int(rng.integers(1, 11))
                    folds.append((None, fold, SPLITS[person % 3])[kind])
                    databases.append(str(base))
        order = rng.permutation(len(patients))
        patients, folds, databases = ([items[i] for i in order] for items in (patients, folds, databases))
        rules = WindowConfig(split_seed=trial)
        few = len(set(patients)) < 3 and not any(isinstance(fold, str) for fold in folds)
        if few and len(set(databases)) == 1:
            continue
        split, rule = assign_splits(patients, folds, rules, databases)
        assert set(split) == set(patients) and set(split.values()) <= set(SPLITS) and rule
        for base in set(databases):
            rows = [i for i, name in enumerate(databases) if name == base]
            own = [patients[i] for i in rows]
            if len(set(own)) >= 3:
                alone, _ = assign_splits(own, [folds[i] for i in rows], rules)
                assert {name: split[name] for name in own} == alone


def test_the_same_name_in_two_databases_is_refused():
    patients = ["a", "b", "c", "a", "d", "e"]
    with pytest.raises(SplitError, match="'a' is in y and in another"):
        assign_splits(patients, [None] * 6, RULES, ["x"] * 3 + ["y"] * 3)
