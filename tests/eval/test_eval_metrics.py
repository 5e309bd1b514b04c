"""Numbers against closed forms, against scikit-learn, and against what bootstrap theory promises."""

from __future__ import annotations

import numpy as np
import pytest

from ecggen.eval.bootstrap import Estimate, PatientBootstrap, margin
from ecggen.eval.lead_sets import all_sets, leave_one_out, named_sets
from ecggen.eval.metrics import MAX_SNR_DB, auroc, energy_share, score_leads
from ecggen.eval.result import Result
from ecggen.eval.verdict import FEWEST_PATIENTS
from ecggen.leads import LEADS, LeadError
from ecggen.utils.files import read_facts


def _pair(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.tile(x, (1, 12, 1)).astype(np.float64), np.tile(y, (1, 12, 1)).astype(np.float64)


def test_scores_of_a_scaled_and_shifted_sine() -> None:
    t = 2 * np.pi * np.arange(400) / 400
    truth, rendered = _pair(np.sin(t), 0.5 * np.sin(t))
    scores = score_leads(truth, rendered, np.ones(12, dtype=bool))
    assert np.allclose(scores.r, 1)
    assert np.allclose(scores.rmse**2, 0.25 * 0.5)  # mean of sin^2 is one half
    assert np.allclose(scores.values[..., 3], 10 * np.log10(4))
    assert np.allclose(scores.values[..., 2], 0.5 * np.abs(np.sin(t)).mean())
    assert scores.means()["rmse_mv"] == pytest.approx(np.sqrt(0.125))
    shifted = score_leads(truth, truth + 1, np.ones(12, dtype=bool))
    assert np.allclose(shifted.r, 1)
    assert np.allclose(shifted.rmse, 1)
    turned = score_leads(truth, _pair(np.sin(t), np.sin(t + np.pi / 3))[1], np.ones(12, dtype=bool))
    assert np.allclose(turned.r, 0.5)


def test_constant_signals_are_skipped_in_truth_and_score_zero_when_rendered() -> None:
    rng = np.random.default_rng(0)
    wave = rng.normal(size=64)
    flat_truth = score_leads(*_pair(np.zeros(64), wave), np.ones(12, dtype=bool))
    assert np.isnan(flat_truth.r).all()
    assert np.isnan(flat_truth.values[..., 3]).all()
    assert flat_truth.constant.all()
    assert np.isfinite(flat_truth.rmse).all()
    flat_rendering = score_leads(*_pair(wave, np.zeros(64)), np.ones(12, dtype=bool))
    assert (flat_rendering.r == 0).all()
    assert not flat_rendering.constant.any()
    assert np.allclose(score_leads(*_pair(wave, wave), np.ones(12, dtype=bool)).values[..., 3], MAX_SNR_DB)


def test_only_scored_leads_and_samples_count() -> None:
    rng = np.random.default_rng(1)
    truth, rendered = rng.normal(size=(2, 3, 12, 50))
    scored = np.zeros((3, 12), dtype=bool)
    scored[1, 4] = True
    start = np.array([0, 20, 50])
    scores = score_leads(truth, rendered, scored, start)
    assert np.isfinite(scores.r).sum() == 1
    assert scores.r[1, 4] == pytest.approx(np.corrcoef(truth[1, 4, 20:], rendered[1, 4, 20:])[0, 1])
    assert scores.rmse[1, 4] ** 2 == pytest.approx(((truth - rendered)[1, 4, 20:] ** 2).mean())
    spoiled = rendered.copy()
    spoiled[:, :, :20] = 1e6
    assert score_leads(truth, spoiled, scored, start).r[1, 4] == scores.r[1, 4]


def test_energy_share_of_a_half_sized_copy() -> None:
    x = np.random.default_rng(2).normal(size=(2, 12, 30))
    seen = np.ones((2, 12), dtype=bool)
    assert np.allclose(energy_share(x, 0.5 * x, seen), 0.75)
    assert np.isnan(energy_share(0 * x, x, seen)).all()


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_agrees_with_scikit_learn(ties: bool) -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(3)
    positive = rng.random(200) < 0.3
    score = rng.normal(size=200) + positive
    score = np.round(score) if ties else score
    weight = rng.integers(0, 4, size=(5, 200)).astype(float)
    assert auroc(positive, score)[0] == pytest.approx(roc_auc_score(positive, score))
    for w, area in zip(weight, auroc(positive, score, weight), strict=True):
        assert area == pytest.approx(roc_auc_score(positive, score, sample_weight=w))
    assert np.isnan(auroc(np.zeros(4, dtype=bool), np.arange(4.0))[0])


def test_bootstrap_resamples_patients_not_windows() -> None:
    values = np.repeat([0.0, 1.0, 2.0, 3.0], 50)
    patients = [f"p{int(v)}" for v in values]
    mean, low, high = PatientBootstrap(patients, 2000, seed=0).mean(values)
    assert mean == 1.5
    assert high - low > 1.5  # 200 independent windows would give 0.3
    again = PatientBootstrap(patients, 2000, seed=0).mean(values)
    assert again == (mean, low, high)
    # The vectorised draw is the plain one.
    boot = PatientBootstrap(["a", "a", "b", "c"], 50, seed=4)
    x = np.array([[1.0, np.nan], [2.0, 3.0], [5.0, 7.0], [np.nan, np.nan]])
    plain = [
        np.nansum(w[:, None] * x) / (w[:, None] * np.isfinite(x)).sum()
        for w in boot.weights()
        if (w[:, None] * np.isfinite(x)).sum()
    ]
    assert boot.mean(x)[1:] == pytest.approx(np.percentile(plain, [2.5, 97.5]))


def test_interval_of_a_difference_agrees_with_the_normal_theory() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(1.0, 1.0, 400), rng.normal(0.2, 2.0, 300)
    groups = [
        PatientBootstrap([str(i) for i in range(len(x))], 4000, seed).estimate(x)
        for seed, x in enumerate((first, second))
    ]
    difference = groups[0] - groups[1]
    value, (low, high) = difference.value, difference.interval
    error = np.sqrt(first.var() / 400 + second.var() / 300)
    assert value == pytest.approx(first.mean() - second.mean())
    assert (low, high) == pytest.approx((value - 1.96 * error, value + 1.96 * error), abs=0.02)


def test_nothing_and_one_patient_alone_have_no_interval() -> None:
    nothing = PatientBootstrap(["a", "b"], 10).estimate(np.full((2, 12), np.nan))
    assert np.isnan(nothing.value) and np.isnan((nothing - nothing).interval).all()
    values = np.random.default_rng(0).normal(size=40)
    value, low, high = PatientBootstrap(["a"] * 40, 50, 1).mean(values)
    assert value == pytest.approx(values.mean()) and np.isnan([low, high]).all()
    (area,) = PatientBootstrap(["a"] * 40, 50, 1).auroc(values[:, None] > 0, values[:, None])
    assert area.value == 1 and np.isnan(area.draws).all()


def test_a_margin_is_paired_and_says_what_its_interval_shows() -> None:
    """The heart decides r, the method adds little: two overlapping intervals, and yet a difference."""
    rng = np.random.default_rng(0)
    hearts = rng.normal(0.9, 0.05, 60)
    boot = PatientBootstrap([str(i) for i in range(60)], 400)
    model = boot.estimate(hearts + 0.004 + 0.002 * rng.normal(size=60))
    best, worse = boot.estimate(hearts), boot.estimate(hearts - 0.2)
    shown = margin(model, {"worse": worse, "best": best, "nothing": Estimate(np.nan, best.draws)}, 60)
    assert shown["best_baseline"] == "best" and shown["verdict"] == "above"
    assert 0 < shown["margin_low"] < shown["margin"] == pytest.approx(model.value - best.value)
    assert margin(best, {"model": model}, 60)["verdict"] == "below"
    alike = boot.estimate(hearts + 0.02 * rng.normal(size=60))
    assert margin(alike, {"best": best}, 60)["verdict"] == "no difference shown"
    assert margin(model, {"best": best}, FEWEST_PATIENTS - 1)["verdict"] == "too few patients"
    assert margin(model, {}, 60) == {}


def test_lead_sets_name_what_is_hidden() -> None:
    one = named_sets(["I+II+V2", "V2+i+II"])
    assert one[0].name == "I+II+V2"
    assert len(one) == 1
    names = [LEADS[i] for i in np.flatnonzero(one[0].headline)]
    assert names == ["V1", "V3", "V4", "V5", "V6"]
    assert one[0].derivable.sum() == 4
    assert one[0].geometry[0] == 3
    assert named_sets(["I"])[0].headline.sum() == 7
    # III and aVL fix I and II by algebra: they leave the headline.
    assert named_sets(["III+aVL"])[0].headline.sum() == 6
    v3 = leave_one_out()[2]
    assert v3.name == "-V3"
    assert [LEADS[i] for i in np.flatnonzero(v3.hidden)] == ["V3"]
    assert len(all_sets(["I", "I"], True)) == 7
    with pytest.raises(LeadError, match="V9"):
        named_sets(["I+V9"])


def test_result_declares_its_columns_and_writes_empty_tables(tmp_path) -> None:
    result = Result(columns={"empty": ("a", "b")})
    with pytest.raises(AssertionError, match="columns"):
        Result(columns={"wrong": ("a",)}, tables={"wrong": [{"c": 1}]}).write(tmp_path)
    result.write(tmp_path)
    assert (tmp_path / "empty.csv").read_text() == "a,b\n"
    assert not (tmp_path / "facts.csv").exists()
    Result({"n": {"test": 3, "shares": [0.1, 0.2]}, "why": ""}).write(tmp_path)
    assert read_facts(tmp_path / "facts.csv") == {"n.test": "3", "n.shares": "0.1, 0.2", "why": ""}
