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
from pathlib import Path

import numpy as np
from mutated_records import flip, mutate, put, seeds

from ecggen.io.records import RecordError, open_record
from ecggen.leads import LEADS
from ecggen.prepare.download.source import SourceError, list_source
from ecggen.prepare.preprocess import conditioning
from ecggen.prepare.preprocess.stage import condition_recording
from ecggen.utils.config import PreprocessConfig

SECONDS = 2.0
MEGABYTES = 200
RULES = PreprocessConfig(min_seconds=0.1)


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
    usual = conditioning.PIECE, conditioning.WHOLE
    conditioning.PIECE, conditioning.WHOLE = max(256, n // 3), 0
    try:
        verdict = conditioning.condition_record(record, 100.0, RULES, lambda ecg, frank: pieces.append(ecg))
    finally:
        conditioning.PIECE, conditioning.WHOLE = usual
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
        (place / "RECORDS").write_bytes(flip(rng, body, body) if rng.random() < 0.5 else body)
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
