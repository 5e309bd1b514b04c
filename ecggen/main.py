"""Training and evaluation from the command line, without DVC and without MLflow.

    python -m ecggen.main --config ecggen/configs/train/v1.yaml --mode train
    python -m ecggen.main --config ecggen/configs/train/v1.yaml --mode eval
    torchrun --nnodes 2 ... -m ecggen.main --config ecggen/configs/train/v1.yaml --mode train

A run lives in OUT/RUN_ID: config.json, history.csv, facts.csv, checkpoint.pt (the best),
step_000500/checkpoint.pt (the last, resumable) and eval/NAME/. RUN_ID is made of the codes in `run`.
"""

from __future__ import annotations

import argparse
import atexit
import dataclasses
import gc
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecggen.utils.config import Config, DataConfig, config_to_dict, load_config
from ecggen.utils.display import show_progress
from ecggen.utils.errors import EcggenError
from ecggen.utils.files import fresh_folder, read_json, write_json
from ecggen.utils.run_id import list_step_dirs, run_id, saved_steps
from ecggen.utils.threads import wait_passively

if TYPE_CHECKING:
    from ecggen.eval.result import Result

# torch is imported inside functions: --help and a mistyped key should not wait for it.

SYNTHETIC = "synthetic_windows"


class RunError(EcggenError):
    """A run that cannot be started where it was asked for."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point: 0 on success, 1 with one sentence on stderr for bad input, 130 when interrupted."""
    wait_passively()
    atexit.register(gc.freeze)  # spares the exit a search for cycles: .7 s with torch
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_intermixed_args(arguments)
    show_progress(not args.quiet)
    try:
        config = _read_config(args)
        run = Path(args.out) / run_id(config.run)
        if args.mode == "train":
            train(config, run, resume=args.resume, overwrite=args.overwrite, quiet=args.quiet)
        else:
            evaluate(config, run, checkpoint=args.checkpoint, others=args.other)
    except EcggenError as error:
        if os.environ.get("RANK", "0") == "0":  # under torchrun all processes meet the same error
            print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or args.out}: {error.strerror or error}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(_farewell(args, arguments), file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ecggen.main", description="Train a model, or evaluate a trained one."
    )
    add = parser.add_argument
    add("--config", required=True, help="configuration, .yaml or .json")
    add("--mode", required=True, choices=("train", "eval"))
    add("--out", default="results/runs", help="folder of the runs (default results/runs)")
    add("--device", help="auto, cpu, cuda, cuda:1, mps; short for train.device=...")
    text = "same as a trailing section.key=value"
    add("--set", action="append", default=[], metavar="KEY=VALUE", help=text)
    add("--quiet", action="store_true", help="no progress")
    add("overrides", nargs="*", metavar="section.key=value", help="for example model.tokenizer_mode=rr")
    training = parser.add_argument_group("train")
    training.add_argument("--resume", action="store_true", help="go on from the last step of this run")
    training.add_argument("--overwrite", action="store_true", help="delete an earlier run of the same id")
    evaluation = parser.add_argument_group("eval")
    evaluation.add_argument("--checkpoint", help="file or folder (default: the best of this run)")
    text = "windows of another database to test on"
    evaluation.add_argument("--other", action="append", default=[], metavar="FOLDER", help=text)
    return parser


def _read_config(args: argparse.Namespace) -> Config:
    overrides = [*args.set, *args.overrides]
    if args.device:
        overrides.append(f"train.device={args.device}")
    return load_config(args.config, overrides)


def train(config: Config, run: Path, *, resume: bool, overwrite: bool, quiet: bool) -> dict[str, Any]:
    """Train in the folder `run`; returns the final metrics. Raises an EcggenError.

    Under torchrun this process is one of several: the first one prepares the folder and prints.
    """
    from ecggen.training import processes

    with processes.process_group(config.train.device) as ranks:

        def prepare() -> Config:
            if not resume and not ranks.restarts:
                _clear(run, overwrite)
            prepared = with_data(config, run)
            write_json(run / "config.json", config_to_dict(prepared))
            return prepared

        config = ranks.from_main(prepare)
        metrics = processes.train(config, run, resume=resume, quiet=quiet)
        if ranks.main:
            shown = {name: value for name, value in metrics.items() if isinstance(value, (int, float))}
            print(f"Trained {run.name}: {', '.join(f'{name} {_number(v)}' for name, v in shown.items())}")
            print(f"Best checkpoint: {run / 'checkpoint.pt'}")
    return metrics


def _clear(run: Path, overwrite: bool) -> None:
    if not list_step_dirs(run) and not (run / "checkpoint.pt").exists():
        return
    if not overwrite:
        raise RunError(
            f"{run} already holds a run: go on with --resume, choose other codes (for example run.k=k2) or "
            "another --out, or delete it with --overwrite."
        )
    # Only what a run writes: --out may point to a folder that holds more.
    for _, folder in list_step_dirs(run):
        shutil.rmtree(folder)
    shutil.rmtree(run / "eval", ignore_errors=True)
    for name in ("checkpoint.pt", "history.csv", "seconds.csv", "facts.csv", "config.json"):
        (run / name).unlink(missing_ok=True)


def with_data(config: Config, run: Path) -> Config:
    """The configuration, or, where the default data.meta_root has no windows, one of synthetic windows.

    These are written into the run's folder; a line on stderr says so. A data.meta_root that was named
    is used as it is.
    """
    root = Path(config.data.meta_root)
    if next(root.rglob("*.npy"), None) is not None:
        return config
    if config.data.meta_root != DataConfig().meta_root:
        raise RunError(
            f"No .npy windows in {root} (data.meta_root): name a folder of windows, or leave data.meta_root "
            f"out to use {DataConfig().meta_root} or, where that has none, synthetic windows."
        )
    folder = run / SYNTHETIC
    changed = dataclasses.replace(config, data=dataclasses.replace(config.data, meta_root=str(folder)))
    sections, saved = ("data", "synthetic", "preprocess", "window"), run / "config.json"
    present = (folder / "meta.json").is_file() and saved.is_file()
    if present:  # unless other synthetic windows are asked for
        then, now = read_json(saved), config_to_dict(changed)
        present = all(then.get(name) == now[name] for name in sections)
    print(
        f"No windows in {root} (data.meta_root): {'using the' if present else 'making'} synthetic windows in "
        f"{folder} instead; results say nothing about real hearts.",
        file=sys.stderr,
    )
    if not present:
        from ecggen.prepare.synthetic.windows import write_windows

        write_windows(folder, config)
    return changed


def evaluate(config: Config, run: Path, *, checkpoint: str | None = None, others: Sequence[str] = ()) -> None:
    """Evaluate a checkpoint (default: the run's best) into run/eval/NAME. Raises an EcggenError.

    others: folders of windows of other databases, by the folder's name in the protocol `transfer`.
    """
    if not checkpoint and not (run / "checkpoint.pt").is_file():
        raise RunError(
            f"{run} holds no checkpoint.pt: train first (--mode train), or name one with --checkpoint."
        )
    config = with_data(config, run)
    from ecggen.data.pipeline import read_window_folder
    from ecggen.eval.linear_probe import linear_probe
    from ecggen.eval.missing_lead import missing_lead
    from ecggen.eval.reconstruction import reconstruction
    from ecggen.eval.result import EvalError
    from ecggen.eval.transfer import AtHome, transfer
    from ecggen.inference.renderer import load
    from ecggen.report.words import run_in_words

    renderer = load(checkpoint or run, device=config.train.device)
    read = partial(read_window_folder, fs=renderer.fs, time_len=renderer.time_len)
    folder = read(config.data.meta_root)
    protocols: dict[str, Callable[[], Result]] = {
        "reconstruction": lambda: reconstruction(renderer, folder, config.reconstruction),
        "missing_lead": lambda: missing_lead(renderer, folder, config.missing_lead),
        "linear_probe": lambda: linear_probe(renderer, folder, config.linear_probe),
    }
    if others:
        names = [Path(path).resolve().name for path in others]
        if twice := next((name for name in names if names.count(name) > 1), ""):
            raise RunError(f"--other names two folders called {twice!r}: results need different names.")
        foreign = dict(zip(names, map(read, others), strict=True))

        def on_others() -> Result:
            known = {"missing_lead", "linear_probe"} <= set(done)
            at_home = AtHome(done["missing_lead"], done["linear_probe"]) if known else None
            return transfer(renderer, folder, foreign, config.transfer, config.missing_lead, at_home)

        protocols["transfer"] = on_others
    skipped = []
    done: dict[str, Result] = {}
    for name, protocol in protocols.items():
        try:
            if name == "linear_probe" and not folder.label_classes:
                raise EvalError("the windows carry no labels")
            result = done[name] = protocol()
            reason = str(result.facts.get("skipped", ""))
        except EvalError as error:
            reason = str(error)
        if reason:
            skipped.append(reason)
            print(f"{name} skipped: {reason.rstrip('.')}.")
            continue
        with fresh_folder(run / "eval" / name) as temporary:
            result.write(temporary)
        print("\n".join(run_in_words(run / "eval", [name])))
    if len(skipped) == len(protocols):
        raise RunError(f"Nothing could be evaluated on {folder.root}: {skipped[0]}")
    print(f"Written to {run / 'eval'}")


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _farewell(args: argparse.Namespace, arguments: list[str]) -> str:
    if args.mode != "train":
        return "Interrupted: evaluations finished so far are kept; run the same command again for the rest."
    with suppress(EcggenError, OSError):
        if saved_steps(Path(args.out) / run_id(_read_config(args).run)):
            command = shlex.join([a for a in arguments if a not in ("--resume", "--overwrite")])
            return f"Interrupted: go on from the last checkpoint: python -m ecggen.main {command} --resume"
    return "Interrupted before the first checkpoint: run the same command again to start over."


if __name__ == "__main__":
    sys.exit(main())
