"""Stage linear_probe: frozen features against labels, beside controls."""

from __future__ import annotations

import sys

from stages import Config, StageRun, run_stage


def stage(config: Config, run: StageRun) -> None:
    from ecggen.eval.linear_probe import linear_probe
    from stages.evaluation import evaluate

    evaluate("linear_probe", linear_probe, config, run, config.linear_probe)


if __name__ == "__main__":
    sys.exit(run_stage("linear_probe", stage))
