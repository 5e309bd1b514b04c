"""Both layouts in memory, and pieces of a batch, compute the same."""

from unittest import mock

import pytest
import torch
from torch import nn

from ecggen.models import layout
from ecggen.models.blocks import ConvBlock, ConvStem, LocalDecoder

Maps = tuple[torch.Tensor, ...]


def maps(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kernel", [7, 1])
def test_a_convolution_is_that_of_torch_follows_its_weights_and_can_be_laid_out(kernel: int) -> None:
    layer, x = layout.Conv1d(16, 24, kernel, padding=kernel // 2), maps(5, 16, 40)
    with torch.no_grad():
        for change in (None, lambda: layer.weight.mul_(2), lambda: layout.lay_out(layer)):
            if change:
                change()
            plain = nn.functional.conv1d(x, layer.weight, layer.bias, padding=layer.padding)
            for same in (x, layout.innermost(x)):
                torch.testing.assert_close(layer(same), plain, rtol=1e-4, atol=1e-5)
    assert layer.weight.requires_grad and layer._image_weight().data_ptr() == layer.weight.data_ptr()


def test_norms_and_resampling_are_those_of_the_ordinary_layout() -> None:
    x, norm = maps(3, 16, 40), layout.GroupNorm(8, 16)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        other = layout.innermost(x)
        assert other.stride(1) == 1 and torch.equal(other, x)
        for function in (norm, layout.doubled, layout.halved):
            torch.testing.assert_close(function(other), function(x), rtol=1e-5, atol=1e-5)


def test_what_a_gpu_does_instead_is_the_same() -> None:
    """There the gradients of torch's own operations have no fixed order."""

    def longer(x: torch.Tensor) -> torch.Tensor:
        return layout.lengthened(layout.doubled(x), 3)

    x = maps(3, 16, 9).requires_grad_()
    plain = longer(x)
    with mock.patch.object(torch.Tensor, "is_cuda", True):
        other = longer(x)
    assert other.shape == (3, 16, 21)
    torch.testing.assert_close(other, plain)
    weights = torch.linspace(-1, 2, 21)
    slopes = [torch.autograd.grad((y * weights).sum(), x)[0] for y in (other, plain)]
    torch.testing.assert_close(*slopes)


def test_a_norm_in_half_precision_is_that_of_its_numbers_in_double() -> None:
    x, norm = maps(3, 32, 200).bfloat16() + 3, layout.GroupNorm(8, 32)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        groups = x.double().unflatten(1, (8, 4))
        centred = groups - groups.mean((2, 3), keepdim=True)
        exact = (centred / (centred.square().mean((2, 3), keepdim=True) + norm.eps).sqrt()).flatten(1, 2)
        exact = exact * norm.weight.double()[:, None] + norm.bias.double()[:, None]
        half = norm(layout.innermost(x))
    assert half.dtype == torch.bfloat16 and half.stride(1) == 1
    torch.testing.assert_close(half.double(), exact, rtol=2**-8, atol=1e-3)  # rounded once, at the end


def test_learning_keeps_the_ordinary_layout_whatever_it_is_given() -> None:
    x, block = maps(2, 8, 32), ConvBlock(8, 8)
    assert layout.innermost(x) is x
    block(x).square().sum().backward()
    ordinary = [p.grad.clone() for p in block.parameters()]
    block.zero_grad()
    block(x.transpose(1, 2).contiguous().transpose(1, 2)).square().sum().backward()
    for parameter, wanted in zip(block.parameters(), ordinary, strict=True):
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-4, atol=1e-4)


def test_pieces_of_a_batch_are_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    stem, decoder = ConvStem(5, [8, 16], 3), LocalDecoder([8, 16], 4)
    x, known, code = maps(7, 5, 32), maps(7, 3), maps(7, 4)
    calls = []
    read = stem.maps
    monkeypatch.setattr(stem, "maps", lambda *a: calls.append(len(a[0])) or read(*a))

    def both() -> Maps:
        levels = stem(x, known)
        return (*levels, decoder(levels[-1], levels, code))

    with torch.no_grad():
        whole = both()
        monkeypatch.setattr(layout, "_PIECE", 8 * 32 * 3)
        cut = both()
    assert calls == [7, 3, 3, 1]
    for a, b in zip(whole, cut, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    both()  # with a gradient: in one
    assert calls[-1] == 7
