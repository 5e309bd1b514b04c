"""Stage report: the run on one self-contained page, results/report/report.html, and the few numbers that runs
are compared by, results/summary.json and summary.csv."""

from __future__ import annotations

import sys
from pathlib import Path

from stages import Config, StageRun, run_stage

FIGURES = ("ecg", "ecg_personal", "missing_lead", "training")  # that runs are compared by
RESULTS, OUT = Path("results"), Path("results/report")


def stage(config: Config, run: StageRun) -> None:
    from ecggen.report.page import build_report
    from ecggen.report.summary import numbers, write_summary

    build_report(RESULTS, Path("data/windows"), OUT, config)
    shown = numbers(RESULTS, config.report.lead_set)
    run.headline(write_summary(shown, RESULTS), shown)
    for path in (OUT / "report.html", RESULTS / "summary.csv"):
        run.artifact(path, parent=True)
    for path in [path for name in FIGURES if (path := OUT / "figures" / f"{name}.png").exists()]:
        run.artifact(path, "figures", parent=True)


if __name__ == "__main__":
    sys.exit(run_stage("report", stage))
