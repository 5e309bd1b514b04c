"""Words and bars on stderr while something long runs."""

from __future__ import annotations

import sys


class Display:
    """Says lines and draws a bar, which only a terminal gets. quiet: neither."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet

    def say(self, text: str) -> None:
        """One line."""
        if not self.quiet:
            clear = "\r\033[K" if sys.stderr.isatty() else ""
            print(f"{clear}{text}", file=sys.stderr, flush=True)

    def bar(self, name: str, done: int, total: int, text: str) -> None:
        """`name [####....] done/total  text` in place of the bar before."""
        if self.quiet or not sys.stderr.isatty():
            return
        filled = int(24 * done / total)
        line = f"{name} [{'#' * filled}{'.' * (24 - filled)}] {done}/{total}  {text}"
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
