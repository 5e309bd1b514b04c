"""What a database of the size of MIMIC-IV-ECG (800,000 records) costs besides its bytes: time and memory.

    python benchmarks/download.py [RECORDS]

A server on 127.0.0.1, in a process of its own, lists RECORDS records of two files each, of which it has the
few that are fetched (data.limit). Printed: the first run with data.limit, the second run that fetches
nothing, and what a run over all records does besides transfers and headers. The memory is the largest so far.
"""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LIMIT = 20
HEADER = b"%d 1 500 10\n%d.dat 16 200 16 0 0 0 0 I\n"
SIGNAL = bytes(20)


def make(folder: Path, records: int, *, shuffled: bool) -> None:
    """RECORDS and SHA256SUMS.txt of all records, and the first LIMIT of them, in MIMIC-IV-ECG's layout."""
    folder.mkdir(parents=True)
    names, lines = [], []
    for i in range(records):
        patient, study = 10_000_000 + i // 5, 40_000_000 + i
        name = f"files/p{patient // 10_000}/p{patient}/s{study}/{study}"
        names.append(name)
        for suffix, data in (("hea", HEADER % (study, study)), ("dat", SIGNAL)):
            lines.append(f"{hashlib.sha256(data).hexdigest()} {name}.{suffix}\n")
            if i < LIMIT:
                path = folder / f"{name}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
    (folder / "RECORDS").write_text("\n".join(names) + "\n")
    lines.append(f"{hashlib.sha256((folder / 'RECORDS').read_bytes()).hexdigest()} RECORDS\n")
    if shuffled:
        random.Random(0).shuffle(lines)
    (folder / "SHA256SUMS.txt").write_text("".join(lines))


def serve(root: str) -> None:
    """Serve a folder until the process is ended; the port is the first line of the output."""

    class Quiet(SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # as servers on the internet; else each reply waits 40 ms for an ACK

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: Quiet(*a, directory=root))  # type: ignore[arg-type]
    print(server.server_address[1], flush=True)
    server.serve_forever()


def measured(what: str, work: Callable[[], object]) -> None:
    """Run and print seconds and the largest memory so far; getrusage would count the parent's as well."""
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    print(f"{what:50s} {seconds:7.1f} s {peak:7.0f} MiB", flush=True)


def main() -> None:
    records = int(sys.argv[1]) if len(sys.argv) > 1 else 800_000
    with tempfile.TemporaryDirectory() as folder:
        for shuffled in (False, True):
            root = Path(folder, "shuffled" if shuffled else "sorted")
            make(root / "big/1.0", records, shuffled=shuffled)
            size = (root / "big/1.0/SHA256SUMS.txt").stat().st_size
            print(f"{2 * records:,} files, list of checksums {size / 1e6:.0f} MB, {root.name}", flush=True)
            command = [sys.executable, __file__, "--serve", str(root)]
            server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            try:
                assert server.stdout is not None
                url = f"http://127.0.0.1:{server.stdout.readline().strip()}/"
                raw = str(Path(folder, f"raw-{root.name}"))
                subprocess.run([sys.executable, __file__, "--run", url, raw], check=True)
            finally:
                server.terminate()
                server.wait()


def run(url: str, out: Path) -> None:
    from ecggen.prepare.download.physionet import Physionet

    measured("start of the program", lambda: None)
    measured(f"first run, data.limit={LIMIT}", Physionet("big/1.0", url, out, fs=500, limit=LIMIT).run)
    measured("second run", Physionet("big/1.0", url, out, fs=500, limit=LIMIT).run)
    whole = Physionet("big/1.0", url, out, fs=500, limit=0)
    measured("the list of checksums read", whole.read_sums)
    records: list[str] = []
    files: list[str] = []
    with whole.verified_files():
        measured("all records of RECORDS found", lambda: records.extend(whole.list_records().names))
        measured(
            "all their files found", lambda: files.extend(f for r in records for f in whole.files_beside(r))
        )
        print(f"{len(records):,} records, {len(files):,} files", flush=True)
        for name in files:  # empty ones: what is looked up is the same
            path = whole.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            whole.verify(name)
    measured("all files looked up on the disk", whole.verified_files().__enter__)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2])
    elif sys.argv[1:2] == ["--run"]:
        run(sys.argv[2], Path(sys.argv[3]))
    else:
        main()
