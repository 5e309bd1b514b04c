"""Stage transfer_windows: the windows of other databases in data/transfer, made as those of training were."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ecggen.tracking import StageRun, run_stage
from ecggen.utils.config import Config

RAW = Path("data/transfer_raw")
OUT = Path("data/transfer")


def stage(config: Config, run: StageRun) -> dict[str, Any]:
    from ecggen.prepare.transfer_windows import transfer_windows

    counts = transfer_windows(config, RAW, OUT)
    run.artifact(OUT / "databases.csv")
    for name in counts["counts"]:
        for file in ("meta.json", "rejected.csv"):
            run.artifact(OUT / name / file, name)
    return counts


if __name__ == "__main__":
    sys.exit(run_stage("transfer_windows", stage))
