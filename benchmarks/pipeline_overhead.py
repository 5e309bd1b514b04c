"""What the pipeline costs beside its work: DVC, the start of Python, MLflow records.

    python benchmarks/pipeline_overhead.py [--rounds 5] [--project .] [--stand-in 2 | --skip-stages]
    python benchmarks/pipeline_overhead.py --records FOLDER [--limit 300] [--epochs 4] [--rounds 5]

A small copy of the project runs whole, in turn: its ten commands by hand without records, `dvc repro --force`
without records and with them. Then `dvc repro` with nothing to do, and what a first import takes beside
`import torch`. Everything is wall time, medians over the rounds; --project names another checkout.
--stand-in: stages that only wait so many seconds and record as much as real ones do, so that nothing but the
overhead is measured.

--records: what tracking costs a real run. All stages at their full size on the first --limit records of a
folder, training cut short to --epochs (tracking costs the same per epoch, and a longer one makes its share
smaller), no other database; without and with MLflow records, in turn. By the clock until dvc ends, and by
processor time of all processes, with that of the courier, which goes on sending beside and after it. Linux.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import ctypes
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml
from common import SMALL_MODEL, section, table

ROOT = Path(__file__).resolve().parents[1]
STAGES = (
    *("download", "preprocess", "window", "train", "reconstruction", "missing_lead", "linear_probe"),
    *("transfer_windows", "transfer", "report"),
)
SMALL: dict[str, dict[str, Any]] = {
    "data": {"time_len": 256},
    "synthetic": {"patients": 24, "seconds": 6.0},
    "window": {"stride": 256, "min_label_count": 2},
    "model": SMALL_MODEL,
    "train": {"epochs": 2, "threads": 1, "device": "cpu"},
    "reconstruction": {"bootstrap": 10, "state_records": 6},
    "missing_lead": {"bootstrap": 10, "lead_sets": ["I+II+V2"], "leave_one_out": False, "ttt_steps": 4},
    "linear_probe": {"bootstrap": 10, "supervised_epochs": 1, "pca": 8},
    "report": {"examples": 1},
}
IMPORTS = {
    "import torch": ["-c", "import torch"],
    "import ecggen": ["-c", "import ecggen"],
    "python -m ecggen.main --help": ["-m", "ecggen.main", "--help"],
    "import ecggen; ecggen.load": ["-c", "import ecggen; ecggen.load"],
}


STAND_IN = """
import sys, time
from stages import run_stage
def stage(config, run):
    time.sleep({seconds})
    for epoch in range(20):
        run.epoch({{"epoch": epoch, "loss": 0.5, "val_r": 0.5}})
    run.artifact("ecggen/prepare")
    return {{"numbers": {{str(i): i / 7 for i in range(100)}}}}
if __name__ == "__main__":
    sys.exit(run_stage("{name}", stage))
"""


def put_stand_ins(root: Path, wait: float) -> None:
    """Stages that wait, in a chain, in place of the real ones."""
    stages = {}
    for name in STAGES:
        (root / "stages" / f"{name}.py").write_text(STAND_IN.format(seconds=wait, name=name))
        stages[name] = {"cmd": f"python -m stages.{name}", "deps": ["params.yaml"]}
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))


def copied(project: Path, root: Path, changes: dict[str, dict[str, Any]]) -> None:
    """The project without git, its parameters changed."""
    for name in ("ecggen", "stages", ".dvc"):
        shutil.copytree(
            project / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "tmp", "cache")
        )
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copy(project / name, root / name)
    (root / ".dvc/config.local").write_text("[core]\n    no_scm = true\n")
    params = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    for name, values in changes.items():
        params[name] |= values
    (root / "params.yaml").write_text(yaml.safe_dump(params))


def environment(root: Path, records: bool) -> dict[str, str]:
    """Without what the caller set for MLflow; the copy's own code first."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "ECGGEN_", "DVC_"))}
    paths = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {"PATH": paths, "PYTHONPATH": str(root), "OMP_WAIT_POLICY": "PASSIVE"}
    own["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")
    return kept | own | ({} if records else {"ECGGEN_TRACKING": "off"})


def seconds(command: list[str], root: Path, records: bool = False) -> float:
    """Wall time of a command that must succeed."""
    began = time.perf_counter()
    done = subprocess.run(
        command, cwd=root, env=environment(root, records), capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"error: {' '.join(command)} failed: {done.stderr[-2000:]}")
    return time.perf_counter() - began


def repro(root: Path, records: bool) -> dict[str, float]:
    """Wall time of `dvc repro --force`, from one "Running stage" to the next, and as a whole."""
    command = [sys.executable, "-u", "-m", "dvc", "repro", "--force"]
    began = time.perf_counter()
    out, name, since = {}, "", began
    with subprocess.Popen(
        command, cwd=root, env=environment(root, records), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Running stage '"):
                now = time.perf_counter()
                if name:
                    out[name] = now - since
                name, since = line.split("'")[1], now
    if process.returncode:
        sys.exit("error: dvc repro failed")
    now = time.perf_counter()
    return out | {name: now - since, "total": now - began}


def adopt_orphans() -> None:
    """Make processes that outlive the one that started them children of this one (prctl(2))."""
    subreaper = 36  # PR_SET_CHILD_SUBREAPER
    if ctypes.CDLL(None, use_errno=True).prctl(subreaper, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def wait_for_orphans() -> None:
    """Until no process that began here, or was adopted, is left."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def cost(root: Path, records: bool) -> dict[str, float]:
    """Of `dvc repro --force`: seconds by the clock; processor seconds until then, and of the courier."""

    def processor() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before = processor()
    clock = repro(root, records)["total"]
    stages = processor()
    wait_for_orphans()
    return {"clock": clock, "stages": stages - before, "courier": processor() - stages}


def whole_runs(args: argparse.Namespace) -> None:
    """Print what tracking adds to runs on real records."""
    changes = {
        "data": {"source": "wfdb", "path": str(args.records.resolve()), "limit": args.limit},
        "train": {"epochs": args.epochs},
        "transfer": {"sources": []},
    }
    os.environ["OMP_NUM_THREADS"] = str(len(os.sched_getaffinity(0)))  # as a run of one's own
    adopt_orphans()
    taken: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "project"
        copied(args.project.resolve(), root, changes)
        (root / "first.py").write_text(STAND_IN.format(seconds=0, name="window"))
        seconds([sys.executable, "first.py"], root, records=True)  # makes the store
        wait_for_orphans()
        for number in range(args.rounds):
            for records in (False, True) if number % 2 == 0 else (True, False):
                taken[records].append(cost(root, records))
                print(f"records {records}: {taken[records][-1]}", file=sys.stderr, flush=True)
    print(section("What tracking adds to a run on real records", sys.argv))
    print(f"{args.limit} records, {args.epochs} epochs, all ten stages; medians of {args.rounds} rounds.\n")
    rows = []
    for kind in taken[False][0]:
        without, with_it = (statistics.median(run[kind] for run in taken[on]) for on in (False, True))
        more = f"{100 * (with_it / without - 1):+.1f} %" if without else ""
        name = {"clock": "clock", "stages": "processor, dvc and stages", "courier": "processor, courier"}[
            kind
        ]
        rows.append([name, f"{without:.1f}", f"{with_it:.1f}", more])
    print(table(["", "without records, s", "with, s", "more"], rows))


def imports_of(root: Path, stage: str) -> list[str]:
    """The command that imports what a stage imports, and does nothing."""
    tree = ast.parse((root / "stages" / f"{stage}.py").read_text(encoding="utf-8"))
    lines = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    first = [line for line in lines if "__future__" in line]
    return [sys.executable, "-c", "\n".join([*first, *(line for line in lines if line not in first)])]


def main() -> None:
    """Measure and print Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--project", type=Path, default=ROOT)
    parser.add_argument("--skip-stages", action="store_true", help="only dvc with nothing to do, and imports")
    parser.add_argument("--stand-in", type=float, metavar="SECONDS")
    parser.add_argument("--records", type=Path, metavar="FOLDER")
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=4)
    args = parser.parse_args()
    if args.records:
        whole_runs(args)
        return
    python, taken = sys.executable, defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "project"
        copied(args.project.resolve(), root, SMALL)
        if args.stand_in is not None:
            put_stand_ins(root, args.stand_in)
        repro(root, records=True)  # makes the store, and byte code of everything
        for _ in range(args.rounds):
            taken["nothing to do"].append(seconds([python, "-m", "dvc", "repro"], root, records=True))
            for name, words in IMPORTS.items():
                taken[name].append(seconds([python, *words], root))
            for stage in STAGES if not args.skip_stages else ():
                taken[f"{stage} imports"].append(seconds(imports_of(root, stage), root))
                taken[f"{stage} bare"].append(seconds([python, "-m", f"stages.{stage}"], root))
            for records in (False, True) if not args.skip_stages else ():
                for stage, value in repro(root, records).items():
                    taken[f"{stage} {'recorded' if records else 'dvc'}"].append(value)
    median = {name: statistics.median(values) for name, values in taken.items()}
    print(section("What the pipeline costs beside its work", sys.argv))
    if not args.skip_stages:
        columns = ("imports", "bare", "dvc", "recorded")
        for column in columns[:2]:
            median[f"total {column}"] = sum(median[f"{stage} {column}"] for stage in STAGES)
        rows = []
        for name in (*STAGES, "total"):
            cells = [f"{median[f'{name} {column}']:.2f}" for column in columns]
            more = median[f"{name} recorded"] - median[f"{name} dvc"]
            rows.append([name, *cells, f"{more:+.2f}"])
        head = ["stage", "its imports, s", "by hand, s", "dvc repro, s", "with MLflow records, s", "records"]
        print(table(head, rows))
    torch = median["import torch"]
    rows = [
        [name, f"{median[name]:.2f}", f"{median[name] / torch:.2f}"] for name in ("nothing to do", *IMPORTS)
    ]
    print(table(["", "s", "x import torch"], rows).replace("nothing to do", "dvc repro, nothing to do"))


if __name__ == "__main__":
    main()
