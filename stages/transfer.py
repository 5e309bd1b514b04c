"""Stage transfer: the trained model on other databases, beside its own test split."""

from __future__ import annotations

import sys
from pathlib import Path

from ecggen.utils.files import read_csv
from stages import Config, Metrics, StageRun, run_stage

OTHERS, OUT = Path("data/transfer"), Path("results/transfer")


def stage(config: Config, run: StageRun) -> Metrics:
    from ecggen.data.pipeline import read_window_folder
    from ecggen.eval.transfer import transfer
    from ecggen.eval.workers import default_processes
    from ecggen.inference.renderer import load
    from ecggen.report.figures import write_figures

    names = [row["database"] for row in read_csv(OTHERS / "databases.csv")]
    others = {name: read_window_folder(OTHERS / name) for name in names}
    run.dataset("data/windows", "evaluation")
    renderer, home = load("results/train"), read_window_folder("data/windows")
    processes = config.data.scheduler or default_processes(renderer.device)
    result = transfer(renderer, home, others, config.transfer, config.missing_lead, processes=processes)
    result.write(OUT)
    write_figures("transfer", result.tables, result.arrays, OUT / "figures")
    run.artifact(OUT)
    return result.metrics


if __name__ == "__main__":
    sys.exit(run_stage("transfer", stage))
