"""The rendered VCG against measured Frank leads, beside Kors and inverse Dower, without any fitting.

Kors and inverse Dower need all eight independent leads; the model is also scored from fewer.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from ecggen.data.tokenizer import detect_r_peaks
from ecggen.eval.bootstrap import PatientBootstrap
from ecggen.eval.lead_sets import LeadSet, given_only, named_sets
from ecggen.eval.metrics import nanmean, nanmedian, score_leads
from ecggen.eval.result import Array, FolderLike, RendererLike, Rows, sampling_rate
from ecggen.leads import INDEPENDENT_INDEX, INVERSE_DOWER, KORS, LEADS

VCG_COLUMNS = (
    "split",
    "method",
    "lead_set",
    "axis",
    "r",
    "r_low",
    "r_high",
    "rmse_mv",
    "n_windows",
    "n_patients",
)
LOOP_COLUMNS = ("split", "source", "closure_median", "closure_mean", "n_beats", "n_windows")
AXES = ("x", "y", "z")
VCG_SETS = ("I+II+V2", "I+II+V1+V4")


def matrix_vcg(matrix: Array, ecg: Array) -> Array:
    """[3, 8] @ independent leads of ecg [n, 12, T] -> [n, 3, T] mV."""
    return (matrix.astype(np.float32) @ ecg[:, list(INDEPENDENT_INDEX)]).astype(np.float32)


def vcg_scores(
    renderer: RendererLike,
    folder: FolderLike,
    *,
    splits: Sequence[str] = ("validation", "test"),
    batch_size: int = 128,
    bootstrap: int = 500,
    seed: int = 0,
) -> Rows:
    """Rows of the table `vcg`; none where the folder holds no Frank leads.

    `splits` may hold "train" or "all": a database that the model was not trained on is judged as a whole.
    """
    if folder.frank is None:
        return []
    out: Rows = []
    sets = [LeadSet("all", np.ones(len(LEADS), dtype=bool)), *named_sets(VCG_SETS)]
    for split in splits:
        rows = np.asarray(folder.rows(split), dtype=np.int64)
        if not len(rows):
            continue
        truth = np.asarray(folder.frank[rows], dtype=np.float32)
        observed = np.asarray(folder.observed[rows], dtype=bool)
        ecg = given_only(np.asarray(folder.windows[rows]), observed)
        complete: Array = np.asarray(observed[:, list(INDEPENDENT_INDEX)].all(axis=1))
        patients = np.asarray(folder.patient, dtype=str)[rows].tolist()
        draws = PatientBootstrap(patients, bootstrap, seed)
        rendered: list[tuple[str, str, Array, Array]] = [
            ("kors", "all", matrix_vcg(KORS, ecg), complete),
            ("inverse_dower", "all", matrix_vcg(INVERSE_DOWER, ecg), complete),
        ]
        for leads in sets:
            use = leads.usable(observed)
            made = np.zeros_like(truth)
            if use.any():
                shown = given_only(ecg[use], leads.mask)
                made[use] = renderer.render_windows(shown, leads.mask, batch_size=batch_size)["vcg"]
            rendered.append(("model", leads.name, made, use))
        for method, name, made, use in rendered:
            out += _axis_rows(split, method, name, truth, made, use, draws)
    return out


def _axis_rows(
    split: str, method: str, lead_set: str, truth: Array, made: Array, use: Array, draws: PatientBootstrap
) -> Rows:
    scores = score_leads(truth, made, np.repeat(use[:, None], 3, axis=1))
    out: Rows = []
    for axis, name in [*enumerate(AXES), (None, "mean")]:
        keep = slice(None) if axis is None else slice(axis, axis + 1)
        r, low, high = draws.mean(scores.r[:, keep])
        out.append(
            {
                "split": split,
                "method": method,
                "lead_set": lead_set,
                "axis": name,
                "r": r,
                "r_low": low,
                "r_high": high,
                "rmse_mv": nanmean(scores.rmse[:, keep]),
                "n_windows": int(use.sum()),
                "n_patients": draws.patients_in(use),
            }
        )
    return out


def loop_closure(vcg: Array, reference: Array, fs: float) -> tuple[list[float], int]:
    """How far a beat's loop is from closed: |v(end) - v(start)| over the loop's largest |v|, per beat.

    vcg [n, 3, T] mV, reference [n, T] the signal whose R-peaks cut the beats midway. Returns the closures and
    the number of windows with at least one whole beat.
    """
    closures: list[float] = []
    windows = 0
    for loop, signal in zip(vcg, reference, strict=True):
        peaks = np.asarray(detect_r_peaks(signal, fs), dtype=np.int64)
        borders = (peaks[1:] + peaks[:-1]) // 2
        before = len(closures)
        for start, stop in itertools.pairwise(borders):
            size = np.linalg.norm(loop[:, start : stop + 1], axis=0).max()
            if size > 1e-6:
                closures.append(float(np.linalg.norm(loop[:, stop] - loop[:, start]) / size))
        windows += len(closures) > before
    return closures, windows


def closure_rows(
    split: str, sources: dict[str, Array], ecg: Array, observed: Array, folder: FolderLike
) -> Rows:
    """Rows of the table `closed_loop`; R-peaks from lead II, or else from the first recorded lead."""
    reference = np.array(
        [x[1] if seen[1] else x[int(seen.argmax())] for x, seen in zip(ecg, observed, strict=True)]
    )
    out: Rows = []
    for source, vcg in sources.items():
        values, windows = loop_closure(vcg, reference, sampling_rate(folder))
        out.append(
            {
                "split": split,
                "source": source,
                "closure_median": nanmedian(np.asarray(values)),
                "closure_mean": nanmean(np.asarray(values)),
                "n_beats": len(values),
                "n_windows": windows,
            }
        )
    return out
