"""Swapped electrodes and inverted leads: found when made, by algebra that is written down here apart."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from ecggen.data.quality import electrodes as judge
from ecggen.data.quality.electrodes import (
    HYPOTHESES,
    flat_by_leg,
    inverted_limb_lead,
)
from ecggen.data.quality.flags import SWAPS
from ecggen.data.quality.noise import bands_at_100
from ecggen.io.records import read_record
from ecggen.leads import DOWER, EXPAND, INDEPENDENT_INDEX, LEADS

ALL = np.ones(12, dtype=bool)
LEAST = 10.0
ROWS = {name: i for i, name in enumerate(LEADS)}


def lasting_faults(ecg: np.ndarray, usable: np.ndarray, least: float) -> list[str]:
    """Of ecg [12, n] at 100 Hz."""
    return judge.lasting_faults(bands_at_100(ecg, usable), usable, least)


def potentials(ecg: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(RA, LA, LL) [n] against Wilson's terminal."""
    first, second = ecg[0], ecg[1]
    right = -(first + second) / 3
    return right, right + first, right + second


def leads_of(right: np.ndarray, left: np.ndarray, foot: np.ndarray) -> np.ndarray:
    """The six limb leads by Einthoven's and Goldberger's definitions."""
    augmented = [right - (left + foot) / 2, left - (right + foot) / 2, foot - (right + left) / 2]
    return np.stack([left - right, foot - right, foot - left, *augmented])


def swapped(ecg: np.ndarray, electrodes: str) -> np.ndarray:
    """[12, n] as it would have been recorded."""
    out = ecg.copy()
    if electrodes.startswith("V"):
        a, b = (ROWS[name] for name in electrodes.split("-"))
        out[[a, b]] = out[[b, a]]
        return out
    where = dict(zip(("RA", "LA", "LL"), potentials(ecg), strict=True))
    names = electrodes.split("-")
    if len(names) == 2:
        a, b = names
        cables = [{a: b, b: a}.get(cable, cable) for cable in ("RA", "LA", "LL")]
    else:
        cables = names
    out[:6] = leads_of(*(where[name] for name in cables))
    return out


@functools.cache
def clean(folder) -> list[np.ndarray]:
    """Good PTB-XL records of fold 9 and 10 that the model has not seen: [12, 1000] mV at 100 Hz."""
    names = ("00010", "00057", "00062", "00079", "00094", "00129", "00151", "00178")
    records = [read_record(folder / f"ptbxl/records100/00000/{name}_lr") for name in names]
    return [record.ecg - np.median(record.ecg, axis=1, keepdims=True) for record in records]


def test_hypotheses_are_the_definitions():
    """Each matrix against Einthoven's and Goldberger's definitions, on random potentials."""
    ecg = EXPAND @ np.random.default_rng(0).normal(size=(8, 50))
    for word, matrix in HYPOTHESES.items():
        kind, _, what = word.partition(":")
        wanted = ecg.copy()
        if kind == "swap":
            wanted = swapped(ecg, what)
        else:
            wanted[ROWS[what]] *= -1
        np.testing.assert_allclose(
            matrix @ ecg[list(INDEPENDENT_INDEX)], wanted[list(INDEPENDENT_INDEX)], atol=1e-12
        )
        assert abs(np.linalg.det(matrix)) == pytest.approx(1)
    arms = swapped(ecg, "RA-LA")  # as in the textbook
    np.testing.assert_allclose(arms[:6], [-ecg[0], *ecg[[2, 1, 4, 3, 5]]], atol=1e-12)
    assert {word.partition(":")[2] for word in HYPOTHESES if word.startswith("swap:")} <= set(SWAPS)


@pytest.mark.parametrize("lead", LEADS[:6])
def test_an_inverted_limb_lead_breaks_the_algebra(lead):
    beat = EXPAND @ np.random.default_rng(1).normal(size=(8, 76))
    beat += 0.01 * np.random.default_rng(2).normal(size=beat.shape)
    assert inverted_limb_lead(beat, ALL) is None
    beat[ROWS[lead]] *= -1
    assert inverted_limb_lead(beat, ALL) == lead
    three = np.isin(np.arange(12), [0, 1, 2, ROWS[lead]])
    assert inverted_limb_lead(beat, three) == lead
    assert inverted_limb_lead(beat, np.isin(np.arange(12), [0, 1])) is None
    beat[ROWS[lead]] = np.random.default_rng(3).normal(size=76)  # broken
    assert inverted_limb_lead(beat, ALL) is None


@pytest.mark.parametrize(("flat", "electrodes"), [("II", "RA-RL"), ("III", "LA-RL"), ("I", "RA-RL+LA-LL")])
def test_the_right_leg_leaves_one_lead_flat(flat, electrodes):
    rng = np.random.default_rng(0)
    chest, wave, still = rng.normal(size=(6, 76)), rng.normal(size=76), 0.01 * rng.normal(size=76)

    def limbs(small: np.ndarray) -> np.ndarray:
        pairs = {"I": (small, wave), "II": (wave, small), "III": (wave, wave + small)}
        return np.stack(pairs[flat])

    assert flat_by_leg(limbs(still), chest) == electrodes
    assert flat_by_leg(rng.normal(size=(2, 76)), chest) is None
    assert flat_by_leg(np.zeros((2, 76)), chest) is None
    # A heart whose axis is perpendicular to the lead: small, but the same heart that the chest leads see.
    assert flat_by_leg(limbs(0.05 * chest[2]), chest) is None


@pytest.mark.parametrize("electrodes", ["RA-LA", "RA-LL", "LA-LL-RA", "LL-RA-LA", "V1-V2", "V3-V4", "V1-V3"])
def test_swaps_are_found_and_named(shared_data, electrodes):
    words = [lasting_faults(swapped(ecg, electrodes), ALL, LEAST) for ecg in clean(shared_data)]
    assert words.count([f"swap:{electrodes}"]) >= 6, words


@pytest.mark.parametrize("lead", LEADS)
def test_inverted_leads_are_found_and_named(shared_data, lead):
    signs = np.where(np.arange(12) == ROWS[lead], -1, 1)[:, None]
    words = [lasting_faults(signs * ecg, ALL, LEAST) for ecg in clean(shared_data)]
    assert words.count([f"polarity:{lead}"]) >= 7, words


def test_dextrocardia_is_mostly_not_called_a_swap_of_the_arms(shared_data):
    """The heart mirrored through Dower's lead field: limb leads as with swapped arms, chest leads not."""
    mirror = DOWER @ np.diag([-1.0, 1.0, 1.0]) @ np.linalg.pinv(DOWER)
    rest = np.eye(8) - DOWER @ np.linalg.pinv(DOWER)
    ecgs = [EXPAND @ (mirror + rest) @ ecg[list(INDEPENDENT_INDEX)] for ecg in clean(shared_data)]
    assert sum("swap:RA-LA" in lasting_faults(ecg, ALL, LEAST) for ecg in ecgs) <= 1


@pytest.mark.parametrize("missing", [None, "V4"])
def test_clean_records_have_no_fault_even_where_a_lead_is_missing(shared_data, missing):
    usable = np.array([name != missing for name in LEADS])
    ecgs = [np.where(usable[:, None], ecg, 0) for ecg in clean(shared_data)]
    assert [lasting_faults(ecg, usable, LEAST) for ecg in ecgs] == [[]] * 8
    words = [lasting_faults(swapped(ecg, "RA-LA"), usable, LEAST) for ecg in ecgs]
    assert words.count(["swap:RA-LA"]) >= 6
    assert not any("V4" in word for ecg in ecgs for word in lasting_faults(ecg, usable, -1e9) if missing)


def test_what_holds_in_most_minutes_counts(shared_data):
    ecg = clean(shared_data)[0]
    minute = np.tile(ecg, 6)
    wrong = swapped(minute, "V1-V2")
    word = ["swap:V1-V2"]
    assert lasting_faults(np.concatenate([wrong, wrong, minute], axis=1), ALL, LEAST) == word
    assert lasting_faults(np.concatenate([wrong, minute, minute], axis=1), ALL, LEAST) == []
