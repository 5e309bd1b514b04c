"""The assembled model: no leak, no batch effect, exact algebra, every mode."""

import dataclasses

import numpy as np
import pytest
import torch

from ecggen.leads import EXPAND, INDEPENDENT_INDEX, observed_mask
from ecggen.models.beats import average_beat
from ecggen.models.ecggen import ECGGen
from ecggen.models.objective import (
    make_target,
    mean_hidden_r,
    slot_errors,
    spread_loss,
    standardised_errors,
    training_loss,
)
from ecggen.utils.config import ModelConfig, TrainConfig, TTTConfig

T, FS = 256, 100.0


def make_ecg(count: int = 4, seed: int = 0) -> torch.Tensor:
    """Twelve leads in mV, beats of a three-dimensional source with a little more; limb algebra exact."""
    rng = np.random.default_rng(seed)
    t = np.arange(T) / FS
    out = []
    for _ in range(count):
        beats = np.exp(-0.5 * (((t - 0.3) % rng.uniform(0.6, 1.0) - 0.2) / 0.025) ** 2)
        slow = np.exp(-0.5 * (((t - 0.1) % rng.uniform(0.6, 1.0) - 0.4) / 0.08) ** 2)
        eight = rng.normal(size=(8, 1)) * beats + 0.3 * rng.normal(size=(8, 1)) * slow
        out.append(EXPAND @ (eight + 0.01 * rng.normal(size=(8, T))))
    return torch.tensor(np.stack(out), dtype=torch.float32)


def small(**changes) -> ModelConfig:
    sizes = {"width": 32, "depth": 1, "heads": 2, "channels": [8, 16], "state_dim": 12}
    sizes |= {"basis": 4, "beat_len": 32}
    return dataclasses.replace(ModelConfig(), **(sizes | changes))


def make_model(seed: int = 0, **changes) -> ECGGen:
    torch.manual_seed(seed)
    model = ECGGen(small(**changes), FS, T)
    with torch.no_grad():  # away from the neutral start, so that every path carries signal
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return model.eval()


def mask(names: str, count: int = 4) -> torch.Tensor:
    return torch.from_numpy(observed_mask(names.split("+"))).expand(count, 12).clone()


MODES = [(t, s) for t in ("equidistant", "rr") for s in ("vector", "mlp")]


@pytest.mark.parametrize(("tokenizer", "state"), MODES)
@pytest.mark.parametrize("given", ["I", "aVF", "I+II", "II+V2+V5"])
def test_hidden_leads_never_leak(tokenizer: str, state: str, given: str) -> None:
    model, ecg = make_model(tokenizer_mode=tokenizer, state_kind=state), make_ecg()
    observed = mask(given)
    changed = torch.where(observed[..., None], ecg, torch.full_like(ecg, float("nan")))
    with torch.no_grad():
        first, second = model(ecg, observed), model(changed, observed)
    for name in ("leads", "vcg", "state", "tokens", "residual"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name


@pytest.mark.parametrize(("tokenizer", "state"), MODES)
def test_a_record_does_not_depend_on_its_batch(tokenizer: str, state: str) -> None:
    model, ecg = make_model(tokenizer_mode=tokenizer, state_kind=state), make_ecg(6)
    observed = torch.cat([mask("I+II", 3), mask("II+V2+V5", 3)])
    with torch.no_grad():
        whole = model(ecg, observed)
        assert (whole.states[-1] - whole.states[0]).abs().max() > 1e-4  # the inner loop did something
        for b in (0, 4):
            alone = model(ecg[b : b + 1], observed[b : b + 1])
            torch.testing.assert_close(alone.leads[0], whole.leads[b], atol=2e-5, rtol=1e-4)
            torch.testing.assert_close(alone.state[0], whole.state[b], atol=2e-5, rtol=1e-4)


def test_rendered_limb_leads_obey_the_algebra() -> None:
    model, ecg = make_model(), make_ecg()
    with torch.no_grad():
        out = model(ecg, mask("V1+V4"))
    for signal in (out.leads, out.dipole, out.residual):
        again = torch.tensor(EXPAND, dtype=torch.float32) @ signal[:, list(INDEPENDENT_INDEX)]
        torch.testing.assert_close(signal, again, atol=1e-5, rtol=0)
    torch.testing.assert_close(out.dipole, model.expand @ (out.field @ out.vcg), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out.leads, out.dipole + out.residual)


def test_a_held_state_is_held_and_a_reference_is_used() -> None:
    model, ecg = make_model(), make_ecg()
    with torch.no_grad():
        reference = model(ecg, mask("I"), reference=ecg.flip(0), reference_observed=mask("I+II+V2+V5"))
        estimated = model.estimate(model.slots(ecg.flip(0), mask("I+II+V2+V5")))[-1]
        held = model(ecg, mask("I"), state=estimated)
        alone = model(ecg, mask("I"))
    torch.testing.assert_close(held.leads, reference.leads)
    assert held.states.shape[0] == 1 and (alone.leads - held.leads).abs().max() > 1e-4


def test_steps_can_be_none_or_more_than_trained_and_states_are_a_prefix() -> None:
    model, ecg = make_model(), make_ecg()
    with torch.no_grad():
        zero, many = model(ecg, mask("I+II"), steps=0), model(ecg, mask("I+II"), steps=7)
        trained = model(ecg, mask("I+II"))
    assert zero.states.shape[0] == 1 and many.states.shape[0] == 8
    torch.testing.assert_close(many.states[: model.updater.steps + 1], trained.states)


def test_people_in_one_batch_have_the_states_that_each_has_alone() -> None:
    model, ecg = make_model(), make_ecg()
    ecg[3] = 0  # a window without a beat
    with torch.no_grad():
        both = model.estimate(model.slots(ecg, mask("I+II+V2")), people=2)  # 0 and 2, 1 and 3
        for person in range(2):
            windows = model.slots(ecg[person::2], mask("I+II+V2", 2))
            torch.testing.assert_close(both[:, person], model.estimate(windows, people=1)[:, 0])
        window = model.slots(ecg[:1], mask("I+II+V2", 1))
        torch.testing.assert_close(model.estimate(window, people=1), model.estimate(window))
    assert both.shape == (model.updater.steps + 1, 2, model.state_dim)
    assert (both[-1, 0] - both[-1, 1]).abs().max() > 1e-3


@torch.no_grad()
def test_a_recording_three_times_as_large_renders_three_times_as_large() -> None:
    model, ecg, given = make_model(tokenizer_mode="rr"), make_ecg(), mask("I+II+V2")
    one, three = model(ecg, given), model(3 * ecg, given)
    torch.testing.assert_close(three.leads, 3 * one.leads, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(three.std, 3 * one.std, rtol=1e-2, atol=1e-4)
    closed = [model.closed_form(x, given) for x in (ecg, 3 * ecg)]
    torch.testing.assert_close(closed[1], 3 * closed[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("order", ["second", "first"])
@pytest.mark.parametrize("extras", [{}, {"residual": False, "angle": False, "state_kind": "mlp", "depth": 0}])
def test_every_parameter_is_trained_in_every_mode(order: str, extras: dict) -> None:
    model = make_model(ttt=TTTConfig(order=order, steps=2), **extras).train()
    ecg, recorded, observed = make_ecg(), torch.ones(4, 12, dtype=torch.bool), mask("I+II+V2")
    out = model(ecg, observed, views=mask("I", 1)[:, [0, 1, 6, 7, 8, 9, 10, 11]].expand(1, 4, 8))
    target = make_target(model, ecg, recorded, observed, 0.1)
    loss, terms = training_loss(model, out, target, TrainConfig())
    loss.backward()
    assert set(terms) >= {"rmse", "decorrelation", "dipole", "smooth", "energy", "closed", "ortho", "drift"}
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == [], still


def test_the_loss_judges_hidden_leads_and_ignores_what_was_not_recorded() -> None:
    model, ecg = make_model(), make_ecg()
    recorded, observed = torch.ones(4, 12, dtype=torch.bool), mask("I+II")
    recorded[:, 8] = False
    target = make_target(model, ecg, recorded, observed, 0.1)
    assert target.hidden[0].tolist() == [False, False, True, True, False, True, True, True]
    assert target.weight[0, 4] == 0 and target.weight[0, 0] == pytest.approx(0.1 * float(target.weight[0, 2]))
    wrong = ecg.clone()
    wrong[:, 8] += 5.0
    error, _ = slot_errors(target, wrong)
    assert (error * target.weight).max() < 1e-9 and mean_hidden_r(target, wrong).min() > 0.999
    single = make_target(model, ecg, torch.ones(4, 12, dtype=torch.bool), mask("aVR"), 0.1)
    assert single.hidden.all()  # one augmented lead fixes neither I nor II


def test_features_are_finite_and_depend_on_the_signal() -> None:
    model, ecg = make_model(tokenizer_mode="rr"), make_ecg()
    ecg[0] = 0.0  # a silent window has no beats
    with torch.no_grad():
        features = model.features(ecg, torch.ones(4, 12, dtype=torch.bool))
    assert torch.isfinite(features).all() and (features[1] - features[2]).abs().max() > 1e-3


def test_features_hold_the_rendered_beat_and_its_voltage() -> None:
    model, ecg = make_model(), make_ecg()
    full = torch.ones(4, 12, dtype=torch.bool)
    with torch.no_grad():
        plain, high = model.features(ecg, full), model.features(2 * ecg, full)
        out = model(ecg, full)
    eight = out.leads[:, list(INDEPENDENT_INDEX)]
    beat = average_beat(eight, out.leads[:, 1], model.fs).flatten(1)
    assert beat.abs().max() > 0.1
    torch.testing.assert_close(plain[:, -beat.shape[1] :], beat)
    # Twice the voltage: what is relative stays, what is in mV doubles.
    ratio = (high / plain)[plain.abs() > 1e-2]
    assert (((ratio - 1).abs() < 0.01) | ((ratio - 2).abs() < 0.01)).all()
    assert ((ratio - 1).abs() < 0.01).any()


def test_the_spread_teaches_the_rendering_nothing_and_learns_all_the_same() -> None:
    model = make_model().train()
    ecg, recorded, observed = make_ecg(), torch.ones(4, 12, dtype=torch.bool), mask("I+II+V2")
    out = model(ecg, observed, steps=0)
    loss = spread_loss(out, make_target(model, ecg, recorded, observed, 0.1)).sum()
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    head = {id(p) for p in model.spread.parameters()}
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert (gradient is not None and bool(gradient.any())) == (id(parameter) in head)


@pytest.mark.parametrize(("given", "fixed"), [("I+II+V2", [0, 1, 2, 3, 4, 5, 7]), ("aVR", [])])
@torch.no_grad()
def test_the_spread_is_zero_where_the_recording_fixes_a_lead(given: str, fixed: list[int]) -> None:
    std = make_model()(make_ecg(), mask(given)).std.amax(2)
    assert ((std == 0) == torch.isin(torch.arange(12), torch.tensor(fixed))).all()


def test_standardised_errors_are_those_of_the_hidden_slots() -> None:
    model, ecg = make_model(), make_ecg()
    recorded, observed = torch.ones(4, 12, dtype=torch.bool), mask("I+II+V2")
    with torch.no_grad():
        out = model(ecg, observed)
    errors = standardised_errors(out, make_target(model, ecg, recorded, observed, 0.1), every=1)
    by_hand = ((out.leads - ecg) / out.std)[:, [6, 8, 9, 10, 11]].abs()
    torch.testing.assert_close(errors[:, [2, 4, 5, 6, 7]], by_hand, rtol=1e-3, atol=1e-4)


def test_the_calibration_is_that_of_the_lead_and_of_how_many_are_given() -> None:
    model, ecg = make_model(), make_ecg()
    with torch.no_grad():
        before = {name: model(ecg, mask(name)).std for name in ("I+II+V2", "I+II+III+aVF", "aVR")}
        model.calibration[2] *= torch.arange(1, 9)  # three slots given
        after = {name: model(ecg, mask(name)).std for name in before}
    hidden = [6, 8, 9, 10, 11]
    factor = (after["I+II+V2"] / before["I+II+V2"])[:, hidden]
    torch.testing.assert_close(factor, torch.tensor([3.0, 5, 6, 7, 8])[:, None].expand_as(factor))
    for name in ("I+II+III+aVF", "aVR"):
        assert torch.equal(after[name], before[name]), "two slots, and one"
