"""Stage preprocess: data/raw read, resampled, filtered and checked into data/records."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ecggen.tracking import StageRun, run_stage
from ecggen.utils.config import Config

OUT = Path("data/records")


def stage(config: Config, run: StageRun) -> dict[str, Any]:
    from ecggen.prepare.preprocess.stage import notes, preprocess

    counts = preprocess(Path("data/raw"), OUT, config.data, config.preprocess)
    for note in notes(counts):
        print(note)
    for name in ("meta.json", "rejected.csv", "rejected_labels.csv", "unknown_leads.csv"):
        run.artifact(OUT / name)
    return counts


if __name__ == "__main__":
    sys.exit(run_stage("preprocess", stage))
