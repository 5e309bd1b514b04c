"""Muon: orthogonal updates of hidden matrices."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ecggen.training.muon import Muon, hidden_matrices, orthogonalised


@pytest.mark.parametrize("shape", [(32, 32), (16, 448), (128, 24)])
def test_an_orthogonalised_matrix_keeps_its_directions_and_loses_its_sizes(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    result = orthogonalised(matrix)
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.5 and values.max() < 1.4
    assert (u.T @ result @ v.T).diagonal().min() > 0.5, "the same singular vectors"
    torch.testing.assert_close(orthogonalised(1000 * matrix), result, rtol=1e-3, atol=1e-3)
    assert torch.isfinite(orthogonalised(torch.zeros(shape))).all()


def test_a_step_is_as_long_whatever_the_gradient_s_size() -> None:
    for size in (1e-4, 1e4):
        weight = nn.Parameter(torch.zeros(32, 16, 7))
        weight.grad = size * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        Muon([weight], lr=0.01).step()
        rms = weight.detach().square().mean().sqrt()
        assert 0.3 * 0.2 * 0.01 < rms < 1.5 * 0.2 * 0.01


def test_it_solves_a_regression_and_resumes_exactly() -> None:
    torch.manual_seed(0)
    x, truth = torch.randn(256, 24), torch.randn(24, 20)

    def fit(steps: int, weight: nn.Parameter, optimiser: Muon) -> float:
        for _ in range(steps):
            optimiser.zero_grad()
            loss = (x @ weight - x @ truth).square().mean()
            loss.backward()
            optimiser.step()
        return float(loss.detach())

    whole = nn.Parameter(torch.zeros(24, 20))
    optimiser = Muon([whole], lr=0.05)
    assert fit(200, whole, optimiser) < 0.01 * float((x @ truth).square().mean())
    cut = nn.Parameter(torch.zeros(24, 20))
    first = Muon([cut], lr=0.05)
    fit(80, cut, first)
    again = nn.Parameter(cut.detach().clone())
    second = Muon([again], lr=0.05)
    second.load_state_dict(first.state_dict())
    fit(120, again, second)
    assert torch.equal(again, whole)


def test_readouts_biases_and_what_is_left_out_are_not_hidden() -> None:
    sides = {"deep": (64, 64), "out": (64, 8), "code": (64, 64)}
    layers = {name: nn.Linear(*shape) for name, shape in sides.items()}
    model = nn.ModuleDict({"conv": nn.Conv1d(16, 32, 7), **layers})
    hidden = hidden_matrices(model, ("code",))
    assert [id(p) for p in hidden] == [id(model["conv"].weight), id(model["deep"].weight)]
