"""The training loop: seeds, schedule, masks, checkpoints, early stopping, exact resume.

Every random choice of a step is a function of (seed, step), and the loader's order one of (seed, epoch), so a
run that was killed and resumed equals the uninterrupted one.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ecggen.augment import Shown, show
from ecggen.calibration import calibrate, fix_gauge
from ecggen.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint
from ecggen.data.pipeline import ECGDataset, WindowFolder, make_loader, read_window_folder
from ecggen.devices import autocast, pick_device, pick_precision
from ecggen.leads import INDEPENDENT_INDEX, observed_mask, parse_lead_set
from ecggen.models.ecggen import ECGGen
from ecggen.models.objective import make_target, mean_hidden_r, training_loss
from ecggen.models.slots import LimbSlots
from ecggen.muon import make_optimisers
from ecggen.parallel import SideBySide, draws, sum_gradients
from ecggen.utils.config import Config, config_to_dict
from ecggen.utils.errors import EcggenError
from ecggen.utils.files import write_csv, write_json
from ecggen.utils.run_id import latest_step_dir, step_dir
from ecggen.utils.seed import derive_seed, seed_everything

VALIDATION_SETS = ("I", "I+II", "I+II+V2", "I+II+V1+V4", "I+II+V1+V2+V4+V5+V6")
VALIDATION_WINDOWS = 512
POPULATION_WINDOWS = 1024  # about so many training windows give the population's covariances


class TrainError(EcggenError):
    """Training that cannot go on."""


@dataclass
class _Progress:
    """Where a run stands; saved in every checkpoint."""

    step: int = 0
    epoch: int = 0
    batch: int = 0  # batches done in this epoch
    best: float = -math.inf
    best_epoch: int = -1
    sums: dict[str, float] = field(default_factory=dict)  # running sums of this epoch's terms
    history: list[dict[str, float]] = field(default_factory=list)


class Trainer:
    """One run in one folder. `fit` trains; `state` and `restore` are the exact resume."""

    def __init__(self, config: Config, folder: WindowFolder, out: Path, *, quiet: bool = False) -> None:
        self.config, self.folder, self.out, self.quiet = config, folder, Path(out), quiet
        rules = config.train
        if rules.threads:
            torch.set_num_threads(rules.threads)
        self.device = pick_device(rules.device)
        self.precision = pick_precision(rules.precision, self.device)
        self.train_set = ECGDataset(
            folder, "train", seed=rules.seed, limit=rules.max_windows, warp=rules.warp
        )
        self.validation_set = ECGDataset(folder, "validation", seed=rules.seed, limit=VALIDATION_WINDOWS)
        seed_everything(rules.seed)
        self.model = ECGGen(config.model, folder.fs, config.data.time_len).to(self.device)
        self._learn_population()
        # The spread must not shorten the steps of the rest, which renders the same without it.
        apart = {id(p) for p in self.model.spread.parameters()}
        self.trunk = [p for p in self.model.parameters() if id(p) not in apart]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == torch.float16)
        self.shards = rules.shards if self.device.type == "cpu" else 1
        self.parallel = SideBySide(self.device, 1 if draws(self.model) else self.shards)
        self.optimisers = make_optimisers(self.model, rules, self.parallel)
        self.slots = LimbSlots()
        self.masks = torch.from_numpy(np.stack([observed_mask(parse_lead_set(s)) for s in VALIDATION_SETS]))
        self.batches = math.ceil(len(self.train_set) / rules.batch_size)
        self.total = self.batches * rules.epochs
        self.at = _Progress()

    def _learn_population(self) -> None:
        """Hand the model the covariances of the training windows; Dower's stay where none has all leads."""
        rows = self.train_set.row_numbers
        rows = rows[self.folder.observed[rows].all(1)]
        rows = rows[:: max(1, len(rows) // POPULATION_WINDOWS)]
        if len(rows):
            eight = np.asarray(self.folder.windows[rows], dtype=np.float32)[:, list(INDEPENDENT_INDEX)]
            self.model.memory.learn(torch.from_numpy(eight).to(self.device))

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then a cosine to zero."""
        rules = self.config.train
        warm = max(1, round(rules.warmup * self.total))
        if step < warm:
            return rules.lr * (step + 1) / warm
        return rules.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.total - warm)))

    def fit(self, on_epoch: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
        """Train to the end or to early stopping; returns the final metrics."""
        rules = self.config.train
        while self.at.epoch < rules.epochs:
            begin = time.perf_counter()
            self._epoch()
            row = self._close_epoch(time.perf_counter() - begin)
            if on_epoch is not None:
                on_epoch(row)
            if self.at.epoch - 1 - self.at.best_epoch >= rules.patience:
                self._say(f"no better validation score for {rules.patience} epochs: stopped early")
                break
        self._calibrate()
        best = self.at.history[self.at.best_epoch]
        return {
            "best_epoch": int(best["epoch"]),
            "epochs": self.at.epoch,
            "steps": self.at.step,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "train_windows": len(self.train_set),
            "validation_windows": len(self.validation_set),
            "validation_r": best["val_r"],
            "validation_r_personal": best["val_r_personal"],
            "validation_loss": best["val_loss"],
            "train_loss": best["train_loss"],
        }

    def _calibrate(self) -> None:
        """Fix the best checkpoint's axes, calibrate its spread: from then on it is the model."""
        path = self.out / "checkpoint.pt"
        content = load_checkpoint(path, self.device)
        self.model.load_state_dict(content["model"])
        if self.config.train.reg.gauge > 0:
            fix_gauge(self.model, self.train_set, self.parallel, self.config.train.batch_size)
        calibrate(self.model, self.validation_set, self.parallel, self.config.train.batch_size)
        save_checkpoint(path, self.content() | {"step": content["step"]})

    def _epoch(self) -> None:
        rules, at = self.config.train, self.at
        self.model.train()
        loader = make_loader(
            self.train_set,
            batch_size=rules.batch_size,
            shuffle=True,
            seed=rules.seed,
            epoch=at.epoch,
            workers=rules.workers,
            start_batch=at.batch,
        )
        for batch in loader:
            terms = self._step(batch)
            for name, value in terms.items():
                at.sums[name] = at.sums.get(name, 0.0) + value
            at.step += 1
            at.batch += 1
            self._bar(terms)
            if rules.checkpoint_every and at.step % rules.checkpoint_every == 0 and at.batch < self.batches:
                self.save()

    def _step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        rules, at = self.config.train, self.at
        rng = np.random.default_rng(derive_seed(rules.seed, "step", at.step))
        shown = show(batch, self.config, rng, self.slots)
        for group in (group for optimiser in self.optimisers for group in optimiser.param_groups):
            group["lr"] = self.rate(at.step)
        shares = self.parallel.map(
            lambda part: self._share(part, len(part) / len(shown)), shown.parts(self.shards)
        )
        terms = {name: sum(part[name] for part, _ in shares) for name in shares[0][0]}
        if not math.isfinite(terms["loss"]):
            raise TrainError(self._not_finite("loss", terms["loss"], batch["row"]))
        sum_gradients(self._learned(), [gradients for _, gradients in shares])
        for optimiser in self.optimisers:
            self.scaler.unscale_(optimiser)
        torch.nn.utils.clip_grad_norm_(self.model.spread.parameters(), rules.clip)
        norm = torch.nn.utils.clip_grad_norm_(self.trunk, rules.clip)
        if not torch.isfinite(norm) and not self.scaler.is_enabled():
            raise TrainError(self._not_finite("gradient norm", float(norm), batch["row"]))
        for optimiser in self.optimisers:
            self.scaler.step(optimiser)
        self.scaler.update()
        return terms

    def _share(self, part: Shown, weight: float) -> tuple[dict[str, float], tuple[Tensor | None, ...]]:
        """Loss terms and gradients of a part of a batch, times its weight in the batch."""
        part, rules = part.to(self.device), self.config.train
        with autocast(self.device, self.precision):
            out = self.model(
                part.ecg,
                part.observed,
                reference=part.reference,
                reference_observed=part.reference_observed,
                views=part.view[None],
            )
            target = make_target(self.model, part.ecg, part.recorded, part.observed, rules.observed_weight)
            loss, terms = training_loss(self.model, out, target, rules)
        scaled = self.scaler.scale(loss * weight)
        gradients = torch.autograd.grad(scaled, self._learned(), allow_unused=True)
        terms = {"loss": loss.detach()} | terms
        return {name: weight * float(value) for name, value in terms.items()}, gradients

    def _learned(self) -> list[torch.nn.Parameter]:
        """Parameters that take part: whoever built the model may have frozen some."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def _not_finite(self, what: str, value: float, rows: Tensor) -> str:
        listed = ", ".join(str(int(row)) for row in rows[:8])
        return (
            f"The {what} became {value} at step {self.at.step} (epoch {self.at.epoch}) of {self.out}, "
            f"windows {listed}, ...: lower train.lr or model.ttt.step_size, or look at these windows; "
            "the last good checkpoint is kept."
        )

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean r over hidden leads and the loss, from observed leads alone and with a personal reference."""
        self.model.eval()
        rules = self.config.train
        loader = make_loader(self.validation_set, batch_size=rules.batch_size, shuffle=False, seed=rules.seed)
        parts = self.parallel.map(self._scores, loader)
        means = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return {name: float(value.mean()) if len(value) else float("nan") for name, value in means.items()}

    def _scores(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Per validation window; each window is seen through one of the VALIDATION_SETS."""
        rules = self.config.train
        chosen = self.masks[batch["row"] % len(self.masks)] & batch["observed"]
        chosen = torch.where(chosen.any(-1, keepdim=True), chosen, batch["observed"])
        keys = ("ecg", "observed", "support", "support_observed", "has_support")
        ecg, recorded, support, support_observed, has_support = (batch[key].to(self.device) for key in keys)
        observed = chosen.to(self.device)
        target = make_target(self.model, ecg, recorded, observed, rules.observed_weight)
        with autocast(self.device, self.precision):
            own = self.model(ecg, observed)
            loss = training_loss(self.model, own, target, rules)[0].repeat(len(ecg))
            held = self.model(ecg, observed, reference=support, reference_observed=support_observed)
        return {
            "val_loss": loss.float(),
            "val_r": mean_hidden_r(target, own.leads).float(),
            "val_r_personal": mean_hidden_r(target, held.leads).float()[has_support],
        }

    def _close_epoch(self, seconds: float) -> dict[str, Any]:
        at = self.at
        scores = self.validate()
        if not math.isfinite(scores["val_r"]):
            raise TrainError(
                f"The validation score became {scores['val_r']} in epoch {at.epoch} of {self.out}: lower "
                "train.lr or model.ttt.step_size; the last good checkpoint is kept."
            )
        row: dict[str, Any] = {"epoch": at.epoch, "step": at.step, "train_loss": at.sums["loss"] / at.batch}
        row |= scores | {"lr": self.rate(at.step - 1)}
        row |= {f"train_{name}": total / at.batch for name, total in at.sums.items() if name != "loss"}
        at.history.append(row)
        personal = scores["val_r_personal"]
        score = scores["val_r"] if math.isnan(personal) else 0.5 * (scores["val_r"] + personal)
        better = score > at.best
        if better:
            at.best, at.best_epoch = score, at.epoch
        at.epoch, at.batch, at.sums = at.epoch + 1, 0, {}
        if better:
            save_checkpoint(self.out / "checkpoint.pt", self.content())
        write_csv(self.out / "history.csv", at.history, list(row))
        self.save()
        self._say(
            f"epoch {row['epoch'] + 1:3d}/{self.config.train.epochs}  loss {row['train_loss']:.4f}  val r "
            f"{scores['val_r']:.4f}  personal {personal:.4f}{'  best' if better else ''}  ({seconds:.0f} s)"
        )
        return row

    def content(self) -> dict[str, Any]:
        """What every checkpoint holds: all that rendering needs."""
        meta = self.folder.meta
        return {
            "config": config_to_dict(self.config),
            "preprocessing": dict(meta.get("preprocessing", {})),
            "data": {
                "fingerprint": str(meta.get("fingerprint", "")),
                "source": _source_words(meta.get("source", self.config.data.source)),
                "train_windows": len(self.train_set),
                "label_classes": list(self.folder.label_classes),
            },
            "fs": float(self.model.fs),
            "time_len": int(self.model.time_len),
            "model": self.model.state_dict(),
            "step": self.at.step,
        }

    def save(self) -> None:
        """A resumable checkpoint in step_NNNNNN/, in place of the one before it."""
        at = self.at
        state = {
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "scaler": self.scaler.state_dict(),
            "random": torch.get_rng_state(),
            "progress": {
                "step": at.step, "epoch": at.epoch, "batch": at.batch, "best": at.best,
                "best_epoch": at.best_epoch, "sums": at.sums, "history": at.history,
            },
        }  # fmt: skip
        if self.device.type == "cuda":
            state["random_cuda"] = torch.cuda.get_rng_state(self.device)
        before = latest_step_dir(self.out)
        here = step_dir(self.out, at.step)
        save_checkpoint(here / "checkpoint.pt", self.content() | {"resume": state})
        write_json(
            here / "log.json", {"step": at.step, "epoch": at.epoch, "best": at.best, "last": at.history[-1:]}
        )
        if before is not None and before != here:
            (before / "checkpoint.pt").unlink(missing_ok=True)  # its log stays

    def restore(self) -> bool:
        """Go on from the latest step folder; False where there is none.

        Raises TrainError where that was trained with another configuration or on other windows.
        """
        folder = latest_step_dir(self.out)
        if folder is None or not (folder / "checkpoint.pt").is_file():
            return False
        saved = load_checkpoint(find_checkpoint(folder / "checkpoint.pt"), self.device)
        now, then = config_to_dict(self.config), saved["config"]
        differing = [name for name in ("data", "model", "train") if now[name] != then[name]]
        if differing:
            raise TrainError(
                f"{folder} was trained with another configuration (section {', '.join(differing)}): resume "
                "with the same one, or start a new run with other codes in `run`."
            )
        if saved["data"]["fingerprint"] != str(self.folder.meta.get("fingerprint", "")):
            raise TrainError(
                f"{folder} was trained on other windows than {self.folder.root} holds: start a new run."
            )
        self.model.load_state_dict(saved["model"])
        state = saved["resume"]
        for optimiser, of_it in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(of_it)
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["random"].cpu())
        if "random_cuda" in state and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"].cpu(), self.device)
        self.at = _Progress(**state["progress"])
        self._say(f"resumed at step {self.at.step} (epoch {self.at.epoch + 1})")
        return True

    def _say(self, text: str) -> None:
        if not self.quiet:
            clear = "\r\033[K" if sys.stderr.isatty() else ""
            print(f"{clear}{text}", file=sys.stderr, flush=True)

    def _bar(self, terms: dict[str, float]) -> None:
        if self.quiet or not sys.stderr.isatty():
            return
        done = int(24 * self.at.batch / self.batches)
        text = f"epoch {self.at.epoch + 1} [{'#' * done}{'.' * (24 - done)}] {self.at.batch}/{self.batches}"
        print(
            f"\r\033[K{text}  loss {terms['loss']:.4f}  step {self.at.step}",
            end="",
            file=sys.stderr,
            flush=True,
        )


def _source_words(source: Any) -> str:
    """What the windows were made from, in words that a report can print."""
    if isinstance(source, dict):
        return " ".join(str(source[key]) for key in ("kind", "name") if source.get(key))
    return str(source)


def train(
    config: Config,
    out: str | Path,
    *,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train on the windows of `data.meta_root` into `out`; returns the final metrics.

    Writes checkpoint.pt (the best), history.csv, metrics.json and step_NNNNNN/ (resumable). Raises DataError,
    TrainError, DeviceError, CheckpointError.
    """
    out = Path(out)
    folder = read_window_folder(config.data.meta_root, fs=config.data.fs, time_len=config.data.time_len)
    trainer = Trainer(config, folder, out, quiet=quiet)
    if resume and not trainer.restore():
        trainer._say(f"nothing to resume in {out}: starting from the beginning")
    metrics = trainer.fit(on_epoch)
    write_json(out / "metrics.json", metrics)
    return metrics
