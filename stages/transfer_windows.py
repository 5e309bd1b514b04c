"""Stage transfer_windows: the windows of other databases in data/transfer, made as those of training were."""

from __future__ import annotations

import sys
from pathlib import Path

from stages import Config, StageRun, run_stage

RAW, OUT = Path("data/transfer_raw"), Path("data/transfer")


def stage(config: Config, run: StageRun) -> None:
    from ecggen.prepare.transfer_windows import transfer_windows

    counts = transfer_windows(config, RAW, OUT)
    run.artifact(OUT / "databases.csv")
    for name in counts["counts"]:
        for file in ("meta.json", "rejected.csv"):
            run.artifact(OUT / name / file, name)


if __name__ == "__main__":
    sys.exit(run_stage("transfer_windows", stage))
