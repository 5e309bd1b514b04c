"""State stability against hand-made numbers, the probe against scikit-learn."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ecggen.eval import logistic
from ecggen.eval.label_efficiency import draw_records, drawn_shares, label_efficiency, probe_scores
from ecggen.eval.linear_probe import PROBE_COLUMNS, linear_probe
from ecggen.eval.logistic import fit_logistic, fit_probe
from ecggen.eval.probe_features import labelled_records, median_beats, model_features, pca
from ecggen.eval.state import icc, retrieval, second_moments, state_stability
from ecggen.utils.config import LinearProbeConfig, ReconstructionConfig

RULES = LinearProbeConfig(bootstrap=50, supervised_epochs=3, pca=8, label_shares=[0.5])


def test_icc_equals_a_hand_computed_analysis_of_variance() -> None:
    # Subjects (1, 3), (5, 7), (9, 11): means 2, 6, 10; MSB = 2 * (16 + 0 + 16) / 2 = 32;
    # MSW = 6 * 1 / 3 = 2; ICC(1,1) = (32 - 2) / (32 + 2).
    values = np.array([[1.0, 3.0], [5.0, 7.0], [9.0, 11.0]])[:, :, None]
    assert icc(values)[0] == pytest.approx(30 / 34)
    assert icc(np.repeat(values[:, :1], 2, axis=1))[0] == pytest.approx(1)
    opposite = np.array([[1.0, -1.0], [2.0, -2.0]])[:, :, None]
    assert icc(opposite)[0] == pytest.approx(-1)
    assert np.isnan(icc(np.ones((3, 2, 1)))[0])


def test_icc_of_noise_is_zero() -> None:
    assert abs(icc(np.random.default_rng(0).normal(size=(400, 2, 50))).mean()) < 0.02


def test_retrieval_of_noise_is_chance_and_of_copies_is_perfect() -> None:
    rng = np.random.default_rng(1)
    keys = np.arange(50)
    hits = []
    for _ in range(40):
        share, chance = retrieval(rng.normal(size=(50, 8)), rng.normal(size=(50, 8)), keys, keys)
        hits.append(share)
        assert chance == pytest.approx(1 / 50)
    assert np.mean(hits) == pytest.approx(1 / 50, abs=0.012)
    x = rng.normal(size=(50, 8))
    assert retrieval(x, x + 0.01 * rng.normal(size=x.shape), keys, keys)[0] == 1
    assert retrieval(x, x, keys, keys // 2)[1] == pytest.approx(1 / 50)
    assert np.isnan(retrieval(x, np.ones_like(x), keys, keys)[0])


def test_state_table_has_both_protocols_and_a_descriptor_to_compare_with(renderer, folder) -> None:
    rows = state_stability(renderer, folder, ReconstructionConfig(state_records=50))
    assert {(r["protocol"], r["descriptor"]) for r in rows} == {
        (p, d) for p in ("windows", "records") for d in ("state", "second_moments", "beat_pca")
    }
    within = next(r for r in rows if r["protocol"] == "windows" and r["descriptor"] == "state")
    assert within["icc_mean"] > 0.8
    assert within["retrieval"] > 3 * within["chance"]
    renderer.model.fast = SimpleNamespace(size=5)  # a state of two parts
    parts = state_stability(renderer, folder, ReconstructionConfig(state_records=50))
    sizes = {r["descriptor"]: r["dimensions"] for r in parts if r["protocol"] == "windows"}
    beats = sizes.pop("beat_pca")
    assert 1 <= beats <= 24 and sizes == {
        "state": 12,
        "state_trained": 5,
        "state_memory": 7,
        "second_moments": 36,
    }
    few = state_stability(renderer, folder, ReconstructionConfig(state_records=3))
    assert few[0]["n"] == 3


def test_records_to_be_judged_alone_need_no_training_split(renderer, folder) -> None:
    alone = replace(folder, split=["test"] * len(folder))
    rows = state_stability(renderer, alone, ReconstructionConfig(state_records=50))
    assert {row["descriptor"] for row in rows} == {"state", "second_moments"}


def test_second_moments_ignore_unrecorded_leads() -> None:
    ecg = np.random.default_rng(0).normal(size=(2, 12, 40)).astype(np.float32)
    seen = np.ones((2, 12), dtype=bool)
    seen[:, 8] = False
    spoiled = ecg.copy()
    spoiled[:, 8] = 99
    assert np.array_equal(second_moments(ecg, seen), second_moments(spoiled, seen))


def test_logistic_agrees_with_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(2)
    x = rng.normal(size=(150, 12))
    y = (x[:, :2] + rng.normal(size=(150, 2)) > 0.3).astype(float)
    for l2 in (1.0, 0.01):
        mine = fit_logistic(x, y, l2)
        for c in range(2):
            other = LogisticRegression(C=1 / (l2 * len(x)), tol=1e-9, max_iter=2000).fit(x, y[:, c])
            assert np.allclose(mine.weight[:, c], other.coef_[0], atol=1e-4)
            assert mine.bias[c] == pytest.approx(other.intercept_[0], abs=1e-4)
    warm = fit_logistic(x, y, 0.01, start=fit_logistic(x, y, 1.0))
    assert np.allclose(warm.weight, mine.weight, atol=1e-4)


@pytest.mark.parametrize("l2", [10.0, 1e-3])
def test_both_solvers_find_the_same_minimum(monkeypatch: pytest.MonkeyPatch, l2: float) -> None:
    rng = np.random.default_rng(6)
    x = rng.normal(size=(80, 30))
    y = np.stack([x[:, 0] > 0, rng.random(80) > 0.9, np.zeros(80)], axis=1).astype(float)
    newton = fit_logistic(x, y, l2)
    monkeypatch.setattr(logistic, "NEWTON", 0)
    steps = fit_logistic(x, y, l2, iterations=2000)
    assert np.allclose(newton.weight, steps.weight, atol=1e-3)
    assert np.allclose(newton.bias[:2], steps.bias[:2], atol=1e-3) and (newton.bias[2] < -8)
    # The gradient is zero, bias and weights together.
    wrong = 1 / (1 + np.exp(-newton.scores(x))) - y
    assert np.abs(x.T @ wrong / 80 + l2 * newton.weight).max() < 1e-8 and np.abs(wrong.mean(0)).max() < 1e-8


def test_fewer_records_than_features_are_solved_in_their_span(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(7)
    x, held = rng.normal(size=(20, 60)), rng.normal(size=(40, 60))
    y, y_held = (np.stack([z[:, 0] > 0, z[:, 1] > 0.2], axis=1).astype(float) for z in (x, held))
    turned = fit_probe((x, y), (held, y_held))
    monkeypatch.setattr(logistic, "NEWTON", 0)  # no rotation, and the other solver
    plain = fit_probe((x, y), (held, y_held))
    assert turned.logistic.weight.shape == (60, 2) and (turned.l2 == plain.l2).all()
    assert np.allclose(turned.scores(held), plain.scores(held), atol=1e-3)


def test_the_probe_does_not_depend_on_threads() -> None:
    rng = np.random.default_rng(9)
    x, held = rng.normal(size=(201, 250)), rng.normal(size=(40, 250))
    y, y_held = (np.stack([z[:, 0] > 0, z[:, 1] > 0.2], axis=1).astype(float) for z in (x, held))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(fit_probe((x, y), (held, y_held), grid=(1.0, 0.1)).scores(held))
    finally:
        torch.set_num_threads(before)
    assert np.allclose(found[0], found[1], atol=1e-8)


def test_penalty_is_chosen_on_validation_for_each_class() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(60, 40))
    y = np.stack([x[:, 0] > 0, rng.random(60) > 0.5], axis=1).astype(float)
    held = rng.normal(size=(300, 40))
    y_held = np.stack([held[:, 0] > 0, np.zeros(300)], axis=1).astype(float)
    probe = fit_probe((x * 7 + 3, y), (held * 7 + 3, y_held), grid=(10.0, 1.0, 0.01))
    assert probe.l2[1] == 10.0  # validation has no such class: the strongest penalty stays
    assert probe.scores(held * 7 + 3).shape == (300, 2)


def test_pca_equals_the_eigenvectors_of_the_covariance() -> None:
    x = np.random.default_rng(4).normal(size=(40, 10)) * np.arange(1, 11)
    train, other = pca(x, [x[:5]], 3)
    centred = x - x.mean(axis=0)
    power, axes = np.linalg.eigh(centred.T @ centred)
    assert np.allclose((train**2).sum(axis=0), power[::-1][:3])
    assert np.allclose(np.abs(train), np.abs(centred @ axes[:, ::-1][:, :3]))
    assert np.allclose(train[:5], other)


def test_records_average_their_windows(renderer, folder) -> None:
    part = labelled_records(folder, "train")
    assert len(part.patient) == len({folder.record[r] for r in part.rows})
    features = model_features(renderer, folder, part, 7)
    one = part.rows[part.code == 0]
    wanted = renderer.embed_windows(folder.windows[one], folder.observed[one]).mean(axis=0)
    assert np.allclose(features[0], wanted, atol=1e-6)
    beats = median_beats(folder, part)
    assert beats.shape == (len(part.patient), 8 * 70)
    assert np.abs(beats).max(axis=1).min() > 0.1


def test_unlabelled_records_are_left_out(folder) -> None:
    valid = np.ones(len(folder), dtype=bool)
    rows = folder.rows("train")
    valid[rows[:2]] = False
    assert len(labelled_records(replace(folder, label_valid=valid), "train").rows) == len(rows) - 2


def test_probe_table_and_metrics(renderer, folder) -> None:
    result = linear_probe(renderer, folder, RULES)
    methods = {"model", "random_encoder", "pca", "median_beat", "supervised"}
    assert set(result.metrics["test"]) == methods
    assert result.metrics["classes"] == ["big", "small"]
    assert result.metrics["positives"]["train"]["big"] == 6
    assert result.metrics["positive_patients"]["test"] == {"big": 3, "small": 3}
    assert result.metrics["records"]["test"] > result.metrics["patients"]["test"] == 6
    assert len(result.tables["probe"]) == 2 * 5 * 3
    # The size of the heart is in the amplitude: every method that is fitted must find it.
    for method in ("model", "median_beat"):
        assert result.metrics["test"][method]["macro_auroc"] > 0.9
    assert set(result.metrics["label_shares"]["0.5"]) == methods
    again = linear_probe(renderer, folder, RULES)
    assert again.metrics == result.metrics


def test_labels_of_windows_are_not_averaged_over_records(folder) -> None:
    """Beat types differ from window to window: each stands for itself, with its own labels."""
    labels = folder.labels.copy()
    labels[::2] = [1, 1]
    beats = replace(folder, labels=labels, meta=folder.meta | {"label_system": "beats"})
    part = labelled_records(beats, "train")
    rows = folder.rows("train")
    assert len(part.patient) == len(rows) > len(labelled_records(folder, "train").patient)
    assert np.array_equal(part.labels[part.code], labels[part.rows])
    assert [part.patient[c] for c in part.code] == [folder.patient[r] for r in part.rows]


def test_records_can_be_chosen(folder) -> None:
    part = labelled_records(folder, "train")
    two = part.chosen(np.array([1, 4]))
    assert two.names == [part.names[1], part.names[4]] and two.patient == [part.patient[1], part.patient[4]]
    assert sorted(two.rows) == sorted(part.rows[(part.code == 1) | (part.code == 4)])
    assert np.array_equal(two.labels, part.labels[[1, 4]])
    assert [two.names[c] for c in two.code] == [folder.record[r] for r in two.rows]


def test_a_draw_of_records_holds_every_class() -> None:
    labels = np.zeros((200, 2))
    labels[:6, 0] = 1
    labels[100:, 1] = 1
    rng = np.random.default_rng(0)
    for _ in range(20):
        chosen = draw_records(labels, 60, rng)
        assert len(set(chosen)) == 60 and labels[chosen].sum(axis=0).min() >= 2
    assert draw_records(labels, 2, rng) is None


def test_few_labels_tell_a_good_feature_from_noise(folder) -> None:
    splits = {name: labelled_records(folder, name) for name in ("train", "validation", "test")}
    rng = np.random.default_rng(0)
    noise = {name: rng.normal(size=(len(part.patient), 3)) for name, part in splits.items()}
    good = {name: part.labels[:, :1] + 0.01 * noise[name][:, :1] for name, part in splits.items()}
    methods = {"model": probe_scores(good, splits), "noise": probe_scores(noise, splits)}
    shares = drawn_shares(splits["train"], [0.05, 0.5], 4, 0)
    rows = label_efficiency(methods, splits, shares, (50, 0))
    assert {(row["method"], row["share"]) for row in rows} == {("model", 0.5), ("noise", 0.5)}
    model, other = rows
    assert (
        model["auroc"] == 1 and model["model_gain"] == 0 and model["n_records"] == 6 and model["draws"] == 4
    )
    assert other["auroc"] < 0.9 and other["model_gain"] == pytest.approx(1 - other["auroc"])
    assert other["gain_low"] <= other["model_gain"] <= other["gain_high"]


def test_without_labels_the_probe_table_is_empty(renderer, folder) -> None:
    bare = replace(
        folder,
        labels=np.zeros((len(folder), 0), np.float32),
        label_classes=[],
        label_valid=np.zeros(len(folder), bool),
    )
    result = linear_probe(renderer, bare, RULES)
    assert result.tables["probe"] == []
    assert result.columns["probe"] == PROBE_COLUMNS
    assert "skipped" in result.metrics
