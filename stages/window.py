"""Stage window: data/records cut into data/windows, split by patient."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ecggen.tracking import StageRun, run_stage
from ecggen.utils.config import Config

OUT = Path("data/windows")


def stage(config: Config, run: StageRun) -> dict[str, Any]:
    from ecggen.prepare.window.stage import window

    counts = window(Path("data/records"), OUT, config.data, config.window)
    for name in ("meta.json", "rejected.csv"):
        run.artifact(OUT / name)
    run.dataset(OUT, "windows")
    return counts


if __name__ == "__main__":
    sys.exit(run_stage("window", stage))
