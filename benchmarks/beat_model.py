"""Fit the beat model with which electrode swaps and inverted leads are found: ecggen/data/quality.

    python benchmarks/beat_model.py [DATA] [--out ecggen/data/quality/beat_model.json]

DATA holds ptbxl/ (default ../shared/data). Only folds 1-7 are used. Beats that the fit itself finds unusual
(the outermost 2 % by distance, four rounds) do not shape the density, since real swaps are among them. What
is printed comes from cross-validation over the seven folds: the evidence for each fault in records that are
mostly right, and the distance that all but `TAIL` of them stay below ("typical", which is stored).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from common import DATA, ROOT, options, ptbxl_beats

import numpy as np

from ecggen.data.quality.electrodes import BEFORE, HYPOTHESES, BeatModel
from ecggen.leads import INDEPENDENT_INDEX
from ecggen.utils.files import write_text

FOLDS = range(1, 8)
SHAPES = 8  # K, shapes in time
FREEDOM = 40.0  # degrees of freedom of the t density
P_WEIGHT = 4.0  # the P wave is small and tells the most about the arms
TAIL = 0.05
SHRINK = 0.03


def fit(beats: np.ndarray, typical: float = np.inf) -> BeatModel:
    """The density of beats [n, 8, T] in mV."""
    shape = beats / np.sqrt((beats**2).mean(axis=(1, 2), keepdims=True))
    weight = np.ones(beats.shape[2])
    weight[: BEFORE - 10] = P_WEIGHT
    lines = (shape * weight).reshape(-1, beats.shape[2])
    basis = weight[:, None] * np.linalg.eigh(lines.T @ lines)[1][:, ::-1][:, :SHAPES]
    basis *= np.sign(basis[np.abs(basis).argmax(axis=0), np.arange(SHAPES)])
    flat = (shape @ basis).reshape(len(shape), -1)
    good = np.ones(len(flat), dtype=bool)
    for _ in range(4):
        mean, covariance = flat[good].mean(axis=0), np.cov(flat[good].T)
        variance = np.diag(covariance)
        covariance = covariance + SHRINK * np.diag(variance) + 0.002 * variance.mean() * np.eye(len(variance))
        away = flat - mean
        distance = (away.T * np.linalg.solve(covariance, away.T)).sum(axis=0)
        good = distance < np.quantile(distance, 0.98)
    return BeatModel(basis, mean, covariance, FREEDOM, typical)


def cross_validated(beats: np.ndarray, numbers: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Evidence of each hypothesis [n] and distance [n] of every beat under a model of the other folds."""
    evidence = {word: np.zeros(len(beats)) for word in HYPOTHESES}
    distance = np.zeros(len(beats))
    for number in np.unique(numbers):
        out = numbers == number
        model = fit(beats[~out])
        ratios, away = model.evidence(model.coefficients(beats[out]))
        for word, value in ratios.items():
            evidence[word][out] = value
        distance[out] = away[""]
    return evidence, distance


def main() -> int:
    """Fit, cross-validate, write."""
    parser = options(__doc__)
    parser.add_argument("data", nargs="?", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, default=ROOT / "ecggen/data/quality/beat_model.json")
    given = parser.parse_args()
    twelve, numbers, _ = ptbxl_beats(given.data, FOLDS)
    beats = twelve[:, list(INDEPENDENT_INDEX)]
    evidence, distance = cross_validated(beats, numbers)
    typical = float(np.quantile(distance, 1 - TAIL))
    model = fit(beats)
    lower = model.covariance[np.tril_indices(len(model.mean))]
    table = {
        "made_by": f"python benchmarks/beat_model.py: {len(beats)} PTB-XL records of folds 1-7 "
        "(Wagner et al. 2020, CC BY 4.0)",
        "freedom": FREEDOM,
        "typical": round(typical, 1),
        "basis": [[float(f"{x:.4g}") for x in line] for line in model.basis],
        "mean": [float(f"{x:.4g}") for x in model.mean],
        "covariance": [float(f"{x:.4g}") for x in lower],
    }
    write_text(given.out, json.dumps(table) + "\n")
    print(f"{table['made_by']}\ntypical: {typical:.1f}")
    print("log likelihood ratio: .98, .99, .995, .998 quantile over records | the four largest")
    for word, ratios in evidence.items():
        shares = " ".join(f"{x:7.1f}" for x in np.quantile(ratios, [0.98, 0.99, 0.995, 0.998]))
        print(f"{word:<16}{shares} | {' '.join(f'{x:.1f}' for x in np.sort(ratios)[-4:])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
