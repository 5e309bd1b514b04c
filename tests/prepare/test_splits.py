"""Nobody is in two splits, whatever the data."""

from __future__ import annotations

import numpy as np
import pytest

from ecggen.prepare.window.splits import SplitError, assign_splits, check_splits
from ecggen.utils.config import SPLITS, WindowConfig

CONFIG = WindowConfig()


@pytest.mark.parametrize(
    ("people", "folds", "expected", "rule"),
    [
        ("abcdef", [1, 2, 7, 9, 10, 10], "train train train validation test test", "10 test, 9 validation"),
        ("abcd", [1, 2, 5, 7], "train train validation test", "7 test, 5 validation"),
        ("aabcd", [1, 10, 9, 1, 10], "test validation train test", "10 test, 9 validation"),
    ],
    ids=["of PTB-XL", "the highest that exist", "a person in two folds follows the higher"],
)
def test_folds(people: str, folds: list[int], expected: str, rule: str) -> None:
    split, words = assign_splits(list(people), folds, CONFIG)
    assert split == dict(zip(sorted(set(people)), expected.split(), strict=True)) and rule in words


def test_too_few_folds_are_drawn_by_patient():
    split, rule = assign_splits([f"p{i}" for i in range(10)], [1] * 10, CONFIG)
    assert "drawn with seed 1" in rule and set(split.values()) == set(SPLITS)


def test_shares_seed_and_order():
    patients = [f"p{i}" for i in range(1000)]
    none = [None] * 1000
    split, _ = assign_splits(patients, none, CONFIG)
    kinds = list(split.values())
    assert kinds.count("test") == 200 and kinds.count("validation") == 150
    assert assign_splits(patients[::-1], none, CONFIG)[0] == split
    other, _ = assign_splits(patients, none, WindowConfig(split_seed=2))
    assert sum(other[p] != split[p] for p in patients) > 200
    more, _ = assign_splits([*patients, "new"], [*none, None], CONFIG)
    assert sum(more[p] != split[p] for p in patients) <= 3


def test_all_in_one():
    config = WindowConfig(split="test")
    assert assign_splits(["a", "a"], [1, 2], config)[0] == {"a": "test"}
    check_splits({"test": 2}, config)


def test_splits_named_by_the_source():
    names = ["train", "train", "validation", "test"]
    assert assign_splits(["a", "a", "b", "c"], names, CONFIG) == (
        {"a": "train", "b": "validation", "c": "test"},
        "as the source says",
    )


@pytest.mark.parametrize(
    ("people", "folds", "databases", "words"),
    [
        ("abb", [None] * 3, None, r"2 patient\(s\): at least 3"),
        ("aab", ["train", "test", "validation"], None, "Patient 'a' is in train and in test"),
        ("ab", ["train", None], None, "Some records name their split"),
        ("abcade", [None] * 6, "xxxyyy", "'a' is in y and in another"),
    ],
)
def test_refusals_in_words(people, folds, databases, words):
    with pytest.raises(SplitError, match=words):
        assign_splits(list(people), folds, CONFIG, databases and list(databases))


def test_an_empty_split_is_refused():
    with pytest.raises(SplitError, match="Empty split: validation"):
        check_splits({"train": 5, "test": 2}, CONFIG)


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
        shares = {"test_share": rng.uniform(0.05, 0.6), "validation_share": rng.uniform(0.05, 0.39)}
        config = WindowConfig(split_seed=trial, **shares)
        few = len(set(patients)) < 3 and not any(isinstance(fold, str) for fold in folds)
        if few and len(set(databases)) == 1:
            continue
        split, rule = assign_splits(patients, folds, config, databases)
        assert set(split) == set(patients) and set(split.values()) <= set(SPLITS) and rule
        assert few or len(set(databases)) > 1 or "drawn" not in rule or set(split.values()) == set(SPLITS)
        for base in set(databases):
            rows = [i for i, name in enumerate(databases) if name == base]
            members = [patients[i] for i in rows]
            if len(set(members)) >= 3:
                alone, _ = assign_splits(members, [folds[i] for i in rows], config)
                assert {name: split[name] for name in members} == alone
