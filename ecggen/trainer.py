"""The training loop: seeds, schedule, steps, epochs, early stopping.

Every random choice of a step is a function of (seed, step), and the loader's order one of (seed, epoch), so a
run that was killed and resumed equals the uninterrupted one. Several processes (`training.processes`) share
the parts of every batch; their sums differ from those of one process by rounding.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ecggen.data.pipeline import ECGDataset, WindowFolder, make_loader, read_window_folder
from ecggen.leads import INDEPENDENT_INDEX
from ecggen.models.ecggen import ECGGen
from ecggen.models.objective import make_target, training_loss
from ecggen.models.slots import LimbSlots
from ecggen.training.augmentation import Batch, augment
from ecggen.training.calibration import align_axes, calibrate
from ecggen.training.checkpoint import (
    clear_steps,
    code_version,
    load_step,
    lock_run,
    model_content,
    save_checkpoint,
    save_step,
)
from ecggen.training.devices import (
    SideBySide,
    autocast,
    draws,
    pick_device,
    pick_precision,
    reproducible,
    sum_gradients,
)
from ecggen.training.muon import make_optimisers
from ecggen.training.processes import Ranks, process_group
from ecggen.training.validation import VALIDATION_WINDOWS, validation_scores
from ecggen.utils.config import Config
from ecggen.utils.display import Progress
from ecggen.utils.errors import EcggenError
from ecggen.utils.files import FACTS, write_csv, write_facts
from ecggen.utils.seed import derive_seed, seed_everything

FINISHED = ("checkpoint.pt", FACTS)  # what only a training that came to its end leaves
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
    seconds: float = 0.0  # spent, those before a resume included
    sums: dict[str, float] = field(default_factory=dict)  # running sums of this epoch's terms
    history: list[dict[str, float]] = field(default_factory=list)


class Trainer:
    """One run in one folder. `fit` trains; `save` and `restore` are the exact resume.

    ranks: this process among those that train together. All do the same but for their parts of a batch;
    rank 0 alone writes files and messages.
    """

    def __init__(
        self,
        config: Config,
        folder: WindowFolder,
        out: Path,
        *,
        quiet: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks = ranks = ranks or Ranks()
        self.config, self.folder, self.out = config, folder, Path(out)
        self.shown = ranks.main and not quiet
        options = config.train
        if options.threads or ranks.beside > 1:
            torch.set_num_threads(options.threads or max(1, torch.get_num_threads() // ranks.beside))
        self.device = pick_device(options.device, ranks.local if ranks.size > 1 else None)
        self.precision = pick_precision(options.precision, self.device)
        self.train_set = ECGDataset(
            folder, "train", seed=options.seed, limit=options.max_windows, time_scaling=options.warp
        )
        self.validation_set = ECGDataset(folder, "validation", seed=options.seed, limit=VALIDATION_WINDOWS)
        seed_everything(options.seed)
        self.model = ECGGen(config.model, folder.fs, config.data.time_len).to(self.device)
        self._learn_population()
        # The head of the standard deviation is clipped apart: its gradient must not shorten other steps.
        apart = {id(p) for p in self.model.spread.parameters()}
        self.trunk = [p for p in self.model.parameters() if id(p) not in apart]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == torch.float16)
        shards = options.shards if self.device.type == "cpu" else 1
        self.part_count = -(-shards // ranks.size)  # parts of a batch that each process computes
        self.draws = draws(self.model)
        self.parallel = SideBySide(self.device, 1 if self.draws else self.part_count)
        self.map_parts = functools.partial(ranks.map, self.parallel)
        self.optimisers = make_optimisers(self.model, options, self.parallel)
        self.slots = LimbSlots()
        self.batches = math.ceil(len(self.train_set) / options.batch_size)
        self.total = self.batches * options.epochs
        self.display = Progress("training", self.total, shown=self.shown)
        self.at = _Progress()
        self.best: dict[str, Any] = {}  # model (on the CPU) and step of the best epoch so far
        self.saved_at, self.save_due = time.monotonic(), False
        self.clock = time.perf_counter()  # up to which at.seconds counts
        code_version()  # read now: what is edited while this runs is not what it was trained by

    def _learn_population(self) -> None:
        """Give the model the covariances of the training windows; Dower's stay where none has all leads."""
        rows = self.train_set.row_numbers
        rows = rows[self.folder.observed[rows].all(1)]
        rows = rows[:: max(1, len(rows) // POPULATION_WINDOWS)]
        if len(rows):
            eight = np.asarray(self.folder.windows[rows], dtype=np.float32)[:, list(INDEPENDENT_INDEX)]
            self.model.memory.learn(torch.from_numpy(eight).to(self.device))

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then a cosine to zero."""
        options = self.config.train
        warm = max(1, round(options.warmup * self.total))
        if step < warm:
            return options.lr * (step + 1) / warm
        return options.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.total - warm)))

    def fit(self, on_epoch: Callable[[dict[str, Any]], None] = lambda row: None) -> dict[str, Any]:
        """Train to the end or to early stopping; returns the final metrics.

        on_epoch is called on rank 0 with every row of the history, those from before a resume first.
        """
        options = self.config.train
        report = on_epoch if self.ranks.main else lambda row: None
        self.display = Progress("training", self.total, done=self.at.step, shown=self.shown)
        with reproducible(self.device), closing(self.display):
            self.ranks.copy_from_main(self.model)
            for row in self.at.history:
                report(row)
            while self.at.epoch < min(options.epochs, self.at.best_epoch + 1 + options.patience):
                begin = time.perf_counter()
                self._epoch()
                report(self._close_epoch(begin))
            if self.at.epoch < options.epochs:
                self.display.say(f"no better validation score for {options.patience} epochs: stopped early")
            self._calibrate()
        self._count_seconds()
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

    def _count_seconds(self) -> None:
        now = time.perf_counter()
        self.at.seconds += now - self.clock
        self.clock = now

    def _calibrate(self) -> None:
        """Align the best model's axes and calibrate its standard deviation; write it as the result."""
        self.model.load_state_dict(self.best["model"])
        batch_size = self.config.train.batch_size
        if self.config.train.reg.gauge > 0:
            align_axes(self.model, self.train_set, self.map_parts, batch_size)
        calibrate(self.model, self.validation_set, self.map_parts, batch_size)
        content = self.content() | {"step": self.best["step"]}
        self.ranks.from_main(lambda: save_checkpoint(self.out / "checkpoint.pt", content))

    def _epoch(self) -> None:
        options, at = self.config.train, self.at
        self.model.train()
        loader = make_loader(
            self.train_set,
            batch_size=options.batch_size,
            shuffle=True,
            seed=options.seed,
            epoch=at.epoch,
            workers=options.workers,
            start_batch=at.batch,
        )
        for batch in loader:
            terms = self._step(batch)
            for name, value in terms.items():
                at.sums[name] = at.sums.get(name, 0.0) + value
            at.step += 1
            at.batch += 1
            self.display.add(text=f"epoch {at.epoch + 1}, loss {terms['loss']:.4f}")
            if self.save_due and at.batch < self.batches:
                self.save()

    def _step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """One step of the optimisers; returns the terms of the loss, means over the batch."""
        options, at, ranks = self.config.train, self.at, self.ranks
        rng = np.random.default_rng(derive_seed(options.seed, "step", at.step))
        step_batch = augment(batch, self.config, rng, self.slots)
        parts = [*enumerate(step_batch.parts(self.part_count * ranks.size))]
        parts = parts[ranks.rank * self.part_count :][: self.part_count]
        shares = self.parallel.map(lambda part: self._share(part[1], len(step_batch), part[0]), parts)
        by_step = options.checkpoint_every and (at.step + 1) % options.checkpoint_every == 0
        by_clock = 0 < 60 * options.checkpoint_minutes <= time.monotonic() - self.saved_at
        gathered = ranks.gather(lambda: (bool(by_step or by_clock), [terms for terms, _ in shares]))
        self.save_due = gathered[0][0]  # by the clock of rank 0
        of_parts = [terms for _, of_rank in gathered for terms in of_rank]
        terms = {name: sum(part[name] for part in of_parts) for name in of_parts[0]}
        self._require_finite("loss", terms["loss"], batch["row"])
        sum_gradients(self._learned, [gradients for _, gradients in shares])
        ranks.sum_gradients(self._learned)
        for optimiser in self.optimisers:
            self.scaler.unscale_(optimiser)
        torch.nn.utils.clip_grad_norm_(self.model.spread.parameters(), options.clip)
        norm = torch.nn.utils.clip_grad_norm_(self.trunk, options.clip)
        if not self.scaler.is_enabled():
            self._require_finite("gradient norm", float(norm), batch["row"])
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.rate(at.step)
            self.scaler.step(optimiser)
        self.scaler.update()
        return terms

    def _share(
        self, part: Batch, total: int, number: int
    ) -> tuple[dict[str, float], tuple[Tensor | None, ...]]:
        """Loss terms and gradients of a part of a batch of `total` samples, times its share of these."""
        part, options, weight = part.to(self.device), self.config.train, len(part) / total
        if self.draws:  # a function of the part, wherever it is computed
            torch.manual_seed(derive_seed(options.seed, "dropout", self.at.step, number))
        with autocast(self.device, self.precision):
            out = self.model(
                part.ecg,
                part.observed,
                reference=part.reference,
                reference_observed=part.reference_observed,
                views=part.view[None],
            )
            target = make_target(self.model, part.ecg, part.recorded, part.observed, options.observed_weight)
            loss, terms = training_loss(self.model, out, target, options)
        scaled = self.scaler.scale(loss * weight)
        gradients = torch.autograd.grad(scaled, self._learned, allow_unused=True)
        terms = {"loss": loss.detach()} | terms
        return {name: weight * float(value) for name, value in terms.items()}, gradients

    @functools.cached_property
    def _learned(self) -> list[torch.nn.Parameter]:
        """Parameters that take part: whoever built the model may have frozen some."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def _require_finite(self, name: str, value: float, rows: Tensor | None = None) -> None:
        """rows: numbers of the windows that gave this value."""
        if not math.isfinite(value):
            windows = "" if rows is None else f", windows {', '.join(map(str, rows[:8].tolist()))}, ..."
            raise TrainError(
                f"The {name} became {value} at step {self.at.step} (epoch {self.at.epoch}) of "
                f"{self.out}{windows}: lower train.lr or model.ttt.step_size"
                f"{', or look at these windows' if windows else ''}; the last good checkpoint is kept."
            )

    def validate(self) -> dict[str, float]:
        """Mean r over hidden leads and the loss, from observed leads alone and with a personal reference."""
        options = self.config.train
        return validation_scores(self.model, self.validation_set, options, self.precision, self.map_parts)

    def _close_epoch(self, begin: float) -> dict[str, Any]:
        """Validate, keep the best model, save; returns the row of the history."""
        at = self.at
        scores = self.validate()
        self._require_finite("validation score", scores["val_r"])
        row: dict[str, Any] = {"epoch": at.epoch, "step": at.step, "train_loss": at.sums["loss"] / at.batch}
        row |= scores | {"lr": self.rate(at.step - 1)}
        row |= {f"train_{name}": total / at.batch for name, total in at.sums.items() if name != "loss"}
        at.history.append(row)
        personal = scores["val_r_personal"]
        score = scores["val_r"] if math.isnan(personal) else 0.5 * (scores["val_r"] + personal)
        better = score > at.best
        if better:
            at.best, at.best_epoch = score, at.epoch
            weights = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
            self.best = {"model": weights, "step": at.step}
        at.epoch, at.batch, at.sums = at.epoch + 1, 0, {}
        self.ranks.from_main(self._write_history)
        self.save()
        self.display.say(
            f"epoch {row['epoch'] + 1:3d}/{self.config.train.epochs}  loss {row['train_loss']:.4f}  val r "
            f"{scores['val_r']:.4f}  personal {personal:.4f}{'  best' if better else ''}  "
            f"({time.perf_counter() - begin:.0f} s)"
        )
        return row

    def _write_history(self) -> None:
        if self.at.history:
            write_csv(self.out / "history.csv", self.at.history, list(self.at.history[-1]))

    def content(self) -> dict[str, Any]:
        """What every checkpoint holds: all that rendering needs."""
        return model_content(self.model, self.config, self.folder, len(self.train_set), self.at.step)

    def save(self) -> None:
        """A resumable checkpoint in step_NNNNNN/, the best model so far included."""
        self.ranks.from_main(self._save)
        self.saved_at = time.monotonic()

    def _save(self) -> None:
        self._count_seconds()
        at = self.at
        state = {
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "scaler": self.scaler.state_dict(),
            "progress": dict(vars(at)),
            "best": self.best,
        }
        log = {"step": at.step, "epoch": at.epoch, "best": at.best, "last": at.history[-1:]}
        save_step(self.out, at.step, self.content() | {"resume": state}, log)
        for name in FINISHED:  # an earlier training's: there is no finished model until this one is
            (self.out / name).unlink(missing_ok=True)

    def restore(self, *, pick_up: bool = False) -> bool:
        """Go on from the latest step, see `load_step`; False where there is none. Raises ResumeError."""
        fingerprint = str(self.folder.meta.get("fingerprint", ""))
        saved = self.ranks.from_main(
            lambda: load_step(self.out, self.config, fingerprint, self.display.say, pick_up=pick_up)
        )
        if saved is None:
            return False
        self.model.load_state_dict(saved["model"])
        state = saved["resume"]
        for optimiser, its_state in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(its_state)
        self.scaler.load_state_dict(state["scaler"])
        self.at, self.best = _Progress(**state["progress"]), state["best"]
        self.ranks.from_main(self._write_history)
        self.display.say(f"resumed at step {self.at.step} (epoch {self.at.epoch + 1})")
        return True


def train(
    config: Config,
    out: str | Path,
    *,
    on_epoch: Callable[[dict[str, Any]], None] = lambda row: None,
    resume: bool = False,
    pick_up: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train on the windows of `data.meta_root` into `out`; returns the final metrics.

    Writes history.csv, step_NNNNNN/ (resumable) and, at the end, checkpoint.pt (the best, calibrated),
    seconds.csv and facts.csv: a training that was cut short leaves none of these three. resume: go on from
    the latest step. pick_up: the same where it is of this very configuration, windows and code, else anew. In
    a process that torchrun has started this is one of the ranks, and after a restart it goes on in any case.
    Raises DataError, TrainError, DeviceError, CheckpointError, ResumeError.
    """
    out = Path(out)
    with process_group(config.train.device) as ranks, ExitStack() as stack:
        ranks.from_main(lambda: stack.enter_context(lock_run(out)))
        go_on = resume or pick_up or ranks.restarts > 0
        prepared: list[Trainer] = []

        def prepare() -> None:
            data = config.data
            folder = read_window_folder(data.meta_root, fs=data.fs, time_len=data.time_len)
            if ranks.main and not go_on:
                clear_steps(out)
            prepared.append(Trainer(config, folder, out, quiet=quiet, ranks=ranks))

        ranks.gather(prepare)
        (trainer,) = prepared
        if go_on and not trainer.restore(pick_up=pick_up) and resume:
            trainer.display.say(f"nothing to resume in {out}: starting from the beginning")
        metrics = trainer.fit(on_epoch)
        seconds = [{"seconds": trainer.at.seconds}]
        ranks.from_main(lambda: write_csv(out / "seconds.csv", seconds, ["seconds"]))
        ranks.from_main(lambda: write_facts(out / FACTS, metrics))
    return metrics
