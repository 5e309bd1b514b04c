"""Stage train: data/windows to results/train (checkpoint.pt, history.csv, metrics.json).

The step folders below are no outputs: DVC leaves them where they are, and a stage that was killed goes on
from them. A finished one leaves none behind, so that nothing depends on what was run before.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ecggen.tracking import StageRun, run_stage
from ecggen.utils.config import Config, config_from_dict, config_to_dict
from ecggen.utils.files import read_csv

OUT = Path("results/train")


def narrowed(config: Config) -> Config:
    """Only what training depends on: the checkpoint keeps its configuration, and an evaluation setting or
    the path of somebody's records must not change its bytes."""
    whole = config_to_dict(config)
    data = {key: whole["data"][key] for key in ("fs", "time_len", "meta_root")}
    return config_from_dict({"data": data, "model": whole["model"], "train": whole["train"]})


def stage(config: Config, run: StageRun) -> dict[str, Any]:
    from ecggen.report.figures import stage_figures
    from ecggen.training.launch import train
    from ecggen.training.resume import clear_steps

    run.dataset(config.data.meta_root, "training")
    metrics = train(narrowed(config), OUT, on_epoch=run.epoch, pick_up=True)
    # To MLflow alone; the report draws its own, so that a new drawing does not ask for a new training.
    for name, figure in stage_figures("train", {"history": read_csv(OUT / "history.csv")}).items():
        run.figure(figure, name)
    for name in ("checkpoint.pt", "history.csv"):
        run.artifact(OUT / name)
    clear_steps(OUT)
    return metrics


if __name__ == "__main__":
    sys.exit(run_stage("train", stage))
