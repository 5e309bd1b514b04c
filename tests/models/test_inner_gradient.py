"""The inner gradient by hand against automatic differentiation."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from ecggen.models import so3
from ecggen.models.ecggen import ECGGen
from ecggen.models.views import Views, evaluation_views
from ecggen.utils.config import TTTConfig
from tests.models.test_ecggen import make_ecg, make_model, mask


def moved(model: ECGGen) -> ECGGen:
    """Away from its start, where many gradients vanish."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def in_double(parts: Any) -> Any:
    """A dataclass of tensors, those of numbers in double precision."""
    each = {f.name: getattr(parts, f.name) for f in dataclasses.fields(parts)}
    return type(parts)(
        **{
            name: in_double(x) if dataclasses.is_dataclass(x) else x.double() if x.is_floating_point() else x
            for name, x in each.items()
        }
    )


@pytest.mark.parametrize("angle", [True, False])
@pytest.mark.parametrize("given", ["I", "aVF", "I+II+V2", "I+II+V1+V2+V3+V4+V5+V6"])
@pytest.mark.parametrize("shared", [False, True])
def test_the_inner_gradient_by_hand_is_that_of_autograd(
    angle: bool, given: str, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = moved(make_model(angle=angle))
    support = model.slots(make_ecg(), mask(given))
    each = model.memory.statistics(support.scaled()[0])
    if shared:
        each = model.memory.merged(each, 1)
    people = len(each.rate)
    views = Views.every(evaluation_views(each.seen.mask, 3))
    tiled = views.of(each.seen)
    beats, scale = tiled.reduced(views.keep).scaled()
    with torch.no_grad():
        view = model.beat(beats, scale, model.memory.linear(beats), views.spread(each.rate))
    # In double precision (but for the weights of slots) the two differ by nothing but a mistake.
    model = model.double()
    monkeypatch.setattr(model.lift, "gain", model.lift._gain)
    loss, by_hand = model._inner_loss(in_double(tiled), views, in_double(view))
    assert by_hand is not None
    generator = torch.Generator().manual_seed(0)
    for size in (0.0, 0.3, 2.0):
        noise = torch.randn(people, model.fast.size, generator=generator).double()
        state = (model.fast.start + size * noise).detach().requires_grad_()
        (wanted,) = torch.autograd.grad(loss(state).sum(), state)
        got = by_hand(state.detach())
        assert wanted.norm() > 0
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-7 * float(wanted.abs().max()))


@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("away", [0.0, 0.5])
def test_training_through_it_is_training_through_automatic_differentiation(
    order: str, away: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ecg = moved(make_model(ttt=TTTConfig(steps=3, order=order))).train(), make_ecg()
    with torch.no_grad():
        # At first the rotation is none, where its formula has 0 / 0.
        model.fast.start.copy_(
            away * torch.randn(model.fast.size, generator=torch.Generator().manual_seed(0))
        )
    views = evaluation_views(model.slots(ecg, mask("I+II+V2")).mask, 1)
    parameters = [p for p in model.parameters() if p.requires_grad]

    def gradients() -> list[torch.Tensor | None]:
        out = model(ecg, mask("I+II+V2"), views=views)
        loss = (out.leads - ecg).square().mean() + out.states.square().mean()
        return list(torch.autograd.grad(loss, parameters, allow_unused=True))

    by_hand, inner_loss = gradients(), model._inner_loss
    monkeypatch.setattr(model, "_inner_loss", lambda *given: (inner_loss(*given)[0], None))
    for got, wanted in zip(by_hand, gradients(), strict=True):
        assert (got is None) == (wanted is None)
        if got is not None and wanted is not None:
            assert (got - wanted).norm() <= 1e-3 * wanted.norm() + 1e-7


def test_states_are_the_same_whether_a_graph_is_built_or_not() -> None:
    model, ecg = moved(make_model()), make_ecg()
    views = evaluation_views(model.slots(ecg, mask("I+V2")).mask, 2)
    graph = model.train()(ecg, mask("I+V2"), views=views).states
    with torch.no_grad():
        plain = model.eval()(ecg, mask("I+V2"), views=views).states
    assert graph.requires_grad and (plain[-1] - plain[0]).abs().max() > 1e-3
    torch.testing.assert_close(plain, graph.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [0.0, 1e-6, 1e-3, 0.5, 3.0])
def test_the_gradient_through_a_rotation_is_that_of_autograd(length: float) -> None:
    generator = torch.Generator().manual_seed(0)
    omega = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    omega = (length * omega / omega.norm(dim=1, keepdim=True)).requires_grad_()
    outer = torch.randn(5, 3, 3, generator=generator, dtype=torch.float64)
    (wanted,) = torch.autograd.grad(so3.exp(omega), omega, outer)
    rotation, back = so3.exp_with_gradient(omega.detach(), so3.hat_basis(omega))
    torch.testing.assert_close(rotation, so3.exp(omega).detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(back(outer), wanted, rtol=1e-6, atol=1e-7)
