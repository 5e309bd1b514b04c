import os
import subprocess
import sys

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
        "found = {'numpy', 'torch', 'scipy', 'pandas'} & set(sys.modules)\n"
        "sys.exit(f'{sorted(found)} came with them' if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
