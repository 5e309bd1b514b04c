"""Peak memory and time of conditioning a made 12-lead Holter record, beyond what the imports take.

    python benchmarks/holter_memory.py [--hours 24] [--fs 500] [--folder /tmp/holter]

The record (format 16, an hour of beats and noise, repeated) is written first, if it is not there. The
measured process runs the preprocess stage's own function, so signals.npy is written as well.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np

from ecggen.leads import EXPAND, LEADS

MEASURED = """
import sys, time
from pathlib import Path
import numpy, scipy.signal, wfdb
from ecggen.prepare.preprocess.stage import preprocess
from ecggen.prepare.download.source import list_source, write_source
from ecggen.utils.config import DataConfig, PreprocessConfig
def peak():  # KiB; getrusage would count the process that started this one
    return int(next(x for x in open("/proc/self/status") if x.startswith("VmHWM")).split()[1])
folder = Path(sys.argv[1])
(folder / "raw").mkdir(exist_ok=True)
write_source(folder / "raw", list_source(folder / "wfdb"))
before = peak()
began = time.perf_counter()
counts = preprocess(folder / "raw", folder / "records", DataConfig(workers=1), PreprocessConfig())
print(f"{counts['records']} record: {(peak() - before) / 1024:.0f} MiB above {before / 1024:.0f} of imports, "
      f"{time.perf_counter() - began:.0f} s, flags {counts['records_by_flag']}")
"""


def write_holter(folder: Path, hours: int, fs: int) -> None:
    """folder/holter.hea and .dat: `hours` of twelve leads at fs, 1 uV a step."""
    if (folder / "holter.hea").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    t = np.arange(3600 * fs) / fs
    beats = np.exp(-0.5 * (((t % 0.8) - 0.4) / 0.02) ** 2)
    sources = rng.normal(size=(8, 1)) * beats + 0.02 * rng.normal(size=(8, len(t)))
    hour = np.round(1000 * (EXPAND @ sources).T).astype("<i2").tobytes()
    with (folder / "holter.dat").open("wb") as stream:
        for _ in range(hours):
            stream.write(hour)
    lines = [f"holter 12 {fs} {hours * 3600 * fs}"]
    lines += [f"holter.dat 16 1000/mV 16 0 0 0 0 {lead}" for lead in LEADS]
    (folder / "holter.hea").write_text("\n".join(lines) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--hours", type=int, default=24)
    parser.add_argument("--fs", type=int, default=500)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/holter"))
    arguments = parser.parse_args()
    folder = arguments.folder / f"{arguments.hours}h{arguments.fs}"
    write_holter(folder / "wfdb", arguments.hours, arguments.fs)
    print(f"{arguments.hours} h, 12 leads, {arguments.fs} Hz:")
    return subprocess.run([sys.executable, "-c", MEASURED, str(folder)], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
