import os
import platform
import subprocess
import sys

import pytest

from ecggen.utils.threads import wait_passively


def test_a_value_set_by_the_user_stands(monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    wait_passively()
    assert os.environ["OPENBLAS_NUM_THREADS"] == "3" and os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    wait_passively()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_what_stages_and_main_import_first_loads_no_library_that_has_threads():
    # The libraries read the variables once, when they are loaded.
    code = (
        "import sys, stages, ecggen.main\n"
        "loaded = {'numpy', 'torch', 'scipy', 'pandas'} & set(sys.modules)\n"
        "sys.exit(f'{sorted(loaded)} came with them' if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


PAGES = """
import resource, sys
import numpy as np
from ecggen.utils.threads import reuse_freed_arrays
if sys.argv[1] == "reuse":
    reuse_freed_arrays()
for _ in range(50):
    arrays = [np.ones(1 << 17) for _ in range(12)]  # 1 MB each
    del arrays
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a rule of the GNU C library")
def test_memory_of_freed_arrays_is_reused() -> None:
    """Page faults of 50 rounds of twelve arrays: about those of one round."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    faults = []
    for mode in ("reuse", "as it is"):
        command = [sys.executable, "-c", PAGES, mode]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        faults.append(int(done.stdout))
    assert faults[1] - faults[0] > 20 * 12 * 256
