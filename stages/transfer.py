"""Stage transfer: the trained model on other databases, beside its own test split."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ecggen.tracking import StageRun, run_stage
from ecggen.utils.config import Config
from ecggen.utils.files import fresh_folder, read_csv

OTHERS = Path("data/transfer")
OUT = Path("results/transfer")


def stage(config: Config, run: StageRun) -> dict[str, Any]:
    from ecggen.data.pipeline import read_window_folder
    from ecggen.eval.transfer import transfer
    from ecggen.eval.workers import default_processes
    from ecggen.inference.renderer import load
    from ecggen.report.figures import save, stage_figures

    names = [row["database"] for row in read_csv(OTHERS / "databases.csv")]
    others = {name: read_window_folder(OTHERS / name) for name in names}
    run.dataset("data/windows", "evaluation")
    renderer = load("results/train")
    home = read_window_folder("data/windows")
    processes = config.data.scheduler or default_processes(renderer.device)
    result = transfer(renderer, home, others, config.transfer, config.missing_lead, processes=processes)
    result.write(OUT)
    with fresh_folder(OUT / "figures") as folder:
        for name, figure in stage_figures("transfer", result.tables, result.arrays).items():
            save(figure, folder / f"{name}.png")
    run.artifact(OUT)
    return result.metrics


if __name__ == "__main__":
    sys.exit(run_stage("transfer", stage))
