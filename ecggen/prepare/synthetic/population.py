"""The embedded data set: people with a known dipole, recorded by twelve leads that are not perfect.

`simulate` makes one record; `ecggen.prepare.synthetic.records` writes WFDB records (Frank leads as channels
vx, vy, vz, as in PTBDB), `ecggen.prepare.synthetic.windows` skips the files. Signals need NumPy only. The
same seed gives the same numbers.

What is recorded: electrodes see A v + local sources + wander, mains and muscle noise. Noise arises at
electrodes and goes through the lead definitions, so limb leads obey their algebra exactly before rounding.
The Frank channels hold the dipole v itself, without noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ecggen.data.quality.electrodes import AFTER, BEFORE, likeliest_fault
from ecggen.data.quality.noise import BEAT_BAND, CHECK_FS
from ecggen.data.signal import bandpass
from ecggen.leads import DOWER, EXPAND, LEADS
from ecggen.prepare.synthetic import heart
from ecggen.utils.config import SyntheticConfig

Array = NDArray[np.float64]

#: Diagnoses of a deck of patients; each deck is dealt in another order, so class counts stay even.
DECK: tuple[tuple[str, ...], ...] = (
    *([("normal",)] * 5),
    *([("lbbb",)] * 3),
    ("afib", "lbbb"),
    *([("rbbb",)] * 2),
    ("afib", "rbbb"),
    ("mi", "rbbb"),
    *([("lvh",)] * 2),
    ("lvh", "sttc"),
    ("afib", "lvh"),
    *([("mi",)] * 2),
    ("mi", "sttc"),
    *([("sttc",)] * 2),
    ("afib",),
)
CLASSES: tuple[str, ...] = tuple(sorted({label for labels in DECK for label in labels}))

# Electrodes LA, RA, LL, V1..V6 to leads I, II, V1..V6; chest leads refer to Wilson's terminal.
_ELECTRODES = np.zeros((8, 9))
_ELECTRODES[0, :2] = (1, -1)
_ELECTRODES[1, 1:3] = (-1, 1)
_ELECTRODES[2:, 3:] = np.eye(6)
_ELECTRODES[2:, :3] = -1 / 3

# Places of the independent leads along the body, to make neighbours deviate together (I and II stand apart).
_PLACE = np.array([-6.0, -12.0, 0, 1, 2, 3, 4, 5])


# A lead field is brought nearer to Dower's while the evidence for a swap is above and the distance of the
# beat below these: stricter than for a flag, because records vary around the person.
_APPARENT_EVIDENCE, _APPARENT_DISTANCE = 6.0, 155.0
_SHRINK, _SHRINKS = 0.8, 8


@dataclass(frozen=True)
class Device:
    """How a machine records and writes: channels in its order and spelling, the header's unit, disturbances.

    mains and wander: amplitude beside that of the embedded data set.
    """

    channels: tuple[str, ...] = LEADS
    unit: str = "mV"
    mains_hz: float = 50.0
    mains: float = 1.0
    wander: float = 1.0


#: Chest leads first, MIMIC-IV-ECG's order of limb leads and the Challenge's capitals, microvolts, 60 Hz.
OTHER_DEVICE = Device(
    (*LEADS[6:], "I", "II", "III", "AVR", "AVF", "AVL"), unit="uV", mains_hz=60.0, mains=3.0, wander=2.0
)


def other_population(config: SyntheticConfig) -> SyntheticConfig:
    """A quarter as many other people, recorded at 500 Hz with more muscle noise: for a test of transfer."""
    patients, noise = max(6, config.patients // 4), min(1.0, 1.5 * config.noise_mv)
    return replace(config, seed=config.seed + 1, patients=patients, fs=500.0, noise_mv=noise)


@dataclass(frozen=True)
class Person:
    """What stays the same from record to record: heart, lead field [8, 3], local sources [8, LOCAL]."""

    name: str
    labels: tuple[str, ...]
    age: int
    sex: str
    waves: dict[str, heart.Waves]
    lead_field: Array
    local: Array
    rr: float
    pvc: float
    pac: float


@dataclass(frozen=True)
class SyntheticRecord:
    """ecg_mv [n, 12] as recorded, clean_mv [n, 12] without noise, vcg_mv [n, 3], lead_field [8, 3].

    clean_mv = EXPAND (lead_field v + local sources); r_peaks: samples of the QRS complexes in the record.
    """

    name: str
    patient: str
    labels: tuple[str, ...]
    age: int
    sex: str
    fs: float
    ecg_mv: Array
    clean_mv: Array
    vcg_mv: Array
    lead_field: Array
    r_peaks: NDArray[np.int64]
    beat_kinds: tuple[str, ...]


def record_plan(config: SyntheticConfig) -> list[tuple[int, int]]:
    """(patient, record) of every record: one per patient, two for a share of them."""
    count = round(config.second_record_share * config.patients)
    twice = set(np.random.default_rng([config.seed, 1]).permutation(config.patients)[:count].tolist())
    return [(p, r) for p in range(config.patients) for r in range(2 if p in twice else 1)]


def record_name(patient: int, record: int) -> str:
    """What a record is called, in files and tables."""
    return f"p{patient + 1:04d}_{record + 1}"


def make_person(config: SyntheticConfig, patient: int) -> Person:
    """Patient number `patient` (from 0) of the data set with this seed."""
    deck, card = divmod(patient, len(DECK))
    labels = DECK[int(np.random.default_rng([config.seed, 2, deck]).permutation(len(DECK))[card])]
    rng = np.random.default_rng([config.seed, 3, patient])
    sex = str(rng.choice(["F", "M"]))
    age = int(np.clip(rng.normal(48 if labels == ("normal",) else 66, 14), 18, 89))
    sinus = heart.sinus_waves(rng, labels)
    waves = heart.ectopic_waves(rng, sinus)
    if "afib" in labels:
        waves["sinus"] = sinus.without(heart.P)
    ectopic = rng.random()
    person = Person(
        name=f"p{patient + 1:04d}",
        labels=labels,
        age=age,
        sex=sex,
        waves=waves,
        lead_field=_lead_field(rng) * (0.92 if sex == "F" else 1.04),
        local=_local_sources(rng),
        rr=60.0 / float(np.clip(rng.normal(92 if "afib" in labels else 71, 11), 48, 125)),
        pvc=float(rng.uniform(0.03, 0.15)) if ectopic < 0.18 else 0.0,
        pac=float(rng.uniform(0.03, 0.12)) if 0.18 <= ectopic < 0.30 and "afib" not in labels else 0.0,
    )
    return _without_apparent_swap(person)


def _without_apparent_swap(person: Person) -> Person:
    """The same person, whose leads do not look interchanged.

    Where they do (ecggen.data.quality.electrodes), the lead field is brought nearer to Dower's in steps: a
    heart whose electrodes nobody swapped gets no flag of a swap, as hardly any real one does.
    """
    usual = DOWER * (np.vdot(DOWER, person.lead_field) / np.vdot(DOWER, DOWER))
    for _ in range(_SHRINKS):
        _, evidence, distance = likeliest_fault(_typical_beat(person))
        if evidence < _APPARENT_EVIDENCE or distance > _APPARENT_DISTANCE:
            break
        field = usual + _SHRINK * (person.lead_field - usual)
        person = replace(person, lead_field=field, local=_SHRINK * person.local)
    return person


def _typical_beat(person: Person) -> Array:
    """[8, BEFORE + AFTER] mV: mean sinus beat in the independent leads, band-passed, at 100 Hz."""
    beats = 10
    times = np.arange((beats + 2) * person.rr * CHECK_FS) / CHECK_FS
    train = [heart.Beat(k * person.rr, person.rr) for k in range(-1, beats + 3)]
    sources = heart.trajectory(np.random.default_rng(0), train, person.waves, times)
    seen = person.lead_field @ sources[:, :3].T + person.local @ sources[:, 3:].T
    clean = bandpass(seen, CHECK_FS, *BEAT_BAND)
    peaks = [round(k * person.rr * CHECK_FS) for k in range(1, beats + 1)]
    return np.mean([clean[:, peak - BEFORE : peak + AFTER] for peak in peaks], axis=0)


def _smooth_noise(rng: np.random.Generator, reach: float, shape: tuple[int, ...]) -> Array:
    """Standard normal numbers [8, ...] that neighbouring chest leads share, by exp(-distance / reach)."""
    covariance = np.exp(-np.abs(_PLACE[:, None] - _PLACE[None]) / reach)
    return np.linalg.cholesky(covariance) @ rng.normal(0, 1, (8, *shape))


def _lead_field(rng: np.random.Generator) -> Array:
    """[8, 3]: Dower with gains and deviations (chest shape, electrodes placed too high or too far).

    Sizes were set so that fixed Dower explains about 93 % of the energy, as measured on PTB-XL.
    """
    reach = np.linalg.norm(DOWER, axis=1, keepdims=True)
    gain = np.exp(0.15 * _smooth_noise(rng, 1.5, (1,)))
    deviation = np.where(np.arange(8) < 2, 0.14, 0.27)[:, None]
    return DOWER * gain + deviation * reach * _smooth_noise(rng, 1.5, (3,))


def _local_sources(rng: np.random.Generator) -> Array:
    """[8, LOCAL]: how strongly each lead sees the sources that no dipole explains; chest leads mostly."""
    near = np.array([0.3, 0.3, 0.9, 1.2, 1.2, 1.0, 0.7, 0.5])[:, None]
    return near * _smooth_noise(rng, 1.0, (heart.LOCAL,))


def _another_day(person: Person, rng: np.random.Generator) -> tuple[dict[str, heart.Waves], Array]:
    """Waves and lead field on another day: electrodes a little elsewhere, the heart turned a little."""
    turn = np.eye(3 + heart.LOCAL)
    turn[:3, :3] = heart.rotation(rng.normal(0, 0.04, 3)) * np.exp(rng.normal(0, 0.04))
    waves = {
        kind: heart.Waves(w.centre, w.width, w.vector @ turn.T, w.kind) for kind, w in person.waves.items()
    }
    reach = np.linalg.norm(DOWER, axis=1, keepdims=True)
    moved = 0.05 * reach * _smooth_noise(rng, 1.5, (3,))
    return waves, person.lead_field * np.exp(0.04 * _smooth_noise(rng, 1.5, (1,))) + moved


def simulate(
    config: SyntheticConfig, patient: int, record: int = 0, device: Device | None = None
) -> SyntheticRecord:
    """Record number `record` of patient number `patient` (both from 0); leads in mV and standard order."""
    person = make_person(config, patient)
    rng = np.random.default_rng([config.seed, 4, patient, record])
    n, fs = round(config.seconds * config.fs), config.fs
    times = np.arange(n) / fs
    waves, field = (person.waves, person.lead_field) if record == 0 else _another_day(person, rng)
    rhythm = heart.Rhythm(
        rr=person.rr * float(np.exp(rng.normal(0, 0.05 if record else 0.0))),
        breath_hz=float(rng.uniform(0.18, 0.33)),
        breath_phase=float(rng.uniform(0, 2 * np.pi)),
        sinus_arrhythmia=float(rng.uniform(0.01, 0.06)) * (1.4 - person.age / 90),
        mayer=float(rng.uniform(0.005, 0.025)),
        fibrillation="afib" in person.labels,
        pvc=person.pvc,
        pac=person.pac,
    )
    train = heart.beats(rng, rhythm, config.seconds)
    sources = heart.trajectory(rng, train, waves, times)
    if rhythm.fibrillation:
        sources[:, :3] += heart.flutter_waves(rng, times)
    breath = np.sin(2 * np.pi * rhythm.breath_hz * times + rhythm.breath_phase)
    vcg = _breathe(rng, sources[:, :3], breath)
    clean = vcg @ field.T + sources[:, 3:] @ person.local.T
    noise = _electrode_noise(rng, times, breath, config.noise_mv, device or Device()) @ _ELECTRODES.T
    inside = [b for b in train if 0 <= b.time * fs < n - 0.5]
    return SyntheticRecord(
        name=record_name(patient, record),
        patient=person.name,
        labels=person.labels,
        age=person.age,
        sex=person.sex,
        fs=fs,
        ecg_mv=(clean + noise) @ EXPAND.T,
        clean_mv=clean @ EXPAND.T,
        vcg_mv=vcg,
        lead_field=field,
        r_peaks=np.array([round(b.time * fs) for b in inside], dtype=np.int64),
        beat_kinds=tuple(b.kind for b in inside),
    )


def _breathe(rng: np.random.Generator, vcg: Array, breath: Array) -> Array:
    """vcg [n, 3] swung about one axis (1 to 5 degrees) and scaled (1 to 5 %) with breath [n]."""
    axis: Array = rng.normal(0, 1, 3) * np.array([1.0, 0.5, 1.0])
    axis = axis / np.linalg.norm(axis)
    angle = (np.deg2rad(rng.uniform(1, 5)) * breath)[:, None]
    turned = np.cos(angle) * vcg + np.sin(angle) * np.cross(axis, vcg)
    turned += (1 - np.cos(angle)) * (vcg @ axis)[:, None] * axis
    return turned * (1 + rng.uniform(0.01, 0.05) * breath)[:, None]


def _electrode_noise(
    rng: np.random.Generator, times: Array, breath: Array, noise_mv: float, device: Device
) -> Array:
    """[n, 9] mV at the electrodes: wander, mains, muscle."""
    n, count = len(times), 9
    fs = 1.0 / (times[1] - times[0])
    wander: Array = np.outer(breath, rng.uniform(0, 0.06, count))
    for _ in range(4):
        hz, phase = rng.uniform(0.03, 0.45), rng.uniform(0, 2 * np.pi, count)
        wander += rng.normal(0, 0.035, count) * np.sin(2 * np.pi * hz * times[:, None] + phase)
    mains_hz = device.mains_hz + rng.normal(0, 0.02)
    mains: Array = rng.exponential(0.006) * rng.uniform(0.3, 1.7, count)
    hum = mains * np.sin(2 * np.pi * mains_hz * times[:, None] + rng.uniform(0, 2 * np.pi))
    # Muscle noise: from 15 Hz, no upper border, coming and going. sqrt(2): a lead is a difference of two.
    spectrum = np.fft.rfft(rng.normal(0, 1, (n, count)), axis=0)
    grid = np.fft.rfftfreq(n, 1 / fs)[:, None]
    muscle = np.fft.irfft(spectrum * (0.25 + grid**2 / (grid**2 + 15.0**2)), n=n, axis=0)
    muscle /= muscle.std(axis=0)
    swell = 1 + 0.5 * np.sin(2 * np.pi * rng.uniform(0.05, 0.2) * times + rng.uniform(0, 2 * np.pi))
    level = noise_mv / np.sqrt(2) * np.exp(rng.normal(0, 0.3))
    return device.wander * wander + device.mains * hum + level * swell[:, None] * muscle


def dataset(config: SyntheticConfig) -> Iterator[SyntheticRecord]:
    """Every record, in the order of `record_plan`."""
    for patient, record in record_plan(config):
        yield simulate(config, patient, record)
