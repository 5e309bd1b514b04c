"""Stage download: the records of the chosen source in data/raw, listed in source.json."""

from __future__ import annotations

import sys
from pathlib import Path

from stages import Config, Metrics, StageRun, run_stage

OUT = Path("data/raw")


def stage(config: Config, run: StageRun) -> Metrics:
    from ecggen.prepare.download.stage import download

    counts = download(config, OUT)
    run.artifact(OUT / "source.json")
    return counts


if __name__ == "__main__":
    sys.exit(run_stage("download", stage))
