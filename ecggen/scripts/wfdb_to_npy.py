"""WFDB records, or arrays that a CSV file lists, to a folder of .npy windows, without DVC.

    python ecggen/scripts/wfdb_to_npy.py --src /path/to/wfdb --dst /path/to/npy --fs_out 100 --time_len 512

The same functions as the pipeline's download, preprocess and window stages. scipy is not needed (a NumPy path
takes over, see ecggen/data/signal.py). The result serves as data.meta_root.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

try:
    import ecggen  # noqa: F401 - only whether it is there
except ModuleNotFoundError as error:  # run from a checkout that is not installed
    if error.name != "ecggen":
        raise
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ecggen.prepare.download.array_table import list_table
from ecggen.prepare.download.source import list_source, refuse_links, write_source
from ecggen.prepare.download.specs import refuse_overlap
from ecggen.prepare.labels.records import patient_notes
from ecggen.prepare.preprocess.stage import preprocess
from ecggen.prepare.window.stage import window
from ecggen.utils.config import LABEL_CHOICES, Config, PreprocessConfig, WindowConfig, config_from_dict
from ecggen.utils.errors import EcggenError
from ecggen.utils.files import read_csv
from ecggen.utils.threads import wait_passively

#: Files of a folder of windows.
RESULT = re.compile(r"(index|rejected|spans)\.csv|meta\.json|(windows|frank)(-[0-9]{5})?\.npy|\.DS_Store")


class ScriptError(EcggenError):
    """A folder that must not be written to."""


def convert(src: Path, dst: Path, config: Config, *, backend: str = "auto") -> dict[str, Any]:
    """Convert the records below src, or listed by the CSV file src, to windows in dst.

    Returns {"records": counts, "windows": counts, "rejected": rows}.
    dst is replaced as a whole, or left as it was if anything fails; rejected records and windows are in
    dst/rejected.csv. Raises ScriptError where dst holds anything but windows, SourceError where src and dst
    lie one in the other, and what the stages raise.
    """
    _check_target(dst)
    refuse_overlap(f"--src {src}", src, [dst])
    with tempfile.TemporaryDirectory(prefix="wfdb_to_npy_") as name:
        raw, records = Path(name) / "raw", Path(name) / "records"
        raw.mkdir()
        data, place = config.data, src.resolve()
        if data.source == "table":
            source = list_table(place, limit=data.limit)
        else:
            source = list_source(place, fs=data.fs, limit=data.limit, database=data.database)
        refuse_links(source, [dst])
        write_source(raw, source)
        read = preprocess(raw, records, config.data, config.preprocess, backend=backend)
        cut = window(records, dst, config.data, config.window)
        return {"records": read, "windows": cut, "rejected": read_csv(records / "rejected.csv")}


def _check_target(dst: Path) -> None:
    """dst is replaced, so it must be new, empty, or an earlier result and nothing else."""
    if dst.exists() and not dst.is_dir():
        raise ScriptError(f"--dst {dst} is a file: name a folder.")
    entries = sorted(path.name for path in dst.iterdir()) if dst.is_dir() else []
    foreign = [name for name in entries if not RESULT.fullmatch(name)]
    if foreign or (entries and not {"index.csv", "meta.json"} <= set(entries)):
        raise ScriptError(
            f"--dst {dst} holds other files, {(foreign or entries)[0]} for one, and would be replaced: "
            "name a new or empty folder."
        )


def describe(dst: Path, result: dict[str, Any]) -> str:
    """What `convert` returned, in words."""
    read, cut, rejected = result["records"], result["windows"], result["rejected"]
    lines = [
        f"{read['listed']} records found, {read['records']} usable, {read['rejected']} rejected"
        + (f", {read['absent']} named by the list but absent" if read["absent"] else "")
        + f"; {read['patients']} patients.",
        f"{cut['windows']} windows written to {dst}, {cut['windows_rejected']} rejected"
        + _listed(cut["windows_rejected_by_reason"]),
        "Windows by split" + _listed(cut["windows_by_split"]),
        f"Records with a flag{_listed(read['records_by_flag'])}",
        f"Frank leads (frank.npy): {'yes' if read['frank'] else 'no'}.",
    ]
    lines += patient_notes(read["by_database"])
    lines += [f"rejected {row['record']}: {row['reason']}" for row in rejected[:20]]
    if len(rejected) > 20:
        lines.append(f"... and {len(rejected) - 20} more.")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0 on success, 1 with one sentence on stderr otherwise."""
    args = _parser().parse_args(argv)
    wait_passively()
    dst = Path(args.dst)
    try:
        result = convert(Path(args.src), dst, _config(args), backend=args.backend)
    except EcggenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is needed here: pip install {error.name}.", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or args.dst}: {error.strerror or error}.", file=sys.stderr)
        return 1
    print(describe(dst, result))
    return 0


def _config(args: argparse.Namespace) -> Config:
    def options(*names: str) -> dict[str, Any]:
        return {name: getattr(args, name) for name in names}

    data = {"source": "table" if args.src.lower().endswith(".csv") else "wfdb", "path": args.src}
    data |= {"fs": args.fs_out, **options("database", "patient", "limit", "time_len")}
    window = options("split", "split_seed", "labels", "min_label_count", "scale")
    window |= {"stride": args.stride or args.time_len, "exclude": list(filter(None, args.exclude.split(",")))}
    preprocess = {"low_hz": args.low, "high_hz": args.high, "order": args.order}
    # The window has nothing to do with the tokenizer here; any length is welcome.
    model = {"beat_len": 8, "channels": [8]}
    return config_from_dict({"data": data, "model": model, "preprocess": preprocess, "window": window})


def _listed(counts: dict[str, int]) -> str:
    words = ", ".join(f"{name} {count}" for name, count in counts.items())
    return f": {words}." if words else ": none."


def _parser() -> argparse.ArgumentParser:
    pre, win = PreprocessConfig(), WindowConfig()
    parser = argparse.ArgumentParser(prog="wfdb_to_npy.py", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--src", required=True, help="folder of WFDB records, any layout, or a CSV file that lists arrays")
    add("--dst", required=True, help="folder to write: new, empty or an earlier result, which is replaced")
    add("--fs_out", type=float, default=100.0, help="Hz (default 100)")
    add("--time_len", type=int, default=512, help="samples of a window (default 512)")
    add("--stride", type=int, default=0, help="samples between windows (default: time_len)")
    add("--low", type=float, default=pre.low_hz, help=f"high-pass, Hz, 0 = none (default {pre.low_hz})")
    add("--high", type=float, default=pre.high_hz, help=f"low-pass, Hz (default {pre.high_hz})")
    add("--order", type=int, default=pre.order, help=f"Butterworth order (default {pre.order})")
    add("--limit", type=int, default=0, help="first records only, 0 = all")
    add("--backend", choices=("auto", "scipy", "numpy"), default="auto", help="filters (default auto)")
    add("--split", choices=("auto", "train", "validation", "test"), default=win.split, help="or all in one")
    add("--split_seed", type=int, default=win.split_seed, help="seed of the split by patient")
    add("--scale", choices=("rms", "none"), default=win.scale, help="scale stored per window, never applied")
    add("--database", default="", help="what the folder is a copy of (default: recognised by its files)")
    add("--patient", default="", help="regular expression that finds the patient in a record's name")
    add("--labels", choices=LABEL_CHOICES, default=win.labels, help="label system (default: the database's)")
    add("--min_label_count", type=int, default=win.min_label_count, help="training patients a class needs")
    add("--exclude", default=",".join(win.exclude), help="flags that keep a window out, comma separated")
    return parser


if __name__ == "__main__":
    sys.exit(main())
