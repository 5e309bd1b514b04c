"""Transfer on made databases: the same hearts, hearts recorded upside down, labels that do not agree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_folder import DowerRenderer, make_folder, pick, with_index

from ecggen.eval.baselines import LinearRegression, Training
from ecggen.eval.case_mix import FEWEST, matched, strata
from ecggen.eval.lead_sets import named_sets
from ecggen.eval.linear_probe import linear_probe
from ecggen.eval.missing_lead import missing_lead
from ecggen.eval.probe_features import record_labels
from ecggen.eval.result import EvalError
from ecggen.eval.score import Split
from ecggen.eval.transfer import MARGIN, TABLES, AtHome, transfer
from ecggen.eval.transfer_probe import shared_records, transfer_probe
from ecggen.utils.config import LinearProbeConfig, MissingLeadConfig, TransferConfig

CONFIG = TransferConfig(bootstrap=200)
PROTOCOL = MissingLeadConfig(lead_sets=["I+II", "I+II+V2"], context=1)
QUICK = {"personal": False, "leave_one_out": False}


def all_test(folder):
    return replace(folder, split=["test"] * len(folder))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Home: 20 test patients."""
    return make_folder(tmp_path_factory.mktemp("home"), patients=80)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The same population, other people, all of them test patients."""
    return all_test(make_folder(tmp_path_factory.mktemp("other"), seed=1, patients=24))


@pytest.fixture(scope="module")
def result(folder, other):
    sign = np.where(np.arange(12) < 6, 1, -1)[:, None]
    flipped = replace(other, windows=(sign * other.windows).astype(np.float32))
    return transfer(DowerRenderer(), folder, {"same": other, "flipped": flipped}, CONFIG, PROTOCOL)


def test_every_table_names_the_pair(result) -> None:
    assert set(result.tables) == set(TABLES)
    for name, rows in result.tables.items():
        assert rows, name
        assert {row["train"] for row in rows} == {"home"}, name
        assert {row["database"] for row in rows} == {"home", "same", "flipped"}, name
    rows = result.tables["missing_lead"]
    sets, methods = {row["lead_set"] for row in rows}, {row["method"] for row in rows}
    assert len(sets) == 2 + 6 and len(methods) == 7 and len(rows) == 3 * 8 * 7


def test_the_same_population_is_within_its_interval(result) -> None:
    rows = pick(result.tables["missing_lead"], database="same", method="model")
    assert all(row["difference"] == pytest.approx(row["r"] - row["home_r"]) for row in rows)
    inside = [row["difference_low"] <= 0 <= row["difference_high"] for row in rows]
    assert sum(inside) >= len(rows) - 1  # of eight intervals of 95 %
    for row in rows:  # an interval that holds -MARGIN shows neither
        shown = (
            "yes" if row["difference_low"] >= -MARGIN else "no" if row["difference_high"] < -MARGIN else ""
        )
        assert row["within"] == (shown or "not shown") and row["n_patients"] >= 20
    parts = pick(result.tables["reconstruction"], database="same", part="leads")
    assert parts[0]["difference_low"] <= 0 <= parts[0]["difference_high"]


def test_inverted_chest_leads_are_seen(result) -> None:
    for method in ("model", "linear_regression"):
        (row,) = pick(result.tables["missing_lead"], database="flipped", method=method, lead_set="I+II")
        assert row["difference_high"] < -0.5 and row["within"] == "no"
    rows = pick(result.tables["missing_lead"], database="flipped", method="model")
    assert len(rows) == 8 and "no" in {row["within"] for row in rows}


def test_home_rows_are_those_of_the_home_evaluation(renderer, folder, result) -> None:
    alone = missing_lead(renderer, folder, replace(PROTOCOL, **QUICK, bootstrap=20, ttt_steps=0))
    for method in ("model", "linear_regression", "mean_beat"):
        (here,) = pick(result.tables["missing_lead"], database="home", method=method, lead_set="I+II+V2")
        (there,) = pick(alone.tables["lead_sets"], split="test", method=method, lead_set="I+II+V2")
        for key in ("r", "rmse_mv", "mae_mv", "snr_db", "n_windows", "n_patients"):
            assert here[key] == pytest.approx(there[key]), (method, key)


def test_what_earlier_evaluations_wrote_of_home_is_not_measured_again(
    folder, other, result, tmp_path
) -> None:
    measured = AtHome.of(DowerRenderer(), folder, PROTOCOL)
    measured.missing_lead.write(tmp_path / "missing_lead")
    measured.linear_probe.write(tmp_path / "linear_probe")
    read = AtHome.read(tmp_path)
    again = transfer(DowerRenderer(), folder, {"same": other}, CONFIG, PROTOCOL, read)
    for table in ("missing_lead", "personal", "probe"):
        rows = [row for row in result.tables[table] if row["database"] != "flipped"]
        assert len(rows) == len(again.tables[table]) > 0
        for row, other_row in zip(rows, again.tables[table], strict=True):
            for key in {"lead_set", "method", "r", "difference", "auroc", "n_patients"} & set(row):
                assert other_row[key] == pytest.approx(row[key], abs=1e-5), (table, key)


def test_baselines_are_fitted_at_home(folder, other, result) -> None:
    regression = LinearRegression()
    regression.fit(Training(folder.windows, folder.rows("train"), folder.observed, 100.0))
    (leads,) = named_sets(["I+II+V2"])
    error = regression.predict(other.windows, leads.mask) - other.windows
    wanted = np.sqrt((error.astype(np.float64) ** 2).mean(axis=2))[:, leads.headline].mean()
    (row,) = pick(
        result.tables["missing_lead"], database="same", method="linear_regression", lead_set="I+II+V2"
    )
    assert row["rmse_mv"] == pytest.approx(wanted, rel=1e-5)


def test_worst_records_come_first_with_what_three_dimensions_do(result, other) -> None:
    rows = pick(result.tables["worst_records"], database="same")
    assert [row["r"] for row in rows] == sorted(row["r"] for row in rows)
    assert all(row["best_subspace_3"] > 0.98 for row in rows)  # a made dipole is three-dimensional
    assert {row["labels"] for row in rows} <= {"big", "small"}
    assert len(rows) == min(20, len(set(other.record)))


def test_without_other_databases_the_tables_are_empty(renderer, folder) -> None:
    result = transfer(renderer, folder, {}, CONFIG, PROTOCOL)
    assert all(rows == [] for rows in result.tables.values())
    assert result.facts == {"train": "home", "skipped": "no other database was named"}


TRAINED = {"fs": 100.0, "low_hz": 0.67, "high_hz": 40.0, "order": 3}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"low_hz": 0.5}, "low_hz 0.5, those of the checkpoint with 0.67"),
        ({"high_hz": 45.0}, "high_hz 45, those of the checkpoint with 40"),
        ({"fs": 200.0}, "fs 200, those of the checkpoint with 100"),
        ({"time_len": 128}, "time_len 128, those of the checkpoint with 256"),
    ],
)
def test_another_preprocessing_is_an_error_in_words(renderer, folder, other, change, words) -> None:
    renderer.preprocessing = TRAINED
    there = replace(
        other,
        windows=other.windows[..., : change.get("time_len", 256)],
        meta={"fs": change.get("fs", 100.0), "preprocessing": TRAINED | change},
    )
    with pytest.raises(EvalError, match=f"database o were made with {words}"):
        transfer(renderer, folder, {"o": there}, CONFIG, PROTOCOL)


def test_the_people_of_the_training_are_no_other_people(renderer, folder, other) -> None:
    def of(windows, *cohorts: str):
        return replace(windows, meta=windows.meta | {"source": {"name": "x", "cohorts": cohorts}})

    with pytest.raises(EvalError, match="Database o holds recordings of ptb-xl, and so do the windows"):
        transfer(renderer, of(folder, "ptb-xl"), {"o": of(other, "georgia", "ptb-xl")}, CONFIG, PROTOCOL)
    quick = replace(PROTOCOL, **QUICK)
    result = transfer(renderer, of(folder, "ptb-xl"), {"o": of(other, "georgia")}, CONFIG, quick)
    assert result.tables["databases"][1]["not_compared"] == "low_hz, high_hz, order"
    unknown = transfer(renderer, folder, {"o": other}, CONFIG, quick)
    assert unknown.tables["databases"][1]["not_compared"].endswith("people")


# --- the probe ------------------------------------------------------------------------------------------


@pytest.fixture
def at_home(renderer, folder):
    return linear_probe(renderer, folder, LinearProbeConfig(bootstrap=20))


def test_probe_is_scored_on_shared_classes_with_counts(renderer, folder, other, at_home) -> None:
    some = replace(other, label_classes=["small", "else"])
    rows, reasons = transfer_probe(renderer, folder, {"o": some}, "home", CONFIG, at_home)
    there = pick(rows, database="o", method="median_beat")
    assert [row["class"] for row in there] == ["macro", "small"]
    assert not reasons and 0 < there[1]["n_positive"] < there[1]["n_records"]
    home = pick(rows, database="home", method="median_beat")
    assert [row["class"] for row in home] == ["small"]
    assert there[1]["home_auroc"] == home[0]["auroc"]
    assert there[0]["auroc"] == pytest.approx(there[1]["auroc"])


def test_probe_learned_at_home_knows_big_hearts_elsewhere(renderer, folder, other, at_home) -> None:
    rows, _ = transfer_probe(renderer, folder, {"o": other}, "home", CONFIG, at_home)
    (row,) = pick(rows, database="o", method="median_beat", **{"class": "macro"})
    assert row["auroc"] > 0.95 and row["low"] <= row["auroc"] <= row["high"]
    assert row["n_records"] == len(set(other.record))
    swapped = replace(other, labels=1 - other.labels)
    rows, _ = transfer_probe(renderer, folder, {"o": swapped}, "home", CONFIG, at_home)
    (turned,) = pick(rows, database="o", method="median_beat", **{"class": "macro"})
    assert turned["auroc"] == pytest.approx(1 - row["auroc"]) and turned["difference_high"] < 0


@pytest.mark.parametrize(
    ("home", "there", "words"),
    [
        ({}, {"label_classes": ["AF", "LBBB"]}, "it has none of the classes big, small"),
        ({}, {"label_valid": np.zeros(1000, dtype=bool)}, "its records carry no labels"),
        ({"label_classes": [], "labels": np.zeros((1000, 0))}, {}, "has no label classes"),
    ],
)
def test_without_shared_labels_the_probe_is_skipped_in_words(
    renderer, folder, other, at_home, home, there, words
) -> None:
    others = {"o": replace(other, **there)}
    rows, reasons = transfer_probe(renderer, replace(folder, **home), others, "home", CONFIG, at_home)
    assert rows == [] and words in reasons["o"]


def test_labels_come_from_the_index_also_where_there_is_no_class(tmp_path, other) -> None:
    names = list(dict.fromkeys(other.record))
    bare = replace(other, label_classes=[], labels=other.labels[:, :0])
    bare = with_index(bare, tmp_path, "labels", lambda i: "AF;big" if i % 2 else "")
    assert record_labels(bare)[names[1]] == {"AF", "big"}
    part, shared = shared_records(bare, ["big", "small"])
    assert shared == ["big"] and sorted(part.names) == sorted(names[1::2])
    assert part.labels.tolist() == [[1.0]] * len(part.names)


# --- the case mix ---------------------------------------------------------------------------------------


def test_harder_cases_alone_are_no_loss_against_the_same_cases(folder, other, tmp_path) -> None:
    """Home: half of the records AF with r .6, half r .9; there three quarters AF, the same r by label."""

    def at_home(label):
        return with_index(all_test(folder), tmp_path, "labels", label)

    (tmp_path / "there").mkdir()
    there = with_index(
        other, tmp_path / "there", "labels", lambda i: ("AF", "AF;X", "AF", "NORM", "", "X")[i % 6]
    )
    few = at_home(lambda i: "AF" if i < FEWEST - 1 else "Y")
    data = [Split.read(each, "test", 100, seed) for seed, each in enumerate((few, there))]
    assert strata(few, data[0], there, data[1]) == [], "too few home patients stand for nothing"
    home = at_home(lambda i: ("AF", "NORM")[i % 2])
    groups = strata(home, data[0], there, data[1])
    (_, first), (_, second) = groups
    assert not (first & second).any()

    def r(each, part):
        labels = record_labels(each)
        values = [0.6 if "AF" in labels[each.record[row]] else 0.9 for row in part.rows]
        return np.repeat(np.array(values)[:, None], 12, axis=1)

    home_r, there_r = r(home, data[0]), r(there, data[1])
    result = matched(groups, home_r, data[0].draws, there_r, data[1].draws)
    known = first | second
    assert result["n_matched"] == known.sum() < len(there)
    assert result["matched_r"] == pytest.approx(there_r[known].mean())
    assert result["matched_difference"] == pytest.approx(0, abs=1e-12)
    assert result["matched_low"] <= 0 <= result["matched_high"]
    worse = matched(groups, home_r, data[0].draws, there_r - 0.1, data[1].draws)
    assert worse["matched_difference"] == pytest.approx(-0.1)
    nothing = matched([], home_r, data[0].draws, there_r, data[1].draws)
    assert nothing["n_matched"] == 0 and np.isnan(nothing["matched_r"])
    there_r[~known] = -1.0  # windows without a common label do not count
    assert matched(groups, home_r, data[0].draws, there_r, data[1].draws) == result


def test_the_table_compares_the_same_labels(result) -> None:
    (row,) = pick(result.tables["missing_lead"], database="same", method="model", lead_set="I+II")
    assert row["n_matched"] == row["n_windows"]
    assert row["matched_low"] <= row["matched_difference"] <= row["matched_high"]
    assert row["matched_difference"] == pytest.approx(row["r"] - row["matched_r"])
