"""Stage preprocess: data/raw read, resampled, filtered and checked into data/records."""

from __future__ import annotations

import sys
from pathlib import Path

from stages import Config, StageRun, run_stage

OUT = Path("data/records")


def stage(config: Config, run: StageRun) -> None:
    from ecggen.prepare.preprocess.stage import notes, preprocess

    counts = preprocess(Path("data/raw"), OUT, config.data, config.preprocess)
    for note in notes(counts):
        print(note)
    for name in ("meta.json", "rejected.csv", "rejected_labels.csv", "unknown_leads.csv"):
        run.artifact(OUT / name)


if __name__ == "__main__":
    sys.exit(run_stage("preprocess", stage))
