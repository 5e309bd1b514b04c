"""Stage transfer: the trained model on other databases, beside its own test split."""

from __future__ import annotations

import sys
from pathlib import Path

from ecggen.utils.files import read_csv
from stages import Config, StageRun, run_stage

OTHERS = Path("data/transfer")


def stage(config: Config, run: StageRun) -> None:
    from ecggen.data.pipeline import read_window_folder
    from ecggen.eval.transfer import AtHome, transfer
    from stages.evaluation import evaluate

    names = [row["database"] for row in read_csv(OTHERS / "databases.csv")]
    others = {name: read_window_folder(OTHERS / name) for name in names}
    at_home = AtHome.read("results")
    evaluate("transfer", transfer, config, run, others, config.transfer, config.missing_lead, at_home)


if __name__ == "__main__":
    sys.exit(run_stage("transfer", stage))
