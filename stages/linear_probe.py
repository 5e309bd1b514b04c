"""Stage linear_probe: frozen features against labels, beside controls."""

from __future__ import annotations

import sys
from pathlib import Path

from stages import Config, Metrics, StageRun, run_stage

OUT = Path("results/linear_probe")


def stage(config: Config, run: StageRun) -> Metrics:
    from ecggen.data.pipeline import read_window_folder
    from ecggen.eval.linear_probe import linear_probe
    from ecggen.eval.workers import default_processes
    from ecggen.inference.renderer import load
    from ecggen.report.figures import write_figures

    run.dataset("data/windows", "evaluation")
    renderer, windows = load("results/train"), read_window_folder("data/windows")
    processes = config.data.scheduler or default_processes(renderer.device)
    result = linear_probe(renderer, windows, config.linear_probe, processes=processes)
    result.write(OUT)
    write_figures("linear_probe", result.tables, result.arrays, OUT / "figures")
    run.artifact(OUT)
    return result.metrics


if __name__ == "__main__":
    sys.exit(run_stage("linear_probe", stage))
