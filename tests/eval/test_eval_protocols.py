"""The protocols end to end on a small known heart: what they count, what they read, what they leave out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_folder import DowerRenderer, pick, with_index

from ecggen.eval.lead_sets import named_sets
from ecggen.eval.missing_lead import missing_lead, step_numbers
from ecggen.eval.personal import half_pairs, record_pairs
from ecggen.eval.reconstruction import (
    best_subspace,
    fixed_dower,
    loop_closure,
    matrix_vcg,
    reconstruction,
)
from ecggen.eval.result import EvalError
from ecggen.eval.score import reference_regression
from ecggen.leads import DOWER, EXPAND, INVERSE_DOWER, LEADS
from ecggen.utils.config import MissingLeadConfig, ReconstructionConfig
from ecggen.utils.files import read_csv

SETS = {"lead_sets": ["I", "I+II", "I+II+V2"], "ttt_lead_sets": ["I", "I+II+V2", "-V3"]}
CONFIG = MissingLeadConfig(**SETS, validation=True, ttt_steps=3, bootstrap=50, context=1)
RECONSTRUCTION = ReconstructionConfig(bootstrap=50, state_records=50)


@pytest.fixture(scope="module")
def run(folder):
    """(renderer, result) of one evaluation."""
    renderer = DowerRenderer()
    return renderer, missing_lead(renderer, folder, CONFIG)


@pytest.fixture
def result(run):
    return run[1]


def test_missing_lead_reports_every_set_method_and_split(result, folder) -> None:
    rows = result.tables["lead_sets"]
    assert len(rows) == 2 * 7 * (3 + 6)
    n = len(folder.rows("test"))
    one = pick(rows, split="test", lead_set="I+II+V2", method="linear_regression")[0]
    assert one["n_windows"] == n
    assert one["r_low"] <= one["r"] <= one["r_high"]
    assert one["algebra_r"] > 0.95
    assert (one["rank"], round(one["condition"], 1)) == (3, 2.2)
    # A three-dimensional heart seen in three dimensions: the closed form must be close to perfect.
    assert pick(rows, split="test", lead_set="-V3", method="closed_form")[0]["r"] > 0.97
    assert {row["method"] for row in rows} >= {"model", "linear_regression_context", "mean_beat"}
    per_lead = pick(result.tables["per_lead"], lead_set="I+II", method="dower")
    assert [row["lead"] for row in per_lead] == [x for x in LEADS if x not in ("I", "II")]
    for name in ("r", "mae_mv", "snr_db"):
        low, high = (f"{name.partition('_')[0]}_{side}" for side in ("low", "high"))
        assert all(row[low] <= row[name] <= row[high] for row in per_lead), name
        assert any(row[low] < row[high] for row in per_lead), name
    mean = np.mean([row["r"] for row in per_lead if row["lead"].startswith("V")])
    assert mean == pytest.approx(pick(rows, split="test", lead_set="I+II", method="dower")[0]["r"])


def test_the_model_is_compared_with_its_best_baseline(result) -> None:
    for split in ("test", "validation"):
        rows = pick(result.tables["lead_sets"], split=split, lead_set="I+II")
        model, others = rows[0], rows[1:]
        best = max(others, key=lambda row: row["r"])
        assert model["best_baseline"] == best["method"] and "margin" not in best
        assert model["margin"] == pytest.approx(model["r"] - best["r"])
        assert model["margin_low"] <= model["margin"] <= model["margin_high"]
        assert model["verdict"] == "too few patients" and model["n_patients"] < 20


def test_a_rendering_that_is_not_finite_is_an_error(renderer, folder) -> None:
    render = renderer.render_windows
    renderer.render_windows = lambda *a, **k: {n: np.full_like(x, np.nan) for n, x in render(*a, **k).items()}
    with pytest.raises(EvalError, match="hold NaN or infinity"):
        missing_lead(renderer, folder, CONFIG)


def test_ttt_table_goes_beyond_the_trained_steps_and_states_the_gain(result) -> None:
    rows = pick(result.tables["ttt"], lead_set="I+II+V2")
    assert [row["step"] for row in rows if row["kind"] == "ttt"] == [0, 1, 2, 3]
    assert {row["kind"] for row in rows} == {"ttt", "closed_form", "w0", "record"}
    shared = pick(result.tables["ttt"], kind="record")  # one W of all windows of a record
    assert [row["lead_set"] for row in shared] == ["I", "I+II+V2", "-V3"]
    assert {row["against"] for row in shared} == {"step 2"}
    by_step = {row["step"]: row["r"] for row in rows if row["kind"] == "ttt"}
    for row in rows:
        if row["against"] == "step 0":
            assert row["gain"] == pytest.approx(row["r"] - by_step[0], abs=1e-6)
            assert row["gain_low"] <= row["gain"] <= row["gain_high"]
    assert by_step[3] > by_step[0]


def test_a_lead_that_was_not_recorded_is_neither_given_nor_scored(renderer, folder) -> None:
    observed = folder.observed.copy()
    test = folder.rows("test")
    observed[test[:2], [LEADS.index("V2"), LEADS.index("V5")]] = False
    results = []
    for fill in (0.0, 50.0):
        windows = np.where(observed[:, :, None], folder.windows, np.float32(fill))
        changed = replace(folder, observed=observed, windows=windows)
        results.append(missing_lead(renderer, changed, replace(CONFIG, personal=False)))
    assert str(results[0].tables) == str(results[1].tables)
    for lead_set, missing in (("I+II+V2", 1), ("I+II", 0), ("-V5", 2)):
        (row,) = pick(results[0].tables["lead_sets"], split="test", lead_set=lead_set, method="model")
        assert row["n_windows"] == len(test) - missing


def test_an_empty_split_is_an_error_in_words(renderer, folder) -> None:
    split = ["validation" if name == "test" else name for name in folder.split]
    with pytest.raises(EvalError, match="test split"):
        missing_lead(renderer, replace(folder, split=split), CONFIG)


def test_personal_scores_no_sample_of_the_reference(renderer, folder, result) -> None:
    pairs = half_pairs(folder, folder.rows("test"))
    assert (pairs.score_from == 16).all()
    assert (folder.start_s[pairs.reference] < folder.start_s[pairs.test]).all()
    assert all(folder.record[a] == folder.record[b] for a, b in zip(pairs.reference, pairs.test, strict=True))
    spoiled = folder.windows.copy()
    hidden = ~named_sets(["I+II+V2"])[0].mask
    spoiled[pairs.test[:, None], np.flatnonzero(hidden), :16] = 1e3  # samples that the reference holds too
    again = missing_lead(renderer, replace(folder, windows=spoiled), CONFIG).tables["personal"]
    cells = {"split": "test", "protocol": "halves", "lead_set": "I+II+V2"}
    rows = pick(result.tables["personal"], **cells)
    assert str(rows) == str(pick(again, **cells))  # as text: NaN differs from itself


def test_only_another_record_is_one_of_another_day(result) -> None:
    methods = ["model_personal", "model_one_pass", "model", "memory"]
    methods += ["linear_regression_reference", "linear_regression"]
    for protocol, expected in (("halves", methods), ("records", ["model_another_day", *methods])):
        rows = pick(result.tables["personal"], split="test", protocol=protocol, lead_set="I+II+V2")
        assert [row["method"] for row in rows] == expected and rows[0]["personal_gain"] == 0


def test_personal_holds_the_state_of_the_reference_after_and_before_the_inner_steps(run, folder) -> None:
    renderer, _ = run
    pairs = half_pairs(folder, folder.rows("validation"))
    for steps in (None, 0):
        wanted = renderer.states(folder.windows[pairs.reference], np.ones(12, dtype=bool), steps=steps)
        assert any(held.shape == wanted.shape and np.allclose(held, wanted) for held in renderer.held), steps


def test_steps_are_scored_one_by_one_and_then_doubled() -> None:
    assert step_numbers(3, 12) == [0, 1, 2, 3, 6, 12]
    assert step_numbers(3, 8) == [0, 1, 2, 3, 6, 8]
    assert step_numbers(3, 1) == [0, 1, 2, 3]
    assert step_numbers(0, 2) == [0, 2]


def dated(folder, root, first: str, second: str):
    """The folder with dates of the first and second records of each patient."""
    names = list(dict.fromkeys(folder.record))
    return with_index(folder, root, "recorded", lambda i: second if names[i].endswith("_1") else first)


def test_records_of_one_patient_are_paired_in_time(folder, result, tmp_path) -> None:
    rows = folder.rows("test")
    pairs = record_pairs(folder, rows)
    assert len(pairs.test)
    assert np.isnan(pairs.days).all()
    for a, b in zip(pairs.reference, pairs.test, strict=True):
        assert folder.patient[a] == folder.patient[b]
        assert folder.record[a] != folder.record[b]
        assert folder.record[a].endswith("_0")
    (undated,) = pick(
        result.tables["personal"], split="test", protocol="records", lead_set="I", method="model"
    )
    assert undated["n_undated"] == undated["n"] > 0, "what stands for the order in time is counted"
    # With dates, with a time zone or without, the earlier record is the reference.
    for first in ("2001-01-11 12:00:00", "2001-01-11T12:00:00Z"):
        turned = record_pairs(dated(folder, tmp_path, first, "2001-01-01 12:00:00"), rows)
        assert all(folder.record[a].endswith("_1") for a in turned.reference)
        assert (turned.days == 10).all()


def test_reference_regression_learns_the_patients_own_field() -> None:
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(4, 12, 3))
    source = rng.normal(size=(4, 3, 200))
    ecg = (mix @ source).astype(np.float32)
    given = named_sets(["I+II+V2"])[0].mask
    rendered = reference_regression(ecg[:, :, :100], ecg[:, :, 100:], given)
    error = np.sqrt(((rendered - ecg[:, :, 100:])[:, ~given] ** 2).mean())
    assert error < 0.25 * ecg.std()
    wrong = reference_regression(ecg[::-1, :, :100], ecg[:, :, 100:], given)
    assert np.sqrt(((wrong - ecg[:, :, 100:])[:, ~given] ** 2).mean()) > 2 * error


def test_reconstruction_tables(renderer, folder, tmp_path) -> None:
    result = reconstruction(renderer, folder, RECONSTRUCTION)
    for name, rows in result.tables.items():
        assert rows, name
    share = {row["part"]: row for row in pick(result.tables["energy"], split="test")}
    assert share["best_subspace_4"]["explained_mean"] >= share["best_subspace_3"]["explained_mean"]
    assert share["best_subspace_3"]["explained_mean"] > share["fixed_dower"]["explained_mean"]
    for part in ("fixed_dower", "best_subspace_3"):  # orthogonal projections
        assert share[part]["explained_mean"] == pytest.approx(share[part]["share_mean"], abs=1e-4)
    added = share["leads"]["explained_mean"] - share["dipole"]["explained_mean"]
    assert share["residual"]["explained_mean"] == pytest.approx(added, abs=1e-9)
    result.write(tmp_path / "out")
    assert len(read_csv(tmp_path / "out" / "energy.csv")) == 16
    without = reconstruction(renderer, replace(folder, frank=None), replace(RECONSTRUCTION, ttt_steps=0))
    assert without.tables["vcg"] == []
    parts = {row["part"] for row in result.tables["energy"]}
    assert parts - {row["part"] for row in without.tables["energy"]} == {"dipole_more_steps"}


def test_subspace_references_have_the_rank_they_claim() -> None:
    rng = np.random.default_rng(0)
    vcg = rng.normal(size=(2, 3, 60))
    dower = (EXPAND @ DOWER @ vcg).astype(np.float32)
    assert np.allclose(fixed_dower(dower), dower, atol=1e-4)
    other = (EXPAND @ rng.normal(size=(2, 8, 3)) @ vcg).astype(np.float32)
    assert not np.allclose(fixed_dower(other), other, atol=0.1)
    assert np.allclose(best_subspace(other, 3), other, atol=1e-4)
    assert np.linalg.matrix_rank(best_subspace(rng.normal(size=(1, 12, 60)), 3)[0], tol=1e-3) == 3


def test_inverse_dower_recovers_the_frank_leads_of_a_dower_heart(renderer, folder) -> None:
    vcg = np.asarray(folder.frank)
    exact = replace(folder, windows=(EXPAND @ DOWER @ vcg).astype(np.float32))
    rows = reconstruction(renderer, exact, RECONSTRUCTION).tables["vcg"]
    best = pick(rows, split="test", method="inverse_dower", axis="mean")[0]
    assert best["r"] > 0.999
    assert pick(rows, split="test", method="model", lead_set="all", axis="mean")[0]["r"] > 0.99
    assert np.allclose(matrix_vcg(INVERSE_DOWER, exact.windows), vcg, atol=0.02)
    axes = pick(rows, split="test", method="kors")
    assert [row["axis"] for row in axes] == ["x", "y", "z", "mean"]
    assert axes[3]["r"] == pytest.approx(np.mean([row["r"] for row in axes[:3]]))


def test_a_drifting_loop_is_less_closed() -> None:
    time = np.arange(500) / 100
    wave = sum(np.exp(-0.5 * ((time - p) / 0.015) ** 2) for p in np.arange(0.5, 4.6, 0.9))
    closed = np.stack([wave, wave, wave])[None]
    drift = closed + 0.4 * time
    closures = loop_closure(closed, wave[None], 100.0)
    assert np.isfinite(closures).sum() >= 3 and np.nanmax(closures) < 0.01
    assert np.nanmin(loop_closure(drift, wave[None], 100.0)) > 0.1
    assert np.isnan(loop_closure(np.zeros((1, 3, 500)), np.zeros((1, 500)), 100.0)).all()
