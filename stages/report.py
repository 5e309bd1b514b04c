"""Stage report: the results of the run as one self-contained page, results/report/report.html."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ecggen.report.summary import headlines
from ecggen.tracking import StageRun, run_stage
from ecggen.utils.config import Config

RESULTS = Path("results")
OUT = RESULTS / "report"


def stage(config: Config, run: StageRun) -> dict[str, Any]:
    from ecggen.report.page import build_report

    counts = build_report(RESULTS, Path("data/windows"), OUT, config)
    run.artifact(OUT / "report.html", parent=True)
    # All of them: stages that DVC skipped have told this run nothing, yet their results belong to it.
    run.headline(headlines(RESULTS))
    return counts


if __name__ == "__main__":
    sys.exit(run_stage("report", stage))
