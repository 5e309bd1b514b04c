"""Mutated WFDB records through the reader: whatever comes in, a recording or one sentence comes out.

    python benchmarks/fuzz_records.py [--inputs 100000] [--seed 1] [--workers 1] [--data ../shared/data]

Every input is a seed record (each format packed by hand, FLAC, MATLAB, skew, several frequencies,
multi-segment of both layouts, real records where --data has them), changed one to five times: bytes
flipped, cut, doubled, or spliced from another record; or, knowing the grammar, fields replaced by extremes
and by fields of other records, lines moved, doubled, dropped, names of files exchanged. It is read in whole
and in part, conditioned in whole and (every fifth) in pieces, in a process that may take SECONDS of
processor time for one input and MEGABYTES beyond what it starts with. Input i of a seed is always the same:
`--only i` runs it alone and shows what happens.

Counted: read (and conditioned, or found unusable); rejected with a reason; crash (anything but RecordError
leaves, or the process dies); hang; memory; warning; wrong (part and whole differ, or the reason is no
sentence). Also on every tenth input, where wfdb reads it too: whether the two agree.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from wfdb_by_hand import RANGES, File, Signal, mat_header, write, write_layout, write_master

from ecggen.leads import FRANK, LEADS
from ecggen.prepare import long_records
from ecggen.prepare.preprocess import condition_recording
from ecggen.prepare.records import RecordError, open_record
from ecggen.prepare.source import SourceError, list_source
from ecggen.utils.config import PreprocessConfig

SECONDS = 2.0
MEGABYTES = 200
RULES = PreprocessConfig(min_seconds=0.1)
NUMBERS = (
    *("0", "1", "-1", "2", "3", "7", "12", "24", "80", "127", "128", "255", "256", "500", "1000", "32767"),
    *("32768", "-32768", "65535", "65536", "2147483647", "2147483648", "-2147483648", "4294967296"),
    *("9223372036854775807", "9223372036854775808", "1000000000000", "99999999999999999999999", "1e3"),
    *("1e-9", "1e308", "1e309", "-0", "0.0", "0.5", "1.", ".5", "nan", "inf", "-inf", "NaN", "0x10", "1_000"),
    *("٣", "²", "١٢", "", "+", "-", ".", "e", "9" * 30, "9" * 5000),
)
NAMES = (
    *("~", "-", ".", "..", "/", "../r", "/etc/passwd", "/dev/zero", "r", "r.hea", "s0", "s0.dat", "m", "a b"),
    *("\x7f", "é", "a" * 300, "C:\\x", "loop", "fifo", "folder", "empty", "*", "%s", "{}", "s0.dat\t"),
)
WORDS = (
    "I",
    "II",
    "v1",
    "aVR",
    "MLII",
    "vx",
    "vy",
    "vz",
    "x",
    "lead",
    "ECG",
    "",
    " ",
    "é",
    "mV",
    "\u2028",
    "#",
    "/",
)
UNITS = ("mV", "uV", "µV", "V", "nV", "mmHg", "", "/", "mV mV", "(1)", "MV")
FORMATS = (
    *RANGES,
    "0",
    "1",
    "212x2",
    "16x1+24",
    "16:3",
    "8x2:1+1",
    "516+1",
    "310x7",
    "999",
    "16+1",
    "80x1000000",
)


@dataclass(frozen=True)
class Case:
    """One record: the files of its folder, and its name."""

    name: str
    files: dict[str, bytes]


def seeds(data: Path | None) -> list[Case]:
    """The records that inputs are made from."""
    made: list[Case] = []
    with tempfile.TemporaryDirectory() as place:
        for number, build in enumerate((_formats, _shapes, _multi)):
            for at, name in enumerate(build(Path(place) / str(number))):
                folder = Path(place) / str(number) / str(at)
                made.append(Case(name, {p.name: p.read_bytes() for p in sorted(folder.iterdir())}))
    for header in _real(data):
        files = {p.name: p.read_bytes() for p in sorted(header.parent.glob(f"{header.stem}.*"))}
        small = {name: body for name, body in files.items() if len(body) < 400_000}
        made.append(Case(header.stem, small))
    return made


def _samples(fmt: str, n: int, seed: int) -> np.ndarray:
    low, high = RANGES[fmt]
    rng = np.random.default_rng(seed)
    if fmt == "8":
        return np.cumsum(rng.integers(-90, 91, n))
    wave = np.sin(np.arange(n) / 9 + seed) + rng.normal(scale=0.1, size=n)
    return np.clip(np.round(wave * min(high, 1000) * 0.6), low, high).astype(np.int64)


def _signals(fmt: str, names: dict[str, int], frames: int, **more) -> list[Signal]:
    return [
        Signal(name, _samples(fmt, frames * k, i), k, 100.0 + i, i, **more)
        for i, (name, k) in enumerate(names.items())
    ]


def _formats(folder: Path) -> Iterator[str]:
    for at, fmt in enumerate(RANGES):
        file = File("r.dat", fmt, _signals(fmt, {"I": 1, "II": 1, "III": 1, "V1": 1, "RESP": 1}, 300))
        write(folder / str(at), "r", 100, [file], comments=["Age: 60", "Dx: A"])
        yield "r"


def _shapes(folder: Path) -> Iterator[str]:
    mat = File("r.mat", "16", _signals("16", dict.fromkeys(LEADS, 1), 250), mat_header(12, 250))
    rates = File("r.dat", "212", _signals("212", {"RESP": 1, "I": 4, "II": 4, "ABP": 2}, 80))
    flac = File("r.flac", "516", _signals("516", {"I": 2, "II": 2}, 150), skip=5)
    frank = File("r.xyz", "80", _signals("80", dict.fromkeys(FRANK, 1), 250))
    skewed = File("r.dat", "16", _signals("16", {"I": 1, "II": 1, "V5": 1}, 300))
    for skew, line in enumerate(skewed.signals):
        line.skew = 3 * skew
    for at, (fs, files) in enumerate(
        ((500, [mat]), (50, [rates]), (100, [flac]), (250, [mat, frank]), (128, [skewed]))
    ):
        write(folder / str(at), "r", fs, files)
        yield "r"


def _multi(folder: Path) -> Iterator[str]:
    for at in range(2):
        place = folder / str(at)
        for number, length in enumerate((120, 90, 140)):
            file = File(
                f"s{number}.dat",
                "16" if number else "212",
                _signals("16", {"I": 1, "II": 1, "V2": 1}, length),
            )
            write(place, f"s{number}", 125, [file])
        if at:
            write_layout(place, "lay", 125, {"II": "mV", "V2": "mV", "RESP": "Ohm"})
            parts = [("lay", 0), ("s0", 120), ("~", 40), ("s1", 90), ("s2", 140)]
        else:
            parts = [("s0", 120), ("s1", 90), ("s2", 140)]
        write_master(place, "m", 125, 3, parts)
        yield "m"


def _real(data: Path | None) -> list[Path]:
    if data is None or not data.is_dir():
        return []
    found = []
    for pattern in (
        "ptbxl/records100/*/*.hea",
        "ludb/data/*.hea",
        "ptbdb/*/*.hea",
        "mitdb/*.hea",
        "challenge/*/*.hea",
    ):
        found += sorted(data.glob(pattern))[:3]
    return found


def mutate(corpus: list[Case], seed: int, number: int) -> Case:
    """Input `number` of a seed."""
    rng = random.Random(seed * 1_000_003 + number)
    case = rng.choice(corpus)
    files = dict(case.files)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5))):
        headers = [name for name in files if name.endswith(".hea")]
        if headers and rng.random() < 0.75:
            name = (
                f"{case.name}.hea"
                if rng.random() < 0.6 and f"{case.name}.hea" in files
                else rng.choice(headers)
            )
            change = _raw if rng.random() < 0.25 else _grammar
        else:
            name, change = rng.choice(list(files)), _raw
        others = [
            x for n, x in rng.choice(corpus).files.items() if n.endswith(".hea") == name.endswith(".hea")
        ]
        files[name] = change(rng, files[name], rng.choice(others or [b""]), corpus)
        if rng.random() < 0.02:
            del files[rng.choice(list(files))]
        if not files:
            files["r.hea"] = b""
    return Case(case.name, files)


def _raw(rng: random.Random, body: bytes, other: bytes, corpus: list[Case]) -> bytes:
    x = bytearray(body)
    kind = rng.choice((0, 0, 1, 2, 3, 4, 5, 6, 7, 7, 8, 8))
    if kind == 6 and body[:1].isalnum() and rng.random() < 0.8:
        kind = 1  # a header with zeros is refused before anything else is looked at
    at, end = sorted((rng.randrange(len(x) + 1), rng.randrange(len(x) + 1)))
    end = min(end, at + 4096)
    if kind == 0 and x:
        for _ in range(rng.choice((1, 2, 8, 64))):
            x[rng.randrange(len(x))] ^= 1 << rng.randrange(8)
    elif kind == 1 and x:
        x[rng.randrange(len(x))] = rng.choice((0, 1, 9, 10, 13, 32, 35, 47, 127, 128, 255))
    elif kind == 2:
        del x[at:end]
    elif kind == 3:
        x[at:at] = x[at:end]
    elif kind == 4:
        del x[at:]
    elif kind == 5:
        x[at:at] = rng.randbytes(rng.choice((1, 3, 64)))
    elif kind == 6:
        x[at:end] = bytes(end - at)
    elif kind == 7 and other:
        start = rng.randrange(len(other))
        x[at:end] = other[start : start + end - at]
    else:
        x = bytearray(other[: len(other) // 2] + body[len(body) // 2 :])
    return bytes(x)


def _grammar(rng: random.Random, body: bytes, other: bytes, corpus: list[Case]) -> bytes:
    lines = body.decode("utf-8", "surrogateescape").split("\n")
    at = rng.randrange(len(lines)) if rng.random() < 0.7 else 0
    words = lines[at].split(" ")
    kind = rng.randrange(13)
    word = rng.randrange(len(words))
    if kind <= 2:
        words[word] = rng.choice((NUMBERS, NUMBERS, NAMES, WORDS, FORMATS)[rng.randrange(5)])
    elif kind == 3:  # one number inside a field: 16x1+24, 200(0)/mV, r/3
        numbers = list(re.finditer(r"-?[0-9.]+", lines[at]))
        if numbers:
            hit = rng.choice(numbers)
            lines[at] = lines[at][: hit.start()] + rng.choice(NUMBERS) + lines[at][hit.end() :]
            words = lines[at].split(" ")
    elif kind == 4 and len(words) > 1:
        words[1] = rng.choice(FORMATS)
    elif kind == 5 and len(words) > 2:
        gain = f"{rng.choice(NUMBERS)}({rng.choice(NUMBERS)})/{rng.choice(UNITS)}"
        words[2] = rng.choice((gain, gain.partition("/")[0], rng.choice(NUMBERS), f"/{rng.choice(UNITS)}"))
    elif kind == 6:
        words[0] = rng.choice((*NAMES, *(name for case in corpus[:20] for name in case.files)))
    elif kind == 7:
        words.insert(word, rng.choice(("", "\t", "#", rng.choice(NUMBERS), rng.choice(WORDS))))
    elif kind == 8:
        del words[word]
    elif kind == 9:
        lines.insert(rng.randrange(len(lines) + 1), lines[at])
        words = lines[at].split(" ")
    elif kind == 10:
        rng.shuffle(lines)
        words = lines[at].split(" ")
    elif kind == 11:
        number = rng.choice(("0", "-1", "1", "2", "3", "12", "100", "1000000", "1000000000000"))
        lines[0] = re.sub(r"\b[0-9]+\b", lambda m: number if rng.random() < 0.4 else m[0], lines[0])
        words = lines[at].split(" ")
    else:
        spliced = other.decode("utf-8", "surrogateescape").split("\n")[:50]
        lines[at : at + rng.randrange(3)] = rng.sample(spliced, min(len(spliced), rng.randrange(1, 4)))
        at = min(at, len(lines) - 1)
        words = lines[at].split(" ")
    lines[at] = " ".join(words)
    if rng.random() < 0.05:
        lines = [line + "  \t" for line in lines]
    text = rng.choice(("\n", "\n", "\n", "\r\n", "\r")).join(lines)
    return text.encode("utf-8", "surrogateescape")


def put(folder: Path, case: Case) -> Path:
    """Write a case into a new folder that also holds a link to itself, a fifo, a folder and an empty file."""
    folder.mkdir()
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "fifo")
    (folder / "folder").mkdir()
    (folder / "empty").touch()
    for name, body in case.files.items():
        (folder / name).write_bytes(body)
    return folder / case.name


def judge(path: Path, compare: bool = False, pieces: bool = True) -> tuple[str, str]:
    """(outcome, detail) of one record, without bounds; pieces: conditioned piece by piece as well."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            outcome = _judge(path, compare, pieces)
        except RecordError as error:
            said = str(error)
            outcome = ("rejected", _reason(said, path.name))
            if "\n" in said or not said or len(said) > 1000:
                outcome = ("wrong", f"no sentence: {said[:300]!r}")
        except MemoryError:
            outcome = ("memory", traceback.format_exc())
        except _TooLong:
            outcome = ("hang", traceback.format_exc())
        except Exception:
            outcome = ("crash", traceback.format_exc())
    if caught and outcome[0] in ("read", "unusable", "rejected"):
        outcome = ("warning", f"{caught[0].category.__name__}: {caught[0].message} in {caught[0].filename}")
    return outcome


def _reason(said: str, name: str) -> str:
    """The sentence without what differs from record to record."""
    said = re.sub(rf"\b{re.escape(name)}\b", "*", said)
    return re.sub(r"'[^']*'|\"[^\"]*\"|[0-9][0-9.]*|\b(s|seg|r|JS|A|E|Q)[#]*\.\w+", "#", said)[:70]


LOCAL = ("noise", "swap", "polarity")  # judged piece by piece, which are seconds long here


def _judge(path: Path, compare: bool, in_pieces: bool) -> tuple[str, str]:
    record = open_record(path)
    whole = record.read()
    n = record.n_samples
    a, b = n // 3, max(n // 3 + 1, 2 * n // 3)
    part = open_record(path).read(a, b)
    if whole.ecg.shape != (12, n) or not np.array_equal(part.ecg, whole.ecg[:, a:b], equal_nan=True):
        return "wrong", f"part {a}:{b} of {n} is not that of the whole"
    if compare and (difference := _against_wfdb(path, whole)):
        return "differs", difference
    try:
        made = condition_recording(whole, 100.0, RULES)
    except RecordError:
        return "unusable", ""
    if not np.isfinite(made.ecg).all():
        return "wrong", "conditioned signal is not finite"
    if not in_pieces:
        return "read", ""
    pieces: list[np.ndarray] = []
    usual, long_records.PIECE = long_records.PIECE, max(256, n // 3)
    try:
        verdict = long_records.condition_long(record, 100.0, RULES, lambda ecg, frank: pieces.append(ecg))
    finally:
        long_records.PIECE = usual
    words = [[word for word in v.words if word.partition(":")[0] not in LOCAL] for v in (verdict, made)]
    if np.concatenate(pieces, axis=1).shape != made.ecg.shape or words[0] != words[1]:
        return "wrong", f"pieces {verdict.words} and whole {made.words} differ"
    return "read", ""


def _against_wfdb(path: Path, whole) -> str:
    """Where wfdb reads the record as well: how it differs, or nothing."""
    import contextlib
    import io

    import wfdb

    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = wfdb.rdrecord(str(path), smooth_frames=False)
            rate = {int(theirs.samps_per_frame[i] or 1) for i in range(theirs.n_sig)}
            units, formats = list(theirs.units), list(theirs.fmt)  # None where segments differ
    except Exception:
        return ""
    names = [str(name).strip().lower() for name in theirs.sig_name or []]
    for row, lead in enumerate(LEADS):
        if lead.lower() in names and len(rate) == 1 and whole.observed[row]:
            channel = names.index(lead.lower())
            factor = {"mV": 1.0, "uV": 1e-3, "V": 1e3, "nV": 1e-6}.get(str(units[channel]), np.nan)
            x = np.asarray(theirs.e_p_signal[channel]) * factor
            known = {"311", "8"} & set(formats)  # an unused bit, and the default of the initial value
            if not known and np.isfinite(factor) and not np.array_equal(x, whole.ecg[row], equal_nan=True):
                return f"lead {lead}: {x[:4]} by wfdb, {whole.ecg[row][:4]} here, {len(x)} samples"
    return ""


def list_folder(rng: random.Random, folder: Path) -> tuple[str, str]:
    """A mutated RECORDS file through list_source."""
    names = [
        "r",
        "m",
        "s0",
        "folder/",
        "folder/r",
        "./r",
        "../r",
        "/",
        "//",
        ".",
        "..",
        "folder//",
        "#",
        "a" * 300,
    ]
    for place in (folder, folder / "folder"):
        body = "\n".join(rng.choices(names, k=rng.randrange(6))).encode()
        (place / "RECORDS").write_bytes(_raw(rng, body, body, []) if rng.random() < 0.5 else body)
    try:
        found = list_source(folder)
    except SourceError as error:
        return "rejected", "RECORDS" + str(error).split("RECORDS")[-1].split("'")[0]
    except Exception:
        return "crash", traceback.format_exc()
    return "read", str(len(found.records) > 0)


class _TooLong(BaseException):
    pass


def work(arguments: argparse.Namespace) -> None:
    """In a process of its own: inputs first, first + step ... to the end, one line of JSON for each."""
    corpus = seeds(arguments.data)
    place = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))

    def late(*_):
        raise _TooLong

    for name in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(name, late)
    judge(put(place / "first", corpus[0]), compare=True)  # imports wfdb, so that its room is counted
    shutil.rmtree(place / "first")
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (in_use + (MEGABYTES << 20), resource.RLIM_INFINITY))
    try:
        for number in range(arguments.first, arguments.inputs, arguments.step):
            print(json.dumps({"start": number}), flush=True)
            path = put(place / "case", mutate(corpus, arguments.seed, number))
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            signal.alarm(60)
            began = time.process_time()
            try:
                if number % 20 == 19:
                    outcome = list_folder(random.Random(number), path.parent)
                    outcome = (f"list {outcome[0]}" if outcome[0] != "crash" else "crash", outcome[1])
                else:
                    outcome = judge(path, compare=number % 10 == 0, pieces=number % 5 == 1)
            except _TooLong:
                outcome = ("hang", traceback.format_exc())
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.alarm(0)
            spent = time.process_time() - began
            print(json.dumps({"number": number, "outcome": outcome, "seconds": spent}), flush=True)
            shutil.rmtree(place / "case")
    finally:
        shutil.rmtree(place, ignore_errors=True)


def run(arguments: argparse.Namespace) -> int:
    """All inputs in worker processes; a worker that dies is counted as a crash and replaced."""
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    slowest = (0.0, -1)
    bad: list[dict] = []
    began = time.monotonic()
    queues = [(first, None) for first in range(arguments.workers)]
    workers = [_start(arguments, first) for first, _ in queues]
    started = [-1] * arguments.workers
    while workers:
        for at, worker in enumerate(list(workers)):
            line = worker.stdout.readline()
            said = json.loads(line) if line else None
            if said is None:
                code = worker.wait()
                workers[at] = None
                if code:
                    number = started[at]
                    counts["crash"] += 1
                    bad.append({"number": number, "outcome": ["crash", f"the process ended with {code}"]})
                    print(json.dumps(bad[-1]), flush=True)
                    workers[at] = _start(arguments, number + arguments.workers)
            elif "start" in said:
                started[at] = said["start"]
            else:
                outcome, detail = said["outcome"]
                counts[outcome] += 1
                slowest = max(slowest, (said["seconds"], said["number"]))
                if outcome in ("rejected", "list rejected"):
                    reasons[detail] += 1
                elif outcome not in ("read", "unusable", "list read"):
                    bad.append(said)
                    print(json.dumps(said)[:3000], flush=True)
                total = sum(counts.values())
                if total % 5000 == 0:
                    print(f"{total} in {time.monotonic() - began:.0f} s: {dict(counts)}", flush=True)
        kept = [i for i, worker in enumerate(workers) if worker is not None]
        workers, started = [workers[i] for i in kept], [started[i] for i in kept]
    report = {"seed": arguments.seed, "inputs": sum(counts.values()), "counts": dict(counts)}
    report |= {"slowest_s": slowest[0], "slowest_input": slowest[1], "reasons": dict(reasons.most_common(60))}
    print(json.dumps(report, indent=1, ensure_ascii=False))
    return 1 if bad else 0


def _start(arguments: argparse.Namespace, first: int) -> subprocess.Popen:
    command = [sys.executable, __file__, "--work", "--first", str(first), "--step", str(arguments.workers)]
    command += [
        "--inputs",
        str(arguments.inputs),
        "--seed",
        str(arguments.seed),
        "--data",
        str(arguments.data),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--only", type=int, help="run this input alone, without bounds, and show its files")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--step", type=int, default=1, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments)
        return 0
    if arguments.only is not None:
        case = mutate(seeds(arguments.data), arguments.seed, arguments.only)
        for name, body in case.files.items():
            print(f"{name}: {len(body)} bytes", body[:1500] if name.endswith(".hea") else "")
        with tempfile.TemporaryDirectory() as place:
            print(case.name, *judge(put(Path(place) / "case", case), compare=True), sep="\n")
        return 0
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
