"""Records to windows: speed beside a plain wfdb and scipy loop, and memory against the number of records.

    python benchmarks/preparation.py [DATA] [--rounds 5] [--copies 5] [--two]
    python benchmarks/preparation.py --memory 1000 100000 [--leads 12] [--workers 1] [--scheduler ADDRESS]

DATA holds ptbxl/records500/ (default ../shared/data): 12 leads, 500 Hz, 10 s, taken --copies times.
Peer: rdrecord, sosfiltfilt on all leads at once, resample_poly, np.save of the record and of its windows,
with the same band, order, and continuation of the ends, so that the results are equal. ecggen: the preprocess
and the window stage's own functions, which also check the header's checksums, split by patient, and write the
tables; once as they are and once without judging the leads' quality, which the loop does not do. All in this
process, in turn, in one thread; medians of the rounds, by the clock and by processor time. --two: two local
processes as well.

--memory: made records (2 s, 100 Hz, the first --leads leads, a thousand to a folder), each step in a process
of its own: its peak resident memory (VmHWM), and seconds and processor seconds per 1,000 records, of listing,
of the download stage with its listing, and of preprocess.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

# The loop is compared on one core: BLAS reads these when it is loaded.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")


import numpy as np  # noqa: E402
from common import section, table  # noqa: E402

from ecggen.data.filters import condition  # noqa: E402
from ecggen.data.quality import spans as quality  # noqa: E402
from ecggen.io.records import open_record, read_record  # noqa: E402
from ecggen.leads import EXPAND, LEADS  # noqa: E402
from ecggen.prepare.download.source import list_source, write_source  # noqa: E402
from ecggen.prepare.download.stage import download  # noqa: E402
from ecggen.prepare.preprocess.stage import condition_recording, preprocess  # noqa: E402
from ecggen.prepare.window.stage import window, window_starts  # noqa: E402
from ecggen.utils.config import Config, DataConfig, PreprocessConfig, WindowConfig  # noqa: E402
from ecggen.utils.files import read_csv  # noqa: E402

RULES, LENGTH, STRIDE = PreprocessConfig(), 512, 488
FS_IN, FS = 500, 100
CUT = WindowConfig(stride=STRIDE, split="train", exclude=[])


def linked(data: Path, folder: Path, copies: int) -> Path:
    """The 500 Hz records of PTB-XL as links, `copies` times, without its tables: plain WFDB records."""
    for number in range(copies):
        for path in sorted((data / "ptbxl" / "records500").rglob("*.*")):
            place = folder / f"copy{number:03d}" / path.name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path.resolve())
    names = sorted(p.relative_to(folder).as_posix()[:-4] for p in folder.glob("copy*/*.hea"))
    (folder / "RECORDS").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return folder


def peer(folder: Path, names: list[str], out: Path) -> None:
    """The loop that one writes without ecggen."""
    import wfdb  # not above: a process whose memory is measured does without
    from scipy.signal import butter, resample_poly, sosfiltfilt

    out.mkdir()
    sos = butter(RULES.order, [RULES.low_hz, RULES.high_hz], "bandpass", fs=FS_IN, output="sos")
    pad, edge, factor = int(np.ceil(FS_IN * 4 / RULES.low_hz)), 55, FS_IN // FS
    for name in names:
        record = wfdb.rdrecord(str(folder / name))
        order = [[c.lower() for c in record.sig_name].index(lead.lower()) for lead in LEADS]
        x = record.p_signal.T[order]
        x = sosfiltfilt(sos, x, axis=-1, padtype="odd", padlen=pad)
        x = np.pad(x, ((0, 0), (edge, edge)), "reflect", reflect_type="odd")
        x = resample_poly(x, 1, factor, axis=-1, window=("kaiser", 5.0))
        x = x[:, edge // factor : edge // factor + record.sig_len // factor].astype(np.float32)
        np.save(out / f"{name.replace('/', '_')}.npy", x)
        starts = window_starts(x.shape[1], LENGTH, STRIDE)
        windows = np.stack([x[:, start : start + LENGTH] for start in starts])
        np.save(out / f"{name.replace('/', '_')}.windows.npy", windows)


def ecggen(raw: Path, out: Path, workers: int = 1) -> None:
    """The two stages."""
    data = DataConfig(fs=FS, time_len=LENGTH, workers=workers)
    preprocess(raw, out / "records", data, RULES)
    window(out / "records", out / "windows", data, CUT)


def unjudged(raw: Path, out: Path) -> None:
    """The two stages without what the loop does not do either."""
    judge = quality.raw_spans
    quality.raw_spans = lambda *_: []  # type: ignore[assignment]
    try:
        ecggen(raw, out)
    finally:
        quality.raw_spans = judge


def timed(call, *arguments) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    """Seconds by the clock and of processor time."""
    clock, processor = time.perf_counter(), time.process_time()
    call(*arguments)
    return time.perf_counter() - clock, time.process_time() - processor


def largest_difference(mine: Path, other: Path) -> float:
    """uV, over all windows that ecggen kept, of leads that it found usable."""
    windows = np.load(mine / "windows" / "windows.npy", mmap_mode="r")
    worst, seen, number = 0.0, "", 0
    for row, x in zip(read_csv(mine / "windows" / "index.csv"), windows, strict=True):
        number = number + 1 if row["record"] == seen else 0
        seen = row["record"]
        same = np.load(other / f"{seen.replace('/', '_')}.windows.npy", mmap_mode="r")[number]
        usable = [bit == "1" for bit in row["observed"]]
        worst = max(worst, float(np.abs(x[usable] - same[usable]).max()))
    return 1000 * worst


def parts(folder: Path, names: list[str]) -> str:
    """Processor milliseconds of a record, by what they are spent on."""
    import wfdb

    paths = [folder / name for name in names[:100]]
    recordings = [read_record(path) for path in paths]

    def cost(call, items) -> float:  # type: ignore[no-untyped-def]
        spent = []
        for _ in range(5):
            began = time.process_time()
            for item in items:
                call(item)
            spent.append((time.process_time() - began) / len(items))
        return 1000 * median(spent)

    whole = cost(lambda r: condition_recording(r, FS, RULES), recordings)
    filtering = {"low_hz": RULES.low_hz, "high_hz": RULES.high_hz, "order": RULES.order}
    filtered = cost(lambda r: condition(r.ecg, r.fs, FS, **filtering), recordings)
    scipy = cost(lambda r: condition(r.ecg, r.fs, FS, **filtering, backend="scipy"), recordings)
    rows = [
        ["reading: ecggen, header and checksums included", cost(lambda p: open_record(p).read(), paths)],
        ["reading: wfdb.rdrecord", cost(lambda p: wfdb.rdrecord(str(p)), paths)],
        ["filter and resampling", filtered],
        ["filter and resampling: sosfiltfilt, resample_poly", scipy],
        ["quality: flat, saturated, noise, algebra, electrodes", whole - filtered],
    ]
    return table(["part", "ms a record"], [[name, f"{value:.2f}"] for name, value in rows])


def speed(data: Path, rounds: int, copies: int, two: bool) -> int:
    """Print the comparison."""
    with tempfile.TemporaryDirectory(prefix="ecggen-preparation-") as name:
        place = Path(name)
        folder = linked(data, place / "wfdb", copies)
        source = list_source(folder, database="")
        names = [name for name in source.records if name.startswith("copy")]
        (place / "raw").mkdir()
        write_source(place / "raw", source)
        spent: dict[str, list[tuple[float, float]]] = {
            kind: [] for kind in ("ecggen", "unjudged", "peer", *(["two"] if two else []))
        }
        for number in range(rounds + 1):
            for kind in spent:
                out = place / kind
                shutil.rmtree(out, ignore_errors=True)
                if kind == "peer":
                    took = timed(peer, folder, names, out)
                elif kind == "unjudged":
                    took = timed(unjudged, place / "raw", out)
                else:
                    took = timed(ecggen, place / "raw", out, 2 if kind == "two" else 1)
                if number:  # the first one warms up
                    spent[kind].append(took)
        difference = largest_difference(place / "ecggen", place / "peer")
        print(section("Records to windows, one core", sys.argv))
        print(f"{len(names)} records, 12 leads, {FS_IN} to {FS} Hz, 10 s; medians of {rounds} rounds.\n")
        mid = {kind: [median(column) for column in zip(*took, strict=True)] for kind, took in spent.items()}
        labels = {
            "peer": "wfdb and scipy loop",
            "unjudged": "ecggen, the same work",
            "ecggen": "ecggen, quality judged as well",
        }
        rows = []
        for kind, label in labels.items():
            ratios = [a / b for a, b in zip(mid["peer"], mid[kind], strict=True)]
            cells = [f"{1000 * value / len(names):.2f}" for value in mid[kind]]
            rows.append([label, *cells, *(f"{ratio:.2f}" for ratio in ratios)])
        head = ["", "ms a record", "processor ms a record", "x the loop, clock", "x the loop, processor"]
        print(table(head, rows))
        print(f"Largest difference: {difference:.4f} uV.\n")
        if two:
            ratio = mid["ecggen"][0] / mid["two"][0]
            each, writer = (1000 * value / len(names) for value in mid["two"])
            print(
                f"Two processes: {each:.2f} ms a record, {ratio:.2f} x one; beside them this process, which "
                f"writes tables and what they made, took {writer:.3f} ms of a processor.\n"
            )
        print(parts(folder, names))
    return 0


def made(folder: Path, count: int, leads: int) -> None:
    """`count` records of 16 different signals, each with files of its own (hard links of the signals)."""
    rng = np.random.default_rng(0)
    t = np.arange(200) / 100
    beats = np.exp(-0.5 * (((t % 0.8) - 0.4) / 0.02) ** 2)
    for i in range(16):
        sources = rng.normal(size=(8, 1)) * beats + 0.02 * rng.normal(size=(8, len(t)))
        signal = np.round(1000 * (EXPAND @ sources)[:leads].T)
        (folder / f"signal{i}").write_bytes(signal.astype("<i2").tobytes())
    for number in range(count):
        place = folder / "wfdb" / f"{number // 1000:03d}"
        place.mkdir(parents=True, exist_ok=True)
        name = f"r{number:06d}"
        lines = [f"{name} {leads} 100 200"]
        lines += [f"{name}.dat 16 1000/mV 16 0 0 0 0 {lead}" for lead in LEADS[:leads]]
        lines += [f"# Patient: {number // 2}", "# Dx: 426783006", "# Age: 60", "# Sex: F"]
        (place / f"{name}.hea").write_text("\n".join(lines) + "\n", encoding="ascii")
        if number % 1000 < 16:
            shutil.copyfile(folder / f"signal{number % 16}", place / f"{name}.dat")
        else:
            os.link(place / f"r{number - number % 1000 + number % 16:06d}.dat", place / f"{name}.dat")


def peak_mib() -> float:
    """VmHWM; getrusage would count the process that started this one."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def measured(what: str, folder: Path, data: DataConfig) -> None:
    """In a process of its own: print [peak MiB, seconds, processor seconds] of one step."""
    began, spent = time.perf_counter(), time.process_time()
    if what == "listing":
        list_source(folder / "wfdb")
    elif what == "download":
        download(Config(data=data), folder / "raw")
    elif what == "preprocess":
        preprocess(folder / "raw", folder / "records", data, RULES)
    print(json.dumps([peak_mib(), time.perf_counter() - began, time.process_time() - spent]))


def memory(counts: list[int], leads: int, data: DataConfig) -> int:
    """Print peak memory and time of each step for each number of records."""
    rows = []
    for count in counts:
        with tempfile.TemporaryDirectory(prefix="ecggen-memory-") as name:
            place = Path(name)
            made(place, count, leads)
            for what in ("listing", "download", "preprocess"):
                settings = json.dumps([str(place), data.scheduler, data.workers])
                command = [sys.executable, __file__, "--measured", what, settings]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                peak, *times = json.loads(done.stdout.splitlines()[-1])
                shown = [f"{1000 * seconds / count:.2f}" for seconds in times]
                rows.append([what, f"{count:,}", f"{peak:.0f}", *shown])
    print(section("Memory and time against the number of records", sys.argv))
    head = ["step", "records", "peak MiB", "s per 1,000 records", "processor s per 1,000"]
    print(table(head, sorted(rows, key=lambda row: row[0])))
    return 0


def main() -> int:
    """Print one of the two parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    beside = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    parser.add_argument("data", nargs="?", type=Path, default=beside)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--copies", type=int, default=5)
    parser.add_argument("--two", action="store_true")
    parser.add_argument("--memory", type=int, nargs="+", metavar="RECORDS")
    parser.add_argument("--leads", type=int, default=12)
    parser.add_argument("--scheduler", default="")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--measured", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measured:
        what, settings = arguments.measured
        place, scheduler, workers = json.loads(settings)
        data = DataConfig(source="wfdb", path=f"{place}/wfdb", scheduler=scheduler, workers=workers)
        measured(what, Path(place), data)
        return 0
    if arguments.memory:
        data = DataConfig(scheduler=arguments.scheduler, workers=arguments.workers)
        return memory(arguments.memory, arguments.leads, data)
    if not (arguments.data / "ptbxl" / "records500").is_dir():
        print(f"error: no ptbxl/records500 below {arguments.data}: name its folder.", file=sys.stderr)
        return 1
    return speed(arguments.data, arguments.rounds, arguments.copies, arguments.two)


if __name__ == "__main__":
    sys.exit(main())
