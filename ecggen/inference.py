"""Use of a trained model: load, render, embed, personalise.

`render`, `embed` and `personalise` take raw recordings (mV, any rate and length) and apply the checkpoint's
own preprocessing inside. The `*_windows` methods take windows as the pipeline stores them; the evaluation
uses those.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ecggen.checkpoint import CheckpointError, load_checkpoint
from ecggen.devices import pick_device
from ecggen.leads import LEADS, complete_limb_leads, lead_indices
from ecggen.models.another_day import another_day as render_another_day
from ecggen.models.ecggen import ECGGen
from ecggen.parallel import SideBySide
from ecggen.prepare.filters import condition, fill_gaps, resample
from ecggen.utils.config import Config, config_from_dict
from ecggen.utils.errors import EcggenError
from ecggen.utils.files import atomic_path
from ecggen.utils.seed import seed_everything

Array = NDArray[np.float32]
Out = TypeVar("Out")
_MAX_MV = 50.0  # far beyond any ECG: the caller's unit is not mV


class SignalError(EcggenError):
    """A recording that cannot be rendered."""


@dataclass(frozen=True)
class Rendered:
    """A recording completed to twelve leads, at the caller's rate and length n.

    leads: the 12 names; ecg_mv, rendered_mv [12, n] mV; vcg_mv [3, n] mV, Frank axes; state [n_windows, S];
    std_mv [12, n] mV, the model's own standard deviation of its rendering (1.645 of it either side should
    hold 90 % of the errors; 0 where observed or fixed by observed limb leads); directions_mv
    [n_directions, n] mV, one row for each direction that was asked for.
    ecg_mv holds the observed leads as recorded, limb leads that follow from two observed ones by algebra, and
    the rendering of the rest (band-passed, as training was); rendered_mv is the model's own of all twelve.
    """

    leads: tuple[str, ...]
    ecg_mv: NDArray[np.float64]
    rendered_mv: NDArray[np.float64]
    vcg_mv: NDArray[np.float64]
    state: Array
    std_mv: NDArray[np.float64]
    directions_mv: NDArray[np.float64]


@dataclass(frozen=True)
class Person:
    """W of one person, estimated from a reference recording: state [S], and what it was estimated from."""

    state: Array
    leads: tuple[str, ...]
    seconds: float
    model: str  # fingerprint of the weights that give W its meaning

    def save(self, path: str | Path) -> None:
        """Write to one .npz file, whole or not at all."""
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.savez(
                stream,
                state=self.state,
                leads=np.array(self.leads),
                seconds=np.array(self.seconds),
                model=np.array(self.model),
            )


def load_person(path: str | Path) -> Person:
    """Read what `Person.save` wrote. Raises CheckpointError."""
    try:
        with np.load(path, allow_pickle=False) as data:
            leads = tuple(str(name) for name in data["leads"])
            state = data["state"].astype(np.float32)
            return Person(state, leads, float(data["seconds"]), str(data["model"]))
    except (OSError, KeyError, ValueError, EOFError) as error:
        raise CheckpointError(
            f"{path} is not a saved person ({error}): write one with person.save(path)."
        ) from error


def load(path: str | Path, device: str = "auto") -> Renderer:
    """A model from a results folder or a checkpoint file.

    Raises CheckpointError, DeviceError, ConfigError.
    """
    target = pick_device(device)
    content = load_checkpoint(path)
    config = config_from_dict(content["config"])
    model = ECGGen(config.model, content["fs"], content["time_len"])
    try:
        model.load_state_dict(content["model"])
    except RuntimeError as error:
        raise CheckpointError(
            f"The weights in {path} do not fit this version's model (code {content.get('code')}): use the "
            "version that wrote the checkpoint, or train again."
        ) from error
    return Renderer(model.to(target), config, content["preprocessing"], content.get("data", {}))


class Renderer:
    """A model ready for use. `preprocessing`: how its training windows were made; `data`: what they were."""

    def __init__(
        self, model: ECGGen, config: Config, preprocessing: dict[str, Any], data: dict[str, Any] | None = None
    ) -> None:
        self.model = model.eval()
        self.config, self.preprocessing, self.data = config, dict(preprocessing), dict(data or {})
        self.device = next(model.parameters()).device
        self.fs, self.time_len = model.fs, model.time_len
        self.parallel = SideBySide(self.device)

    def __getstate__(self) -> dict[str, Any]:
        # For another process: threads stay behind, weights travel in main memory.
        model = self.model if self.device.type == "cpu" else copy.deepcopy(self.model).cpu()
        return {name: value for name, value in self.__dict__.items() if name != "parallel"} | {"model": model}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # A GPU is the one that the process was given; models on it have the same numbers on another.
        self.device = torch.device(self.device.type)
        self.model = self.model.to(self.device)
        self.device = next(self.model.parameters()).device
        self.parallel = SideBySide(self.device)

    def fingerprint(self) -> str:
        """A short name for these weights."""
        digest = hashlib.sha256()
        for name, value in self.model.state_dict().items():
            digest.update(name.encode() + value.detach().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def random_copy(self, seed: int) -> Renderer:
        """The same architecture with untrained weights: the control of the linear probe."""
        seed_everything(seed)
        model = ECGGen(self.config.model, self.fs, self.time_len).to(self.device)
        return Renderer(model, self.config, self.preprocessing, self.data)

    def clone(self) -> Renderer:
        """A copy whose weights can be changed without touching this one."""
        return Renderer(copy.deepcopy(self.model), self.config, self.preprocessing, self.data)

    # Raw recordings

    def render(
        self,
        signal_mv: ArrayLike,
        fs: float,
        leads: Iterable[str],
        person: Person | None = None,
        directions: ArrayLike | None = None,
        another_day: bool = False,
    ) -> Rendered:
        """Complete a recording to twelve leads and a VCG.

        signal_mv [n_leads, n_samples] in mV (or [n_samples] for one lead), fs in Hz, leads: the names of the
        rows. person: W held, from `personalise`; another_day: its reference is not of the same session, and W
        is trusted as far as that has been worth it between days. directions [n, 3]: electrodes outside the
        twelve leads, as lead vectors on the Frank axes (+x left, +y inferior, +z posterior; mV per mV of the
        dipole, as in `ecggen.leads.DOWER`); they see the dipole alone. Raises LeadError, SignalError.
        """
        vectors = _directions(directions)
        raw, rows = self._signal(signal_mv, fs, leads)
        windows, observed, starts, length = self._windows(raw, rows, fs, self.time_len // 2)
        state = None if person is None else np.tile(self._person_state(person), (len(windows), 1))
        out = self.render_windows(windows, observed, state=state, another_day=another_day)
        joined = _join(np.concatenate([out["leads"], out["vcg"], out["std"]], 1), starts, length)
        back = resample(joined.astype(np.float64), self.fs, fs, n_out=raw.shape[1])
        observed12 = np.zeros(12, bool)
        observed12[rows] = True
        ecg = back[:12].copy()
        ecg[rows] = raw
        whole, fixed = complete_limb_leads(ecg, observed12)  # two observed limb leads give the other four
        ecg, vcg, std = np.asarray(whole, dtype=np.float64), back[12:15], np.maximum(back[15:], 0.0)
        std[fixed] = 0.0
        return Rendered(LEADS, ecg, back[:12], vcg, out["state"], std, vectors @ vcg)

    def embed(self, signal_mv: ArrayLike, fs: float, leads: Iterable[str]) -> Array:
        """Frozen features [n_windows, F] of consecutive windows; arguments and errors as `render`."""
        raw, rows = self._signal(signal_mv, fs, leads)
        windows, observed, _, _ = self._windows(raw, rows, fs, self.time_len)
        return self.embed_windows(windows, observed)

    def personalise(self, reference_mv: ArrayLike, fs: float, leads: Iterable[str]) -> Person:
        """W of one person from a reference recording, by test-time training over all its windows together.

        Arguments and errors as `render`; the more leads the reference has, the more W can say.
        """
        raw, rows = self._signal(reference_mv, fs, leads)
        windows, observed, _, _ = self._windows(raw, rows, fs, self.time_len)
        names = tuple(LEADS[row] for row in rows)
        return Person(self.shared_state(windows, observed), names, raw.shape[1] / fs, self.fingerprint())

    # Windows

    @torch.no_grad()
    def render_windows(
        self,
        ecg: Any,
        observed: NDArray[np.bool_],
        *,
        state: Array | None = None,
        another_day: bool = False,
        own: Array | None = None,
        steps: int | None = None,
        batch_size: int = 128,
    ) -> dict[str, Array]:
        """Windows [n, 12, T] mV seen through observed [12] or [n, 12] -> arrays by name.

        leads, dipole, residual, std [n, 12, T], vcg [n, 3, T] in mV; state [n, S]. state given: W is held;
        another_day: it comes from another day's recording (see `render`); own [n, S]: what `states` says of
        these windows, where it is known already. Raises SignalError.
        """
        if another_day and state is None:
            raise SignalError(
                "another_day=True needs a person: estimate one with personalise(reference_mv, ...)."
            )
        names = ("leads", "dipole", "residual", "std", "vcg", "state")

        def call(x: Tensor, mask: Tensor, rows: slice) -> list[Array]:
            held, without = (
                None if given is None else torch.from_numpy(np.asarray(given[rows])).to(self.device)
                for given in (state, own)
            )
            if another_day and held is not None:
                out = render_another_day(self.model, x, mask, held, without)
            else:
                out = self.model(x, mask, state=held, steps=steps)
            return [_numpy(getattr(out, name)) for name in names]

        parts = self._batches(call, ecg, observed, batch_size)
        return {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(names)}

    def states(
        self, ecg: Any, observed: NDArray[np.bool_], *, steps: int | None = None, batch_size: int = 128
    ) -> Array:
        """W [n, S] of each window [n, 12, T], from the leads observed in it."""
        steps = self.model.updater.steps if steps is None else steps
        return self.state_path(ecg, observed, steps=steps, batch_size=batch_size)[-1]

    @torch.no_grad()
    def shared_state(self, ecg: Any, observed: NDArray[np.bool_]) -> Array:
        """The one W [S] of a person from all windows [n, 12, T] together, which share their leads."""
        x, mask = self._tensors(ecg, observed)
        return _numpy(self.model.estimate(self.model.slots(x, mask), shared=True)[-1, 0])

    @torch.no_grad()
    def state_path(
        self, ecg: Any, observed: NDArray[np.bool_], *, steps: int, batch_size: int = 128
    ) -> Array:
        """W at every inner step, [steps + 1, n, S]."""

        def call(x: Tensor, mask: Tensor, _: slice) -> Array:
            return _numpy(self.model.estimate(self.model.slots(x, mask), steps=steps))

        return np.concatenate(self._batches(call, ecg, observed, batch_size), axis=1)

    @torch.no_grad()
    def closed_form_windows(self, ecg: Any, observed: NDArray[np.bool_], *, batch_size: int = 512) -> Array:
        """Leads [n, 12, T] in mV of the closed-form lift alone."""

        def call(x: Tensor, mask: Tensor, _: slice) -> Array:
            return _numpy(self.model.closed_form(x, mask))

        return np.concatenate(self._batches(call, ecg, observed, batch_size))

    @torch.no_grad()
    def remembered_windows(
        self, ecg: Any, observed: NDArray[np.bool_], state: Array, *, batch_size: int = 128
    ) -> Array:
        """Leads [n, 12, T] in mV as the closed-form part of state [n, S] completes them: no network."""

        def call(x: Tensor, mask: Tensor, rows: slice) -> Array:
            return _numpy(self.model.remembered(x, mask, torch.from_numpy(state[rows]).to(self.device)))

        return np.concatenate(self._batches(call, ecg, observed, batch_size))

    @torch.no_grad()
    def embed_windows(self, ecg: Any, observed: NDArray[np.bool_], *, batch_size: int = 128) -> Array:
        """Frozen features [n, F] of windows [n, 12, T]."""

        def call(x: Tensor, mask: Tensor, _: slice) -> Array:
            return _numpy(self.model.features(x, mask))

        return np.concatenate(self._batches(call, ecg, observed, batch_size))

    def _tensors(self, ecg: Any, observed: NDArray[np.bool_]) -> tuple[Tensor, Tensor]:
        mask = np.broadcast_to(np.asarray(observed, bool), (len(ecg), 12))
        if not mask.any(1).all():
            row = int(np.flatnonzero(~mask.any(1))[0])
            raise SignalError(f"Window {row} has no observed lead: give at least one.")
        signal = torch.from_numpy(np.array(ecg, dtype=np.float32)).to(self.device)
        return signal, torch.from_numpy(mask.copy()).to(self.device)

    def _batches(
        self,
        call: Callable[[Tensor, Tensor, slice], Out],
        ecg: Any,
        observed: NDArray[np.bool_],
        batch_size: int,
    ) -> list[Out]:
        """call(windows, mask, rows) for every batch, in order; on a CPU batches run side by side."""
        mask = np.broadcast_to(np.asarray(observed, bool), (len(ecg), 12))
        cuts = [slice(begin, begin + batch_size) for begin in range(0, len(ecg), batch_size)]
        return self.parallel.map(lambda rows: call(*self._tensors(ecg[rows], mask[rows]), rows), cuts)

    def _signal(
        self, signal_mv: ArrayLike, fs: float, leads: Iterable[str]
    ) -> tuple[NDArray[np.float64], list[int]]:
        rows = lead_indices(leads)
        try:
            raw = np.atleast_2d(np.asarray(signal_mv, dtype=np.float64))
        except (TypeError, ValueError) as error:
            raise SignalError(
                f"The signal is no array of numbers ({error}): give [n_leads, n_samples] in mV."
            ) from error
        if raw.ndim != 2 or raw.shape[0] != len(rows):
            raise SignalError(
                f"The signal has shape {raw.shape} but {len(rows)} lead(s) are named: give "
                "[n_leads, n_samples], "
                "one row per name."
            )
        if not (np.isfinite(fs) and 20 <= fs <= 100_000):
            raise SignalError(f"fs is {fs!r}: a sampling rate from 20 to 100000 Hz is needed.")
        if raw.shape[1] < fs:
            raise SignalError(f"The signal lasts {raw.shape[1] / fs:.2f} s: at least one second is needed.")
        largest = float(np.nanmax(np.abs(raw))) if np.isfinite(raw).any() else 0.0
        if largest > _MAX_MV:
            raise SignalError(
                f"The signal reaches {largest:g} mV: no ECG does; give it in mV (1 mV = 1000 uV)."
            )
        return raw, rows

    def _windows(
        self, raw: NDArray[np.float64], rows: list[int], fs: float, stride: int
    ) -> tuple[Array, NDArray[np.bool_], list[int], int]:
        """Conditioned windows [n, 12, T], observed [12], their starts, and the length at the model's rate."""
        rules = self.preprocessing
        filled = []
        for row, signal in zip(rows, raw, strict=True):
            clean, gaps = fill_gaps(signal, int(rules.get("max_gap_s", 0.2) * fs))
            if len(gaps):
                longest = (gaps[:, 1] - gaps[:, 0]).max() / fs
                raise SignalError(
                    f"Lead {LEADS[row]} has {longest:.2f} s without numbers: up to "
                    f"{rules.get('max_gap_s', 0.2):g} s is bridged; cut the recording or leave the lead out."
                )
            filled.append(clean)
        made = condition(
            np.stack(filled),
            fs,
            self.fs,
            low_hz=float(rules.get("low_hz", 0.67)),
            high_hz=float(rules.get("high_hz", 40.0)),
            order=int(rules.get("order", 3)),
        )
        length = made.shape[1]
        short = self.time_len - length
        if short > 0:
            made = np.pad(made, ((0, 0), (0, short)), mode="reflect" if short < length else "wrap")
        full = np.zeros((12, made.shape[1]), np.float32)
        full[rows] = made
        last = full.shape[1] - self.time_len
        starts = sorted({*range(0, last + 1, stride), last})
        observed = np.zeros(12, bool)
        observed[rows] = True
        return np.stack([full[:, s : s + self.time_len] for s in starts]), observed, starts, length

    def _person_state(self, person: Person) -> Array:
        if person.model != self.fingerprint():
            raise CheckpointError(
                f"This person's state was estimated by model {person.model}, this is {self.fingerprint()}: "
                "personalise again with this model."
            )
        return person.state


def _directions(directions: ArrayLike | None) -> NDArray[np.float64]:
    """[n, 3]. Raises SignalError."""
    if directions is None:
        return np.zeros((0, 3))
    try:
        vectors = np.atleast_2d(np.asarray(directions, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise SignalError(f"The directions are no array of numbers ({error}): give [n, 3].") from error
    if vectors.ndim != 2 or vectors.shape[1] != 3 or not np.isfinite(vectors).all():
        raise SignalError(
            f"The directions have shape {vectors.shape}: give [n, 3] finite numbers, a lead vector (x left, "
            "y inferior, z posterior) in each row."
        )
    return vectors


def _numpy(x: Tensor) -> Array:
    return x.float().cpu().numpy()


def _join(windows: Array, starts: list[int], length: int) -> NDArray[np.float64]:
    """Overlapping windows [n, C, T] -> [C, length], weighted by a smooth bump, so that no seam shows."""
    size = windows.shape[2]
    bump = np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2 + 1e-3
    total = np.zeros((windows.shape[1], max(length, starts[-1] + size)))
    weight = np.zeros(total.shape[1])
    for start, window in zip(starts, windows, strict=True):
        total[:, start : start + size] += window * bump
        weight[start : start + size] += bump
    return (total / weight)[:, :length]
