"""Use of a trained model: load, render, embed, personalise.

`render`, `embed` and `personalise` take raw recordings (mV, any rate and length) and apply the checkpoint's
own preprocessing inside. The `*_windows` methods take windows as the pipeline stores them; the evaluation
uses those.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ecggen.checkpoint import CheckpointError, load_checkpoint
from ecggen.devices import pick_device
from ecggen.leads import LEADS, lead_indices
from ecggen.models.another_day import another_day as render_another_day
from ecggen.models.ecggen import ECGGen
from ecggen.models.layout import lay_out
from ecggen.parallel import SideBySide
from ecggen.person import Person
from ecggen.recordings import (
    Recording,
    Rendered,
    SignalError,
    Windows,
    directions_3d,
    fewest_windows,
    neighbours,
    recording,
    to_recordings,
    to_windows,
    window_starts,
)
from ecggen.utils.config import Config, config_from_dict
from ecggen.utils.seed import seed_everything

Array = NDArray[np.float32]
Out = TypeVar("Out")
GROUPS = 3  # of recordings, per thread, that `render_batch` holds at a time


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
        lay_out(self.model)
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
        vectors = directions_3d(directions)
        one = recording(signal_mv, fs, lead_indices(leads))
        return self._rendered([one], self._batches, person, vectors, another_day)[0]

    def render_batch(
        self, signals_mv: Iterable[ArrayLike], fs: float, leads: Iterable[str], *, batch_size: int = 96
    ) -> Iterator[Rendered]:
        """`render` of many recordings of the same leads and rate, in order; windows of several share a batch.

        signals_mv: one recording [n_leads, n_samples] after the other, of any lengths; read as they are
        needed, so that memory does not grow with their number. Equal to `render` one by one to rounding
        (1e-5 mV). On a CPU batches run side by side. Raises LeadError, SignalError, naming the recording.
        """

        def call(part: list[Recording]) -> list[Rendered]:
            in_turn = functools.partial(self._batches, in_turn=True)
            return self._rendered(part, in_turn, None, directions_3d(None), False)

        return self._over_recordings(signals_mv, fs, leads, None, batch_size, call)

    def embed(self, signal_mv: ArrayLike, fs: float, leads: Iterable[str]) -> Array:
        """Frozen features [n_windows, F] of consecutive windows; arguments and errors as `render`."""
        one = recording(signal_mv, fs, lead_indices(leads))
        (cut,) = to_windows([one], self.preprocessing, self.fs, self.time_len, self.time_len)
        return self.embed_windows(cut.windows, one.observed)

    def embed_batch(
        self, signals_mv: Iterable[ArrayLike], fs: float, leads: Iterable[str], *, batch_size: int = 96
    ) -> Iterator[Array]:
        """`embed` of many recordings, in order; arguments and errors as `render_batch`. Equal to `embed` one
        by one to rounding."""

        def call(part: list[Recording]) -> list[Array]:
            cuts = to_windows(part, self.preprocessing, self.fs, self.time_len, self.time_len)
            windows = np.concatenate([cut.windows for cut in cuts])
            parts = self._batches(self._embed, windows, part[0].observed, batch_size, in_turn=True)
            return _parted(np.concatenate(parts), cuts)

        return self._over_recordings(signals_mv, fs, leads, self.time_len, batch_size, call)

    def personalise(self, reference_mv: ArrayLike, fs: float, leads: Iterable[str]) -> Person:
        """W of one person from a reference recording, by test-time training over all its windows together.

        Arguments and errors as `render`; the more leads the reference has, the more W can say.
        """
        one = recording(reference_mv, fs, lead_indices(leads))
        (cut,) = to_windows([one], self.preprocessing, self.fs, self.time_len, self.time_len)
        names = tuple(LEADS[row] for row in one.rows)
        state = self.shared_state(cut.windows, one.observed)
        return Person(state, names, one.raw.shape[1] / fs, self.fingerprint())

    def _rendered(
        self,
        recordings: list[Recording],
        batches: Callable[..., list[Any]],
        person: Person | None,
        vectors: NDArray[np.float64],
        another_day: bool,
    ) -> list[Rendered]:
        """Recordings of the same leads and rate."""
        cuts = to_windows(recordings, self.preprocessing, self.fs, self.time_len, None)
        made = self._completed(cuts, recordings[0].observed, batches, person, another_day)
        return to_recordings(recordings, cuts, made, self.fs, vectors)

    def _completed(
        self,
        cuts: list[Windows],
        observed: NDArray[np.bool_],
        batches: Callable[..., list[Any]],
        person: Person | None = None,
        another_day: bool = False,
    ) -> list[dict[str, Array]]:
        """leads, vcg, std, state of the windows of each recording; neighbours share W unless it is held."""
        names = ("leads", "vcg", "std", "state")
        if person is None and not another_day:
            together, rows = neighbours([len(cut.windows) for cut in cuts])
            windows = np.concatenate([cut.windows for cut in cuts])[together]
            call = functools.partial(self._render_neighbours, names)
            found = _joined_parts(names, batches(call, windows, observed, 128 // windows.shape[1]))
            flat = {name: x.reshape(-1, *x.shape[2:]) for name, x in found.items()}
            return [{name: x[row] for name, x in flat.items()} for row in rows]
        windows = np.concatenate([cut.windows for cut in cuts])
        state = None if person is None else np.tile(self._person_state(person), (len(windows), 1))
        call = functools.partial(self._render, names, state, None, another_day, None)
        found = _joined_parts(names, batches(call, windows, observed, 128))
        parts = zip(*(_parted(found[name], cuts) for name in names), strict=True)
        return [dict(zip(names, part, strict=True)) for part in parts]

    def _render_neighbours(self, names: Sequence[str], x: Tensor, mask: Tensor, _: slice) -> list[Array]:
        """[n, k, ...] of n groups of k windows x [n, k, 12, T] that have one W; mask [n, 12]."""
        people, each = x.shape[:2]
        with self._not_learning():
            out = self.model(x.transpose(0, 1).flatten(0, 1), mask.repeat(each, 1), people=people)
            return [_numpy(getattr(out, name).unflatten(0, (each, people)).transpose(0, 1)) for name in names]

    def _over_recordings(
        self,
        signals_mv: Iterable[ArrayLike],
        fs: float,
        leads: Iterable[str],
        stride: int | None,
        batch_size: int,
        call: Callable[[list[Recording]], list[Out]],
    ) -> Iterator[Out]:
        """call of groups of recordings that make about a batch of windows each, side by side."""
        rows = lead_indices(leads)

        def groups() -> Iterator[list[Recording]]:
            group: list[Recording] = []
            filled = 0
            for number, signal in enumerate(signals_mv):
                one = recording(signal, fs, rows, f"Recording {number}: ")
                length = round(one.raw.shape[1] * self.fs / fs)
                every = stride or fewest_windows(length, self.time_len, self.fs)
                count = len(window_starts(length, self.time_len, every))
                if group and filled + count > batch_size:
                    yield group
                    group, filled = [], 0
                group.append(one)
                filled += count
            if group:
                yield group

        ahead = GROUPS * self.parallel.workers
        return itertools.chain.from_iterable(self.parallel.stream(call, groups(), ahead))

    # Windows

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
        names = ("leads", "dipole", "residual", "std", "vcg", "state")
        call = functools.partial(self._render, names, state, own, another_day, steps)
        return _joined_parts(names, self._batches(call, ecg, observed, batch_size))

    def _render(
        self,
        names: Sequence[str],
        state: Array | None,
        own: Array | None,
        another_day: bool,
        steps: int | None,
        x: Tensor,
        mask: Tensor,
        rows: slice,
    ) -> list[Array]:
        """One batch; see `render_windows`."""
        if another_day and state is None:
            raise SignalError(
                "another_day=True needs a person: estimate one with personalise(reference_mv, ...)."
            )
        with self._not_learning():
            held, without = (
                None if given is None else torch.from_numpy(np.asarray(given[rows])).to(self.device)
                for given in (state, own)
            )
            if another_day and held is not None:
                out = render_another_day(self.model, x, mask, held, without)
            else:
                out = self.model(x, mask, state=held, steps=steps)
            return [_numpy(getattr(out, name)) for name in names]

    def _not_learning(self) -> AbstractContextManager[Any]:
        """A tenth of the time of one recording is what inference mode spares; fast weights ("mlp") need
        automatic differentiation in the inner loop."""
        return torch.inference_mode() if self.model.fast.kind == "vector" else torch.no_grad()

    def states(
        self, ecg: Any, observed: NDArray[np.bool_], *, steps: int | None = None, batch_size: int = 128
    ) -> Array:
        """W [n, S] of each window [n, 12, T], from the leads observed in it."""
        steps = self.model.updater.steps if steps is None else steps
        return self.state_path(ecg, observed, steps=steps, batch_size=batch_size)[-1]

    @torch.no_grad()
    def shared_state(self, ecg: Any, observed: NDArray[np.bool_]) -> Array:
        """The one W [S] of a person from all windows [n, 12, T] together, which share their leads."""
        ecg = np.asarray(ecg)[None]
        one: Array = self.shared_states(ecg, observed, batch_size=ecg.shape[1])[0]
        return one

    @torch.no_grad()
    def shared_states(self, ecg: Any, observed: NDArray[np.bool_], *, batch_size: int = 128) -> Array:
        """`shared_state` [n, S] of n people with as many windows each, ecg [n, windows, 12, T].

        observed [12] or [windows, 12]. A batch holds whole people.
        """
        people, each = ecg.shape[:2]
        most = max(1, batch_size // each)

        def call(rows: slice) -> Array:
            part = ecg[rows].swapaxes(0, 1)  # windows of the same number together
            mask = np.broadcast_to(np.asarray(observed, bool).reshape(-1, 1, 12), part.shape[:3])
            x, seen = self._tensors(part.reshape(-1, *part.shape[2:]), mask.reshape(-1, 12))
            found = self.model.estimate(self.model.slots(x, seen), people=part.shape[1])
            return _numpy(found[-1])

        cuts = [slice(at, at + most) for at in range(0, people, most)]
        return np.concatenate(self.parallel.map(call, cuts))

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

    def embed_windows(self, ecg: Any, observed: NDArray[np.bool_], *, batch_size: int = 128) -> Array:
        """Frozen features [n, F] of windows [n, 12, T]."""
        return np.concatenate(self._batches(self._embed, ecg, observed, batch_size))

    def _embed(self, x: Tensor, mask: Tensor, _: slice) -> Array:
        with self._not_learning():
            return _numpy(self.model.features(x, mask))

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
        *,
        in_turn: bool = False,
    ) -> list[Out]:
        """call(windows, mask, rows) for every batch, in order.

        On a CPU batches run side by side, but for in_turn: what calls it runs side by side already.
        """
        mask = np.broadcast_to(np.asarray(observed, bool), (len(ecg), 12))
        cuts = [slice(begin, begin + batch_size) for begin in range(0, len(ecg), batch_size)]

        def one(rows: slice) -> Out:
            return call(*self._tensors(ecg[rows], mask[rows]), rows)

        return [one(rows) for rows in cuts] if in_turn else self.parallel.map(one, cuts)

    def _person_state(self, person: Person) -> Array:
        if person.model != self.fingerprint():
            raise CheckpointError(
                f"This person's state was estimated by model {person.model}, this is {self.fingerprint()}: "
                "personalise again with this model."
            )
        return person.state


def _numpy(x: Tensor) -> Array:
    return x.float().cpu().numpy()


def _joined_parts(names: Sequence[str], parts: Sequence[Sequence[Array]]) -> dict[str, Array]:
    """Arrays by name from those of consecutive batches."""
    return {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(names)}


def _parted(values: Array, cuts: Sequence[Windows]) -> list[Array]:
    """Values [n, ...] of all windows, recording by recording."""
    return np.split(values, np.cumsum([len(cut.windows) for cut in cuts])[:-1])
