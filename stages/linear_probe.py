"""Stage linear_probe: frozen features against labels, beside controls."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ecggen.tracking import StageRun, run_stage
from ecggen.utils.config import Config
from ecggen.utils.files import fresh_folder

OUT = Path("results/linear_probe")


def stage(config: Config, run: StageRun) -> dict[str, Any]:
    from ecggen.data.pipeline import read_window_folder
    from ecggen.eval.linear_probe import linear_probe
    from ecggen.eval.workers import default_processes
    from ecggen.inference.renderer import load
    from ecggen.report.figures import save, stage_figures

    run.dataset("data/windows", "evaluation")
    renderer, windows = load("results/train"), read_window_folder("data/windows")
    processes = config.data.scheduler or default_processes(renderer.device)
    result = linear_probe(renderer, windows, config.linear_probe, processes=processes)
    result.write(OUT)
    with fresh_folder(OUT / "figures") as folder:
        for name, figure in stage_figures("linear_probe", result.tables, result.arrays).items():
            save(figure, folder / f"{name}.png")
    run.artifact(OUT)
    return result.metrics


if __name__ == "__main__":
    sys.exit(run_stage("linear_probe", stage))
