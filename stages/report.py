"""Stage report: the run on one self-contained page, results/report/report.html, and the few numbers that runs
are compared by, results/summary.json and summary.csv."""

from __future__ import annotations

import sys
from pathlib import Path

from stages import Config, Metrics, StageRun, run_stage

RESULTS, OUT = Path("results"), Path("results/report")


def stage(config: Config, run: StageRun) -> Metrics:
    from ecggen.report.page import build_report
    from ecggen.report.summary import numbers, write_summary

    counts = build_report(RESULTS, Path("data/windows"), OUT, config)
    run.artifact(OUT / "report.html", parent=True)
    run.headline(write_summary(numbers(RESULTS, config.report.lead_set), RESULTS))
    return counts


if __name__ == "__main__":
    sys.exit(run_stage("report", stage))
