"""Stage reconstruction: all leads given; what dipole and residual carry, how steady the state is."""

from __future__ import annotations

import sys

from stages import Config, StageRun, run_stage


def stage(config: Config, run: StageRun) -> None:
    from ecggen.eval.reconstruction import reconstruction
    from stages.evaluation import evaluate

    evaluate("reconstruction", reconstruction, config, run, config.reconstruction)


if __name__ == "__main__":
    sys.exit(run_stage("reconstruction", stage))
