"""Progress: nothing for what is short, a bar in a terminal, a line now and then in a log."""

from __future__ import annotations

import sys

import pytest

from ecggen.utils import display


@pytest.mark.parametrize(
    ("shown", "terminal", "tick", "words"),
    [
        (
            True,
            False,
            1.0,
            ["records 10/30, 20 s left", "records 20/30, 10 s left", "records 30/30, 0 s left"],
        ),
        (True, True, 1.0, ["records [####....................] 5/30, 25 s left", "30/30, 0 s left"]),
        (True, False, 0.1, []),  # over before it is late
        (False, False, 1.0, []),  # as a library
    ],
)
def test_progress(monkeypatch, capsys, shown, terminal, tick, words) -> None:
    clock = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setattr(display, "_shown", shown)
    for _ in display.track("records", range(30), 30):
        clock[0] += tick
    err = capsys.readouterr().err
    assert all(text in err for text in words) and bool(err.strip()) == bool(words)
    assert terminal or len(err.splitlines()) == len(words)


def test_seconds_in_words() -> None:
    assert [display.in_words(s) for s in (40, 125, 4200)] == ["40 s", "2 min 5 s", "1 h 10 min"]
