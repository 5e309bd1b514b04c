"""BeatTokenizer: borders, round trips, gradients, and what it must never look at."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ecggen.data.pipeline import DataError
from ecggen.data.tokenizer import BeatTokenizer, TokenGrid, detect_r_peaks

T, FS = 512, 100.0


def windows(intervals_s, *, first: float = 0.4, leads: int = 12) -> torch.Tensor:
    """[B, leads, T]: one row per RR interval (0 = no beat at all); leads differ in amplitude and sign."""
    t = np.arange(T) / FS
    rows = []
    for interval in intervals_s:
        beats = np.arange(first, T / FS - 0.05, interval) if interval else []
        wave = 0.05 * np.sin(2 * np.pi * 0.3 * t)
        for at in beats:
            wave = wave + np.exp(-0.5 * ((t - at) / 0.015) ** 2)
            wave = wave + 0.2 * np.exp(-0.5 * ((t - at - 0.2) / 0.05) ** 2)
        rows.append(np.outer(np.linspace(1, -1.2, leads), wave))
    return torch.tensor(np.stack(rows), dtype=torch.float32)


def all_seen(x: torch.Tensor) -> torch.Tensor:
    return torch.ones(x.shape[:2], dtype=torch.bool)


def only(*leads: int) -> torch.Tensor:
    """[1, 12] observed."""
    return torch.tensor([[lead in leads for lead in range(12)]])


def check_cover(grid: TokenGrid, time_len: int) -> None:
    """Valid tokens come first and tile [0, time_len) without gap or overlap."""
    for start, duration, valid in zip(grid.start, grid.duration, grid.valid, strict=True):
        count = int(valid.sum())
        assert count >= 1 and valid[:count].all()
        start, stop = start[:count], (start + duration)[:count]
        assert start[0] == 0 and stop[-1] == time_len
        assert torch.equal(start[1:], stop[:-1]) and (duration[:count] > 0).all()
        assert (duration[count:] == 0).all()


@pytest.mark.parametrize("time_len", [512, 500, 64, 66])
def test_equidistant_is_an_exact_copy_there_and_back(time_len):
    tokenizer = BeatTokenizer("equidistant", 64, FS, time_len)
    x = torch.randn(3, 12, time_len)
    tokens, grid = tokenizer(x, all_seen(x))
    assert torch.equal(tokenizer.tokenize(x[..., ::2], grid, 32)[:, 0], x[:, :, :64:2])  # half the rate
    assert tokens.shape == (3, -(-time_len // 64), 12, 64)
    check_cover(grid, time_len)
    assert torch.equal(tokens[:, 0], x[:, :, :64])
    assert torch.equal(tokenizer.untokenize(tokens, grid, time_len), x)
    rest = tokens.transpose(1, 2).flatten(2)[:, :, time_len:]  # the padding of the last token
    assert (rest == 0).all()
    assert float(grid.duration[0, -1]) == time_len - 64 * (tokens.shape[1] - 1)


def test_rr_borders_lie_midway_between_r_peaks():
    tokenizer = BeatTokenizer("rr", 64, FS, T)
    x = windows([0.8, 0.55])
    grid = tokenizer.grid(x, all_seen(x))
    check_cover(grid, T)
    for row, ecg in enumerate(x):
        peaks = detect_r_peaks(ecg[0].numpy(), FS) + 0.5  # centre of the sample
        count = int(grid.valid[row].sum())
        assert count == len(peaks)
        np.testing.assert_allclose(grid.start[row, 1:count], (peaks[1:] + peaks[:-1]) / 2)


@pytest.mark.parametrize(("interval", "count"), [(0.0, 1), (9.0, 1), (3.0, 2), (1.5, 4), (0.3, 16)], ids=str)
def test_rr_at_any_number_of_beats_has_one_shape(interval, count):
    tokenizer = BeatTokenizer("rr", 64, FS, T)
    x = windows([interval])
    tokens, grid = tokenizer(x, all_seen(x))
    assert tokens.shape == (1, tokenizer.n_tokens, 12, 64)
    assert int(grid.valid.sum()) == count
    check_cover(grid, T)
    assert (tokens[~grid.valid] == 0).all()
    back = tokenizer.untokenize(tokens, grid, T)
    assert back.shape == x.shape and torch.isfinite(back).all()
    noise = torch.randn(64, 1, T, generator=torch.Generator().manual_seed(1)) * 3
    check_cover(tokenizer.grid(noise, all_seen(noise)), T)


def test_rr_round_trip_is_close_where_tokens_oversample():
    tokenizer = BeatTokenizer("rr", 128, FS, T)
    x = windows([0.45, 0.6, 0.8, 1.0])
    tokens, grid = tokenizer(x, all_seen(x))
    assert float(grid.duration.max()) <= 128
    error = (tokenizer.untokenize(tokens, grid, T) - x).abs()
    # A kink of the sampled line, seen from two points at most one sample apart, is off by a quarter at most.
    assert float(error.max()) <= float(x.diff(n=2).abs().max()) / 4 + 1e-5
    assert float(error.square().mean().sqrt() / x.std()) < 0.05
    # What changes linearly comes back exactly, token borders included.
    line = torch.linspace(-1, 1, T).expand(4, 3, T)
    back = tokenizer.untokenize(tokenizer.tokenize(line, grid, 128), grid, T)
    torch.testing.assert_close(back[:, :, 1:-1], line[:, :, 1:-1], atol=2e-5, rtol=0)


def test_rr_serves_feature_maps_at_lower_rates_with_the_same_grid():
    tokenizer = BeatTokenizer("rr", 64, FS, T)
    grid = tokenizer.grid(windows([0.8]), only(*range(12)))
    # A map that says where in time it is: every token must read its own stretch of time.
    times = (torch.arange(T // 4) + 0.5) * 4
    tokens = tokenizer.tokenize(times.expand(1, 5, -1), grid, 16)
    part = (torch.arange(16) + 0.5) / 16
    expected = (grid.start[..., None] + grid.duration[..., None] * part).clamp(2, T - 2)
    inside = grid.valid[0]
    torch.testing.assert_close(tokens[0, inside, 2], expected[0, inside], atol=1e-3, rtol=0)
    back = tokenizer.untokenize(tokens, grid, T // 4)
    torch.testing.assert_close(back[0, 0, 2:-2], times[2:-2], atol=0.05, rtol=0)


@pytest.mark.parametrize("mode", ["equidistant", "rr"])
def test_a_sample_does_not_depend_on_its_batch(mode):
    tokenizer = BeatTokenizer(mode, 64, FS, T)
    x = torch.cat([windows([0.0, 0.4, 0.8, 2.5]), torch.randn(5, 12, T)])
    observed = torch.rand(9, 12, generator=torch.Generator().manual_seed(0)) > 0.4
    observed[:, 3] = True
    tokens, grid = tokenizer(x, observed)
    back = tokenizer.untokenize(tokens, grid, T)
    for i in range(9):
        alone, borders = tokenizer(x[i : i + 1], observed[i : i + 1])
        assert torch.equal(alone[0], tokens[i]) and torch.equal(borders.start[0], grid.start[i])
        assert torch.equal(tokenizer.untokenize(alone, borders, T)[0], back[i])


@pytest.mark.parametrize("mode", ["equidistant", "rr"])
@pytest.mark.parametrize("junk", [1e6, float("nan"), float("inf")])
def test_hidden_leads_are_never_read(mode, junk):
    tokenizer = BeatTokenizer(mode, 64, FS, T)
    x = windows([0.4, 0.8, 1.3])
    observed = all_seen(x)
    observed[0, 0] = observed[1, :7] = observed[2, 1:] = False
    changed = torch.where(observed[:, :, None], x, torch.full_like(x, junk))
    changed[1, 2, ::70] = -40.0
    (tokens, grid), (tokens_2, grid_2) = tokenizer(x, observed), tokenizer(changed, observed)
    assert torch.equal(tokens, tokens_2)
    assert torch.equal(grid.start, grid_2.start) and torch.equal(grid.valid, grid_2.valid)


def test_rr_uses_the_observed_leads_that_are_not_flat():
    tokenizer = BeatTokenizer("rr", 64, FS, T)
    x = windows([0.5])
    x[0, 1], x[0, 2] = windows([0.8])[0, 1], 0.3
    for leads, count in (([0], 10), ([1], 6), ([2, 1], 6), ([2], 1), ([], 1)):
        assert int(tokenizer.grid(x, only(*leads)).valid.sum()) == count, leads


@pytest.mark.parametrize("mode", ["equidistant", "rr"])
def test_gradients_reach_the_input_twice(mode):
    tokenizer = BeatTokenizer(mode, 16, FS, 128)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 3, 128, generator=generator).double()
    grid = tokenizer.grid(x, all_seen(x))
    small = torch.randn(2, 2, 64, generator=generator).double().requires_grad_()

    def there_and_back(values: torch.Tensor) -> torch.Tensor:
        tokens = tokenizer.tokenize(values, grid, 24)
        return tokenizer.untokenize(tokens.sin(), grid, 96)

    assert torch.autograd.gradcheck(there_and_back, small)
    loss = there_and_back(small).square().sum()
    (first,) = torch.autograd.grad(loss, small, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), small)
    assert torch.isfinite(second).all() and float(second.abs().sum()) > 0


class CountOperators(TorchDispatchMode):
    """Counts the tensor operations inside it; not slices and other views, which compute nothing."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def test_rr_is_vectorised():
    """No loop over samples or beats: the number of operations depends on neither."""
    tokenizer = BeatTokenizer("rr", 64, FS, T)
    counts = []
    for intervals in ([0.0] * 64, [0.5 + 0.01 * i for i in range(64)], [0.3]):
        x = windows(intervals)
        with CountOperators() as counter:
            tokens, grid = tokenizer(x, all_seen(x))
            tokenizer.untokenize(tokens, grid, T)
        counts.append(counter.count)
    assert max(counts[:2]) < 430 and abs(counts[0] - counts[1]) < 10
    assert abs(counts[2] - counts[1]) < 10  # one row alone needs a few copies less


def test_refusals():
    with pytest.raises(DataError, match="equidistant or rr"):
        BeatTokenizer("beats", 64, FS, T)
    with pytest.raises(DataError, match="beat_len is 600"):
        BeatTokenizer("rr", 600, FS, T)
    with pytest.raises(DataError, match="50 to 2000 Hz"):
        BeatTokenizer("rr", 64, 30.0, T)
    tokenizer = BeatTokenizer("equidistant", 64, FS, T)
    tokenizer.check_fs(100)
    with pytest.raises(DataError, match=r"250 Hz .* 100 Hz"):
        tokenizer.check_fs(250.0)
    with pytest.raises(AssertionError):
        tokenizer.grid(torch.zeros(1, 12, 500), torch.ones(1, 12, dtype=torch.bool))
