"""A Dask scheduler and two workers on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from distributed import Client

from tests.running import wait_for

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Cluster:
    """A scheduler and its workers, each a process that listens on this machine alone."""

    address: str
    scheduler: subprocess.Popen[bytes]
    workers: list[subprocess.Popen[bytes]]


@contextmanager
def started(folder: Path, allowed: int = 3) -> Iterator[Cluster]:
    """folder: where the workers are; allowed: workers that a task may end, less one."""
    address_file = folder / "scheduler.json"
    quiet = ["--host", "127.0.0.1", "--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
    quiet += ["--scheduler-file", str(address_file)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests/eval")]),
        "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": str(allowed),
    }

    with ExitStack() as stack:

        def start(kind: str, *more: str) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *quiet, *more]
            process = subprocess.Popen(command, env=environment, cwd=folder, stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        scheduler = start("scheduler", "--port", "0")
        options = ["--nthreads", "1", "--no-nanny", "--local-directory", str(folder / "scratch")]
        two = [start("worker", *options) for _ in range(2)]
        wait_for(address_file.exists)
        wait_for(lambda: address_file.read_text().endswith("}"))
        address = json.loads(address_file.read_text())["address"]
        with Client(address) as client:  # else both of two tasks may go to the worker that is there first
            client.wait_for_workers(2, timeout=60)
        yield Cluster(address, scheduler, two)
