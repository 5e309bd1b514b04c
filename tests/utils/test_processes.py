from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ecggen.utils.processes import started_executor


def described(_: int) -> tuple[int, str | None, str | None]:
    time.sleep(0.2)  # so that no process does all of them
    return os.getpid(), os.environ.get("OMP_NUM_THREADS"), os.environ.get("OPENBLAS_NUM_THREADS")


def test_every_process_is_there_at_once_and_computes_with_one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    main = sys.modules["__main__"]
    with started_executor(2) as executor:
        assert len(executor._processes) == 2
        found = list(executor.map(described, range(6)))
    assert len({pid for pid, *_ in found}) == 2 and {tuple(threads) for _, *threads in found} == {("1", "1")}
    # Here everything is as it was.
    assert os.environ["OMP_NUM_THREADS"] == "7" and "OPENBLAS_NUM_THREADS" not in os.environ
    assert sys.modules["__main__"] is main


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at running processes in /proc")
def test_they_end_with_a_process_that_is_killed() -> None:
    code = (
        "import time\n"
        "from ecggen.utils.processes import started_executor\n"
        "executor = started_executor(2)\n"
        "executor.submit(time.sleep, 60)\n"
        "executor.submit(int).result()  # the other one waits for a task\n"
        "print(*executor._processes, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as killed:
        assert killed.stdout is not None
        started = [int(pid) for pid in killed.stdout.readline().split()]
        assert len(started) == 2 and all(_runs(pid) for pid in started)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    until = time.monotonic() + 20
    while any(_runs(pid) for pid in started) and time.monotonic() < until:
        time.sleep(0.05)
    left = [pid for pid in started if _runs(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"
