"""The quality flags against what people saw, against noise of known power, and against swaps made by algebra.

    python benchmarks/quality.py [DATA] [--part seen|added|electrodes]

DATA holds ptbxl/ (default ../shared/data). Limits and beat model were chosen on folds 1-7; all that is
printed is measured on folds 9 and 10.

seen: PTB-XL's own columns static_noise, burst_noise and baseline_drift name leads in free text ("I-AVR",
"alles", "V1,V2"); AUROC of each index over leads, and the shares that the default limits flag. Text that
names no lead ("noisy recording") leaves the record out. added: to leads I, V2 and V5 of records in which
nobody saw noise, at a signal-to-noise ratio as the Noise Stress Test Database has it (Moody et al., Comput
Cardiol 11 (1984) 381): signal = (peak to peak of the QRS)^2 / 8, noise = mean square. Spectra: muscle flat
from 15 to 50 Hz; motion falling with 1/f from 0.5 to 10 Hz, in episodes; wander falling with 1/f from 0.05 to
0.5 Hz; mains 49.5 Hz. electrodes: each fault made in every record, and what is flagged as recorded.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

from common import DATA, options, ptbxl_beats

import numpy as np
from sklearn.metrics import roc_auc_score

from ecggen.data.quality.electrodes import HYPOTHESES, electrode_fault, median_beat
from ecggen.data.quality.noise import bands_at_100, noise_excess, noise_level
from ecggen.io.records import read_record
from ecggen.leads import DOWER, EXPAND, INDEPENDENT_INDEX, LEADS
from ecggen.utils.config import PreprocessConfig
from ecggen.utils.files import read_csv

FS, N = 100.0, 1000
ALL = np.ones(12, dtype=bool)
CONFIG = PreprocessConfig()
COLUMNS = ("static_noise", "burst_noise", "baseline_drift")
_UPPER = [name.upper() for name in LEADS]


def named_leads(text: str) -> np.ndarray | None:
    """[12] bool of the leads that PTB-XL's free text names; None where it says something else."""
    text = text.upper()
    if not text.strip():
        return np.zeros(12, dtype=bool)
    if "ALLES" in text:
        return np.ones(12, dtype=bool)
    leads, last, through = np.zeros(12, dtype=bool), -1, False
    for word in re.findall(r"AV[RLF]|\bV?[1-6]\b|\bI{1,3}\b|-", text):
        if word == "-":
            through = True
            continue
        name = f"V{word}" if word.isdigit() else word
        at = _UPPER.index(name)
        leads[last if through and last >= 0 else at : at + 1] = True
        last, through = at, False
    return leads if leads.any() else None


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve; NaN with one class alone."""
    positive = positive.ravel()
    return float(roc_auc_score(positive, score.ravel())) if 0 < positive.mean() < 1 else float("nan")


def indices(ecg: np.ndarray) -> dict[str, np.ndarray]:
    """Index -> [12] of a recording [12, n] at 100 Hz; higher is worse."""
    ecg = ecg - np.median(ecg, axis=1, keepdims=True)
    power = np.abs(np.fft.rfft((ecg - ecg.mean(axis=1, keepdims=True)) * np.hanning(ecg.shape[1]))) ** 2
    hertz = np.fft.rfftfreq(ecg.shape[1], 1 / FS)

    def band(low: float, high: float) -> np.ndarray:
        return np.asarray(power[:, (hertz >= low) & (hertz < high)].sum(axis=1) + 1e-12)

    unit = (ecg - ecg.mean(axis=1, keepdims=True)) / (ecg.std(axis=1, keepdims=True) + 1e-9)
    bands = bands_at_100(ecg)
    level, excess = noise_level(bands.level).max(axis=1), noise_excess(bands.excess, ALL).max(axis=1)
    return {
        "level (ours)": level,
        "excess (ours)": excess,
        "flag (ours)": np.maximum(level / CONFIG.max_noise_mv, excess / CONFIG.max_motion_mv),
        "pSQI": -band(5, 15) / band(5, 40),
        "basSQI": -(1 - band(0, 1) / band(0, 40)),
        "kSQI": -(unit**4).mean(axis=1),
        "sSQI": -np.abs((unit**3).mean(axis=1)),
        "standard deviation": ecg.std(axis=1),
    }


def read_records(root: Path) -> tuple[np.ndarray, list[dict[str, str]]]:
    """PTB-XL's 100 Hz records of folds 9 and 10: [n, 12, 1000] mV, rows of the table."""
    rows = [r for r in read_csv(root / "ptbxl" / "ptbxl_database.csv") if int(r["strat_fold"]) >= 9]
    return np.stack([np.nan_to_num(read_record(root / "ptbxl" / r["filename_lr"]).ecg) for r in rows]), rows


def seen(ecgs: np.ndarray, rows: list[dict[str, str]]) -> None:
    """AUROC over leads against the human columns, and what the default limits flag."""
    each = [indices(ecg) for ecg in ecgs]
    scores = {name: np.stack([one[name] for one in each]) for name in each[0]}
    flagged = scores["flag (ours)"] > 1
    print(f"{'AUROC over leads':<22}" + "".join(f"{c:>16}" for c in COLUMNS))
    labels = {column: [named_leads(row[column]) for row in rows] for column in COLUMNS}
    known = {c: np.array([v is not None for v in values]) for c, values in labels.items()}
    truth = {c: np.stack([v for v in values if v is not None]) for c, values in labels.items()}
    for name, score in scores.items():
        print(f"{name:<22}" + "".join(f"{auroc(score[known[c]], truth[c]):>16.3f}" for c in COLUMNS))
    print("leads named           " + "".join(f"{int(truth[c].sum()):>16}" for c in COLUMNS))
    share = [flagged[known[c]][truth[c]].mean() for c in COLUMNS]
    print("flagged of these      " + "".join(f"{x:>16.3f}" for x in share))
    quiet = np.array([not any(row[c].strip() for c in COLUMNS) for row in rows])
    print(
        f"flagged where nobody saw anything: {flagged[quiet].mean():.4f} of leads, "
        f"{flagged[quiet].any(axis=1).mean():.3f} of {quiet.sum()} records; "
        f"of all {len(rows)} records {flagged.any(axis=1).mean():.3f}, "
        f"of records where somebody did {flagged[~quiet].any(axis=1).mean():.3f}\n"
    )


def noise_of(kind: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """[count, N] of unit mean square."""
    hertz = np.fft.rfftfreq(N, 1 / FS)

    def shaped(low: float, high: float, slope: float) -> np.ndarray:
        gain = np.where((hertz >= low) & (hertz <= high), np.maximum(hertz, low) ** slope, 0.0)
        return np.fft.irfft(gain * np.exp(2j * np.pi * rng.random((count, len(hertz)))), N)

    if kind == "mains":
        phase = 2 * np.pi * rng.random((count, 1))
        return np.sqrt(2) * np.sin(2 * np.pi * 49.5 * np.arange(N) / FS + phase)
    noise = {"muscle": (15, 50, 0), "motion": (0.5, 10, -1), "wander": (0.05, 0.5, -1)}[kind]
    out = shaped(*noise)
    if kind == "motion":
        out = out * shaped(0.05, 0.3, 0) ** 2
    return out / np.sqrt((out**2).mean(axis=1, keepdims=True))


def added(ecgs: np.ndarray, rows: list[dict[str, str]]) -> None:
    """AUROC and share flagged by kind of noise and SNR."""
    quiet = [i for i, row in enumerate(rows) if not any(row[c].strip() for c in COLUMNS)][:150]
    rng = np.random.default_rng(0)
    names = ("level (ours)", "excess (ours)", "pSQI", "basSQI", "kSQI")
    print(f"{'noise':<8}{'SNR dB':>7}{'flagged':>9}" + "".join(f"{name:>15}" for name in names))
    leads = [0, 7, 10]
    each = [indices(ecgs[i]) for i in quiet]
    clean = {name: np.array([one[name][leads] for one in each]) for name in (*names, "flag (ours)")}
    beats = [median_beat(bands.beat, bands.qrs, ALL) for bands in (bands_at_100(ecgs[i]) for i in quiet)]
    print(f"{'none':<8}{'':>7}{(clean['flag (ours)'] > 1).mean():>9.3f}")
    for kind in ("muscle", "motion", "wander", "mains"):
        for snr in (24, 18, 12, 6, 0):
            dirty: dict[str, list[list[float]]] = {name: [] for name in clean}
            noise = noise_of(kind, len(quiet) * len(leads), rng).reshape(len(quiet), len(leads), N)
            for k, i in enumerate(quiet):
                values = []
                for j, lead in enumerate(leads):
                    peak = np.ptp(beats[k][lead, 18:38]) if beats[k] is not None else 1.0
                    ecg = ecgs[i].copy()
                    ecg[lead] += noise[k, j] * np.sqrt(peak**2 / 8 * 10 ** (-snr / 10))
                    values.append({name: value[lead] for name, value in indices(ecg).items()})
                for name in dirty:
                    dirty[name].append([one[name] for one in values])
            line = f"{kind:<8}{snr:>7}{(np.array(dirty['flag (ours)']) > 1).mean():>9.3f}"
            for name in names:
                both = np.concatenate([clean[name].ravel(), np.array(dirty[name]).ravel()])
                line += f"{auroc(both, np.arange(len(both)) >= clean[name].size):>15.3f}"
            print(line, flush=True)
    print()


def electrodes(root: Path) -> None:
    """Sensitivity to each fault, and what is flagged as recorded, by group of records."""
    beats, _, rows = ptbxl_beats(root, range(9, 11))
    least = CONFIG.swap_evidence
    words = [electrode_fault(beat, ALL, least) for beat in beats]
    print(
        f"{len(beats)} records as recorded: {sum(map(bool, words))} flagged, {Counter(filter(None, words))}"
    )
    groups = {"AFIB": "AFIB", "paced": "PACE", "LBBB": "CLBBB", "RBBB": "CRBBB", "LAFB": "LAFB", "IMI": "IMI"}
    for name, code in groups.items():
        of = [word for word, row in zip(words, rows, strict=True) if f"'{code}'" in row["scp_codes"]]
        print(f"  {name:<8}{sum(map(bool, of)):>4} of {len(of)}")
    for row, word in zip(rows, words, strict=True):
        if word:
            print(f"  record {row['ecg_id']}: {word}  {row['scp_codes']}")
    good = beats[[not word for word in words]]
    eight = good[:, list(INDEPENDENT_INDEX)]
    print(f"{'made in the others':<20}{'named':>8}{'flagged':>9}  called instead")
    for word, matrix in HYPOTHESES.items():
        _one_fault(word, EXPAND @ matrix @ eight, least)
    for word, row in (("swap:RA-RL", 1), ("swap:LA-RL", 2)):
        # Both legs have one potential: the lead between the swapped cable and LL vanishes, up to 10 uV.
        three = np.einsum("ij,njt->nit", EXPAND[:3, :2], eight[:, :2])
        still = 0.01 * np.random.default_rng(0).normal(size=three[:, 0].shape)
        pair = (-three[:, 2], still) if row == 1 else (three[:, 1], three[:, 1] + still)
        _one_fault(word, EXPAND @ np.concatenate([np.stack(pair, 1), eight[:, 2:]], axis=1), least)
    mirror = np.eye(8) + DOWER @ np.diag([-2.0, 0.0, 0.0]) @ np.linalg.pinv(DOWER)
    _one_fault("(dextrocardia)", EXPAND @ mirror @ eight, least)
    print()


def _one_fault(word: str, beats: np.ndarray, least: float) -> None:
    words = Counter(electrode_fault(beat, ALL, least) for beat in beats)
    named, any_word = words[word] / len(beats), 1 - words[None] / len(beats)
    others = {key: n for key, n in words.most_common(4) if key not in (word, None)}
    print(f"{word:<20}{named:>8.3f}{any_word:>9.3f}  {others or ''}")


def main() -> int:
    """Print the tables."""
    parser = options(__doc__)
    parser.add_argument("data", nargs="?", type=Path, default=DATA)
    parser.add_argument("--part", choices=("seen", "added", "electrodes"))
    given = parser.parse_args()
    if not (given.data / "ptbxl" / "ptbxl_database.csv").is_file():
        print(f"error: no ptbxl/ptbxl_database.csv below {given.data}.", file=sys.stderr)
        return 1
    if given.part in (None, "seen", "added"):
        ecgs, rows = read_records(given.data)
        for name, part in (("seen", seen), ("added", added)):
            if given.part in (None, name):
                part(ecgs, rows)
    if given.part in (None, "electrodes"):
        electrodes(given.data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
