"""Stage train: data/windows to results/train (checkpoint.pt, history.csv, facts.csv).

Its step folders are no outputs: DVC leaves them where they are, and a stage that was killed goes on from
them. One that ends removes them, so that no result depends on earlier runs.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ecggen.utils.config import config_from_dict, config_to_dict
from stages import Config, StageRun, run_stage

OUT = Path("results/train")


def training_config(config: Config) -> Config:
    """Only what training depends on: the checkpoint keeps its configuration, and an evaluation setting or the
    path of somebody's records must not change its bytes."""
    whole = config_to_dict(config)
    data = {key: whole["data"][key] for key in ("fs", "time_len", "meta_root")}
    return config_from_dict({"data": data, "model": whole["model"], "train": whole["train"]})


def stage(config: Config, run: StageRun) -> None:
    from ecggen.training.checkpoint import clear_steps
    from ecggen.training.processes import train

    run.dataset(config.data.meta_root, "training")
    train(training_config(config), OUT, on_epoch=run.epoch, pick_up=True)
    for name in ("checkpoint.pt", "history.csv"):
        run.artifact(OUT / name)
    clear_steps(OUT)


if __name__ == "__main__":
    sys.exit(run_stage("train", stage))
