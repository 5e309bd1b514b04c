"""What W remembers: beats and covariances, against cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ecggen.models.memory import BeatMemory, Statistics
from ecggen.models.slots import SLOTS, LimbSlots, Observation

FS, T = 100.0, 512
ALL = torch.ones(1, SLOTS, dtype=torch.bool)


def slots(values: torch.Tensor, mask: torch.Tensor) -> Observation:
    """Eight leads [B, 8, T] seen through mask [B, 8], over the RMS of what is seen."""
    rows = torch.eye(SLOTS).expand(len(values), SLOTS, SLOTS)
    return Observation(values * mask[..., None], mask.expand(len(values), -1), rows).scaled()[0]


def only(*leads: int) -> torch.Tensor:
    mask = torch.zeros(1, SLOTS, dtype=torch.bool)
    mask[:, list(leads)] = True
    return mask


def heart(peaks: np.ndarray, seed: int = 0) -> torch.Tensor:
    """[1, 8, T]: one beat, of its own shape in every lead, at every peak (samples)."""
    rng = np.random.default_rng(seed)
    height, at, width = rng.normal(size=(8, 3)), rng.uniform(-12, 20, (8, 3)), rng.uniform(1.5, 6, (8, 3))
    height[:, 0], at[:, 0], width[:, 0] = np.where(height[:, 0] < 0, -3, 3), 0, 1.5
    t = np.arange(T)[:, None] - peaks
    near = t[np.arange(T), np.abs(t).argmin(1)]
    shape = height[..., None] * np.exp(-0.5 * ((near - at[..., None]) / width[..., None]) ** 2)
    return torch.tensor(shape.sum(1)[None], dtype=torch.float32)


def trusting() -> BeatMemory:
    memory = BeatMemory(FS, T).eval()
    with torch.no_grad():
        memory.share.fill_(-12)
        memory.log_noise.fill_(-12)
    return memory


def estimate(memory: BeatMemory, seen: Observation) -> torch.Tensor:
    statistics = memory.statistics(seen)
    return memory.packed(statistics, statistics.linear)


def correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.stack([torch.corrcoef(torch.stack([x, y]))[0, 1] for x, y in zip(a[0], b[0], strict=True)])


@pytest.mark.parametrize("lead", [0, 1, 5])
def test_later_beats_are_completed_from_one_lead_at_another_rate_and_scale(lead: int) -> None:
    memory = trusting()
    reference = heart(np.array([40, 130, 220, 310, 400, 490]))
    later = heart(np.array([60, 135, 215, 288, 365, 440]))
    with torch.no_grad():
        state = estimate(memory, slots(reference, ALL))
        recall = memory(slots(0.5 * later, only(lead)), state)
    placed, completed = recall.placed, recall.completed
    assert recall.known.tolist() == [[1.0] * 8]
    assert recall.fit[0, lead] > 0.9 and recall.fit.count_nonzero() == 1, "the beat is the same"
    scale = later[:, lead].square().mean().sqrt()
    inside = slice(35, 480)
    assert correlation(placed[..., inside], later[..., inside]).min() > 0.97
    error = (completed * scale - later)[..., inside].square().mean() / later.square().mean()
    assert error < 0.05, "the scale is that of the later recording"


def test_what_the_beat_leaves_over_is_predicted_by_least_squares_over_the_taps() -> None:
    rng = np.random.default_rng(0)
    source = rng.normal(size=T + 40)
    kernel = rng.normal(size=(8, 5))  # every lead is its own filter of one source
    leads = np.stack([np.convolve(source, k, "same")[20:-20] for k in kernel])
    leads[1] = source[20:-20]
    values = torch.tensor(leads[None] / leads.std(), dtype=torch.float32)
    memory = trusting()
    seen = slots(values, ALL)
    blank = torch.zeros(1, memory.size)
    with torch.no_grad():
        state = estimate(memory, seen)
        state[:, SLOTS : SLOTS + SLOTS * memory.length] = 0  # no beat, covariances alone
        rest = seen.values
        lags = [rest[..., lag:] @ rest[..., : T - lag].transpose(1, 2) / T for lag in memory.lags]
        state[:, -SLOTS * SLOTS * len(lags) :] = torch.stack(lags, 1).flatten(1)
        filled = memory(slots(values, only(1)), state).completed * values[:, 1].square().mean().sqrt()
        population = memory(slots(values, only(1)), blank).completed
    inner = slice(10, -10)
    assert correlation(filled[..., inner], values[..., inner]).min() > 0.97
    assert correlation(population[..., inner], values[..., inner])[[0, 2, 3]].abs().max() < 0.9


def test_a_full_reference_of_no_lag_gives_its_own_regression() -> None:
    """Without correlation in time the filter is the instantaneous regression on the same reference."""
    rng = np.random.default_rng(1)
    mixing = rng.normal(size=(8, 4))
    eight = torch.tensor((mixing @ rng.normal(size=(4, T)) + 0.1 * rng.normal(size=(8, T)))[None])
    memory = trusting()
    seen = slots(eight.float(), ALL)
    with torch.no_grad():
        state = estimate(memory, seen)
        state[:, SLOTS : SLOTS + SLOTS * memory.length] = 0
        second = seen.values @ seen.values.transpose(1, 2) / T
        state[:, -64 * len(memory.lags) :] = 0
        state[:, -64 * len(memory.lags) : -64 * (len(memory.lags) - 1)] = second.flatten(1)
        given = only(0, 3, 5)
        scaled = slots(eight.float(), given)
        filled = memory(scaled, state).completed[0]
    g = [0, 3, 5]
    weights = np.linalg.solve(second[0].numpy()[np.ix_(g, g)], second[0].numpy()[g]).T
    np.testing.assert_allclose(filled.numpy(), weights @ scaled.values[0, g].numpy(), atol=2e-2)


def test_nothing_remembered_is_the_population_and_independent_of_scale() -> None:
    memory, values = BeatMemory(FS, T), heart(np.array([60, 160, 260, 360, 460]), seed=3)
    with torch.no_grad():
        recall = memory(slots(values, only(0, 1, 3)), torch.zeros(1, memory.size))
        again = memory(slots(7 * values, only(0, 1, 3)), torch.zeros(1, memory.size))
    assert all((part == 0).all() for part in (recall.known, recall.fit, recall.placed))
    assert torch.isfinite(recall.completed).all()
    torch.testing.assert_close(recall.completed, again.completed, atol=1e-4, rtol=1e-4)


def test_the_fit_tells_a_person_from_a_stranger() -> None:
    memory, peaks = trusting(), np.array([60, 160, 260, 360, 460])
    with torch.no_grad():
        state = estimate(memory, slots(heart(peaks, seed=1), ALL))
        same = memory(slots(heart(peaks + 7, seed=1), only(0, 1, 3)), state).fit[0]
        other = memory(slots(heart(peaks + 7, seed=2), only(0, 1, 3)), state).fit[0]
    assert (same[[0, 1, 3]] > 0.9).all() and same.count_nonzero() == 3
    assert (other >= -1).all() and other[[0, 1, 3]].mean() < 0.6


def test_a_partial_reference_says_which_leads_it_knew() -> None:
    memory, rng = BeatMemory(FS, T), np.random.default_rng(0)
    ecg = torch.tensor(rng.normal(size=(3, 12, T)), dtype=torch.float32)
    observed = torch.zeros(3, 12, dtype=torch.bool)
    observed[0, 3], observed[1, [0, 7]], observed[2, [2, 4]] = True, True, True  # aVR | I, V2 | III, aVL
    scaled, _ = LimbSlots()(ecg, observed).scaled()
    known = memory.split(estimate(memory, scaled))[0]
    assert known.tolist() == [[0] * 8, [1, 0, 0, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0]]


def test_silence_and_single_beats_stay_finite() -> None:
    memory = BeatMemory(FS, T)
    for values in (torch.zeros(1, 8, T), heart(np.array([250])), torch.ones(1, 8, T)):
        for mask in (ALL, only(4)):
            seen = slots(values, mask)
            recall = memory(seen, estimate(memory, seen))
            assert all(torch.isfinite(part).all() for part in vars(recall).values())


def test_covariances_of_any_recording_make_a_solvable_filter() -> None:
    """Autocovariances of a recording are positive semi-definite; with the population's, definite."""
    memory, rng = BeatMemory(FS, T), np.random.default_rng(2)
    values = torch.tensor(rng.normal(size=(6, 8, T)).cumsum(-1), dtype=torch.float32)
    values[:3, 4:] = values[:3, :4]  # leads that repeat others
    with torch.no_grad():
        seen = slots(values, ALL)
        out = memory(seen, estimate(memory, seen)).completed
    assert torch.isfinite(out).all() and (out - seen.values).square().mean() < 0.1


def test_windows_of_one_person_make_one_memory() -> None:
    memory = BeatMemory(FS, T)
    beats = memory.statistics(slots(heart(np.array([60, 160, 260, 360, 460])), ALL))
    silent = memory.statistics(slots(0.01 * torch.ones(1, 8, T), ALL))

    def of_all(*each: Statistics) -> Statistics:
        seen = Observation(
            *(torch.cat([getattr(x.seen, n) for x in each]) for n in ("values", "mask", "rows"))
        )
        names = ("linear", "covariances", "rate")
        return memory.merged(Statistics(seen, *(torch.cat([getattr(x, n) for x in each]) for n in names)))

    one = of_all(beats, beats, silent)
    torch.testing.assert_close(one.linear, beats.linear)
    torch.testing.assert_close(one.seen.values, beats.seen.values)
    torch.testing.assert_close(of_all(beats).covariances, beats.covariances)
    torch.testing.assert_close(one.covariances, (2 * beats.covariances + silent.covariances) / 3)
    assert one.seen.known().all() and float(one.rate) == pytest.approx(2 / 3 * float(beats.rate))


def test_recorded_leads_are_remembered_as_they_are_and_the_others_by_the_population() -> None:
    memory, values = BeatMemory(FS, T), heart(np.array([60, 160, 260, 360, 460]), seed=4)
    statistics = memory.statistics(slots(values, only(0, 1, 3)))
    scale = values[0, [0, 1, 3]].square().mean().sqrt()
    known = [0, 1, 3]
    torch.testing.assert_close(statistics.linear[:, known], statistics.seen.values[:, known])
    middle = values[0, known, 260 - memory.before : 260 + memory.after] / scale
    torch.testing.assert_close(statistics.seen.values[0, known], middle, atol=0.05, rtol=0.05)
    assert (
        statistics.linear[:, [2, 4, 5, 6, 7]].abs().amax(2).min() > 0
        and not statistics.seen.values[:, 2].any()
    )
    torch.testing.assert_close(memory.linear(statistics.seen), statistics.linear)
    assert float(statistics.rate) == pytest.approx(5 / (T / FS))


@pytest.mark.parametrize("given", [(0,), (0, 1, 3), (2, 6), tuple(range(8))])
def test_filters_of_the_slots_that_are_there_say_what_filters_of_all_slots_do(given: tuple[int, ...]) -> None:
    memory = BeatMemory(FS, T)
    seen = slots(heart(np.arange(50, 500, 80)) + heart(np.arange(30, 500, 97), seed=1), only(*given))
    present = seen.present()
    assert present.mask.shape == (1, len(given)) and present.mask.all()
    torch.testing.assert_close(present.values, seen.values[:, list(given)])
    results = []
    for model in (memory.train(), memory.eval()):  # training keeps empty slots
        w = estimate(model, seen)
        with torch.no_grad():
            results.append((w, model(seen, w).completed))
    for all_slots, few in zip(*results, strict=True):
        torch.testing.assert_close(few, all_slots, rtol=1e-4, atol=1e-4)


def test_recordings_that_lack_other_leads_have_filters_of_their_own() -> None:
    memory = BeatMemory(FS, T).eval()
    leads = heart(np.arange(50, 500, 80))
    masks = torch.cat([only(0, 1), only(5), only(0, 1)])
    together = memory.statistics(slots(leads.expand(3, -1, -1), masks))
    for row, mask in enumerate(masks):
        alone = memory.statistics(slots(leads, mask[None]))
        torch.testing.assert_close(together.linear[row], alone.linear[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.covariances[row], alone.covariances[0], rtol=1e-4, atol=1e-5)
