"""The protocols end to end on a small known heart: what they count, what they read, what they leave out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ecggen.eval.lead_sets import named_sets
from ecggen.eval.missing_lead import HEADLINE, missing_lead, step_numbers
from ecggen.eval.personal import half_pairs, record_dates, record_pairs
from ecggen.eval.reconstruction import best_subspace, fixed_dower, reconstruction
from ecggen.eval.result import EvalError
from ecggen.eval.score import reference_regression
from ecggen.eval.vcg import loop_closure, matrix_vcg
from ecggen.leads import DOWER, EXPAND, INVERSE_DOWER, LEADS
from ecggen.utils.config import MissingLeadConfig, ReconstructionConfig
from ecggen.utils.files import read_csv, write_csv

RULES = MissingLeadConfig(lead_sets=["I", "I+II", "I+II+V2"], ttt_steps=3, bootstrap=50, context=1)
RECONSTRUCTION = ReconstructionConfig(bootstrap=50, state_records=50)


def _pick(rows, **wanted):
    return [row for row in rows if all(row[k] == v for k, v in wanted.items())]


@pytest.fixture
def result(renderer, folder):
    return missing_lead(renderer, folder, RULES)


def test_missing_lead_reports_every_set_method_and_split(result, folder) -> None:
    rows = result.tables["lead_sets"]
    assert len(rows) == 2 * 7 * (3 + 6)
    n = len(folder.rows("test"))
    one = _pick(rows, split="test", lead_set="I+II+V2", method="linear_regression")[0]
    assert one["n_windows"] == n
    assert one["r_low"] <= one["r"] <= one["r_high"]
    assert one["algebra_r"] > 0.95
    assert (one["rank"], round(one["condition"], 1)) == (3, 2.2)
    # A three-dimensional heart seen in three dimensions: the closed form must be close to perfect.
    assert _pick(rows, split="test", lead_set="-V3", method="closed_form")[0]["r"] > 0.97
    headline = result.metrics["test"]["I+II+V2"]
    assert set(headline) == set(HEADLINE)
    per_lead = _pick(result.tables["per_lead"], lead_set="I+II", method="dower")
    assert [row["lead"] for row in per_lead] == [x for x in LEADS if x not in ("I", "II")]
    for low, value, high in [
        ("r_low", "r", "r_high"),
        ("mae_low", "mae_mv", "mae_high"),
        ("snr_low", "snr_db", "snr_high"),
    ]:
        assert all(row[low] <= row[value] <= row[high] for row in per_lead), value
        assert any(row[low] < row[high] for row in per_lead), value
    mean = np.mean([row["r"] for row in per_lead if row["lead"].startswith("V")])
    assert mean == pytest.approx(_pick(rows, split="test", lead_set="I+II", method="dower")[0]["r"])


def test_the_model_is_compared_with_its_best_baseline(result) -> None:
    for split in ("test", "validation"):
        rows = _pick(result.tables["lead_sets"], split=split, lead_set="I+II")
        model, others = rows[0], rows[1:]
        best = max(others, key=lambda row: row["r"])
        assert model["best_baseline"] == best["method"] and "margin" not in best
        assert model["margin"] == pytest.approx(model["r"] - best["r"])
        assert model["margin_low"] <= model["margin"] <= model["margin_high"]
        assert model["verdict"] == "too few patients" and model["n_patients"] < 20
    shown = result.metrics["test"]["I+II"]["model"]
    assert shown["verdict"] == "too few patients" and {"margin", "margin_low", "margin_high"} <= set(shown)


def test_a_rendering_that_is_not_finite_is_an_error(renderer, folder) -> None:
    render = renderer.render_windows
    renderer.render_windows = lambda *a, **k: {n: np.full_like(x, np.nan) for n, x in render(*a, **k).items()}
    with pytest.raises(EvalError, match="hold NaN or infinity"):
        missing_lead(renderer, folder, RULES)


def test_ttt_table_goes_beyond_the_trained_steps_and_states_the_gain(result) -> None:
    rows = _pick(result.tables["ttt"], lead_set="I+II+V2")
    assert [row["step"] for row in rows if row["kind"] == "ttt"] == [0, 1, 2, 3]
    assert {row["kind"] for row in rows} == {"ttt", "closed_form", "w0", "record"}
    by_step = {row["step"]: row["r"] for row in rows if row["kind"] == "ttt"}
    for row in rows:
        if row["against"] == "step 0":
            assert row["gain"] == pytest.approx(row["r"] - by_step[0], abs=1e-6)
            assert row["gain_low"] <= row["gain"] <= row["gain_high"]
    assert result.metrics["ttt_gain_r"]["I+II+V2"] == pytest.approx(by_step[2] - by_step[0], abs=1e-5)
    assert by_step[3] > by_step[0]


def test_a_lead_that_was_not_recorded_is_neither_given_nor_scored(renderer, folder) -> None:
    observed = folder.observed.copy()
    test = folder.rows("test")
    observed[test[0], LEADS.index("V2")] = False
    observed[test[1], LEADS.index("V5")] = False
    seen = {}
    for fill in (0.0, 50.0):
        windows = folder.windows.copy()
        windows[~observed] = fill
        changed = replace(folder, observed=observed, windows=windows)
        seen[fill] = missing_lead(renderer, changed, replace(RULES, personal=False))
    assert seen[0.0].metrics == seen[50.0].metrics
    rows = seen[0.0].tables["lead_sets"]
    assert _pick(rows, split="test", lead_set="I+II+V2", method="model")[0]["n_windows"] == len(test) - 1
    assert _pick(rows, split="test", lead_set="I+II", method="model")[0]["n_windows"] == len(test)
    assert _pick(rows, split="test", lead_set="-V5", method="model")[0]["n_windows"] == len(test) - 2


def test_an_empty_split_is_an_error_in_words(renderer, folder) -> None:
    rows = np.concatenate([folder.rows("train"), folder.rows("validation")])
    split = ["validation" if name == "test" else name for name in folder.split]
    assert len(rows)
    with pytest.raises(EvalError, match="test split"):
        missing_lead(renderer, replace(folder, split=split), RULES)


def test_personal_scores_no_sample_of_the_reference(renderer, folder) -> None:
    rows = folder.rows("test")
    pairs = half_pairs(folder, rows)
    assert (pairs.score_from == 16).all()
    assert (folder.start_s[pairs.reference] < folder.start_s[pairs.test]).all()
    assert all(folder.record[a] == folder.record[b] for a, b in zip(pairs.reference, pairs.test, strict=True))
    plain = missing_lead(renderer, folder, RULES).tables["personal"]
    spoiled = folder.windows.copy()
    hidden = ~named_sets(["I+II+V2"])[0].mask
    spoiled[pairs.test[:, None], np.flatnonzero(hidden), :16] = 1e3  # samples that the reference holds too
    again = missing_lead(renderer, replace(folder, windows=spoiled), RULES).tables["personal"]
    want = {"split": "test", "protocol": "halves", "lead_set": "I+II+V2"}
    assert str(_pick(plain, **want)) == str(_pick(again, **want))  # as text: NaN differs from itself
    methods = ["model_personal", "model_one_pass", "model", "memory"]
    methods += ["linear_regression_reference", "linear_regression"]
    assert [row["method"] for row in _pick(plain, **want)] == methods


def test_only_another_record_is_one_of_another_day(renderer, folder) -> None:
    rows = missing_lead(renderer, folder, RULES).tables["personal"]
    for protocol, first in (("halves", "model_personal"), ("records", "model_another_day")):
        own = _pick(rows, split="test", protocol=protocol, lead_set="I+II+V2")
        assert own[0]["method"] == first and own[0]["personal_gain"] == 0
        assert ("model_another_day" in {row["method"] for row in own}) == (protocol == "records")


def test_personal_holds_the_state_of_the_reference_after_and_before_the_inner_steps(renderer, folder) -> None:
    missing_lead(renderer, folder, RULES)
    pairs = half_pairs(folder, folder.rows("validation"))
    for steps in (None, 0):
        wanted = renderer.states(folder.windows[pairs.reference], np.ones(12, dtype=bool), steps=steps)
        assert any(held.shape == wanted.shape and np.allclose(held, wanted) for held in renderer.held), steps


def test_steps_are_scored_one_by_one_and_then_doubled() -> None:
    assert step_numbers(3, 12) == [0, 1, 2, 3, 6, 12]
    assert step_numbers(3, 8) == [0, 1, 2, 3, 6, 8]
    assert step_numbers(3, 1) == [0, 1, 2, 3]
    assert step_numbers(0, 2) == [0, 2]


def test_one_state_for_all_windows_of_a_record(renderer, folder) -> None:
    rows = missing_lead(renderer, folder, RULES).tables["ttt"]
    one = [row for row in rows if row["kind"] == "record"]
    assert [row["lead_set"] for row in one] == ["I", "I+II", "I+II+V2", "-V3"]
    assert {row["against"] for row in one} == {"step 2"}


def test_records_of_one_patient_are_paired_in_time(folder) -> None:
    rows = folder.rows("test")
    pairs = record_pairs(folder, rows)
    assert len(pairs.test)
    assert np.isnan(pairs.days).all()
    for a, b in zip(pairs.reference, pairs.test, strict=True):
        assert folder.patient[a] == folder.patient[b]
        assert folder.record[a] != folder.record[b]
        assert folder.record[a].endswith("_0")
    # With dates, the earlier record is the reference whatever the order of the index.
    table = [
        {"record": r, "recorded": "2001-01-01 12:00:00" if r.endswith("_1") else "2001-01-11 12:00:00"}
        for r in folder.record
    ]
    write_csv(folder.root / "index.csv", table, ("record", "recorded"))
    assert len(record_dates(folder)) == len(set(folder.record))
    turned = record_pairs(folder, rows)
    assert all(folder.record[a].endswith("_1") for a in turned.reference)
    assert (turned.days == 10).all()


def test_dates_with_and_without_a_time_zone_are_compared(renderer, folder) -> None:
    later, earlier = "2001-01-11T12:00:00Z", "2001-01-01 12:00:00"
    table = [{"record": r, "recorded": earlier if r.endswith("_1") else later} for r in folder.record]
    write_csv(folder.root / "index.csv", table, ("record", "recorded"))
    pairs = record_pairs(folder, folder.rows("test"))
    assert (pairs.days == 10).all() and all(folder.record[a].endswith("_1") for a in pairs.reference)
    (folder.root / "index.csv").unlink()
    rows = missing_lead(renderer, folder, RULES).tables["personal"]
    undated = _pick(rows, split="test", protocol="records", lead_set="I", method="model")[0]
    assert undated["n_undated"] == undated["n"] > 0, "what stands for the order in time is counted"


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
    found = reconstruction(renderer, folder, RECONSTRUCTION)
    for name, rows in found.tables.items():
        assert rows, name
    share = {row["part"]: row for row in _pick(found.tables["energy"], split="test")}
    assert share["best_subspace_4"]["explained_mean"] >= share["best_subspace_3"]["explained_mean"]
    assert share["best_subspace_3"]["explained_mean"] > share["fixed_dower"]["explained_mean"]
    for part in ("fixed_dower", "best_subspace_3"):  # orthogonal projections
        assert share[part]["explained_mean"] == pytest.approx(share[part]["share_mean"], abs=1e-4)
    added = share["leads"]["explained_mean"] - share["dipole"]["explained_mean"]
    assert share["residual"]["explained_mean"] == pytest.approx(added, abs=1e-9)
    found.write(tmp_path / "out")
    assert len(read_csv(tmp_path / "out" / "energy.csv")) == 16
    without = reconstruction(renderer, folder, replace(RECONSTRUCTION, ttt_steps=0))
    parts = {row["part"] for row in found.tables["energy"]}
    assert parts - {row["part"] for row in without.tables["energy"]} == {"dipole_more_steps"}


def test_without_frank_leads_the_vcg_table_has_columns_and_no_rows(renderer, folder) -> None:
    found = reconstruction(renderer, replace(folder, frank=None), RECONSTRUCTION)
    assert found.tables["vcg"] == []
    assert "axis" in found.columns["vcg"]
    assert found.metrics["vcg"] == {}


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
    best = _pick(rows, split="test", method="inverse_dower", axis="mean")[0]
    assert best["r"] > 0.999
    assert _pick(rows, split="test", method="model", lead_set="all", axis="mean")[0]["r"] > 0.99
    assert np.allclose(matrix_vcg(INVERSE_DOWER, exact.windows), vcg, atol=0.02)
    axes = _pick(rows, split="test", method="kors")
    assert [row["axis"] for row in axes] == ["x", "y", "z", "mean"]
    assert axes[3]["r"] == pytest.approx(np.mean([row["r"] for row in axes[:3]]))


def test_a_drifting_loop_is_less_closed() -> None:
    time = np.arange(500) / 100
    wave = sum(np.exp(-0.5 * ((time - p) / 0.015) ** 2) for p in np.arange(0.5, 4.6, 0.9))
    closed = np.stack([wave, wave, wave])[None]
    drift = closed + 0.4 * time
    values, windows = loop_closure(closed, wave[None], 100.0)
    assert windows == 1
    assert len(values) >= 3
    assert max(values) < 0.01
    assert min(loop_closure(drift, wave[None], 100.0)[0]) > 0.1
    assert loop_closure(np.zeros((1, 3, 500)), np.zeros((1, 500)), 100.0) == ([], 0)
