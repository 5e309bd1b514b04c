"""Stage download: the records of the chosen source in data/raw, listed in source.json."""

from __future__ import annotations

import sys
from pathlib import Path

from stages import Config, StageRun, run_stage

OUT = Path("data/raw")


def stage(config: Config, run: StageRun) -> None:
    from ecggen.prepare.download.stage import download

    download(config, OUT)
    run.artifact(OUT / "source.json")


if __name__ == "__main__":
    sys.exit(run_stage("download", stage))
