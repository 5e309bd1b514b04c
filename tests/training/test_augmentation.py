"""What a training step shows: masks, references, jittered lead fields."""

from __future__ import annotations

import numpy as np
import torch

from ecggen.leads import DOWER, EXPAND
from ecggen.models.slots import LimbSlots
from ecggen.training.augmentation import augment, change_waves, field_change, random_leads, random_view
from ecggen.utils.config import config_from_dict


def make_batch(count: int = 64) -> dict[str, torch.Tensor]:
    eight = torch.randn(3, count, 8, 32, generator=torch.Generator().manual_seed(0))
    ecg, crop, support = torch.tensor(EXPAND, dtype=torch.float32) @ eight
    there = torch.ones(count, 12, dtype=torch.bool)
    there[0, 7] = False
    return {
        "ecg": ecg,
        "crop": crop,
        "support": support,
        "observed": there,
        "support_observed": torch.ones(count, 12, dtype=torch.bool),
        "has_support": torch.arange(count) % 4 > 0,
    }


def example(batch: dict[str, torch.Tensor], seed: int = 0, **train: float):
    off = {"personal_share": 0.5, "field_jitter": 0.0, "reference_jitter": 0.0, "stranger_share": 0.0}
    config = config_from_dict({"train": off | train})
    return augment(batch, config, np.random.default_rng(seed), LimbSlots())


def test_a_reference_is_the_support_window_whole_or_the_given_leads_themselves() -> None:
    batch = make_batch()
    out = example(batch)
    personal = (out.reference == batch["support"]).flatten(1).all(1)
    assert 0.2 < personal.float().mean() < 0.6 and not personal[~batch["has_support"]].any()
    assert torch.equal(out.ecg[personal], batch["ecg"][personal])
    assert torch.equal(out.reference_observed[personal], batch["support_observed"][personal])
    # The others take the state from what they were given, cut anywhere in the record.
    assert torch.equal(out.ecg[~personal], batch["crop"][~personal])
    assert torch.equal(out.reference[~personal], out.ecg[~personal])
    assert torch.equal(out.reference_observed[~personal], out.observed[~personal])
    assert not (out.observed & ~batch["observed"]).any()


def test_a_share_of_the_references_belongs_to_somebody_else() -> None:
    batch = make_batch()
    batch["support_observed"][5, 3] = False
    out = example(batch, stranger_share=0.5, personal_share=1.0)
    personal = batch["has_support"]
    same = (out.reference == batch["support"]).flatten(1).all(1)
    previous = (out.reference == batch["support"].roll(1, 0)).flatten(1).all(1)
    assert (same | previous)[personal].all()
    assert 0.3 < previous[personal].float().mean() < 0.7
    observed = torch.where(previous[:, None], batch["support_observed"].roll(1, 0), batch["support_observed"])
    assert torch.equal(out.reference_observed[personal], observed[personal])


def test_the_generator_alone_decides() -> None:
    batch = make_batch()
    a, b, c = (
        example(batch, 3, field_jitter=0.1),
        example(batch, 3, field_jitter=0.1),
        example(batch, 4),
    )
    assert torch.equal(a.ecg, b.ecg) and torch.equal(a.observed, b.observed) and torch.equal(a.view, b.view)
    assert not torch.equal(a.observed, c.observed)


def test_jitter_leaves_incomplete_recordings_alone() -> None:
    batch = make_batch()
    out = example(batch, field_jitter=0.1, personal_share=0.0)
    assert torch.equal(out.ecg[0], batch["crop"][0]), "lead V2 was not recorded there"
    assert (out.ecg[1:] != batch["crop"][1:]).flatten(1).any(1).all()


def test_a_reference_is_recorded_with_electrodes_a_little_elsewhere() -> None:
    batch = make_batch()
    out = example(batch, reference_jitter=0.2)
    personal = (out.reference_observed == batch["support_observed"]).all(1) & batch["has_support"]
    personal[0] = False  # a recording that lacks a lead stays as it was
    assert torch.equal(out.ecg[personal], batch["ecg"][personal])
    change = (out.reference - batch["support"])[personal].square().mean((1, 2)).sqrt()
    size = batch["support"][personal].square().mean((1, 2)).sqrt()
    assert (change / size).min() > 0 and 0.02 < (change / size).median() < 0.2


def test_parts_hold_every_sample_once() -> None:
    out = example(make_batch(7))
    for count, sizes in ((1, [7]), (2, [4, 3]), (3, [3, 3, 1]), (20, [1] * 7)):
        parts = out.parts(count)
        assert [len(part) for part in parts] == sizes
        assert torch.equal(torch.cat([part.ecg for part in parts]), out.ecg)
        assert torch.equal(torch.cat([part.view for part in parts]), out.view)


def test_masks_are_parts_of_what_was_recorded_and_never_empty() -> None:
    rng = np.random.default_rng(0)
    recorded = rng.random((500, 12)) < 0.7
    recorded[:, 3] = True
    chosen = random_leads(recorded, rng)
    assert chosen.any(1).all() and not (chosen & ~recorded).any()
    assert len({row.tobytes() for row in chosen}) > 100
    filled = torch.from_numpy(rng.random((500, 8)) < 0.5)
    filled[:, 0] = True
    view = random_view(filled, 0.5, rng)
    assert view.any(1).all() and not (view & ~filled).any()
    assert (view.sum(1) < filled.sum(1)).float().mean() > 0.5


def test_jittered_leads_belong_to_another_lead_field_of_the_same_source() -> None:
    rng = np.random.default_rng(0)
    vcg = torch.from_numpy(rng.normal(size=(2, 4, 3, 50)))
    eight = torch.from_numpy(DOWER) @ vcg
    moved = field_change(4, 0.1, rng) @ eight
    for sample in range(4):
        singular = torch.linalg.svdvals(moved[:, sample].transpose(0, 1).reshape(8, -1))
        assert singular[3] < 1e-9 * singular[0]  # still three-dimensional, and the same for both windows
        change = (moved[0, sample] - eight[0, sample]).norm() / eight[0, sample].norm()
        assert 0.02 < change < 0.6
    torch.testing.assert_close(field_change(4, 0.0, rng) @ eight, eight)


def test_slow_waves_are_the_mean_of_the_samples_there_are() -> None:
    eight = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 8, 40)))
    sigma = np.full(3, 0.3)
    out = change_waves(eight, sigma, np.random.default_rng(1), 11)
    rng = np.random.default_rng(1)
    draw = rng.normal(size=(2, 3, 8, 1)) + rng.normal(size=(2, 3, 1, 1))
    slow_gain, fast_gain = np.exp(draw * 0.3 / np.sqrt(2))
    slow = np.stack([eight.numpy()[..., max(0, t - 5) : t + 6].mean(-1) for t in range(40)], -1)
    np.testing.assert_allclose(out, slow_gain * slow + fast_gain * (eight.numpy() - slow), atol=1e-9)
    assert torch.equal(change_waves(eight, 0 * sigma, rng, 11), eight)
