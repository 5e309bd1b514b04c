from __future__ import annotations

import os
import sys
import time

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
