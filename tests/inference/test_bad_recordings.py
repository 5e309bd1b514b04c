"""What is not a recording, or only in part: refused or left out, always in words."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from ecggen.inference.recordings import SignalError, SignalWarning
from ecggen.inference.renderer import Renderer
from ecggen.leads import EXPAND, LEADS, LeadError

DEAD = {"zeros": 0.0, "a constant": 1.3, "no numbers": math.nan}


def heartbeats(fs: float = 500, seconds: float = 10, seed: int = 0) -> np.ndarray:
    """[12, n] mV: beats of a three-dimensional source, 60 a minute, with a little noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(fs * seconds)) / fs
    waves = [
        np.exp(-(((t % 1 - at) / width) ** 2)) for at, width in ((0.4, 0.02), (0.43, 0.025), (0.7, 0.06))
    ]
    eight = rng.normal(0, 0.7, (8, 3)) @ np.stack(waves) + rng.normal(0, 0.002, (8, len(t)))
    return EXPAND @ eight


@pytest.mark.parametrize("kind", DEAD)
def test_a_dead_lead_counts_as_not_recorded(model: Renderer, kind: str) -> None:
    leads, others = ["I", "II", "V1", "V4"], ["II", "V1", "V4"]
    ecg = heartbeats()
    dead = ecg[[0, 1, 6, 9]].copy()
    dead[0] = DEAD[kind]
    with pytest.warns(SignalWarning, match=r"^I: flat or without numbers .* not recorded\.$"):
        out = model.render(dead, 500, leads)
    alone = model.render(ecg[[1, 6, 9]], 500, others)
    np.testing.assert_allclose(out.ecg_mv, alone.ecg_mv, atol=1e-6)
    assert (out.std_mv[[0, 2]] > 0).mean() > 0.9, "I and III are the model's, not zero by algebra"
    with pytest.warns(SignalWarning, match="not recorded"):
        person, features = model.personalise(dead, 500, leads), model.embed(dead, 500, leads)
    assert person.leads == ("II", "V1", "V4")
    np.testing.assert_allclose(person.state, model.personalise(ecg[[1, 6, 9]], 500, others).state, atol=1e-5)
    np.testing.assert_allclose(features, model.embed(ecg[[1, 6, 9]], 500, others), atol=1e-5)
    whole = ecg[[0, 1, 6, 9]]
    with pytest.warns(SignalWarning, match="Recording 1: I: flat"):
        batch = list(model.render_batch([whole, dead, whole], 500, leads))
    for one, two in zip(batch, [model.render(whole, 500, leads), out], strict=False):
        np.testing.assert_allclose(one.ecg_mv, two.ecg_mv, atol=1e-5)


@pytest.mark.parametrize("signal", [np.zeros((2, 5000)), heartbeats()[:2] / 1000])  # the latter in volts
def test_no_usable_lead_is_an_error(model: Renderer, signal: np.ndarray) -> None:
    for call in (model.render, model.personalise, model.embed):
        with pytest.raises(SignalError, match=r"No lead can be used \(I, II: flat .*in mV"):
            call(signal, 500, ["I", "II"])


GOOD = heartbeats()
SPOILT = {  # words: row, the lead instead
    "V2 noisy": (7, GOOD[7] + 0.3 * np.random.default_rng(0).normal(size=5000)),
    "aVR perhaps inverted": (3, -GOOD[3]),
    "V3 flat in part": (8, np.where(np.arange(5000) // 1500 == 1, 0.1, GOOD[8])),
    "limb leads that contradict Einthoven": (2, GOOD[6]),
    "amplitudes above 20 mV": (10, GOOD[10] * 30 / np.abs(GOOD[10]).max()),
}


@pytest.mark.parametrize("words", SPOILT)
def test_what_the_pipeline_would_flag_is_warned_of(model: Renderer, words: str) -> None:
    ecg = GOOD.copy()
    ecg[SPOILT[words][0]] = SPOILT[words][1]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        out = model.render(ecg, 500, LEADS)
    (warning,) = caught
    assert warning.category is SignalWarning and words in str(warning.message)
    np.testing.assert_array_equal(out.ecg_mv, ecg)


def test_beats_are_looked_for_in_all_leads(model: Renderer) -> None:
    """The first lead shows none: not dead, but too small for a beat."""
    ecg = heartbeats()
    ecg[0] = 0.02 * np.sin(np.arange(5000) / 500)
    leads = ["I", "V1", "V4", "V6"]
    person = model.personalise(ecg[[0, 6, 9, 11]], 500, leads)
    without = model.personalise(ecg[[6, 9, 11]], 500, leads[1:])
    assert model.remembers_beat(person.state[None])
    a, b = (
        model.model.memory.split(torch.from_numpy(one.state[None, model.model.fast.size :]))[1][0, [2, 5, 7]]
        for one in (person, without)
    )
    a, b = a.flatten(), b.flatten()
    assert np.corrcoef(a, b)[0, 1] > 0.99, "the same beat of the leads that show one"


NOISE = np.random.default_rng(0).normal(size=(2, 5000))
NO_BEATS = {
    "20 uV": 0.02 * NOISE,
    "50 uV": 0.05 * NOISE,
    "drift": np.sin(np.ones((2, 1)) * np.arange(5000) / 5000),
}


@pytest.mark.parametrize("kind", NO_BEATS)
def test_no_beat_at_all_is_warned_of(model: Renderer, kind: str) -> None:
    signal = NO_BEATS[kind]
    for call in (model.render, model.personalise, model.embed):
        with pytest.warns(SignalWarning, match="No whole heartbeat"):
            call(signal, 500, ["I", "II"])
    person = model.personalise(heartbeats(), 500, LEADS)
    with pytest.warns(SignalWarning, match="No whole heartbeat"):
        model.render(signal, 500, ["I", "II"], person=person)


def test_rates_leads_and_signals_in_any_form(model: Renderer) -> None:
    ecg = heartbeats(seconds=3)
    plain = model.render(ecg[[1]], 500, ["II"]).rendered_mv
    for fs in (np.array(500), np.float32(500), torch.tensor(500), "500", [500.0]):
        np.testing.assert_array_equal(model.render(ecg[[1]], fs, ["II"]).rendered_mv, plain)
    for signal, leads in ((ecg[[1]], "II"), (ecg[1], "II"), (torch.from_numpy(ecg[1]), ("lead ii",))):
        np.testing.assert_array_equal(model.render(signal, 500, leads).rendered_mv, plain)
    both = model.render(ecg[[0, 1]], 500, "I+II").rendered_mv
    lists = model.render(ecg[[0, 1]].tolist(), 500, iter(["I", "II"])).rendered_mv
    np.testing.assert_array_equal(both, lists)


def test_bad_input_is_refused_in_one_sentence(model: Renderer) -> None:
    ecg = heartbeats(seconds=3)
    cases = [
        (ecg[:2], 500, ["I", "Vx9"], LeadError, "Unknown lead 'Vx9'"),
        (ecg[:2], 500, ["I", "I"], LeadError, "named twice"),
        (ecg[:2], 500, 2, LeadError, "leads is 2: give lead names"),
        (ecg[:2], 500, ["I"], SignalError, "one row per name"),
        (ecg[:2].T, 500, ["I", "II"], SignalError, r"shape \(1500, 2\) .* signal\.T"),
        (ecg[:1, :499], 500, ["I"], SignalError, "499 samples at 500 Hz: at least 1 s, 500 samples"),
        (ecg[:1] * 1000, 500, ["I"], SignalError, "give it in mV"),
        ((ecg[:1] * 200).astype(np.int16), 500, ["I"], SignalError, "give it in mV"),
        (ecg[:1] * 1j, 500, ["I"], SignalError, "no array of numbers"),
        ([["a"]], 500, ["I"], SignalError, "no array of numbers"),
    ]
    no_rate = r"fs is .*: one sampling rate from 20 to 100000 Hz is needed"
    for fs in (None, 0, -500, math.nan, 1e9, "fast", [500, 500], torch.tensor([1.0, 2.0])):
        cases.append((ecg[:1], fs, ["I"], SignalError, no_rate))
    for signal, fs, leads, error, words in cases:
        with pytest.raises(error, match=words):
            model.render(signal, fs, leads)
    with pytest.raises(SignalError, match=r"Recording 1: .*give it in mV"):
        list(model.render_batch([ecg[:1], ecg[:1] * 1000], 500, ["I"]))
    with pytest.raises(LeadError, match="Unknown lead"):
        list(model.render_batch([ecg[:1]], 500, ["nonsense"]))
    for directions in ([1, 0], [[1, 0, math.nan]], [["left", "up", 0]], np.zeros((1, 2, 3))):
        with pytest.raises(SignalError, match=r"give \[n, 3\]"):
            model.render(ecg[:1], 500, ["I"], directions=directions)
    with pytest.raises(SignalError, match=r"person is 3: give what personalise"):
        model.render(ecg[:1], 500, "I", person=3)


def test_short_gaps_are_bridged_and_long_ones_refused(model: Renderer) -> None:
    ecg = heartbeats(seconds=6)[:2]
    for hole in (math.nan, math.inf):
        holes = ecg.copy()
        holes[0, 1000:1050] = hole
        out = model.render(holes, 500, ["I", "II"])
        assert np.isfinite(out.rendered_mv).all() and np.isnan(out.ecg_mv[0, 1020])
    masked = np.ma.masked_array(ecg, np.isnan(holes) | np.isinf(holes))
    np.testing.assert_array_equal(model.render(masked, 500, ["I", "II"]).rendered_mv, out.rendered_mv)
    holes[0, 1000:1500] = np.nan
    with pytest.raises(SignalError, match=r"Lead I has 1\.00 s without numbers"):
        model.render(holes, 500, ["I", "II"])
