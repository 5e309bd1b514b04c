"""python -m ecggen.tracking send | waiting: what the tracking store has not taken yet."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ecggen.tracking.identity import shown
from ecggen.tracking.outbox import outbox, waiting


def main(argv: list[str] | None = None) -> int:
    """Exit code 1 where records of ended stages stay behind."""
    parser = argparse.ArgumentParser(prog="python -m ecggen.tracking", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("send", help="send it now")
    commands.add_parser("waiting", help="list it")
    courier = commands.add_parser("courier")  # started by a stage
    courier.add_argument("outbox", type=Path)
    args = parser.parse_args(argv)
    if args.command == "courier":
        from ecggen.tracking.courier import serve

        return serve(args.outbox)
    return send() if args.command == "send" else listed()


def send() -> int:
    """Send the journals of ended stages, and what running ones wrote so far."""
    from ecggen.tracking.courier import Round

    work = Round(outbox(), lambda words: print(f"warning: {words}", file=sys.stderr))
    work.once()
    behind = [journal for journal in waiting(work.root) if not journal.owned]
    running = sum(journal.owned for journal in waiting(work.root))
    print(f"Sent {work.sent}, waiting {len(behind)}, of stages that still run {running}.")
    return 1 if behind else 0


def listed() -> int:
    """One line for each journal."""
    found = waiting(outbox())
    for journal in found:
        state = "running" if journal.owned else journal.failed() or "not sent yet"
        print(f"{journal.path.name}  {shown(str(journal.header().get('uri', '?')))}  {state}")
    if not found:
        print("Nothing waits.")
    return 1 if any(not journal.owned for journal in found) else 0


if __name__ == "__main__":
    sys.exit(main())
