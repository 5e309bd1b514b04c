"""Stage window: data/records cut into data/windows, split by patient."""

from __future__ import annotations

import sys
from pathlib import Path

from stages import Config, StageRun, run_stage

OUT = Path("data/windows")


def stage(config: Config, run: StageRun) -> None:
    from ecggen.prepare.window.stage import window

    window(Path("data/records"), OUT, config.data, config.window)
    for name in ("meta.json", "rejected.csv"):
        run.artifact(OUT / name)
    run.dataset(OUT, "windows")


if __name__ == "__main__":
    sys.exit(run_stage("window", stage))
