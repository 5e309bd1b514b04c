"""Stage missing_lead: hidden leads rendered from few, without and with a personal reference."""

from __future__ import annotations

import sys

from stages import Config, StageRun, run_stage


def stage(config: Config, run: StageRun) -> None:
    from ecggen.eval.missing_lead import missing_lead
    from stages.evaluation import evaluate

    evaluate("missing_lead", missing_lead, config, run, config.missing_lead)


if __name__ == "__main__":
    sys.exit(run_stage("missing_lead", stage))
