"""Peak memory and time of the window stage and of training, as the data set grows.

    python benchmarks/memory.py [--windows 2000 20000 100000] [--steps 24] [--folder DIR] [KEY=VALUE ...]

Synthetic records of 10 s (a few, repeated at other amplitudes under other names) become windows by the window
stage's own function; a trainer opens the folder, takes --steps steps, validates and calibrates.
Each is a process of its own. Per count: the largest memory that the process did not share with a file
(RssAnon, looked at every 5 ms); pages of memory maps do not count. 100,000 windows need 5 GB in DIR while
they are measured. Linux.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ecggen.leads import LEADS
from ecggen.utils.config import Config, load_config
from ecggen.utils.files import write_csv, write_json

ROOT = Path(__file__).resolve().parents[1]
SIMULATED = 200  # records


def write_records(folder: Path, count: int, config: Config) -> None:
    """As data/records: `count` records of 10 s, two for every fourth patient; names in no order."""
    from ecggen.data.signal import condition
    from ecggen.prepare.synthetic import population

    synthetic, pre = replace(config.synthetic, seconds=10.0), config.preprocess
    band: dict[str, Any] = {"low_hz": pre.low_hz, "high_hz": pre.high_hz, "order": pre.order}
    records = itertools.islice(population.dataset(synthetic), min(SIMULATED, count))
    signals = [condition(record.ecg_mv.T, synthetic.fs, config.data.fs, **band).T for record in records]
    base = np.ascontiguousarray(signals, dtype=np.float32)
    samples = base.shape[1]
    folder.mkdir(parents=True)
    with (folder / "signals.npy").open("wb") as stream:
        header: dict[str, Any] = {"descr": "<f4", "fortran_order": False, "shape": (count * samples, 12)}
        np.lib.format.write_array_header_1_0(stream, header)
        for at in range(0, count, len(base)):
            stream.write((base[: count - at] * np.float32(0.8 + 0.4 * at / count)).data)
    names = np.random.default_rng(0).permutation(count)

    def rows() -> Iterator[dict[str, Any]]:
        for i in range(count):
            person = f"p{names[i - (i % 5 == 1)]:06d}"
            row = {"record": f"{person}_{1 + (i % 5 == 1)}", "patient": person, "offset": i * samples}
            row |= {"n_samples": samples, "observed": "1" * len(LEADS), "fold": "", "reasons": ""}
            row |= {"database": "synthetic", "label_system": "dx"}
            yield row | {"all_labels": f"dx/{('norm', 'rbbb', 'lbbb', 'afib', 'mi')[i % 5]}"}

    noise = {"flag": "noise", "lead": "V1", "start_s": 0.0, "stop_s": 4.0}
    spans = ({"record": row["record"]} | noise for row in itertools.islice(rows(), 0, None, 10))
    write_csv(folder / "records.csv", rows(), list(next(rows())))
    write_csv(folder / "spans.csv", spans, ("record", *noise))
    write_csv(folder / "rejected.csv", [], ("record", "reason"))
    counts = {"listed": count, "absent": 0, "rejected": 0, "records": count}
    write_json(folder / "meta.json", {"fs": config.data.fs, "preprocessing": {}, "counts": counts})


def anonymous_mib() -> float:
    """Memory of this process that it shares with no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def measure_window(records: Path, out: Path, config: Config, steps: int) -> dict[str, Any]:
    """The window stage's own function."""
    from ecggen.prepare.window.stage import window

    began = time.perf_counter()
    window(records, out, config.data, config.window)
    return {"seconds": time.perf_counter() - began}


def measure_train(root: Path, out: Path, config: Config, steps: int) -> dict[str, Any]:
    """What `ecggen.trainer.train` does, with an epoch of `steps` batches."""
    import torch

    from ecggen import trainer
    from ecggen.data.pipeline import read_window_folder

    torch.set_num_threads(1)
    whole = trainer.make_loader
    trainer.make_loader = lambda *args, **how: itertools.islice(whole(*args, **how), steps)  # type: ignore
    read_window_folder(root)  # what is imported or compiled on the way
    tracemalloc.start()
    folder = read_window_folder(root)
    index = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    run = trainer.Trainer(config, folder, out, quiet=True)
    run._epoch()
    run._close_epoch(0.0)
    run._calibrate()
    return {"windows": len(folder), "index": index / len(folder)}


MEASURED = {"window": measure_window, "train": measure_train}


def measured(what: str, source: Path, out: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--measure", what, "--paths", str(source), str(out)]
    command += ["--steps", str(args.steps), *args.overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Print Markdown."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--windows", type=int, nargs="+", default=[2000, 20_000, 100_000])
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--folder", type=Path, help="where to write them; default: a temporary folder")
    parser.add_argument("--measure", choices=tuple(MEASURED), help=argparse.SUPPRESS)
    parser.add_argument("--paths", type=Path, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_intermixed_args()
    config = load_config(ROOT / "params.yaml", args.overrides)
    if args.measure:
        over, seen = threading.Event(), [anonymous_mib()]

        def watch() -> None:
            while not over.wait(0.005):
                seen[0] = max(seen[0], anonymous_mib())

        thread = threading.Thread(target=watch)
        thread.start()
        result = MEASURED[args.measure](*args.paths, config, args.steps)
        over.set()
        thread.join()
        print(json.dumps(result | {"peak": seen[0]}))
        return
    from common import section, table  # not above: it imports torch, whose memory would be measured

    head = ["windows", "window stage, MiB", "training, MiB", "window stage, s per 1,000 records"]
    head += ["open folder, bytes a window"]
    rows = []
    for count in args.windows:
        with tempfile.TemporaryDirectory(dir=args.folder) as name:
            records, windows = Path(name, "records"), Path(name, "windows")
            write_records(records, count // 2, config)
            stage = measured("window", records, windows, args)
            shutil.rmtree(records)
            train = measured("train", windows, Path(name, "train"), args)
        row = [f"{train['windows']:,}", f"{stage['peak']:.0f}", f"{train['peak']:.0f}"]
        rows.append([*row, f"{stage['seconds'] / (count // 2) * 1000:.2f}", f"{train['index']:.0f}"])
    print(section("Memory and the number of windows", sys.argv), table(head, rows), sep="\n")


if __name__ == "__main__":
    main()
