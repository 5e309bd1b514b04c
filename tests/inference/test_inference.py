"""The Python interface: any rate and length, names in any order, person held, errors in words."""

import math
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import ecggen
from ecggen.inference.recordings import (
    OVERLAP_S,
    SignalError,
    join,
    neighbours,
    to_windows,
    window_starts,
)
from ecggen.inference.renderer import Renderer
from ecggen.leads import DOWER, EXPAND, LEADS
from ecggen.training.checkpoint import CheckpointError
from tests.models.test_ecggen import FS, T


def recording(fs: float, seconds: float, seed: int = 0) -> np.ndarray:
    """[12, n] mV, smooth and band-limited, a beat every second, limb algebra exact."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(fs * seconds)) / fs
    waves = np.stack(
        [np.sin(2 * np.pi * f * t + p) for f, p in zip(range(1, 9), rng.uniform(0, 6, 8), strict=True)]
    )
    beats = np.exp(-0.5 * ((t % 1 - 0.5) / 0.015) ** 2)
    return EXPAND @ (rng.normal(size=(8, 8)) @ waves * 0.05 + rng.uniform(0.5, 1.5, (8, 1)) * beats)


def windows_of(model: Renderer, ecg: np.ndarray, fs: float, leads: Sequence[str]) -> tuple:
    """(windows [n, 12, T], one after the other; observed [12]) as the model is given them."""
    one = model._recording(ecg, fs, leads)
    return to_windows(one, T, T, model.fs).windows, one.observed


@pytest.mark.parametrize(
    ("fs", "seconds"), [(100, 10), (500, 10), (257, 7.3), (1000, 1.5), (100, 2.56), (128, 31)]
)
def test_rate_and_length_are_the_callers(model: Renderer, fs: float, seconds: float) -> None:
    ecg = recording(fs, seconds)
    out = model.render(ecg[[0, 1, 7]], fs=fs, leads=["I", "II", "V2"])
    assert out.leads == LEADS and out.ecg_mv.shape == out.rendered_mv.shape == ecg.shape
    assert out.vcg_mv.shape == (3, ecg.shape[1]) and out.state.shape[1] == model.model.state_dim
    assert np.isfinite(out.ecg_mv).all() and np.isfinite(out.vcg_mv).all()
    np.testing.assert_array_equal(out.ecg_mv[[0, 1, 7]], ecg[[0, 1, 7]])
    np.testing.assert_allclose(out.ecg_mv[:6], ecg[:6], atol=1e-9)  # limb leads follow by algebra


def test_the_standard_deviation_is_zero_where_leads_are_given_or_fixed(model: Renderer) -> None:
    ecg = recording(500, 7)
    std = model.render(ecg[[0, 1, 7]], 500, ["I", "II", "V2"]).std_mv
    assert std.shape == ecg.shape and (std[[0, 1, 2, 3, 4, 5, 7]] == 0).all()
    assert (std[[6, 8, 9, 10, 11]] > 0).mean() > 0.99
    lone = model.render(ecg[[3]], 500, ["aVR"]).std_mv
    assert (lone[3] == 0).all() and (lone[[0, 1]] > 0).mean() > 0.99


def test_names_decide_not_rows(model: Renderer) -> None:
    ecg = recording(500, 8)
    a = model.render(ecg[[0, 1, 7]], fs=500, leads=["I", "II", "V2"])
    b = model.render(ecg[[7, 0, 1]], fs=500, leads=["v2", "lead I", "ii"])
    np.testing.assert_array_equal(a.rendered_mv, b.rendered_mv)


def test_a_signal_at_the_models_rate_in_one_window_is_what_the_model_says(model: Renderer) -> None:
    ecg = recording(FS, T / FS).astype(np.float32)
    out = model.render(ecg[:2], fs=FS, leads=["I", "II"])
    windows, observed = windows_of(model, ecg[:2], FS, ["I", "II"])
    assert len(windows) == 1
    leads = model.render_windows(windows, observed)["leads"][0]
    np.testing.assert_allclose(out.rendered_mv, leads, atol=1e-5)


def test_overlapping_windows_join_without_seams(model: Renderer) -> None:
    """Cuts of one signal give it back; windows that disagree by 1 mV meet in steps, not in a jump."""
    length, overlap = 1000, math.ceil(OVERLAP_S * FS)
    starts = window_starts(length, T, None, FS)
    assert starts[0] == 0 and starts[-1] == length - T and len(starts) > 1
    signal = np.random.default_rng(0).normal(size=(3, length)).astype(np.float32)
    cuts = np.stack([signal[:, start : start + T] for start in starts])
    np.testing.assert_allclose(join(cuts, starts, length), signal, atol=1e-6)
    apart = np.ones_like(cuts) * (np.arange(len(starts)) % 2)[:, None, None]
    steps = np.abs(np.diff(join(apart, starts, length), axis=1))
    assert 0.5 / overlap < steps.max() < 4 / overlap
    rendered = model.render(recording(FS, 20)[[1]], fs=FS, leads=["II"]).rendered_mv
    assert rendered.shape[1] == round(20 * FS) and np.isfinite(rendered).all()


@pytest.mark.parametrize("counts", [[1], [2], [3], [1, 1], [1, 4, 2, 3, 1]])
def test_neighbours_are_of_one_recording_and_every_window_is_found_again(counts: list[int]) -> None:
    together, places = neighbours(counts)
    recordings = np.repeat(np.arange(len(counts)), counts)
    assert together.shape[1] == min(2, max(counts))
    assert (recordings[together] == recordings[together[:, :1]]).all()
    assert (np.ptp(together, axis=1) <= 1).all()
    numbers = np.concatenate([together.reshape(-1)[place] for place in places])
    np.testing.assert_array_equal(numbers, np.arange(sum(counts)))


def test_two_windows_of_a_recording_share_the_w_that_a_person_would_have(model: Renderer) -> None:
    seconds = 2 * T / FS - OVERLAP_S
    signal, leads = recording(FS, 2.3 * seconds)[[0, 1, 7]], ["I", "II", "V2"]
    two = signal[:, : round(seconds * FS)]
    out, person = model.render(two, FS, leads), model.personalise(two, FS, leads)
    held = model.render(two, FS, leads, person=person)
    for name in ("rendered_mv", "vcg_mv", "std_mv", "state"):
        ours, theirs = getattr(out, name), getattr(held, name)
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5, err_msg=name)
    state = model.render(signal, FS, leads).state
    same = (state[:, None] == state).all(2)
    assert len(state) == 5
    np.testing.assert_array_equal(same, np.equal.outer(*[np.arange(5) // 2] * 2))


def test_a_person_is_estimated_saved_loaded_and_held(model: Renderer, tmp_path: Path) -> None:
    reference, later = recording(500, 9, seed=1), recording(360, 6, seed=2)
    person = model.personalise(reference, fs=500, leads=LEADS)
    person.save(tmp_path / "person.npz")
    again = ecggen.load_person(tmp_path / "person.npz")
    np.testing.assert_array_equal(again.state, person.state)
    assert again.leads == LEADS and again.seconds == 9.0
    held = model.render(later[:1], fs=360, leads=["I"], person=again)
    alone = model.render(later[:1], fs=360, leads=["I"])
    assert (held.state == person.state).all() and np.abs(held.rendered_mv - alone.rendered_mv).max() > 1e-3
    with pytest.raises(CheckpointError, match="personalise again"):
        model.render(later[:1], fs=360, leads=["I"], person=replace(person, model="another"))
    file = tmp_path / "person.npz"
    for given in (file, str(file)):
        same = model.render(later[:1], fs=360, leads=["I"], person=given)
        np.testing.assert_array_equal(same.rendered_mv, held.rendered_mv)
    file.write_bytes(b"nothing")
    for broken in (file, "none.npz"):
        with pytest.raises(CheckpointError, match=r"is not a saved person .* person\.save"):
            ecggen.load_person(broken)


def test_a_person_of_another_day_is_trusted_in_part(model: Renderer) -> None:
    reference, later = recording(500, 9, seed=1), recording(360, 6, seed=2)
    person = model.personalise(reference, fs=500, leads=LEADS)
    alone, held, mixed = (
        model.render(later[:2], fs=360, leads=["I", "II"], **options)
        for options in ({}, {"person": person}, {"person": person, "another_day": True})
    )
    assert (mixed.state == held.state).all()
    for other in (alone, held):
        assert np.abs(mixed.rendered_mv - other.rendered_mv).max() > 1e-3
    # The VCG lies between; the share is that of a window, and windows overlap.
    apart = held.vcg_mv - alone.vcg_mv
    share = ((mixed.vcg_mv - alone.vcg_mv) * apart).sum() / (apart**2).sum()
    assert 0.01 < share < 0.99
    with pytest.raises(SignalError, match="personalise"):
        model.render(later[:1], fs=360, leads=["I"], another_day=True)


def test_embed_gives_one_row_per_window_and_does_not_depend_on_company(model: Renderer) -> None:
    ecg = recording(500, 10)
    features = model.embed(ecg, fs=500, leads=LEADS)
    assert features.shape[0] == 4 and np.isfinite(features).all()  # 1000 samples in windows of 256
    windows, observed = windows_of(model, ecg, 500, LEADS)
    np.testing.assert_allclose(model.embed_windows(windows[1:2], observed)[0], features[1], atol=1e-4)


def test_loading_says_what_is_wrong(path: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No checkpoint at"):
        ecggen.load(tmp_path / "nowhere")
    content = torch.load(path / "checkpoint.pt", weights_only=True)
    content["model"].pop("stem.levels.0.layers.0.0.weight")
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="do not fit this version's model"):
        ecggen.load(tmp_path)


def test_electrodes_in_any_direction_see_the_dipole(model: Renderer) -> None:
    ecg = recording(500, 6)
    out = model.render(ecg[[0, 1, 7]], 500, ["I", "II", "V2"], directions=[[1, 0, 0], [0, 0, 2.0], DOWER[4]])
    np.testing.assert_allclose(out.directions_mv[:2], [out.vcg_mv[0], 2 * out.vcg_mv[2]])
    np.testing.assert_allclose(out.directions_mv[2], DOWER[4] @ out.vcg_mv)
    one = model.render(ecg[[0]], 500, ["I"], directions=(0, 1, 0)).directions_mv
    assert one.shape == (1, 3000)
    assert model.render(ecg[[0]], 500, ["I"]).directions_mv.shape == (0, 3000)


def test_many_recordings_at_once_are_rendered_as_one_by_one(model: Renderer) -> None:
    lengths = (5, 9, 2, 5, 7.5, 5)
    signals = [recording(500, seconds, seed)[[0, 1, 7]] for seed, seconds in enumerate(lengths)]
    signals[3][1, 700:720] = np.nan  # bridged
    leads = ["I", "II", "V2"]
    for batch_size in (96, 3):
        batch = list(model.render_batch(iter(signals), 500, leads, batch_size=batch_size))
        for signal, out in zip(signals, batch, strict=True):
            alone = model.render(signal, 500, leads)
            for name in ("ecg_mv", "rendered_mv", "vcg_mv", "std_mv", "state"):
                ours, theirs = getattr(out, name), getattr(alone, name)
                np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5, err_msg=name)
            assert out.leads == LEADS and out.directions_mv.shape == (0, signal.shape[1])
    features = list(model.embed_batch(signals, 500, leads, batch_size=5))
    for signal, rows in zip(signals, features, strict=True):
        np.testing.assert_allclose(rows, model.embed(signal, 500, leads), atol=1e-4, rtol=1e-4)
    assert list(model.render_batch([], 500, leads)) == [] == list(model.embed_batch([], 500, leads))


def test_recordings_are_read_as_they_are_needed(model: Renderer) -> None:
    read = []

    def endless():
        for seed in range(10_000):
            read.append(seed)
            yield recording(100, 4, seed % 3)[:1]

    first = next(iter(model.render_batch(endless(), 100, ["I"], batch_size=4)))
    assert first.ecg_mv.shape == (12, 400) and len(read) < 200


def test_a_model_travels_to_another_process(model: Renderer) -> None:
    again = pickle.loads(pickle.dumps(model))
    ecg = recording(500, 4)[:2]
    assert again.fingerprint() == model.fingerprint() and again.device == model.device
    here, there = (one.render(ecg, 500, "I+II").rendered_mv for one in (model, again))
    np.testing.assert_array_equal(here, there)
