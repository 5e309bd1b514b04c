"""Methods that render hidden leads, fitted on the training split only, all behind one interface.

None of them reads a lead that is not given. The given leads are returned as they came. Every linear baseline
is fitted from second moments: one pass over the training windows gives the Gram matrix of all leads at all
lags, and the normal equations of any lead set are a block of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike

from ecggen.data.tokenizer import detect_r_peaks_batch
from ecggen.eval.lead_sets import given_only
from ecggen.eval.result import Array, Renderer
from ecggen.leads import DOWER, EXPAND, LEADS
from ecggen.models.beats import offset_to_peak

CHUNK = 128  # training windows per step
RIDGE = 1e-7  # relative to the mean power of the given leads
DOWER_RIDGE = 0.01  # noise variance over dipole variance per axis


def lagged(ecg: Array, context: int) -> Array:
    """[n, C, T] -> [n, C * (2k+1), T], lag -k..k of each channel side by side, edges repeated."""
    n, channels, length = ecg.shape
    if not context:
        return ecg
    padded = np.pad(ecg, ((0, 0), (0, 0), (context, context)), mode="edge")
    view = np.lib.stride_tricks.sliding_window_view(padded, length, axis=2)
    return view.reshape(n, channels * (2 * context + 1), length)


class Moments:
    """Uncentred second moments in mV^2 (the windows are high-passed: no intercept is needed)."""

    def __init__(self, context: int) -> None:
        self.context = context
        self.lags = 2 * context + 1
        self._patterns: dict[bytes, tuple[Array, Array]] = {}

    def add(self, ecg: Array, observed: Array) -> None:
        """ecg [n, 12, T] mV, observed [n, 12] bool."""
        observed = np.asarray(observed, dtype=bool)
        for pattern in np.unique(observed, axis=0):
            rows = np.flatnonzero((observed == pattern).all(axis=1))
            size = len(LEADS) * self.lags
            _, gram = self._patterns.setdefault(pattern.tobytes(), (pattern, np.zeros((size, size))))
            for at in range(0, len(rows), CHUNK):
                block = np.asarray(ecg[rows[at : at + CHUNK]], dtype=np.float64) * pattern[:, None]
                flat = np.ascontiguousarray(lagged(block, self.context).transpose(1, 0, 2)).reshape(size, -1)
                gram += flat @ flat.T

    def gram(self, needed: Array) -> Array:
        """[12 * lags, 12 * lags], summed over windows in which all leads of `needed` [12] were recorded."""
        total = np.zeros((len(LEADS) * self.lags, len(LEADS) * self.lags))
        for pattern, gram in self._patterns.values():
            if pattern[needed].all():
                total += gram
        return total

    def columns(self, leads: ArrayLike, context: int = 0) -> Array:
        """Positions of lags -context..context of the given lead numbers, lead by lead."""
        assert context <= self.context, f"moments hold {self.context} samples of context, not {context}"
        lags = self.context + np.arange(-context, context + 1)
        return (np.asarray(leads)[:, None] * self.lags + lags).reshape(-1)


def ridge_solve(gram: Array, cross: Array, ridge: float) -> Array:
    """Weights [..., F, targets] of (gram + ridge * mean diagonal) w = cross; zero where nothing was seen.

    The tiny ridge makes redundant limb leads harmless; it is relative, so amplitude does not matter.
    """
    size = gram.shape[-1]
    level = np.trace(gram, axis1=-2, axis2=-1)[..., None, None] / size
    return np.linalg.solve(gram + np.maximum(ridge * level, 1e-12) * np.eye(size), cross)


@dataclass
class Training:
    """The training windows: ecg [n, 12, T] mV (may be memory-mapped), rows of it to use, observed [n, 12]."""

    ecg: Array
    rows: Array
    observed: Array
    fs: float
    context: int = 0

    @cached_property
    def moments(self) -> Moments:
        """Second moments with the largest context of any method, computed once."""
        moments = Moments(self.context)
        for at in range(0, len(self.rows), CHUNK):
            rows = self.rows[at : at + CHUNK]
            moments.add(np.asarray(self.ecg[rows]), self.observed[rows])
        return moments


class Method:
    """A way to render twelve leads from some of them."""

    name: str

    def fit(self, training: Training) -> None:
        """Learn from the training split."""

    def prepare(self, given: Array) -> None:
        """Do for one lead set [12] bool what fitting left to do: `predict` reads no training window then."""

    def predict(self, ecg: Array, given: Array) -> Array:
        """ecg [n, 12, T] mV, given [12] bool -> [n, 12, T] float32 mV. Hidden leads are not read."""
        raise NotImplementedError


def _with_given(rendered: Array, ecg: Array, given: Array) -> Array:
    rendered[:, given] = ecg[:, given]
    return rendered


class LinearRegression(Method):
    """Ridge regression of every lead on the given leads at the same sample, or with +-context samples."""

    def __init__(self, context: int = 0) -> None:
        self.name = "linear_regression_context" if context else "linear_regression"
        self.context = context
        self._weights: dict[bytes, Array] = {}

    def fit(self, training: Training) -> None:
        self._moments, self._weights = training.moments, {}

    def prepare(self, given: Array) -> None:
        self.weights(given)

    def weights(self, given: Array) -> Array:
        """[12, given leads * (2k+1)], a target in each row."""
        key = given.tobytes()
        if key not in self._weights:
            leads = np.flatnonzero(given)
            columns = self._moments.columns(leads, self.context)
            out = np.zeros((len(LEADS), len(columns)))
            for target in range(len(LEADS)):
                needed = given | (np.arange(len(LEADS)) == target)
                gram = self._moments.gram(needed)
                cross = gram[np.ix_(columns, self._moments.columns([target]))]
                out[target] = ridge_solve(gram[np.ix_(columns, columns)], cross, RIDGE)[:, 0]
            self._weights[key] = out
        return self._weights[key]

    def predict(self, ecg: Array, given: Array) -> Array:
        inputs = np.asarray(ecg[:, given], dtype=np.float32)
        return _with_given(self.weights(given).astype(np.float32) @ lagged(inputs, self.context), ecg, given)


class DowerLift(Method):
    """Dower's lead field, no fitting: v = A'(A A' + ridge I)^-1 y of the given rows A, leads = Dower v."""

    name = "dower"

    def predict(self, ecg: Array, given: Array) -> Array:
        field = EXPAND @ DOWER
        rows = field[given]
        lift = rows.T @ np.linalg.inv(rows @ rows.T + DOWER_RIDGE * np.eye(len(rows)))
        return _with_given((field @ lift).astype(np.float32) @ ecg[:, given], ecg, given)


class CopyBestLead(Method):
    """Each hidden lead is the given lead that correlates most with it in training, scaled by regression."""

    name = "copy_best_lead"

    def fit(self, training: Training) -> None:
        self._moments = training.moments

    def predict(self, ecg: Array, given: Array) -> Array:
        out = np.zeros(ecg.shape, dtype=np.float32)
        sources = np.flatnonzero(given)
        centre = self._moments.columns(np.arange(len(LEADS)))
        for target in np.flatnonzero(~given):
            needed = given | (np.arange(len(LEADS)) == target)
            gram = self._moments.gram(needed)[np.ix_(centre, centre)]
            power = np.maximum(np.diag(gram), 1e-12)
            likeness = np.abs(gram[sources, target]) / np.sqrt(power[sources] * power[target])
            best = sources[int(likeness.argmax())]
            out[:, target] = ecg[:, best] * np.float32(gram[best, target] / power[best])
        return _with_given(out, ecg, given)


class MeanBeat(Method):
    """The median training beat of each lead at every R-peak, scaled per window by the given leads.

    R-peaks come from the first given lead. A training window gives its mean beat, divided by the RMS of its
    recorded leads; the template is the median over windows. Between beats it falls back to zero.
    """

    name = "mean_beat"
    before_s, after_s = 0.25, 0.5
    max_windows = 20_000

    def fit(self, training: Training) -> None:
        self._training: Training | None = training
        self._fs = training.fs
        self._templates: dict[int, Array] = {}

    def prepare(self, given: Array) -> None:
        self.template(int(np.flatnonzero(given)[0]))

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_training": None}  # a copy for another process holds templates alone

    def template(self, reference: int) -> Array:
        """[12, beat samples], unit RMS, aligned to R-peaks of lead number `reference`."""
        if reference not in self._templates:
            data = self._training
            assert data is not None, f"no template for lead {LEADS[reference]} was prepared"
            rows = data.rows[data.observed[data.rows, reference]]
            rows = rows[:: max(1, -(-len(rows) // self.max_windows))]
            chunks = [rows[at : at + CHUNK] for at in range(0, len(rows), CHUNK)] or [rows]
            beats = [
                self._window_beats(np.asarray(data.ecg[chunk], np.float32), data.observed[chunk], reference)
                for chunk in chunks
            ]
            self._templates[reference] = _nan_median(np.concatenate(beats))
        return self._templates[reference]

    def _window_beats(self, ecg: Array, observed: Array, reference: int) -> Array:
        """[n', 12, span] mean beat of each window over its RMS; NaN where a lead was not recorded."""
        place, inside, size = self._places(ecg[:, reference])
        n, leads, _ = ecg.shape
        cell = (np.arange(n)[:, None] * size + place)[inside]
        count = np.bincount(cell, minlength=n * size).reshape(n, 1, size)
        total = np.empty((n, leads, size))
        for lead in range(leads):
            total[:, lead] = np.bincount(cell, ecg[:, lead][inside], minlength=n * size).reshape(n, size)
        power = (ecg**2 * observed[:, :, None]).mean(axis=2).sum(axis=1) / np.maximum(observed.sum(axis=1), 1)
        beat = total / np.maximum(count, 1) / np.maximum(np.sqrt(power), 1e-9)[:, None, None]
        beat[~observed] = np.nan
        return beat[inside.any(axis=1)].astype(np.float32)

    def _places(self, signal: Array) -> tuple[Array, Array, int]:
        """([n, T] place of each sample in the beat around the nearest R-peak, whether it lies within that
        beat, samples of a beat); signal [n, T] mV."""
        before, after = (max(1, round(s * self._fs)) for s in (self.before_s, self.after_s))
        x = torch.as_tensor(np.ascontiguousarray(signal, dtype=np.float32))
        place = offset_to_peak(*detect_r_peaks_batch(x, self._fs), signal.shape[1]).numpy() + before
        size = before + after
        return np.clip(place, 0, size - 1), (place >= 0) & (place < size), size

    def predict(self, ecg: Array, given: Array) -> Array:
        reference = int(np.flatnonzero(given)[0])
        place, inside, _ = self._places(ecg[:, reference])
        out = self.template(reference)[:, place].transpose(1, 0, 2) * inside[:, None]
        power = (out[:, given] ** 2).sum(axis=(1, 2))
        gain = (out[:, given] * ecg[:, given]).sum(axis=(1, 2)) / np.maximum(power, 1e-12)
        return _with_given(out * np.maximum(gain, 0).astype(np.float32)[:, None, None], ecg, given)


def _nan_median(beats: Array) -> Array:
    """Median over the first axis without NaN; zero where nothing is left."""
    out = np.zeros(beats.shape[1:], dtype=np.float32)
    for lead in range(beats.shape[1]):
        good = beats[np.isfinite(beats[:, lead, 0]), lead]
        if len(good):
            out[lead] = np.median(good, axis=0)
    return out


class ModelMethod(Method):
    """The model under test."""

    name = "model"

    def __init__(self, renderer: Renderer, batch_size: int) -> None:
        self.renderer, self.batch_size = renderer, batch_size

    def predict(self, ecg: Array, given: Array) -> Array:
        out = self.renderer.render_windows(given_only(ecg, given), given, batch_size=self.batch_size)
        return np.asarray(out["leads"])


class ClosedFormMethod(Method):
    """The model's own regularised least-squares lift, without network and inner steps."""

    name = "closed_form"

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer

    def predict(self, ecg: Array, given: Array) -> Array:
        return np.asarray(self.renderer.closed_form_windows(given_only(ecg, given), given))


def baselines(context: int) -> list[Method]:
    """Every baseline; linear regression with context only where context is positive."""
    regressions = [LinearRegression(k) for k in dict.fromkeys((0, context))]
    return [*regressions, DowerLift(), CopyBestLead(), MeanBeat()]
