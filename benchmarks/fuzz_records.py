"""Mutated WFDB records through the reader: whatever comes in, a recording or one sentence comes out.

    python benchmarks/fuzz_records.py [--inputs 100000] [--seed 1] [--workers 1] [--data ../shared/data]

Every input is a seed record (each format packed by hand, FLAC, MATLAB, skew, several frequencies,
multi-segment of both layouts, annotations, real records where --data has them), changed one to five times:
bytes flipped, cut, doubled, or spliced from another record; or, knowing the grammar of headers, fields
replaced by extremes, lines moved, doubled, dropped. It is read whole and in pieces that overlap, in a process
that may take SECONDS of processor time for one input and MEGABYTES beyond what it starts with. Input i of a
seed is always the same: `judge(put(folder, mutate(seeds(data), seed, i)))` shows what happens to it.

Counted: read; rejected with a reason; crash (another exception, or the process dies); hang; memory; warning;
wrong (pieces and whole differ, or the reason is no sentence).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.io import savemat
from wfdb import wrann

from ecggen.io.annotations import AnnotationError, read_beats
from ecggen.io.records import RecordError, open_record
from ecggen.leads import FRANK, LEADS

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "io"))

from wfdb_by_hand import RANGES, File, Signal, mat_header, write, write_layout, write_master

SECONDS, MEGABYTES, BLOCK = 2.0, 200, 2000
NUMBERS = (
    "0 1 -1 2 3 7 12 24 80 127 128 255 256 500 1000 32767 32768 -32768 65535 65536 2147483647 2147483648 "
    "-2147483648 4294967296 9223372036854775807 9223372036854775808 1000000000000 99999999999999999999999 "
    f"1e3 1e-9 1e308 1e309 -0 0.0 0.5 1. .5 nan inf -inf 0x10 1_000 ٣ ² ١٢ + - . e {'9' * 30} {'9' * 5000}"
).split(" ")
NAMES = (
    *("", "a b", "\x7f", "C:\\x", "s0.dat\t", "a" * 300, "~", "-", ".", "..", "/", "../r", "/etc/passwd"),
    *("/dev/zero", "r", "r.hea", "s0", "s0.dat", "m", "loop", "fifo", "folder", "empty", "*", "%s", "é"),
)
WORDS = (
    *("", " ", "Lead I (mV)", "I (uV)", "\u2028", "\u2160", "I", "II", "v1", "aVR", "-aVR", "DI", "C1"),
    *("MLII", "vx", "vy", "vz", "x", "lead", "ECG", "é", "mV", "uV", "/mmHg", "200(1)/V", "#", "/"),
)
FORMATS = (*RANGES, "0", "1", "212x2", "16x1+24", "16:3", "8x2:1+1", "516+1", "310x7", "999", "80x1000000")


class Case(NamedTuple):
    """One record: its name, and the files of its folder."""

    name: str
    files: dict[str, bytes]


def waves(fmt: str, names: dict[str, int], frames: int) -> list[Signal]:
    """name -> samples per frame: waves in the range of the format."""
    out = []
    for i, (name, k) in enumerate(names.items()):
        t, largest = np.arange(frames * k), min(RANGES[fmt][1], 1000)
        x = (np.sin(t / 9 + i) + np.random.default_rng(i).normal(scale=0.1, size=len(t))) * 0.4 * largest
        out.append(Signal(name, x.round().astype(int), k, 100.0 + i, i))
    return out


def seeds(data: Path | None) -> list[Case]:
    """The records that inputs are made from."""
    with tempfile.TemporaryDirectory() as name:
        paths = write_seeds(Path(name))
        cases = [
            Case(path.name, {file.name: file.read_bytes() for file in sorted(path.parent.iterdir())})
            for path in paths
        ]
    for folder in ("ludb/data", "ptbdb/patient001", "mitdb", "challenge/georgia", "challenge/cpsc2018"):
        for header in sorted((data / folder).glob("*.hea"))[:3] if data else ():
            paths = sorted(header.parent.glob(f"{header.stem}.*"))
            files = (path for path in paths if path.stat().st_size < 400_000)
            cases.append(Case(header.stem, {path.name: path.read_bytes() for path in files}))
    return cases


def write_seeds(folder: Path) -> list[Path]:
    """Write each record into a folder of its own; their paths without suffix."""
    five = dict.fromkeys(("I", "II", "III", "V1", "RESP"), 1)
    twelve = waves("16", dict.fromkeys(LEADS, 1), 250)
    mat = File("r.mat", "16", twelve, mat_header(12, 250))
    rates = File("r.dat", "212", waves("212", {"RESP": 1, "I": 4, "II": 4, "ABP": 2}, 80))
    flac = File("r.flac", "516", waves("516", {"I": 2, "II": 2}, 150), skip=5)
    frank = File("r.xyz", "80", waves("80", dict.fromkeys(FRANK, 1), 250))
    skewed = File("r.dat", "16", waves("16", {"I": 1, "II": 1, "V5": 1}, 300))
    for skew, line in enumerate(skewed.signals):
        line.skew = 3 * skew
    records = [[File("r.dat", fmt, waves(fmt, five, 300))] for fmt in RANGES]
    records += [[rates], [flac], [mat, frank], [skewed], [mat], [mat]]
    paths = []
    for at, files in enumerate(records):
        place = folder / str(at)
        paths.append(write(place, "r", 250, files, comments=["Age: 60", "Dx: A"]))
        wrann("r", "atr", np.array([9, 90, 200]), ["N", "V", "+"], fs=250, write_dir=str(place))
    savemat(paths[-1].with_suffix(".mat"), {"val": np.array([line.samples for line in twelve], dtype=float)})
    for variable in ([], [("layout", 0), ("~", 30)]):
        place = folder / str(len(paths))
        lengths = {"s0": 120, "s1": 90, "s2": 140}
        for name, length in lengths.items():
            file = File(f"{name}.dat", "212", waves("212", {"I": 1, "II": 1, "V2": 1}, length))
            write(place, name, 125, [file])
        write_layout(place, "layout", 125, {"I": "mV", "II": "mV", "V2": "mV"})
        paths.append(write_master(place, "m", 125, 3, [*variable, *lengths.items()]))
    return paths


def mutate(corpus: list[Case], seed: int, number: int) -> Case:
    """Input `number` of a seed."""
    rng = random.Random(seed * 1_000_003 + number)
    case = rng.choice(corpus)
    files = dict(case.files)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5))):
        headers = [name for name in files if name.endswith(".hea")]
        name = rng.choice(headers if headers and rng.random() < 0.75 else list(files))
        others = [x for n, x in rng.choice(corpus).files.items() if n[-4:] == name[-4:]] or [b""]
        change = change_field if name in headers and rng.random() < 0.75 else change_bytes
        files[name] = change(rng, files[name], rng.choice(others))
        if rng.random() < 0.02 and len(files) > 1:
            del files[rng.choice(list(files))]
    return Case(case.name, files)


def change_bytes(rng: random.Random, body: bytes, other: bytes) -> bytes:
    """One change that knows nothing of what the bytes mean; other: bytes to splice from."""
    x = bytearray(body)
    at, end = sorted((rng.randrange(len(x) + 1), rng.randrange(len(x) + 1)))
    end, start = min(end, at + 4096), rng.randrange(len(other) + 1)
    kind = rng.randrange(7)
    if kind == 0 and x:
        for _ in range(rng.choice((1, 2, 8, 64))):
            x[rng.randrange(len(x))] ^= 1 << rng.randrange(8)
    elif kind == 1 and x:
        x[rng.randrange(len(x))] = rng.choice((0, 1, 9, 10, 13, 32, 35, 47, 127, 128, 255))
    elif kind == 2:
        x[at:at] = rng.randbytes(rng.choice((1, 3, 64)))
    elif kind == 3:
        del x[at:]
    else:  # drop, double or splice a stretch
        x[at:end] = (b"", x[at:end] * 2, other[start : start + end - at])[max(0, kind - 4)]
    return bytes(x)


def change_field(rng: random.Random, body: bytes, other: bytes) -> bytes:
    """One change of the fields or lines of a header."""
    lines = body.decode("utf-8", "surrogateescape").split("\n")
    at = rng.randrange(len(lines)) if rng.random() < 0.7 else 0
    words, kind = lines[at].split(" "), rng.randrange(9)
    word = rng.randrange(len(words))
    extreme = rng.choice(rng.choice((NUMBERS, NUMBERS, NAMES, WORDS, FORMATS)))
    numbers = list(re.finditer(r"-?[0-9.]+", lines[at]))
    if kind <= 1:
        words[word] = extreme
    elif kind <= 3 and numbers:  # inside a field: 16x1+24, 200(0)/mV, r/3
        hit = rng.choice(numbers)
        words = (lines[at][: hit.start()] + rng.choice(NUMBERS) + lines[at][hit.end() :]).split(" ")
    elif kind == 4:
        words.insert(word, extreme)
    elif kind == 5:
        del words[word]
    elif kind == 6:
        lines.insert(rng.randrange(len(lines) + 1), lines[at])
    elif kind == 7:
        rng.shuffle(lines)
        words = lines[at].split(" ")
    else:
        lines[at:at] = other.decode("utf-8", "surrogateescape").split("\n")[: rng.randrange(4)]
        words = lines[at].split(" ")
    lines[at] = " ".join(words)
    text = rng.choice(("\n", "\n", "\n", "\r\n", "\r", "  \t\n")).join(lines)
    return text.encode("utf-8", "surrogateescape")


def put(folder: Path, case: Case) -> Path:
    """Write a case into a new folder that also holds a link to itself, a pipe, a folder and an empty file."""
    folder.mkdir()
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "fifo")
    (folder / "folder").mkdir()
    (folder / "empty").touch()
    for name, body in case.files.items():
        (folder / name).write_bytes(body)
    return folder / case.name


class TooLong(BaseException):
    """The time for one input is over."""


def judge(path: Path) -> tuple[str, str]:
    """(outcome, detail) of one record."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            outcome = _read(path)
        except (RecordError, AnnotationError) as error:
            words = str(error)
            outcome = ("rejected", re.sub(r"'[^']*'|[0-9][0-9.]*", "#", words)[:70])
            if "\n" in words or not words or len(words) > 1000:
                outcome = ("wrong", f"no sentence: {words[:300]!r}")
        except (TooLong, Exception) as error:
            kind = {MemoryError: "memory", TooLong: "hang"}.get(type(error), "crash")
            outcome = (kind, traceback.format_exc())
    if caught and outcome[0] in ("read", "rejected"):
        outcome = ("warning", f"{caught[0].category.__name__}: {caught[0].message} in {caught[0].filename}")
    return outcome


def _read(path: Path) -> tuple[str, str]:
    record = open_record(path)
    whole, n = record.read(), record.n_samples
    if whole.ecg.shape != (12, n):
        return "wrong", f"{whole.ecg.shape} is not the shape of {n} samples"
    again, step = open_record(path), max(1, n // 3)
    for start in range(0, n, step):
        first, stop = max(0, start - step // 4), min(n, start + step)
        if not np.array_equal(again.read(first, stop).ecg, whole.ecg[:, first:stop], equal_nan=True):
            return "wrong", f"samples {first} to {stop} of {n} are not those of the whole"
    if again.doubts() != whole.doubts:
        return "wrong", f"doubts {again.doubts()} of the pieces, {whole.doubts} of the whole"
    read_beats(path, record.fs, n / record.fs)
    return "read", ""


def work(data: Path, seed: int, first: int, last: int) -> None:
    """In a process of its own: inputs first ... last - 1, a line of JSON before and after each."""
    corpus = seeds(data)

    def stop(*_: object) -> None:
        raise TooLong

    for name in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(name, stop)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as place:
        for at, case in enumerate(corpus):  # imports all that is imported late, so that its room is counted
            judge(put(Path(place) / f"seed{at}", case))
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (in_use + (MEGABYTES << 20), resource.RLIM_INFINITY))
        for number in range(first, last):
            print(json.dumps([number]), flush=True)
            path = put(Path(place) / str(number), mutate(corpus, seed, number))
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            signal.alarm(60)
            outcome = judge(path)
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.alarm(0)
            print(json.dumps([number, *outcome]), flush=True)


def block(arguments: argparse.Namespace, first: int, last: int) -> list[list]:
    """[number, outcome, detail] of inputs; a process that dies is a crash, and the next one goes on."""
    outcomes: list[list] = []
    while first < last:
        command = [sys.executable, __file__, "--work", str(first), str(last), "--seed", str(arguments.seed)]
        command += ["--data", str(arguments.data)]
        process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        lines = [json.loads(line) for line in process.stdout.splitlines()]
        outcomes += [line for line in lines if len(line) > 1]
        first = lines[-1][0] + 1
        if process.returncode:
            outcomes.append([lines[-1][0], "crash", f"the process ended with {process.returncode}"])
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--work", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.data, arguments.seed, *arguments.work)
        return 0
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    n = arguments.inputs
    with ThreadPoolExecutor(arguments.workers) as pool:
        for outcomes in pool.map(lambda at: block(arguments, at, min(at + BLOCK, n)), range(0, n, BLOCK)):
            for number, outcome, detail in outcomes:
                counts[outcome] += 1
                if outcome == "rejected":
                    reasons[detail] += 1
                elif outcome != "read":
                    print(number, outcome, detail[:3000], flush=True)
            print(f"{sum(counts.values())}: {dict(counts)}", flush=True)
    print(json.dumps({"counts": counts, "reasons": reasons.most_common(40)}, indent=1))
    return 1 if counts.keys() - {"read", "rejected"} else 0


if __name__ == "__main__":
    sys.exit(main())
