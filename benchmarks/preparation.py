"""Records to windows: speed beside a plain wfdb and SciPy loop in the same run.

    python benchmarks/preparation.py RECORDS [--rounds 5] [--copies 5]

RECORDS: a folder of twelve-lead WFDB records of 10 s at 500 Hz, for example PTB-XL's records500; taken
--copies times. The loop: rdrecord, sosfiltfilt on all leads at once, resample_poly, np.save of the record
and of its windows, with the same band, order and continuation of the ends, so that the results are equal.
ecggen: the functions of the preprocess and window stages, which also verify checksums, split by patient and
write tables; once with the quality of every lead judged and once without, as the loop does not judge it.
One thread, in turn; medians of the rounds. Prints Markdown.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

# One core: BLAS reads these when it is loaded.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

from common import options, section, table  # noqa: E402

import numpy as np  # noqa: E402

from ecggen.data.quality import spans  # noqa: E402
from ecggen.leads import LEADS  # noqa: E402
from ecggen.prepare.download.source import list_source, write_source  # noqa: E402
from ecggen.prepare.preprocess.stage import preprocess  # noqa: E402
from ecggen.prepare.window.plan import window_starts  # noqa: E402
from ecggen.prepare.window.stage import window  # noqa: E402
from ecggen.utils.config import DataConfig, PreprocessConfig, WindowConfig  # noqa: E402
from ecggen.utils.files import read_csv  # noqa: E402

CONFIG = PreprocessConfig()
LENGTH, STRIDE, FS_IN, FS = 512, 488, 500, 100
DATA = DataConfig(fs=FS, time_len=LENGTH, workers=1)
CUT = WindowConfig(stride=STRIDE, split="train", exclude=[])


def link_records(source: Path, folder: Path, copies: int) -> list[str]:
    """Names of the records below source, linked `copies` times into folder."""
    for number in range(copies):
        for path in sorted(source.rglob("*.*")):
            place = folder / f"copy{number:03d}" / path.name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path.resolve())
    names = sorted(path.relative_to(folder).as_posix()[:-4] for path in folder.glob("copy*/*.hea"))
    (folder / "RECORDS").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return names


def plain_loop(folder: Path, names: list[str], out: Path) -> None:
    """What one writes without ecggen."""
    import wfdb
    from scipy.signal import butter, resample_poly, sosfiltfilt

    out.mkdir()
    sos = butter(CONFIG.order, [CONFIG.low_hz, CONFIG.high_hz], "bandpass", fs=FS_IN, output="sos")
    pad, edge, factor = int(np.ceil(FS_IN * 4 / CONFIG.low_hz)), 55, FS_IN // FS
    for name in names:
        record = wfdb.rdrecord(str(folder / name))
        order = [[channel.lower() for channel in record.sig_name].index(lead.lower()) for lead in LEADS]
        x = sosfiltfilt(sos, record.p_signal.T[order], axis=-1, padtype="odd", padlen=pad)
        x = np.pad(x, ((0, 0), (edge, edge)), "reflect", reflect_type="odd")
        x = resample_poly(x, 1, factor, axis=-1, window=("kaiser", 5.0))
        x = x[:, edge // factor : edge // factor + record.sig_len // factor].astype(np.float32)
        np.save(out / f"{name.replace('/', '_')}.npy", x)
        starts = window_starts(x.shape[1], LENGTH, STRIDE)
        windows = np.stack([x[:, start : start + LENGTH] for start in starts])
        np.save(out / f"{name.replace('/', '_')}.windows.npy", windows)


def both_stages(raw: Path, out: Path) -> None:
    """The preprocess and the window stage."""
    preprocess(raw, out / "records", DATA, CONFIG)
    window(out / "records", out / "windows", DATA, CUT)


def largest_difference_uv(ours: Path, loop: Path) -> float:
    """uV, over all windows and usable leads."""
    windows = np.load(ours / "windows" / "windows.npy", mmap_mode="r")
    worst, record, number = 0.0, "", 0
    for row, x in zip(read_csv(ours / "windows" / "index.csv"), windows, strict=True):
        number = number + 1 if row["record"] == record else 0
        record = row["record"]
        same = np.load(loop / f"{record.replace('/', '_')}.windows.npy", mmap_mode="r")[number]
        usable = [bit == "1" for bit in row["observed"]]
        worst = max(worst, float(np.abs(x[usable] - same[usable]).max()))
    return 1000 * worst


def main() -> int:
    """Time the three in turn and print the ratios."""
    parser = options(__doc__)
    parser.add_argument("records", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--copies", type=int, default=5)
    args = parser.parse_args()
    if not any(args.records.rglob("*.hea")):
        parser.error(f"no .hea file below {args.records}")
    kinds = ("wfdb and SciPy loop", "ecggen, the same work", "ecggen, quality judged as well")
    spent: dict[str, list[float]] = {kind: [] for kind in kinds}
    judge = spans.raw_spans
    with tempfile.TemporaryDirectory(prefix="ecggen-preparation-") as name:
        place = Path(name)
        names = link_records(args.records, place / "wfdb", args.copies)
        (place / "raw").mkdir()
        write_source(place / "raw", list_source(place / "wfdb", database=""))
        for number in range(args.rounds + 1):
            for kind in kinds:
                out = place / kind
                shutil.rmtree(out, ignore_errors=True)
                if kind == kinds[1]:
                    spans.raw_spans = lambda *_: []  # type: ignore[assignment]
                began = time.perf_counter()
                if kind == kinds[0]:
                    plain_loop(place / "wfdb", names, out)
                else:
                    both_stages(place / "raw", out)
                took = time.perf_counter() - began
                spans.raw_spans = judge
                if number:  # the first round warms up
                    spent[kind].append(took)
        difference = largest_difference_uv(place / kinds[2], place / kinds[0])
    middle = {kind: median(times) for kind, times in spent.items()}
    rows = [
        [kind, f"{1000 * took / len(names):.2f}", f"{middle[kinds[0]] / took:.2f}"]
        for kind, took in middle.items()
    ]
    print(section("Records to windows, one core", sys.argv))
    print(f"{len(names)} records, 12 leads, {FS_IN} to {FS} Hz, 10 s; medians of {args.rounds} rounds.\n")
    print(table(["", "ms a record", "times as fast as the loop"], rows))
    print(f"Largest difference: {difference:.4f} uV.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
