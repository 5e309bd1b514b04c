"""Words on stderr while something long runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import TypeVar

Item = TypeVar("Item")

LATE_S = 5.0  # what is done by then shows no progress
BAR_S, LINE_S = 0.2, 10.0  # between two bars in a terminal, two lines in a log
_shown = False


def show_progress(shown: bool = True) -> None:
    """Whether this process says from now on how far it is: stages and the command line do, a library not."""
    global _shown
    _shown = shown


def say(text: str) -> None:
    """One line, in place of a bar."""
    clear = "\r\033[K" if sys.stderr.isatty() else ""
    print(f"{clear}{text}", file=sys.stderr, flush=True)


class Progress:
    """How far something is: a bar with the time left in a terminal, a line now and then in a log.

    done of total are done already; shown: by default what `show_progress` has set.
    """

    def __init__(self, name: str, total: int, *, done: int = 0, shown: bool | None = None) -> None:
        self.name, self.total, self.done, self.before = name, total, done, done
        self.shown = _shown if shown is None else shown
        self.begin = self.last = time.monotonic()

    def add(self, count: int = 1, text: str = "") -> None:
        """So many more are done."""
        self.done += count
        now, terminal = time.monotonic(), sys.stderr.isatty()
        late = now - self.begin >= LATE_S and now - self.last >= (BAR_S if terminal else LINE_S)
        if not self.shown or not late:
            return
        self.last = now
        left = (now - self.begin) / max(1, self.done - self.before) * max(0, self.total - self.done)
        words = f"{self.done}/{self.total}, {in_words(left)} left{text and f', {text}'}"
        filled = min(24, 24 * self.done // max(1, self.total))
        if terminal:
            bar = f"[{'#' * filled}{'.' * (24 - filled)}]"
            print(f"\r\033[K{self.name} {bar} {words}", end="", file=sys.stderr, flush=True)
        else:
            say(f"{self.name} {words}")

    def say(self, text: str) -> None:
        """One line in place of the bar; the next line of a log comes later."""
        if self.shown:
            self.last = time.monotonic()
            say(text)

    def close(self) -> None:
        """Take the bar away."""
        if self.shown and sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def track(name: str, items: Iterable[Item], total: int) -> Iterator[Item]:
    """The items, of which there are `total`, with the progress of what is done with them."""
    with closing(Progress(name, total)) as progress:
        for item in items:
            yield item
            progress.add()


def in_words(seconds: float) -> str:
    """40 s, 2 min 5 s, 1 h 10 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
