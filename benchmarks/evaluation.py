"""What an evaluation costs per window of the test split, and how its memory grows with their number.

    python benchmarks/evaluation.py CHECKPOINT WINDOWS [--windows 500 2500] [--stages reconstruction ...]
                                    [--set KEY=VALUE ...]

The test split of WINDOWS is copied over and over, each copy as other people, until it has so many windows;
the other splits stay as they are. Every evaluation runs in a process of its own, with params.yaml, of which
one lead set is judged, and the given overrides: minutes instead of an hour. Printed: seconds per 1,000 test
windows, from the difference of the two sizes where there are two (fitting and starting cost the same in
both), peak memory of that process, and its growth likewise.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import PARAMS, options, section, table

import numpy as np

from ecggen.utils.config import Config, config_from_dict, config_to_dict, load_config
from ecggen.utils.files import read_csv, read_json, write_csv, write_json

STAGES = ("reconstruction", "missing_lead", "linear_probe")
#: A further lead set costs as much and needs no more memory; training does not depend on test windows.
BRIEF = (
    'missing_lead.lead_sets=["I+II+V2"]',
    "missing_lead.leave_one_out=false",
)


def enlarged(source: Path, target: Path, count: int) -> None:
    """A copy of a window folder whose test split has `count` windows."""
    rows = read_csv(source / "index.csv")
    test = [i for i, row in enumerate(rows) if row["split"] == "test"]
    chosen = [i for i, row in enumerate(rows) if row["split"] != "test"]
    names = [""] * len(chosen)
    for at in range(count):
        chosen.append(test[at % len(test)])
        names.append(f"copy{at // len(test)}_")
    index = [
        rows[i] | {"window": str(n), "record": name + rows[i]["record"], "patient": name + rows[i]["patient"]}
        for n, (i, name) in enumerate(zip(chosen, names, strict=True))
    ]
    write_csv(target / "index.csv", index, list(rows[0]))
    write_json(target / "meta.json", read_json(source / "meta.json"))
    for name in ("windows.npy", "frank.npy"):
        if (source / name).is_file():
            old = np.load(source / name, mmap_mode="r")
            new = np.lib.format.open_memmap(target / name, "w+", old.dtype, (len(chosen), *old.shape[1:]))
            for n, i in enumerate(chosen):
                new[n] = old[i]
            new.flush()


def evaluate(stage: str, checkpoint: str, folder: str, config: Config) -> dict[str, Any]:
    """Seconds and peak memory in MiB."""
    from ecggen.data.pipeline import read_window_folder
    from ecggen.eval.linear_probe import linear_probe
    from ecggen.eval.missing_lead import missing_lead
    from ecggen.eval.reconstruction import reconstruction
    from ecggen.inference.renderer import load

    renderer, windows = load(checkpoint), read_window_folder(folder)
    begin = time.perf_counter()
    protocol: Any = {
        "reconstruction": reconstruction, "missing_lead": missing_lead, "linear_probe": linear_probe
    }[stage]  # fmt: skip
    protocol(renderer, windows, getattr(config, stage), processes=1)
    seconds = time.perf_counter() - begin
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "memory": memory}


def main() -> None:
    """Print the table."""
    parser = options(__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("source", metavar="WINDOWS", type=Path)
    parser.add_argument("--windows", type=int, nargs="+", default=[500, 2500])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--one", metavar="STAGE", help=argparse.SUPPRESS)  # what a child is started with
    parser.add_argument("--set", nargs="*", default=[], dest="overrides", metavar="KEY=VALUE")
    args = parser.parse_args()
    if args.one:
        config = config_from_dict(json.load(sys.stdin))
        print(json.dumps(evaluate(args.one, args.checkpoint, str(args.source), config)))
        return
    config = load_config(PARAMS, [*BRIEF, *args.overrides])
    settings = json.dumps(config_to_dict(config))
    measured: dict[str, list[dict[str, Any]]] = {stage: [] for stage in args.stages}
    with tempfile.TemporaryDirectory() as scratch:
        for count in sorted(args.windows):
            folder = Path(scratch) / str(count)
            folder.mkdir()
            enlarged(args.source, folder, count)
            for stage, runs in measured.items():
                command = [sys.executable, __file__, args.checkpoint, str(folder), "--one", stage]
                done = subprocess.run(command, input=settings, stdout=subprocess.PIPE, text=True, check=True)
                runs.append({"windows": count, **json.loads(done.stdout.splitlines()[-1])})
    lines = []
    for stage, runs in measured.items():
        for run, before in zip(runs, [None, *runs], strict=False):
            first = before or {"windows": 0, "seconds": 0.0}
            thousands = (run["windows"] - first["windows"]) / 1000
            each = f"{(run['seconds'] - first['seconds']) / thousands:.1f}"
            growth = "" if before is None else f"{(run['memory'] - before['memory']) / thousands:.0f}"
            seconds, memory = f"{run['seconds']:.1f}", f"{run['memory']:.0f}"
            lines.append([stage, str(run["windows"]), seconds, each, memory, growth])
    print(section("Evaluation", sys.argv))
    print(f"params.yaml with {', '.join(BRIEF)}.\n")
    head = ["evaluation", "test windows", "s", "s per 1,000 more", "peak, MiB", "MiB per 1,000 more"]
    print(table(head, lines))


if __name__ == "__main__":
    main()
