"""Stage report: the results of the run as one self-contained page, results/report/report.html."""

from __future__ import annotations

import sys
from pathlib import Path

from ecggen.report.summary import headlines
from stages import Config, Metrics, StageRun, run_stage

RESULTS, OUT = Path("results"), Path("results/report")


def stage(config: Config, run: StageRun) -> Metrics:
    from ecggen.report.page import build_report

    counts = build_report(RESULTS, Path("data/windows"), OUT, config)
    run.artifact(OUT / "report.html", parent=True)
    run.headline(headlines(RESULTS))  # of all stages: those that DVC skipped belong to this run as well
    return counts


if __name__ == "__main__":
    sys.exit(run_stage("report", stage))
