"""What each part of the model gives: variants trained alike and compared window by window.

    python benchmarks/ablations.py WINDOWS OUT [--epochs 12] [--seeds 1] [--variants base no-ttt ...]

WINDOWS: a folder of windows (data/windows); OUT: where each variant's checkpoint and scores are kept, so that
a second call goes on where the first stopped. Scored on the validation split: mean r and RMSE of hidden
independent leads without a reference, and r with one (first window of a record held, the last one scored).
Prints, and writes to OUT/ablations.md, each variant's scores and how far r lies above or below `base`, paired
window by window over all seeds, with a 95 % interval over patients. Two trainings differ by chance as well,
which that interval does not hold: `another-seed` says by how much. --help names the variants.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common import PARAMS, complete_rows, interval, options, read_windows, section, short, table

import numpy as np
import torch

from ecggen.data.pipeline import WindowFolder, read_window_folder
from ecggen.eval.bootstrap import PatientBootstrap
from ecggen.eval.lead_sets import given_only, named_sets
from ecggen.eval.metrics import score_leads
from ecggen.eval.personal import half_pairs
from ecggen.eval.result import Array
from ecggen.eval.score import start_state
from ecggen.inference.renderer import load
from ecggen.leads import EXPAND, INDEPENDENT_INDEX
from ecggen.trainer import Trainer
from ecggen.utils.config import load_config
from ecggen.utils.files import atomic_path

SETS = named_sets(["I", "I+II", "I+II+V2", "I+II+V1+V4", "I+II+V1+V2+V4+V5+V6"])


@dataclass(frozen=True)
class Variant:
    """What is changed: parameters, the trainer before its first step, the windows [n, 12, T]."""

    what: str
    overrides: tuple[str, ...] = ()
    prepare: Callable[[Trainer], None] = lambda trainer: None
    windows: Callable[[Array], Array] | None = None


def freeze_steps(trainer: Trainer) -> None:
    """Step sizes stay as they start."""
    trainer.model.updater.log_step.requires_grad_(False)


def random_field(trainer: Trainer) -> None:
    """The lead field starts anywhere."""
    generator = torch.Generator().manual_seed(0)
    field = trainer.model.projection.field
    with torch.no_grad():
        field.copy_(0.6 * torch.randn(field.shape, generator=generator))


def shuffled_directions(trainer: Trainer) -> None:
    """Every lead looks from where another one does, and stays there."""
    field = trainer.model.projection.field
    with torch.no_grad():
        field.copy_(field[[3, 6, 0, 7, 1, 2, 4, 5]])
    field.requires_grad_(False)


def z_scored(windows: Array) -> Array:
    """The eight independent leads over their own standard deviation; the others follow by algebra."""
    eight = windows[:, list(INDEPENDENT_INDEX)]
    eight = eight - eight.mean(2, keepdims=True)
    eight = eight / np.maximum(eight.std(2, keepdims=True), 1e-3)
    return (EXPAND @ eight).astype(np.float32)


FREE = ("train.reg.gauge=0", "train.reg.field=0")
VARIANTS = {
    "base": Variant("params.yaml as it stands"),
    "another-seed": Variant("the same from another seed", ("train.seed=101",)),
    "no-ttt": Variant("no inner step: a guess alone", ("model.ttt.steps=0", "model.ttt.amortised=true")),
    "no-state": Variant("W stays at W0", ("model.ttt.steps=0", "model.ttt.amortised=false")),
    "amortised": Variant("a guess from the support added to W0", ("model.ttt.amortised=true",)),
    "first-order": Variant("first-order inner gradients", ("model.ttt.order=first",)),
    "fixed-steps": Variant("step sizes not learned", prepare=freeze_steps),
    "mlp": Variant("W holds fast weights (mlp)", ("model.state_kind=mlp",)),
    "no-prior": Variant("prior of W off", ("model.ttt.prior=0",)),
    "strong-prior": Variant("prior of W ten times as strong", ("model.ttt.prior=0.1",)),
    "one-step": Variant("one inner step", ("model.ttt.steps=1",)),
    "no-residual": Variant("residual head off: three dimensions alone", ("model.residual=false",)),
    "free-residual": Variant(
        "residual head not penalised", ("train.reg.residual=0", "train.dipole_weight=0")
    ),
    "no-angle": Variant("AngleCalib off", ("model.angle=false",)),
    "free-field": Variant("lead field from a random start, no gauge", FREE, random_field),
    "shuffled-field": Variant("Dower's directions shuffled and fixed, no gauge", FREE, shuffled_directions),
    "z-score": Variant("every independent lead z-scored (RMSE is not in mV)", FREE, windows=z_scored),
    "no-jitter": Variant("no random lead fields", ("train.field_jitter=0",)),
    "no-warp": Variant("no random speed", ("train.warp=0",)),
    "rr": Variant("tokens between R-peaks", ("model.tokenizer_mode=rr",)),
}  # fmt: skip


def run(name: str, windows: Path, out: Path, epochs: int, seed: int, extra: list[str]) -> None:
    """Train and score one variant; out/scores.npz appears last, and whole."""
    variant = VARIANTS[name]
    if variant.windows is not None:  # a copy of the folder with other windows
        changed = out / "windows"
        changed.mkdir(parents=True, exist_ok=True)
        np.save(changed / "windows.npy", variant.windows(read_window_folder(windows).windows[:]))
        for file in ("index.csv", "meta.json"):
            (changed / file).write_bytes((windows / file).read_bytes())
        windows = changed
    overrides = [f"data.meta_root={windows}", f"train.epochs={epochs}", f"train.seed={seed}"]
    config = load_config(PARAMS, [*overrides, *variant.overrides, *extra])
    folder = read_window_folder(windows, fs=config.data.fs, time_len=config.data.time_len)
    trainer = Trainer(config, folder, out, quiet=True)
    variant.prepare(trainer)
    trainer.restore()
    trainer.fit()
    values = scores(out, folder)
    with atomic_path(out / "scores.npz") as temporary, temporary.open("wb") as stream:
        np.savez(stream, **values)  # type: ignore[arg-type]


def scores(checkpoint: Path, folder: WindowFolder) -> dict[str, Array]:
    """Per validation window and lead set: r and mean square error over hidden leads, without a reference at
    W0, at step 0 and as trained, and with one."""
    renderer, rows = load(checkpoint, device="cpu"), complete_rows(folder, "validation")
    ecg = read_windows(folder, rows)
    start = start_state(renderer)
    assert start is not None
    pairs = half_pairs(folder, rows)
    full = np.ones(12, dtype=bool)
    states = renderer.states(read_windows(folder, pairs.reference), full)
    later = read_windows(folder, pairs.test)
    patient = np.asarray(folder.patient)
    out: dict[str, Array] = {"patient": patient[rows], "patient_personal": patient[pairs.test]}
    for leads in SETS:
        given = given_only(ecg, leads.mask)
        w0 = renderer.render_windows(given, leads.mask, state=np.tile(start, (len(ecg), 1)))
        first = renderer.render_windows(given, leads.mask, steps=0)
        trained = renderer.render_windows(given, leads.mask)
        held = renderer.render_windows(given_only(later, leads.mask), leads.mask, state=states)
        of_kind = {
            kind: score_leads(ecg, rendered["leads"], leads.headline)
            for kind, rendered in (("w0", w0), ("step0", first), ("alone", trained))
        }
        of_kind["personal"] = score_leads(later, held["leads"], leads.headline, pairs.score_from)
        for kind, score in of_kind.items():
            out |= {f"{kind}_r {leads.name}": score.r, f"{kind}_rmse {leads.name}": score.rmse}
    return out


def page(out: Path, names: list[str], seeds: list[int], epochs: int) -> str:
    """Markdown: one row per variant."""
    read = {name: [dict(np.load(out / name / str(s) / "scores.npz")) for s in seeds] for name in names}
    base = read.get("base", read[names[0]])
    head = [leads.name for leads in SETS]
    text = section("What does each part give?", sys.argv)
    text += f"\n{epochs} epochs, seed {', '.join(map(str, seeds))}, validation split; r, RMSE in mV"
    text += " and, in brackets, how much higher r is than that of base [95 % interval over patients]."
    text += " Chance between two trainings is not in the interval: another-seed shows it.\n\n"
    titles = {"alone": "nothing known of the person", "personal": "first window of the record held"}
    for kind, title in titles.items():
        patients = np.tile(base[0]["patient" if kind == "alone" else "patient_personal"], len(seeds))
        draws = PatientBootstrap(patients.tolist())
        rows = []
        for name in names:
            row = [f"{name}: {VARIANTS[name].what}"]
            for leads in SETS:
                r, rmse = (
                    np.concatenate([one[f"{kind}_{what} {leads.name}"] for one in read[name]])
                    for what in ("r", "rmse")
                )
                cell = f"{short(draws.mean(r)[0])}, {short(draws.mean(rmse)[0])}"
                if read[name] is not base:
                    gain = r - np.concatenate([one[f"{kind}_r {leads.name}"] for one in base])
                    cell += f" ({interval(draws.mean(gain), signed=True)})"
                row.append(cell)
            rows.append(row)
        text += table([title, *head], rows) + "\n"
    rows = []
    for name in names:
        means = [
            [
                short(float(np.nanmean([np.nanmean(one[f"{kind}_r {leads.name}"]) for one in read[name]])))
                for kind in ("w0", "step0", "alone")
            ]
            for leads in SETS
        ]
        rows.append([name, *map(" / ".join, means)])
    return text + table(["r at W0 / step 0 / as trained", *head], rows)


def main() -> None:
    """Train what is missing, print the table."""
    names = "\n".join(f"{name:16s} {variant.what}" for name, variant in VARIANTS.items())
    parser = options(__doc__, names)
    parser.add_argument("windows", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--set", nargs="*", default=[], help="further overrides, for every variant")
    args = parser.parse_args()
    for name in args.variants:
        for seed in args.seeds:
            here = args.out / name / str(seed)
            if not (here / "scores.npz").is_file():
                print(f"{name}, seed {seed}: {VARIANTS[name].what}", file=sys.stderr, flush=True)
                run(name, args.windows, here, args.epochs, seed, args.set)
    text = page(args.out, args.variants, args.seeds, args.epochs)
    with atomic_path(args.out / "ablations.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
