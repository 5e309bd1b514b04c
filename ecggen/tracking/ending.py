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

    def end(number: int, _: Any) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise Ended(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _watch_forks()
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    ours = [number for number, handler in before.items() if handler == signal.SIG_DFL]
    try:
        for number in ours:
            signal.signal(number, end)
            _taken.add(number)
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])
            _taken.discard(number)


_taken: set[int] = set()  # signals that raise Ended
_watched = False


def _watch_forks() -> None:
    """Forked workers just end at these signals, as their pool expects.

    Blocked around the fork, because Python forgets a signal that comes before the child is set up.
    """
    global _watched
    if _watched or not hasattr(os, "register_at_fork"):
        return
    _watched = True

    def in_child() -> None:
        for number in _taken:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _taken)

    os.register_at_fork(
        before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, _taken),
        after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, _taken),
        after_in_child=in_child,
    )
