"""State stability against hand-made numbers, the probe against scikit-learn."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from ecggen.eval.linear_probe import (
    PROBE_COLUMNS,
    draw_records,
    draw_shares,
    fit_part,
    label_efficiency,
    linear_probe,
    probe_logits,
)
from ecggen.eval.logistic import fit_probe
from ecggen.eval.probe_features import (
    Probing,
    feature_tasks,
    labelled_records,
    median_beats,
    model_features,
    pca,
)
from ecggen.eval.reconstruction import reconstruction
from ecggen.eval.state import icc, retrieval
from ecggen.eval.workers import Workers
from ecggen.utils.config import LinearProbeConfig, ReconstructionConfig

CONFIG = LinearProbeConfig(bootstrap=50, supervised=True, supervised_epochs=3, pca=8, label_shares=[0.5])


def test_icc_equals_a_hand_computed_analysis_of_variance() -> None:
    # Subjects (1, 3), (5, 7), (9, 11): means 2, 6, 10; MSB = 2 * (16 + 0 + 16) / 2 = 32;
    # MSW = 6 * 1 / 3 = 2; ICC(1,1) = (32 - 2) / (32 + 2).
    values = np.array([[1.0, 3.0], [5.0, 7.0], [9.0, 11.0]])[:, :, None]
    assert icc(values)[0] == pytest.approx(30 / 34)
    assert icc(np.repeat(values[:, :1], 2, axis=1))[0] == pytest.approx(1)
    opposite = np.array([[1.0, -1.0], [2.0, -2.0]])[:, :, None]
    assert icc(opposite)[0] == pytest.approx(-1)
    assert np.isnan(icc(np.ones((3, 2, 1)))[0])


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
    rows = stability(renderer, folder)
    assert {(r["protocol"], r["descriptor"]) for r in rows} == {
        (p, d) for p in ("windows", "records") for d in ("state", "second_moments", "beat_pca")
    }
    within = next(r for r in rows if r["protocol"] == "windows" and r["descriptor"] == "state")
    assert within["icc_mean"] > 0.8
    assert within["retrieval"] > 3 * within["chance"]
    renderer.model.fast = SimpleNamespace(size=5)  # a state of two parts
    parts = stability(renderer, folder)
    sizes = {r["descriptor"]: r["dimensions"] for r in parts if r["protocol"] == "windows"}
    assert 1 <= sizes.pop("beat_pca") <= 24
    assert sizes == {"state": 12, "state_trained": 5, "state_memory": 7, "second_moments": 36}
    assert stability(renderer, folder, 3)[0]["n"] == 3


def stability(renderer, folder, records: int = 50):
    return reconstruction(renderer, folder, ReconstructionConfig(state_records=records)).tables["state"]


@pytest.mark.parametrize("shape", [(150, 12), (20, 60)])
def test_the_probe_is_at_the_minimum_of_its_loss(shape: tuple[int, int]) -> None:
    """The gradient of mean log loss + l2 / 2 |w|^2 is zero, with few features and with many."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=shape)
    y = (x[:, :2] + rng.normal(size=(len(x), 2)) > 0.3).astype(float)
    for l2 in (1.0, 0.01):
        probe = fit_probe((x, y), (x, y), grid=(l2,))
        wrong = 1 / (1 + np.exp(-probe.scores(x))) - y
        standard = (x - x.mean(axis=0)) / x.std(axis=0)
        assert np.abs(standard.T @ wrong / len(x) + l2 * probe.weight).max() < 1e-4
        assert np.abs(wrong.mean(axis=0)).max() < 1e-4


def test_penalty_is_chosen_on_validation_for_each_class() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(60, 40))
    y = np.stack([x[:, 0] > 0, rng.random(60) > 0.5, np.zeros(60)], axis=1).astype(float)
    held = rng.normal(size=(300, 40))
    y_held = np.stack([held[:, 0] > 0, np.zeros(300), held[:, 1] > 0], axis=1).astype(float)
    probe = fit_probe((x * 7 + 3, y), (held * 7 + 3, y_held), grid=(10.0, 1.0, 0.01))
    assert probe.l2[1] == 10.0  # validation has no such class: the strongest penalty stays
    assert probe.l2[0] < 10.0 and not probe.scores(held)[:, 2].any(), "a class that training lacks scores 0"


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
    context, parts = Probing({"model": renderer}, {"": folder}), [("", part)]
    with Workers(context, renderer.device) as workers:
        measured = workers.measure(feature_tasks(context.models, parts, 7))
        features = next(model_features(measured, context.models, parts))["model"]
    one = part.rows[part.code == 0]
    wanted = renderer.embed_windows(folder.windows[one], folder.observed[one]).mean(axis=0)
    assert np.allclose(features[0], wanted, atol=1e-6)
    beats = median_beats(folder, part)
    assert beats.shape == (len(part.patient), 8 * 70)
    assert np.abs(beats).max(axis=1).min() > 0.1


def test_probe_table_and_facts(renderer, folder) -> None:
    result = linear_probe(renderer, folder, CONFIG)
    methods = {"model", "random_encoder", "pca", "median_beat", "supervised"}
    rows = [row for row in result.tables["probe"] if row["split"] == "test"]
    macro = {row["method"]: row for row in rows if row["class"] == "macro"}
    assert set(macro) == methods
    assert result.facts["classes"] == ["big", "small"]
    assert result.facts["positives"]["train"]["big"] == 6
    assert result.facts["positive_patients"]["test"] == {"big": 3, "small": 3}
    assert result.facts["records"]["test"] > result.facts["patients"]["test"] == 6
    assert len(result.tables["probe"]) == 2 * 5 * 3
    # The size of the heart is in the amplitude: every method that is fitted must find it.
    for method in ("model", "median_beat"):
        assert macro[method]["auroc"] > 0.9
    assert {row["method"] for row in result.tables["label_shares"] if row["share"] == 0.5} == methods
    assert result.facts["records_without_beat"] == {"train": 0, "validation": 0, "test": 0}
    shown = macro["model"]
    assert macro["pca"]["model_gain"] == pytest.approx(shown["auroc"] - macro["pca"]["auroc"])
    assert shown["verdict"] == "too few patients" and shown["margin_low"] <= shown["margin"]
    assert {row["method"] for row in result.tables["probe"] if "margin" in row} == {"model"}
    again = linear_probe(renderer, folder, CONFIG)
    assert again.facts == result.facts and str(again.tables) == str(result.tables)


def test_what_the_probe_leaves_out_is_counted(renderer, folder) -> None:
    valid = np.ones(len(folder), dtype=bool)
    valid[folder.rows("train")[:2]] = False
    config = replace(CONFIG, label_shares=[0.01, 0.5], supervised=False)
    result = linear_probe(renderer, replace(folder, label_valid=valid), config)
    assert result.facts["unlabelled_windows"] == {"train": 2, "validation": 0, "test": 0}
    assert result.facts["label_shares_left_out"] == [0.01]
    assert {row["share"] for row in result.tables["label_shares"]} == {0.5}


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
    shares = draw_shares(splits["train"], [0.05, 0.5], 4, 0)
    parts = shares[1][2]
    assert shares[0][2] == [], "too small a share to hold every class"
    features = {"model": good, "noise": noise}
    methods = {
        name: [probe_logits(each, fit_part(each, splits, part)) for part in parts]
        for name, each in features.items()
    }
    rows = label_efficiency(methods, splits["test"], shares, (50, 0))
    assert {(row["method"], row["share"]) for row in rows} == {("model", 0.5), ("noise", 0.5)}
    model, other = rows
    assert (
        model["auroc"] == 1 and model["model_gain"] == 0 and model["n_records"] == 6 and model["draws"] == 4
    )
    assert other["auroc"] < 0.9 and other["model_gain"] == pytest.approx(1 - other["auroc"])
    assert other["gain_low"] <= other["model_gain"] <= other["gain_high"]


def test_without_labels_the_probe_table_is_empty(renderer, folder) -> None:
    none = {"labels": np.zeros((len(folder), 0)), "label_valid": np.zeros(len(folder), bool)}
    bare = replace(folder, label_classes=[], **none)
    result = linear_probe(renderer, bare, CONFIG)
    assert result.tables["probe"] == []
    assert result.columns["probe"] == PROBE_COLUMNS
    assert "skipped" in result.facts
