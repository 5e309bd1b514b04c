"""Swapped electrodes and inverted leads, from the shape of the median beat.

A swap of limb electrodes permutes RA, LA and LL: (I, II) become a fixed linear combination of themselves
(Einthoven), and the precordial leads stay, because Wilson's terminal is the mean of the three. A swap of
precordial electrodes permutes V leads; an inverted lead changes sign. Each is a hypothesis, a matrix [8, 8]
on the independent leads with determinant +-1, so that densities can be compared directly: the fault is undone
in the recorded beat, and the hypothesis whose beat is the likeliest is the likeliest one. That leads predict
each other is the basis of Kors & van Herpen, J Electrocardiol 34 Suppl (2001) 147 (leads reconstructed from
the others under each hypothesis) and of Heden et al., Am J Cardiol 78 (1996) 600; P wave and QRS together
tell LA-LL, as in Abdollah & Milliken, Am J Cardiol 80 (1997) 1247. We depart from them: instead of a
regression per lead, one multivariate Student t density of the whole beat (eight leads times K shapes in
time), whose scale matrix holds all regressions at once, heavy-tailed so that an unusual heart is not a
wrong one.

Shapes, mean and covariance are in beat_model.json, fitted by benchmarks/beat_model.py to PTB-XL 1.0.3
(Wagner et al. 2020, CC BY 4.0), folds 1 to 7; benchmarks/quality.py swaps electrodes of other records. A swap
with the right leg leaves one limb lead nearly flat, because both legs have one potential; a lead that is
small because the heart's axis is perpendicular to it follows from the other leads, which noise does not.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ecggen.data.quality.noise import Bands, median, quantile
from ecggen.leads import EXPAND, INDEPENDENT, INDEPENDENT_INDEX, LEADS

Array = NDArray[np.float64]

BEFORE, AFTER = 28, 48  # samples at 100 Hz of a beat before and after its R-peak
MIN_BEATS = 4
_SEGMENT = 6000  # samples, a minute: a long recording is checked in parts
_OPPOSITE = -0.5  # cosine at or below which a lead points the other way
_MIN_RMS_MV = 0.02  # a beat smaller than this is none
_LEG_SHARE = 0.09  # RMS of a flat limb lead, of the largest; the least of 2,677 PTB-XL records is .10
_LEG_EXPLAINED = 0.7  # of its energy at most follows from the precordial leads
_MIN_CHEST = 5  # precordial leads that a check needs
_SMOOTH, _REFRACTORY, _SHARE, _LARGE = 5, 25, 0.4, 0.98  # samples, samples, share of this quantile


def _hypotheses() -> dict[str, Array]:
    out: dict[str, Array] = {}
    # Electrodes (0 = RA, 1 = LA, 2 = LL) on which the cables RA, LA, LL hang; the last two are rotations.
    limb = {"RA-LA": (1, 0, 2), "RA-LL": (2, 1, 0), "LA-LL": (0, 2, 1)}
    limb |= {"LA-LL-RA": (1, 2, 0), "LL-RA-LA": (2, 0, 1)}
    potentials = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # of them by (I, II), with RA as zero
    for name, electrodes in limb.items():
        out[f"swap:{name}"] = np.eye(8)
        out[f"swap:{name}"][:2, :2] = np.array([[-1.0, 1, 0], [-1, 0, 1]]) @ potentials[list(electrodes)]
    for a, b in ((1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (1, 3)):
        order = list(range(8))
        order[a + 1], order[b + 1] = order[b + 1], order[a + 1]
        out[f"swap:V{a}-V{b}"] = np.eye(8)[order]
    for row in range(2, 8):
        out[f"polarity:{INDEPENDENT[row]}"] = np.diag([-1.0 if i == row else 1.0 for i in range(8)])
    return out


#: Word -> [8, 8]: recorded independent leads = matrix @ true ones.
HYPOTHESES: dict[str, Array] = _hypotheses()
_MOVED = {word: (matrix != np.eye(8)).any(axis=1) for word, matrix in HYPOTHESES.items()}
_UNDO = {word: np.linalg.inv(matrix) for word, matrix in HYPOTHESES.items()}
#: Limb lead that a swap with the right leg leaves flat -> the electrodes.
LEG_SWAPS = {"II": "RA-RL", "III": "LA-RL", "I": "RA-RL+LA-LL"}


@dataclass(frozen=True)
class BeatModel:
    """Student t density of the beat [8, T] divided by its RMS.

    basis [T, K] shapes in time; mean [8 K]; covariance [8 K, 8 K]; freedom: degrees of freedom; typical: the
    squared Mahalanobis distance up to which a beat counts as one that the model knows.
    """

    basis: Array
    mean: Array
    covariance: Array
    freedom: float
    typical: float
    _inverses: dict[bytes, Array] = field(default_factory=dict, repr=False, compare=False)

    def coefficients(self, beats: Array) -> Array:
        """[n, 8, K] of beats [n, 8, T] in mV."""
        rms = np.sqrt((beats**2).mean(axis=(1, 2), keepdims=True))
        return np.asarray(beats / np.maximum(rms, 1e-9) @ self.basis)

    def distance(self, coefficients: Array, keep: NDArray[np.bool_] | None = None) -> Array:
        """[n] squared Mahalanobis distance of [n, 8, K]; keep [8] = the leads that count."""
        keep = np.ones(8, dtype=bool) if keep is None else keep
        rows = np.repeat(keep, self.basis.shape[1])
        away = coefficients.reshape(len(coefficients), -1)[:, rows] - self.mean[rows]
        if (inverse := self._inverses.get(keep.tobytes())) is None:
            inverse = np.asarray(np.linalg.inv(self.covariance[np.ix_(rows, rows)]), np.float64)
            self._inverses[keep.tobytes()] = inverse
        return np.asarray((away @ inverse * away).sum(axis=1))

    def likeness(self, coefficients: Array, row: int, keep: NDArray[np.bool_]) -> float:
        """Cosine between lead `row` of [8, K] and its expectation given the other leads in keep [8]."""
        others = keep & (np.arange(8) != row)
        known, this = (np.repeat(mask, self.basis.shape[1]) for mask in (others, np.arange(8) == row))
        away = coefficients.reshape(-1)[known] - self.mean[known]
        weights = np.linalg.solve(self.covariance[np.ix_(known, known)], away)
        expected = self.mean[this] + self.covariance[np.ix_(this, known)] @ weights
        size = float(np.linalg.norm(expected) * np.linalg.norm(coefficients[row]))
        return float(expected @ coefficients[row]) / max(size, 1e-12)

    def evidence(
        self, coefficients: Array, keep: NDArray[np.bool_] | None = None
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Log likelihood ratio of each hypothesis against none, and the distance under it; [n] each.

        The word "" is no fault. A hypothesis that moves a lead that is not in keep [8] is left out.
        """
        keep = np.ones(8, dtype=bool) if keep is None else keep
        size = int(keep.sum()) * self.basis.shape[1]
        words = [word for word, rows in _MOVED.items() if keep[rows].all()]
        undone = np.stack([np.eye(8), *(_UNDO[word] for word in words)])[:, None] @ coefficients
        distances = self.distance(undone.reshape(-1, *undone.shape[2:]), keep).reshape(len(undone), -1)
        away = dict(zip(("", *words), distances, strict=True))
        log = {word: -(self.freedom + size) / 2 * np.log1p(d / self.freedom) for word, d in away.items()}
        return {word: value - log[""] for word, value in log.items() if word}, away


@functools.cache
def load_model() -> BeatModel:
    """The model that travels with the package."""
    table = json.loads(Path(__file__).with_name("beat_model.json").read_text(encoding="utf-8"))
    size = len(table["mean"])
    covariance = np.zeros((size, size))
    covariance[np.tril_indices(size)] = table["covariance"]
    covariance += np.tril(covariance, -1).T
    basis, mean = np.array(table["basis"]), np.array(table["mean"])
    return BeatModel(basis, mean, covariance, freedom=table["freedom"], typical=table["typical"])


def median_beat(band: Array, qrs: Array, usable: NDArray[np.bool_]) -> Array | None:
    """[12, T] mV: median over the beats of band [12, n] (BEAT_BAND, 100 Hz); None with too few beats.

    Beats are found once for all leads, on the median over leads of the magnitude in the QRS band (qrs
    [12, n]), each lead on its own scale, so that neither a noisy nor an inverted lead moves them.
    """
    if band.shape[1] < (BEFORE + AFTER) * 2 or not usable.any():
        return None
    rapid = np.abs(qrs[usable])
    scale = np.maximum(quantile(rapid, _LARGE), 1e-6)[:, None]
    peaks = _beats(median(np.minimum(rapid / scale, 1.5), axis=0))
    peaks = peaks[(peaks >= BEFORE) & (peaks < band.shape[1] - AFTER)]
    if len(peaks) < MIN_BEATS:
        return None
    beats = band[:, peaks[:, None] + np.arange(-BEFORE, AFTER)]
    return median(beats, axis=1)


def _beats(envelope: Array) -> NDArray[np.int64]:
    """Positions of the beats in the envelope [n] of all leads at 100 Hz.

    The largest value within a refractory time on both sides, and at least a share of the large ones: simpler
    than ecggen.data.rpeaks, whose single lead is the harder task, and without torch.
    """
    smooth = np.convolve(envelope, np.full(_SMOOTH, 1 / _SMOOTH), mode="same")
    around = np.lib.stride_tricks.sliding_window_view(np.pad(smooth, _REFRACTORY), 2 * _REFRACTORY + 1)
    peaks = np.flatnonzero((smooth >= around.max(axis=1)) & (smooth > _SHARE * quantile(smooth, _LARGE)))
    return peaks[np.diff(peaks, prepend=-_REFRACTORY) >= _REFRACTORY]


def lasting_faults(bands: Bands, usable: NDArray[np.bool_], least: float) -> list[str]:
    """polarity:<lead> and swap:<electrodes> of a recording: what holds in most of its minutes.

    An inverted limb lead is set right before swaps are looked for. A minute without enough beats does not
    count. least: evidence that a fault needs (PreprocessConfig.swap_evidence).
    """
    if usable[6:].sum() < _MIN_CHEST and usable[:6].sum() < 3:
        return []
    minutes = max(1, round(bands.n / _SEGMENT))
    counts: Counter[str] = Counter()
    checked = 0
    for part, qrs in zip(*(np.array_split(x, minutes, axis=1) for x in (bands.beat, bands.qrs)), strict=True):
        beat = median_beat(part, qrs, usable)
        if beat is None:
            continue
        checked += 1
        inverted = inverted_limb_lead(part, usable)
        if inverted:
            counts[f"polarity:{inverted}"] += 1
            beat[LEADS.index(inverted)] *= -1
        counts.update(filter(None, [electrode_fault(beat, usable, least)]))
    return sorted(word for word, count in counts.items() if 2 * count > checked)


def inverted_limb_lead(band: Array, usable: NDArray[np.bool_]) -> str | None:
    """The limb lead of band [12, n] whose negation mends the limb-lead algebra, or None.

    What is left of the observed limb leads after their least-squares fit by (I, II) must hold 0.2 % of their
    energy or more, and less than a twentieth of that with this lead negated.
    """
    limb = np.flatnonzero(usable[:6])
    if len(limb) < 3:
        return None
    away = np.eye(len(limb)) - EXPAND[limb, :2] @ _fit(tuple(limb))
    before = float(((away @ band[limb]) ** 2).sum())
    if before < 0.002 * float((band[limb] ** 2).sum()):
        return None
    signs = 1.0 - 2.0 * np.eye(len(limb))
    after = [float(((away @ (row[:, None] * band[limb])) ** 2).sum()) for row in signs]
    best = int(np.argmin(after))
    return LEADS[limb[best]] if after[best] < 0.05 * before else None


@functools.cache
def _fit(limb: tuple[int, ...]) -> Array:
    """[2, k] least-squares fit of (I, II) to these limb leads."""
    return np.asarray(np.linalg.pinv(EXPAND[list(limb), :2]), dtype=np.float64)


def electrode_fault(beat: Array, usable: NDArray[np.bool_], least: float) -> str | None:
    """The word for beat [12, T] in mV: a swap, or an inverted precordial lead; None where nothing is wrong.

    The likeliest hypothesis is named if its log likelihood ratio against no fault is `least` or more and the
    beat, undone, is one that the model knows: an unusual heart (extreme axis, dextrocardia, pacing) is
    unusual either way.
    """
    limb = np.flatnonzero(usable[:6])
    if len(limb) < 2:
        return None
    i_ii = _fit(tuple(limb)) @ beat[limb]
    electrodes = flat_by_leg(i_ii, beat[6:][usable[6:]])
    if electrodes:
        return f"swap:{electrodes}"
    keep = np.ones(8, dtype=bool)
    keep[2:] = usable[list(INDEPENDENT_INDEX[2:])]
    eight = np.concatenate([i_ii, beat[list(INDEPENDENT_INDEX[2:])]])
    if keep[2:].sum() < _MIN_CHEST or np.sqrt((eight[keep] ** 2).mean()) < _MIN_RMS_MV:
        return None
    word, evidence, distance = likeliest_fault(eight, keep)
    return word if evidence >= least and distance <= load_model().typical else None


def likeliest_fault(eight: Array, keep: NDArray[np.bool_] | None = None) -> tuple[str, float, float]:
    """(word, its log likelihood ratio against no fault, distance of the beat with the fault undone).

    eight [8, T] mV: beat of the independent leads; keep [8]: those that are there.
    """
    model = load_model()
    keep = np.ones(8, dtype=bool) if keep is None else keep
    share = np.sqrt(8 / keep.sum())  # the RMS is that of the leads that are there
    coefficients = model.coefficients(np.where(keep[:, None], eight, 0.0)[None]) / share
    evidence, distances = model.evidence(coefficients, keep)
    word = max(evidence, key=lambda word: float(evidence[word][0]))
    flag, _, lead = word.partition(":")
    # A lead that is merely strange may also be a little likelier upside down: it must point the other way.
    if flag == "polarity" and model.likeness(coefficients[0], INDEPENDENT.index(lead), keep) > _OPPOSITE:
        return word, -np.inf, float(distances[word][0])
    return word, float(evidence[word][0]), float(distances[word][0])


def flat_by_leg(i_ii: Array, chest: Array) -> str | None:
    """Electrodes swapped with the right leg: one limb lead of the beat is flat, and what is left is noise.

    i_ii [2, T] mV: leads I and II of the beat; chest [k, T] mV: its precordial leads.
    """
    three = EXPAND[:3, :2] @ i_ii
    rms = np.sqrt((three**2).mean(axis=1))
    least = int(np.argmin(rms))
    if rms.max() <= _MIN_RMS_MV or rms[least] >= _LEG_SHARE * rms.max():
        return None
    weights = np.linalg.lstsq(chest.T, three[least], rcond=None)[0]
    rest = three[least] - weights @ chest
    explained = 1 - (rest**2).sum() / max(float((three[least] ** 2).sum()), 1e-12)
    return LEG_SWAPS[LEADS[least]] if explained < _LEG_EXPLAINED else None
