"""Stage reconstruction: all leads given; what dipole and residual carry, how steady the state is."""

from __future__ import annotations

import sys
from pathlib import Path

from stages import Config, Metrics, StageRun, run_stage

OUT = Path("results/reconstruction")


def stage(config: Config, run: StageRun) -> Metrics:
    from ecggen.data.pipeline import read_window_folder
    from ecggen.eval.reconstruction import reconstruction
    from ecggen.eval.workers import default_processes
    from ecggen.inference.renderer import load
    from ecggen.report.figures import write_figures

    run.dataset("data/windows", "evaluation")
    renderer, windows = load("results/train"), read_window_folder("data/windows")
    processes = config.data.scheduler or default_processes(renderer.device)
    result = reconstruction(renderer, windows, config.reconstruction, processes=processes)
    result.write(OUT)
    write_figures("reconstruction", result.tables, result.arrays, OUT / "figures")
    run.artifact(OUT)
    return result.metrics


if __name__ == "__main__":
    sys.exit(run_stage("reconstruction", stage))
