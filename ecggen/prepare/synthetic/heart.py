"""The synthetic heart: a dipole trajectory as a sum of Gaussians, and the rhythm that drives it. NumPy only.

Frank axes, mV: +x left, +y inferior, +z posterior. Times are in seconds from the middle of the QRS complex;
those after the QRS scale with the square root of the RR interval (Bazett 1920). The sum-of-Gaussians idea is
McSharry et al., IEEE Trans Biomed Eng 50 (2003) 289, and Sameni et al., EURASIP J Adv Signal Process (2007)
043407; we depart from them in that every wave is a vector of its own and nothing is integrated: beats are
laid out in time, then summed. Directions of normal and diseased loops follow vectorcardiography textbooks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
P, QRS, T = 0, 1, 2
LOCAL = 3  # sources near the electrodes, seen by some leads only: what no dipole explains
LOCAL_SIZE = 0.13  # of the dipole wave beside them

# (centre s, width s, (x, y, z) mV): right and left atrium; septum, early wall, main, base, outflow tract.
_ATRIA = [(-0.150, 0.019, (0.03, 0.09, -0.040)), (-0.122, 0.021, (0.06, 0.07, 0.045))]
_NORMAL = [
    (-0.028, 0.0075, (-0.15, -0.07, -0.20)),
    (-0.012, 0.0095, (0.48, 0.34, -0.32)),
    (0.002, 0.0100, (0.95, 0.72, 0.18)),
    (0.018, 0.0100, (0.25, 0.15, 0.58)),
    (0.034, 0.0085, (-0.14, -0.08, 0.20)),
]
# Left bundle branch block: no septal q, then a slow way through muscle to the left and back.
_LBBB = [
    (-0.048, 0.0120, (0.20, 0.10, -0.10)),
    (-0.022, 0.0150, (0.68, 0.34, 0.30)),
    (0.012, 0.0170, (0.45, 0.22, 0.72)),
    (0.046, 0.0150, (0.62, 0.16, 0.62)),
    (0.074, 0.0130, (0.18, 0.02, 0.22)),
]
# Right bundle branch block: the right ventricle comes last, to the right and to the front.
_RIGHT_LATE = [(0.046, 0.0130, (-0.28, 0.03, -0.30)), (0.072, 0.0140, (-0.34, -0.02, -0.46))]
_T_NORMAL = np.array([0.27, 0.19, -0.19])


@dataclass(frozen=True)
class Waves:
    """Gaussians of one kind of beat: centre [G] s, width [G] s, vector [G, 3 + LOCAL] mV, kind [G]."""

    centre: Array
    width: Array
    vector: Array
    kind: NDArray[np.int64]

    def without(self, kind: int) -> Waves:
        keep = self.kind != kind
        return Waves(self.centre[keep], self.width[keep], self.vector[keep], self.kind[keep])


@dataclass(frozen=True)
class Beat:
    """A beat at `time` s; rr: interval before it in s; kind: sinus, pac or pvc."""

    time: float
    rr: float
    kind: str = "sinus"


@dataclass(frozen=True)
class Rhythm:
    """Heart rate and what disturbs it; times in s, frequencies in Hz."""

    rr: float
    breath_hz: float
    breath_phase: float
    sinus_arrhythmia: float
    mayer: float
    fibrillation: bool
    pvc: float
    pac: float


def rotation(vector: Array) -> Array:
    """[3, 3] rotation about `vector` [3] by its length in radians (Rodrigues)."""
    angle = float(np.linalg.norm(vector))
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = vector / angle
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * (k @ k)


def sinus_waves(rng: np.random.Generator, labels: Sequence[str]) -> Waves:
    """The beat of one person with these diagnoses: shape, axis, amplitudes and timing of their own."""
    atria = [(c, w, np.array(v)) for c, w, v in _ATRIA]
    qrs = [(c, w, np.array(v)) for c, w, v in (_LBBB if "lbbb" in labels else _NORMAL)]
    site = rng.choice(["inferior", "anterior"])
    acute = bool(rng.random() < 0.4)
    strength = rng.uniform(0.75, 1.25)
    if "rbbb" in labels:
        qrs = [*qrs[:-1], *((c, w, strength * np.array(v)) for c, w, v in _RIGHT_LATE)]
        qrs[3][2][2] *= 0.6
    if "lvh" in labels:
        qrs = [(c * 1.1, w * 1.1, v * (1 + strength * np.array([0.60, 0.15, 0.60]))) for c, w, v in qrs]
    if "mi" in labels:
        qrs = _infarct(qrs, str(site), float(strength))
    st, t_wave = _repolarisation(labels, str(site), acute, float(strength), rng)
    # A T wave climbs slowly and falls faster: two Gaussians, the later one narrower.
    late = [
        (0.105, 0.030, st),
        (0.155, 0.032, 0.6 * st),
        (0.215, 0.048, 0.50 * t_wave),
        (0.262, 0.031, 0.72 * t_wave),
    ]
    return _vary(rng, [(atria, P), (qrs, QRS), (late, T)])


def _infarct(
    qrs: list[tuple[float, float, Array]], site: str, strength: float
) -> list[tuple[float, float, Array]]:
    """Dead muscle takes its early forces away: Q waves where the wall was (inferior: -y, anterior: +z)."""
    out = [(c, w, v.copy()) for c, w, v in qrs]
    first, second, main = (vector for _, _, vector in out[:3])
    if site == "inferior":
        first[1] -= 0.16 * strength
        second[1] -= 0.16 * strength
        main[1] *= 0.62
        out.append((-0.026, 0.0120, strength * np.array([0.02, -0.42, -0.03])))
    else:
        first[2] = max(first[2], -0.02)
        second[2] = max(second[2], 0.12)
        main[0] *= 0.72
        out.append((-0.022, 0.0120, strength * np.array([-0.16, 0.02, 0.36])))
    return out


def _repolarisation(
    labels: Sequence[str], site: str, acute: bool, strength: float, rng: np.random.Generator
) -> tuple[Array, Array]:
    """(ST vector, T vector) in mV."""
    st, t_wave = np.array([0.012, 0.008, -0.025]), _T_NORMAL.copy()
    if "rbbb" in labels:
        t_wave = np.array([0.27, 0.17, 0.03])
    if "lvh" in labels and "sttc" in labels:  # strain
        st, t_wave = np.array([-0.09, -0.02, -0.09]) * strength, np.array([-0.22, 0.02, -0.30])
    elif "lvh" in labels:
        st, t_wave = np.array([-0.03, -0.01, -0.06]), np.array([0.12, 0.15, -0.28])
    if "lbbb" in labels:  # discordant
        st, t_wave = np.array([-0.07, -0.03, -0.11]), np.array([-0.24, -0.06, -0.30])
    if "mi" in labels:
        wall = np.array([-0.02, 0.13, 0.05]) if site == "inferior" else np.array([0.06, 0.01, -0.15])
        if acute:
            st, t_wave = st + 1.1 * strength * wall, t_wave + 0.8 * strength * wall
        else:
            t_wave = t_wave - 1.9 * strength * wall
    if "sttc" in labels and "lvh" not in labels:
        if rng.random() < 0.5:  # deep inverted T
            t_wave = np.array([-0.22, -0.12, 0.16]) * strength
        else:  # depressed ST, flat T
            st, t_wave = st + np.array([-0.11, -0.08, 0.07]) * strength, 0.3 * t_wave
    return st, t_wave


def _vary(
    rng: np.random.Generator, groups: Sequence[tuple[Sequence[tuple[float, float, Array]], int]]
) -> Waves:
    """One person's own version of a table: axis, amplitude, widths, timing and local sources."""
    axis = rotation(rng.normal(0, [0.14, 0.17, 0.24]))
    pr = rng.normal(0, 0.013)
    size = np.exp(np.clip(rng.normal(0, 0.16), -0.35, 0.35))
    parts: list[tuple[float, float, Array, int]] = []
    for table, kind in groups:
        turn = rotation(rng.normal(0, 0.12, 3)) @ axis
        gain = size * np.exp(rng.normal(0, 0.12))
        stretch = np.exp(rng.normal(0, 0.06))
        for centre, width, vector in table:
            moved = centre * stretch + (pr if kind == P else 0.0) + rng.normal(0, 0.0012)
            shaped = gain * (turn @ vector) * np.exp(rng.normal(0, 0.10))
            shaped = shaped + 0.08 * np.linalg.norm(vector) * rng.normal(0, 1, 3)
            broad = width * stretch * np.exp(rng.normal(0, 0.06))
            parts.append((moved, broad, np.concatenate([shaped, np.zeros(LOCAL)]), kind))
            # Local sources have waves of their own, near those of the dipole.
            strength = LOCAL_SIZE * np.linalg.norm(shaped) * rng.normal(0, 1, LOCAL)
            aside = moved + 0.7 * width * rng.normal()
            parts.append((aside, 0.8 * broad, np.concatenate([np.zeros(3), strength]), kind))
    return Waves(*(np.array(column) for column in zip(*parts, strict=True)))


def ectopic_waves(rng: np.random.Generator, sinus: Waves) -> dict[str, Waves]:
    """Premature beats of this person: ventricular (wide, no P, discordant T) and atrial (another P)."""
    left_origin = rng.random() < 0.5
    main = np.array([-0.9, 0.5, -0.9]) if left_origin else np.array([0.9, 0.6, 0.8])
    main = rotation(rng.normal(0, 0.3, 3)) @ main * rng.uniform(0.8, 1.15)
    turn = rotation(rng.normal(0, 0.35, 3))
    ventricle = [
        (-0.045, 0.017, 0.45 * turn @ main),
        (-0.005, 0.022, 0.95 * main),
        (0.045, 0.020, 0.55 * turn.T @ main),
        (0.120, 0.035, -0.18 * main),
        (0.260, 0.055, -0.42 * main),
    ]
    pvc = _vary(rng, [(ventricle[:3], QRS), (ventricle[3:], T)])
    vector = sinus.vector.copy()
    vector[sinus.kind == P] *= np.array([0.6, -0.4, 1.3] + [1.0] * LOCAL)
    centre = sinus.centre + 0.02 * (sinus.kind == P)
    return {"sinus": sinus, "pvc": pvc, "pac": replace(sinus, vector=vector, centre=centre)}


def beats(rng: np.random.Generator, rhythm: Rhythm, seconds: float) -> list[Beat]:
    """Beats from before the start to after the end of a record, so that no wave is cut off at its borders.

    Sinus rhythm follows respiration and the 0.1 Hz Mayer wave; fibrillation is irregular without pattern.
    """
    out: list[Beat] = []
    now, previous = -2.0 - float(rng.uniform(0, rhythm.rr)), rhythm.rr
    mayer_phase = float(rng.uniform(0, 2 * np.pi))
    while now < seconds + 1.5:
        out.append(Beat(now, previous))
        if rhythm.fibrillation:
            rr = float(np.clip(rhythm.rr * np.exp(rng.normal(0, 0.20)), 0.36, 1.7))
        else:
            slow = rhythm.sinus_arrhythmia * np.sin(2 * np.pi * rhythm.breath_hz * now + rhythm.breath_phase)
            slow += rhythm.mayer * np.sin(2 * np.pi * 0.1 * now + mayer_phase)
            rr = float(np.clip(rhythm.rr * (1 + slow + rng.normal(0, 0.008)), 0.36, 2.0))
        draw = float(rng.random())
        if draw < rhythm.pvc:
            early = max(0.36, rr * float(rng.uniform(0.52, 0.68)))
            out.append(Beat(now + early, early, "pvc"))
            # The sinus node is not reset: the pause after the beat makes up for its coming early.
            now, previous = now + 2 * rr, 2 * rr - early
        elif draw < rhythm.pvc + rhythm.pac:
            early = max(0.40, rr * float(rng.uniform(0.62, 0.78)))
            out.append(Beat(now + early, early, "pac"))
            now, previous = now + early + 1.08 * rr, 1.08 * rr
        else:
            now, previous = now + rr, rr
    return out


def trajectory(
    rng: np.random.Generator, train: Sequence[Beat], shapes: dict[str, Waves], times: Array
) -> Array:
    """[n, 3 + LOCAL] mV: the sum of all waves of all beats at `times` [n] (equidistant, s).

    Each beat differs a little from the next: amplitudes by 2 %, direction by 1.5 degrees, timing by 1 ms.
    """
    out = np.zeros((len(times), 3 + LOCAL))
    memory = 1.0
    for beat in train:
        waves = shapes[beat.kind]
        # Repolarisation follows the interval with a memory of some beats (QT hysteresis).
        memory = 0.5 * memory + 0.5 * np.sqrt(np.clip(beat.rr, 0.36, 1.5))
        late = waves.kind == T
        scale = np.where(late, memory, 1.0)
        centre = waves.centre * scale + rng.normal(0, 0.001, len(late))
        width = waves.width * scale
        vector = waves.vector * np.exp(rng.normal(0, 0.02, (len(late), 1)))
        vector[:, :3] = vector[:, :3] @ rotation(rng.normal(0, 0.026, 3)).T
        first, last = np.searchsorted(times, [beat.time - 0.40, beat.time + 0.80])
        if first == last:
            continue
        phase = (times[first:last, None] - beat.time - centre) / width
        out[first:last] += np.exp(-0.5 * phase**2) @ vector
    return out


def flutter_waves(rng: np.random.Generator, times: Array) -> Array:
    """[n, 3] mV: fibrillatory waves of the atria, 4.5 to 7.5 Hz with wandering phase, largest towards V1."""
    out = np.zeros((len(times), 3))
    direction = np.array([-0.25, 0.45, -0.75])
    for _ in range(3):
        axis = rotation(rng.normal(0, 0.35, 3)) @ direction
        drift = np.cumsum(rng.normal(0, 0.10, len(times))) * np.sqrt(4e-3)
        phase = 2 * np.pi * (rng.uniform(4.5, 7.5) * times + drift) + rng.uniform(0, 2 * np.pi)
        wave = np.sin(phase) + 0.35 * np.sin(2 * phase + rng.uniform(0, 2 * np.pi))
        out += rng.uniform(0.020, 0.045) * wave[:, None] * axis
    return out
