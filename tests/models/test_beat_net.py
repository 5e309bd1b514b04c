"""The beat that W is estimated on and that completes what a recording lacks."""

from __future__ import annotations

import torch

from ecggen.models.beat_net import BeatNet, Look
from ecggen.models.slots import SLOTS, Observation
from tests.models.test_ecggen import make_ecg, make_model, mask


def view_of(net: BeatNet, values: torch.Tensor, filled: torch.Tensor):
    rows = torch.eye(SLOTS).expand(len(values), SLOTS, SLOTS)
    seen, scale = Observation(values * filled[..., None], filled, rows).scaled()
    return net(seen, scale, seen.values, torch.ones(len(values)))


def test_a_beat_of_any_length_is_read_sample_by_sample() -> None:
    torch.manual_seed(0)
    net, filled = BeatNet([16, 24, 32], 8, True).eval(), torch.ones(2, SLOTS, dtype=torch.bool)
    for length in (84, 90, 91):
        view = view_of(net, torch.randn(2, SLOTS, length), filled)
        assert view.features.shape == (2, 8, length) and view.offset.shape == (2, SLOTS, length)
        assert view.share.shape == (2, SLOTS)
    again = view.repeated(3)
    torch.testing.assert_close(again.features[2:4], view.features)
    assert again.seen.mask.shape == (6, SLOTS)


def test_recorded_leads_are_remembered_as_recorded_and_the_others_follow_the_state() -> None:
    model, ecg = make_model(), make_ecg()
    support = model.slots(ecg, mask("I+II+V2"))
    with torch.no_grad():
        states = model.estimate(support)
        _, beats, _ = model.memory.split(states[:, :, model.fast.size :].flatten(0, 1))
        beats = beats.unflatten(0, states.shape[:2])
        median = model.memory.statistics(support.scaled()[0]).seen.values
    for step in range(len(states)):
        torch.testing.assert_close(beats[step][:, [0, 1, 3]], median[:, [0, 1, 3]])
    hidden = beats[:, :, [2, 4, 5, 6, 7]]
    assert (hidden[-1] - hidden[0]).abs().max() > 1e-4, "the inner loop reaches the remembered beat"


def test_a_recording_without_beats_remembers_none() -> None:
    model = make_model()
    with torch.no_grad():
        state = model.estimate(model.slots(torch.zeros(2, 12, 256), mask("I+II", 2)))[-1]
    _, beat, _ = model.memory.split(state[:, model.fast.size :])
    assert not beat.any() and torch.isfinite(state).all()


def test_the_remembered_beat_teaches_the_network_through_the_rendering() -> None:
    model, ecg = make_model().train(), make_ecg()
    out = model(ecg, mask("I+II"), steps=0)
    gradients = torch.autograd.grad(out.remembered.square().sum(), list(model.beat.parameters()))
    assert all(bool(gradient.any()) for gradient in gradients)


def test_beats_read_together_are_those_read_apart() -> None:
    model = make_model()
    given = [model.slots(make_ecg(count), mask(leads, count)) for count, leads in ((2, "I"), (3, "I+II+V2"))]
    each = [model.memory.statistics(seen.scaled()[0]) for seen in given]
    looks = [Look(*one.seen.scaled(), one.linear, one.rate) for one in each]
    for look, view in zip(looks, model.beat.views(looks), strict=True):
        alone = model.beat(*look)
        assert torch.equal(view.seen.mask, look.seen.mask) and torch.equal(view.scale, look.scale)
        for name in ("features", "offset", "share"):
            torch.testing.assert_close(getattr(view, name), getattr(alone, name), atol=1e-5, rtol=1e-4)


def test_half_precision_reads_beats_and_not_what_a_state_means() -> None:
    model, ecg = make_model(), make_ecg()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(ecg, mask("I+II"))
        lifted, field, _ = model._lifted(model.slots(ecg, mask("I+II")).scaled()[0], out.states[-1])
    with torch.no_grad():
        full = model(ecg, mask("I+II")).leads
    assert (out.leads - full).square().mean() < 0.01 * full.square().mean()
    for value in (out.leads, out.vcg, out.states, out.std, lifted, field):
        assert value.dtype == torch.float32
    # To float32's digits, not to the three of bf16.
    torch.testing.assert_close(out.leads[:, 2], out.leads[:, 1] - out.leads[:, 0], atol=1e-5, rtol=0)
