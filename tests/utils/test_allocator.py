"""What is freed is kept: fewer pages are fetched from the system."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

GLIBC = platform.libc_ver()[0] == "glibc"
#: Arrays of about a megabyte that come and go, several at once; prints whether it holds and pages per round.
CODE = """
import resource, sys
import numpy as np
from ecggen.utils.allocator import keep_freed_memory
asked = {"keep": {}, "always": {"whatever_is_set": True}}.get(sys.argv[1])
held = None if asked is None else keep_freed_memory(**asked)
def work():
    made = [np.ones(150_000) for _ in range(8)]
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    work()
print(held, (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 20)
"""


def run(argument: str, **settings: str) -> tuple[str, float]:
    names = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
    plain = {name: value for name, value in os.environ.items() if name not in names}
    command = [sys.executable, "-c", CODE, argument]
    done = subprocess.run(command, env=plain | settings, capture_output=True, text=True, check=True)
    held, pages = done.stdout.split()
    return held, float(pages)


@pytest.mark.skipif(not GLIBC, reason="another C library: nothing is set")
def test_pages_are_not_fetched_again():
    _, without = run("leave")
    held, kept = run("keep")
    assert held == "True" and kept < 100 < without


@pytest.mark.skipif(not GLIBC, reason="another C library: nothing is set")
def test_what_the_user_set_stands():
    held, pages = run("keep", MALLOC_TRIM_THRESHOLD_="131072")
    assert held == "False" and pages > 100


@pytest.mark.skipif(not GLIBC, reason="another C library: nothing is set")
def test_what_a_nanny_set_does_not():
    held, pages = run("always", MALLOC_TRIM_THRESHOLD_="65536")
    assert held == "True" and pages < 100


def test_at_the_end_nothing_is_searched_for_cycles() -> None:
    code = (
        "import atexit, gc\n"
        "from ecggen.utils.allocator import end_quickly\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 0))  # the last to be registered runs first\n"
        "end_quickly()\n"
        "print(gc.get_freeze_count())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "True"]
