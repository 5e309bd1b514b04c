"""What the pipeline costs beside its work: DVC, the start of Python, MLflow records.

    python benchmarks/pipeline_overhead.py [--rounds 5] [--stand-in SECONDS | --skip-stages]
    python benchmarks/pipeline_overhead.py --records FOLDER [--limit 300] [--epochs 4] [--rounds 5]

A small copy of the project runs whole (`dvc repro --force`), without and with MLflow records in turn; then
`dvc repro` with nothing to do, and what a first import takes beside `import torch`. Wall time, medians over
the rounds. --stand-in: stages that only wait so many seconds and record as much as real ones do. --records:
all stages at their full size on the first --limit records of a folder, training cut short to --epochs
(tracking costs the same per epoch, so a longer one makes its share smaller), no other database.
"""

from __future__ import annotations

import argparse
import os
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
from common import SMALL, section, table

ROOT = Path(__file__).resolve().parents[1]
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


def copy_project(root: Path, changes: dict[str, dict[str, Any]]) -> list[str]:
    """The project without git, its parameters changed; the names of its stages."""
    for name in ("ecggen", "stages", ".dvc"):
        shutil.copytree(
            ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "tmp", "cache")
        )
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, root / name)
    (root / ".dvc/config.local").write_text("[core]\n    no_scm = true\n")
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for name, values in changes.items():
        params[name] |= values
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    return list(yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"])


def replace_stages(root: Path, names: list[str], wait: float) -> None:
    """Stages that wait, one after the other, in place of the real ones."""
    for name in names:
        (root / "stages" / f"{name}.py").write_text(STAND_IN.format(seconds=wait, name=name))
    stages = {name: {"cmd": f"python -m stages.{name}", "deps": ["params.yaml"]} for name in names}
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))


def run(root: Path, words: list[str], records: bool = True) -> dict[str, float]:
    """Wall time of `python WORDS`, as "total", and from one "Running stage" of dvc to the next."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "ECGGEN_", "DVC_"))}
    paths = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept |= {"PATH": paths, "PYTHONPATH": str(root), "OMP_WAIT_POLICY": "PASSIVE"}
    kept |= {} if records else {"ECGGEN_TRACKING": "off"}
    out, began, name = {}, time.perf_counter(), ""
    since = began
    command = [sys.executable, "-u", *words]
    with subprocess.Popen(command, cwd=root, env=kept, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Running stage '"):
                out[name], since = time.perf_counter() - since, time.perf_counter()
                name = line.split("'")[1]
    if process.returncode:
        sys.exit(f"error: {' '.join(words)} failed")
    end = time.perf_counter()
    return out | {name: end - since} | {"total": end - began}


def main() -> None:
    """Measure and print Markdown."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--skip-stages", action="store_true", help="only dvc with nothing to do, and imports")
    parser.add_argument("--stand-in", type=float, metavar="SECONDS")
    parser.add_argument("--records", type=Path, metavar="FOLDER")
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=4)
    args = parser.parse_args()
    changes = SMALL
    if args.records:
        data = {"source": "wfdb", "path": str(args.records.resolve()), "limit": args.limit}
        changes = {"data": data, "train": {"epochs": args.epochs}, "transfer": {"sources": []}}
    times: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        stages = copy_project(root, changes)
        if args.stand_in is not None:
            replace_stages(root, stages, args.stand_in)
        repro = ["-m", "dvc", "repro"]
        run(root, repro)  # makes the store, and byte code of everything
        for number in range(args.rounds):
            for records in () if args.skip_stages else (number % 2 > 0, number % 2 == 0):
                for name, value in run(root, [*repro, "--force"], records).items():
                    times[f"{name} {records}"].append(value)
            times["dvc repro, nothing to do"].append(run(root, repro)["total"])
            for name, words in IMPORTS.items():
                times[name].append(run(root, words)["total"])
        run(root, ["-m", "ecggen.tracking"])  # nothing works in the folder when it is removed
    median = {name: statistics.median(values) for name, values in times.items()}
    print(section("What the pipeline costs beside its work", sys.argv))
    rows = []
    for name in () if args.skip_stages else (*stages, "total"):
        without, recorded = median[f"{name} False"], median[f"{name} True"]
        rows.append([name, f"{without:.2f}", f"{recorded:.2f}", f"{recorded - without:+.2f}"])
    print(table(["stage", "dvc repro, s", "with MLflow records, s", "records"], rows))
    torch = median["import torch"]
    names = ("dvc repro, nothing to do", *IMPORTS)
    rows = [[name, f"{median[name]:.2f}", f"{median[name] / torch:.2f}"] for name in names]
    print(table(["", "s", "x import torch"], rows))


if __name__ == "__main__":
    main()
