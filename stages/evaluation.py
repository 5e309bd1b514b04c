"""What the stages of evaluation share: the trained model and windows in, tables out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ecggen.data.pipeline import read_window_folder
from ecggen.eval.result import Result
from ecggen.eval.workers import default_processes
from ecggen.inference.renderer import load
from stages import Config, StageRun


def evaluate(name: str, protocol: Callable[..., Result], config: Config, run: StageRun, *inputs: Any) -> None:
    """Write results/NAME of `protocol(renderer, windows, *inputs)`."""
    out = Path("results") / name
    run.dataset("data/windows", "evaluation")
    renderer, windows = load("results/train"), read_window_folder("data/windows")
    processes = config.data.scheduler or default_processes(renderer.device)
    result = protocol(renderer, windows, *inputs, processes=processes)
    result.write(out)
    run.artifact(out)
