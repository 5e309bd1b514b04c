"""Peak memory and time of the window stage and of training, as the data set grows.

    python benchmarks/memory.py [--windows 2000 20000 200000] [--steps 24] [--rounds 5] [--folder DIR]
                                [KEY=VALUE ...]

Made records of 10 s (a synthetic heart's, repeated at other amplitudes under other names) become windows by
the window stage's own function; a trainer opens them, takes --steps steps, validates, calibrates and writes
its checkpoints. Each is a process of its own. Per count: the largest memory that the process did not share
with a file (RssAnon, looked at every 5 ms) and its largest resident set (VmHWM). 200,000 windows need 10 GB
in DIR while they are measured. Linux.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ecggen.utils.config import Config, load_config
from ecggen.utils.threads import wait_passively

wait_passively()

import numpy as np  # noqa: E402
from common import section, table  # noqa: E402

from ecggen.leads import LEADS  # noqa: E402
from ecggen.utils.files import write_csv, write_json  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 10  # of a record: two windows of 5.12 s
BASE = 200  # records that are simulated
EVERY = 10  # record with a span of noise
BATCH, BATCHES = 32, 100  # of the loader alone


def write_records(folder: Path, count: int, config: Config) -> None:
    """As data/records: `count` records of SECONDS, two for every fourth patient; names in no order."""
    from dataclasses import replace

    from ecggen.data.signal import condition
    from ecggen.prepare.synthetic import population as synthetic

    fs = config.data.fs
    rules = replace(config.synthetic, seconds=float(SECONDS))
    pre = config.preprocess
    made = [
        condition(r.ecg_mv.T, rules.fs, fs, low_hz=pre.low_hz, high_hz=pre.high_hz, order=pre.order).T
        for r in itertools.islice(synthetic.dataset(rules), min(BASE, count))
    ]
    base, samples = np.ascontiguousarray(made, dtype=np.float32), made[0].shape[0]
    folder.mkdir(parents=True)
    with (folder / "signals.npy").open("wb") as stream:
        shape = (count * samples, len(LEADS))
        said: dict[str, Any] = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, said)
        for at in range(0, count, len(base)):
            stream.write((base[: count - at] * np.float32(0.8 + 0.4 * at / count)).data)
    names = np.random.default_rng(0).permutation(count)

    def rows() -> Iterator[dict[str, Any]]:
        for i in range(count):
            person = f"p{names[i - (i % 5 == 1)]:06d}"
            row = {"record": f"{person}_{1 + (i % 5 == 1)}", "patient": person, "offset": i * samples}
            row |= {"n_samples": samples, "fs_raw": rules.fs, "observed": "1" * len(LEADS), "fold": ""}
            row |= {"reasons": "", "database": "made", "label_system": "dx", "age": "", "quality": 1}
            yield row | {"labels": "", "all_labels": f"dx/{('norm', 'rbbb', 'lbbb', 'afib', 'mi')[i % 5]}"}

    def spans() -> Iterator[dict[str, Any]]:
        for row in itertools.islice(rows(), 0, None, EVERY):
            yield {"record": row["record"], "flag": "noise", "lead": "V1", "start_s": 0.0, "stop_s": 4.0}

    write_csv(folder / "records.csv", rows(), list(next(rows())))
    write_csv(folder / "spans.csv", spans(), ("record", "flag", "lead", "start_s", "stop_s"))
    write_csv(folder / "rejected.csv", [], ("record", "reason"))
    counted = {"listed": count, "absent": 0, "rejected": 0, "records": count}
    by_database = {"made": counted}
    meta = {"fs": fs, "preprocessing": {}, "counts": counted | {"by_database": by_database}}
    write_json(folder / "meta.json", meta)


def status() -> dict[str, float]:
    """Fields of /proc/self/status in MiB; getrusage would count the process that started this one."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0][:-1]: int(words[1]) / 1024 for words in lines if words[-1] == "kB"}


class Peak:
    """Largest RssAnon of this process while it watches."""

    def __init__(self) -> None:
        self.anonymous, self._over = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self.anonymous = max(self.anonymous, status()["RssAnon"])

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def measure_window(records: Path, out: Path, config: Config, steps: int, rounds: int) -> dict[str, Any]:
    """The window stage's own function."""
    from ecggen.prepare.window.stage import window

    began = time.perf_counter()
    window(records, out, config.data, config.window)
    return {"seconds": time.perf_counter() - began}


def measure_train(root: Path, out: Path, config: Config, steps: int, rounds: int) -> dict[str, Any]:
    """Everything that `ecggen.trainer.train` does, with epochs of `steps` batches."""
    import torch

    from ecggen import trainer
    from ecggen.data.pipeline import read_window_folder

    torch.set_num_threads(1)
    whole = trainer.make_loader
    trainer.make_loader = lambda *args, **how: itertools.islice(whole(*args, **how), steps)  # type: ignore
    folder = read_window_folder(root, fs=config.data.fs, time_len=config.data.time_len)
    run = trainer.Trainer(config, folder, out, quiet=True)
    marks = {"set up": status()["VmHWM"]}
    run._epoch()
    marks["steps"] = status()["VmHWM"]
    run._close_epoch(0.0)
    marks["validation"] = status()["VmHWM"]
    run._calibrate()
    return {"windows": len(folder), "marks": marks}


def measure_read(root: Path, out: Path, config: Config, steps: int, rounds: int) -> dict[str, Any]:
    """Opening a folder, windows in random order, the loader of training alone; the page cache is warm."""
    import torch

    from ecggen.data.pipeline import ECGDataset, make_loader, read_window_folder

    torch.set_num_threads(1)

    def seconds(work: Callable[[], object], times: int) -> float:
        taken = []
        for _ in range(times):
            began = time.perf_counter()
            work()
            taken.append(time.perf_counter() - began)
        return statistics.median(taken)

    folder = read_window_folder(root)
    columns = (
        "record",
        "patient",
        "split",
        "database",
        "labels",
        "label_valid",
        "observed",
        "start_s",
        "scale",
    )
    held = sum(getattr(folder, name).nbytes for name in columns)
    rng = np.random.default_rng(0)
    chosen = [rng.integers(0, len(folder), BATCH) for _ in range(BATCHES)]
    data = ECGDataset(folder, "train", seed=1, time_scaling=config.train.warp)

    def read() -> None:
        for rows in chosen:
            folder.windows[rows]

    def load() -> None:
        loader = make_loader(data, batch_size=BATCH, shuffle=True, seed=1, epoch=1)
        for _ in itertools.islice(loader, BATCHES):
            pass

    read()
    load()
    batches = min(BATCHES, -(-len(data) // BATCH))
    size = sum(path.stat().st_size for path in root.iterdir())
    return {
        "windows": len(folder),
        "held": held,
        "bytes": size / len(folder),
        "open": seconds(lambda: read_window_folder(root), rounds),
        "read": BATCH * BATCHES / seconds(read, rounds),
        "load": seconds(load, rounds) / batches,
    }


MEASURED = {"window": measure_window, "train": measure_train, "read": measure_read}


def child(what: str, source: Path, out: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--measure", what, "--paths", str(source), str(out)]
    command += ["--steps", str(args.steps), "--rounds", str(args.rounds), *args.overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{source} {what}: {found}", file=sys.stderr, flush=True)
    return found


def one_count(
    folder: Path, count: int, config: Config, args: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """All measurements of one number of windows; what was made is deleted."""
    records, windows = folder / "records", folder / "windows"
    try:
        write_records(records, count // 2, config)
        found = {"window": child("window", records, windows, args)}
        shutil.rmtree(records)
        found["read"] = child("read", windows, folder / "none", args)
        found["train"] = child("train", windows, folder / "train", args)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return found


def page(found: dict[int, dict[str, dict[str, Any]]], argv: list[str]) -> str:
    """Markdown."""
    counts = sorted(found)
    first = found[counts[0]]
    out = [section("Memory and the number of windows", argv)]
    head = [
        "windows",
        *(f"{what}: {kind}" for what in ("window stage", "training") for kind in ("anonymous", "VmHWM")),
    ]
    rows = []
    for count in counts:
        cells = [f"{found[count]['read']['windows']:,}"]
        for what in ("window", "train"):
            for key in ("anonymous", "resident"):
                value = found[count][what][key]
                cells.append(f"{value:.0f} MiB ({value / first[what][key]:.2f} x)")
        rows.append(cells)
    out.append(table(head, rows))
    head = [
        "windows",
        "window stage, s per 1,000 records",
        "opening",
        "memory of the open folder, bytes a window",
    ]
    head += ["on disk, bytes a window", "read at random, windows/s", f"loader, ms per batch of {BATCH}"]
    rows = []
    for count in counts:
        read, stage = found[count]["read"], found[count]["window"]
        row = [
            f"{read['windows']:,}",
            f"{stage['seconds'] / (count // 2) * 1000:.2f}",
            f"{read['open']:.3f} s",
        ]
        row += [
            f"{read['held'] / read['windows']:.0f}",
            f"{read['bytes']:.0f}",
            f"{read['read']:.0f}",
        ]
        rows.append([*row, f"{1e3 * read['load']:.1f}"])
    out.append(table(head, rows))
    return "\n".join(out)


def main() -> None:
    """Print Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--windows", type=int, nargs="+", default=[2000, 20_000, 200_000])
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to make them; default: a temporary folder")
    parser.add_argument("--measure", choices=tuple(MEASURED), help=argparse.SUPPRESS)
    parser.add_argument("--paths", type=Path, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_intermixed_args()
    config = load_config(ROOT / "params.yaml", args.overrides)
    if args.measure:
        with Peak() as peak:
            found = MEASURED[args.measure](*args.paths, config, args.steps, args.rounds)
        print(json.dumps(found | {"anonymous": peak.anonymous, "resident": status()["VmHWM"]}))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        found = {n: one_count(Path(folder, str(n)), n, config, args) for n in args.windows}
    print(page(found, sys.argv))


if __name__ == "__main__":
    main()
