"""Numbers against closed forms, against scikit-learn, and against what bootstrap theory promises."""

from __future__ import annotations

import numpy as np
import pytest

from ecggen.eval import bootstrap
from ecggen.eval.bootstrap import PatientBootstrap
from ecggen.eval.lead_sets import all_sets, leave_one_out, named_sets
from ecggen.eval.metrics import MAX_SNR_DB, auroc, energy_share, score_leads
from ecggen.eval.result import Result, rounded
from ecggen.leads import LEADS, LeadError


def _pair(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.tile(x, (1, 12, 1)).astype(np.float64), np.tile(y, (1, 12, 1)).astype(np.float64)


def test_scores_of_a_scaled_and_shifted_sine() -> None:
    t = 2 * np.pi * np.arange(400) / 400
    truth, made = _pair(np.sin(t), 0.5 * np.sin(t))
    scores = score_leads(truth, made, np.ones(12, dtype=bool))
    assert np.allclose(scores.r, 1)
    assert np.allclose(scores.rmse**2, 0.25 * 0.5)  # mean of sin^2 is one half
    assert np.allclose(scores.snr, 10 * np.log10(4))
    assert np.allclose(scores.mae, 0.5 * np.abs(np.sin(t)).mean())
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
    assert np.isnan(flat_truth.snr).all()
    assert flat_truth.constant.all()
    assert np.isfinite(flat_truth.rmse).all()
    flat_made = score_leads(*_pair(wave, np.zeros(64)), np.ones(12, dtype=bool))
    assert (flat_made.r == 0).all()
    assert not flat_made.constant.any()
    assert np.allclose(score_leads(*_pair(wave, wave), np.ones(12, dtype=bool)).snr, MAX_SNR_DB)


def test_only_scored_leads_and_samples_count() -> None:
    rng = np.random.default_rng(1)
    truth, made = rng.normal(size=(2, 3, 12, 50))
    scored = np.zeros((3, 12), dtype=bool)
    scored[1, 4] = True
    start = np.array([0, 20, 50])
    scores = score_leads(truth, made, scored, start)
    assert np.isfinite(scores.r).sum() == 1
    assert scores.r[1, 4] == pytest.approx(np.corrcoef(truth[1, 4, 20:], made[1, 4, 20:])[0, 1])
    assert scores.rmse[1, 4] ** 2 == pytest.approx(((truth - made)[1, 4, 20:] ** 2).mean())
    spoiled = made.copy()
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


def test_drawn_areas_do_not_depend_on_how_many_draws_are_taken_at_once(monkeypatch) -> None:
    rng = np.random.default_rng(8)
    positive, score = rng.random((60, 2)) > 0.5, rng.normal(size=(60, 2))
    boot = PatientBootstrap([f"p{i // 3}" for i in range(60)], 25, seed=1)
    whole, drawn = boot.auroc(positive, score)
    monkeypatch.setattr(bootstrap, "AT_ONCE", 7 * 60)
    assert np.array_equal(boot.auroc(positive, score)[1], drawn) and drawn.shape == (25, 2)
    assert np.array_equal(drawn[3], [auroc(positive[:, c], score[:, c], boot.weights())[3] for c in (0, 1)])
    assert whole.tolist() == [auroc(positive[:, c], score[:, c])[0] for c in (0, 1)]


def test_bootstrap_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    patients = [f"{i:02d}" for i in range(40) for _ in range(3)]
    hits = 0
    for trial in range(200):
        values = np.repeat(rng.normal(size=40), 3) + 0.3 * rng.normal(size=120)
        _, low, high = PatientBootstrap(patients, 200, seed=trial).mean(values)
        hits += low <= 0 <= high
    assert 0.88 <= hits / 200 <= 0.99


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
    result = Result(metrics={"r": 0.123456789, "none": float("nan")})
    result.add_table("empty", ("a", "b"), [])
    with pytest.raises(AssertionError, match="columns"):
        result.add_table("wrong", ("a",), [{"c": 1}])
    result.write(tmp_path)
    assert (tmp_path / "empty.csv").read_text() == "a,b\n"
    assert rounded(result.metrics) == {"r": 0.12346, "none": None}
