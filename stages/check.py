"""Stage check: parameters that cannot work are refused before DVC deletes any result.

DVC deletes the outputs of a stage before it runs it. This one runs first, whichever parameter was changed,
and what it writes is always the same: no stage runs again because of it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from stages import Config, StageRun, run_stage

OUT = Path("data/checked")


def stage(config: Config, run: StageRun) -> None:
    from ecggen.prepare.check import check_config
    from ecggen.utils.files import write_text

    check_config(config)
    if config.train.device not in ("auto", "cpu"):
        from ecggen.training.devices import pick_device  # torch, where there is something to ask

        pick_device(config.train.device)
    write_text(OUT, "The parameters can work.\n")


if __name__ == "__main__":
    os.environ["ECGGEN_TRACKING"] = "off"  # there is nothing of it to record
    sys.exit(run_stage("check", stage))
