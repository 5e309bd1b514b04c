"""SIGTERM, as SLURM and Kubernetes end a job, and a closed terminal: a clean end instead of none."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Ended(BaseException):
    """The process was told to end. Like KeyboardInterrupt no Exception: nothing on the way swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_code(error: KeyboardInterrupt | Ended) -> int:
    """128 + signal, as shells say it: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + (error.number if isinstance(error, Ended) else int(signal.SIGINT))


@contextmanager
def ending_cleanly() -> Iterator[None]:
    """Raise Ended where one of the signals comes; a second one changes nothing while the first is obeyed.

    A signal that is ignored (nohup) stays ignored. Outside the main thread nothing is changed.
    """
    owner = os.getpid()

    def end(number: int, _: Any) -> None:
        signal.signal(number, signal.SIG_IGN if os.getpid() == owner else signal.SIG_DFL)
        if os.getpid() != owner:  # a forked worker, which inherits the handler: it just ends
            os.kill(os.getpid(), number)
            return
        raise Ended(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        for number, handler in before.items():
            if handler == signal.SIG_DFL:
                signal.signal(number, end)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
