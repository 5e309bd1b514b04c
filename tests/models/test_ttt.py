"""The inner loop: gradients, independence of samples, orders, meaning of W."""

import pytest
import torch

from ecggen.models.ttt import FastState, TTTUpdater

B, S = 5, 6


def _loss(matrix: torch.Tensor, target: torch.Tensor):
    return lambda w: ((w @ matrix).tanh() - target).square().sum(-1)


def _case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return draw(S, 4), draw(B, 4), draw(B, S)


def _updater(**options) -> TTTUpdater:
    return TTTUpdater(S, **({"steps": 3, "step_size": 0.1, "prior": 0.05} | options)).double()


def test_the_step_is_the_gradient_by_finite_differences() -> None:
    matrix, target, start = _case()
    updater = _updater(steps=1, clip=0.0, prior=0.0)
    loss = _loss(matrix, target)
    step = (start - updater(start, loss)[1]) / updater.log_step.exp()
    for k in range(S):
        delta = torch.zeros(S, dtype=torch.float64)
        delta[k] = 1e-6
        numeric = (loss(start + delta) - loss(start - delta)) / 2e-6
        torch.testing.assert_close(step[:, k], numeric, atol=1e-7, rtol=1e-6)


def test_the_outer_gradient_through_the_loop_by_finite_differences() -> None:
    matrix, target, start = _case()
    updater = _updater()

    def outer(m: torch.Tensor, w0: torch.Tensor, log_step: torch.Tensor) -> torch.Tensor:
        updater.log_step.data = log_step.data
        states = torch.func.functional_call(updater, {"log_step": log_step}, (w0, _loss(m, target)))
        return states[-1].square().sum()

    log_step = updater.log_step.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(outer, (matrix.requires_grad_(), start.requires_grad_(), log_step))


def test_first_order_leaves_out_the_second_derivative_and_only_that() -> None:
    matrix, target, start = _case()
    matrix.requires_grad_()
    values = []
    for order in ("second", "first"):
        state = _updater(order=order)(start, _loss(matrix, target))[-1]
        values.append(state.detach())
        if order == "second":
            (gradient,) = torch.autograd.grad(state.sum(), matrix)
            assert gradient.abs().max() > 1e-3
    torch.testing.assert_close(*values)
    state = _updater(order="first")(start.requires_grad_(), _loss(matrix, target))[-1]
    (gradient,) = torch.autograd.grad(state.sum(), start)
    torch.testing.assert_close(gradient, torch.ones_like(gradient))


def test_works_without_gradients_and_returns_no_graph() -> None:
    matrix, target, start = _case()
    with torch.no_grad():
        states = _updater()(start, _loss(matrix.requires_grad_(), target), steps=7)
    assert states.shape == (8, B, S) and not states.requires_grad
    loss = _loss(matrix, target)
    assert (loss(states[-1]) < loss(states[0])).all()


def test_a_strong_prior_holds_the_state() -> None:
    matrix, target, start = _case()
    free = _updater(prior=0.0, steps=50, clip=0.0)(start, _loss(matrix, target))[-1]
    held = _updater(prior=4.0, steps=50, clip=0.0)(start, _loss(matrix, target))[-1]
    assert ((held - start).norm(dim=1) < 0.5 * (free - start).norm(dim=1)).all()


def test_the_gradient_is_clipped_per_sample() -> None:
    matrix, target, start = _case()
    big = _updater(steps=1, step_size=1.0, clip=1e-3)(start, _loss(matrix * 100, target))
    assert ((big[1] - big[0]).norm(dim=1) <= 1e-3 + 1e-9).all()


def test_fast_weights_add_nothing_at_the_start() -> None:
    fast = FastState("mlp", code=5, channels=8, basis=3)
    features = torch.randn(1, 8, 11)
    added = fast(fast.start[None]).fast(features)
    assert added is not None and (added == 0).all()
    assert FastState("vector", 5, 8, 3)(torch.zeros(1, 5)).fast(features) is None


def test_unknown_kind_and_order_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="vector or mlp"):
        FastState("gru", 4, 8, 2)
    with pytest.raises(ValueError, match="second or first"):
        TTTUpdater(4, steps=1, step_size=0.1, prior=0.0, order="third")
