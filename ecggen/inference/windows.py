"""A trained model on windows as the pipeline stores them: what the evaluations use.

`ecggen.inference.renderer.Renderer` adds raw recordings of any rate and length.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ecggen.inference.recordings import SignalError
from ecggen.models.another_day import another_day as render_another_day
from ecggen.models.ecggen import ECGGen
from ecggen.models.layout import lay_out
from ecggen.training.devices import SideBySide
from ecggen.utils.config import Config
from ecggen.utils.seed import seed_everything
from ecggen.utils.threads import reuse_freed_arrays

Array = NDArray[np.float32]
Out = TypeVar("Out")
Kind = TypeVar("Kind", bound="WindowRenderer")


class WindowRenderer:
    """A model ready for use. preprocessing: how its training windows were filtered; data: their origin."""

    def __init__(
        self, model: ECGGen, config: Config, preprocessing: dict[str, Any], data: dict[str, Any] | None = None
    ) -> None:
        reuse_freed_arrays()
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

    def random_copy(self: Kind, seed: int) -> Kind:
        """The same architecture with untrained weights: the control of the linear probe."""
        seed_everything(seed)
        model = ECGGen(self.config.model, self.fs, self.time_len).to(self.device)
        return type(self)(model, self.config, self.preprocessing, self.data)

    def clone(self: Kind) -> Kind:
        """A copy whose weights can be changed without touching this one."""
        return type(self)(copy.deepcopy(self.model), self.config, self.preprocessing, self.data)

    def render_windows(
        self,
        ecg: Any,
        observed: NDArray[np.bool_],
        *,
        state: Array | None = None,
        another_day: bool = False,
        window_states: Array | None = None,
        steps: int | None = None,
        batch_size: int = 128,
    ) -> dict[str, Array]:
        """Windows [n, 12, T] mV seen through observed [12] or [n, 12] -> arrays by name.

        leads, dipole, residual, std [n, 12, T], vcg [n, 3, T] in mV; state [n, S]. state given: W is held;
        another_day: it comes from another session (see `render`); window_states [n, S]: what
        `states` says of these windows, where it is at hand. Raises SignalError.
        """
        names = ("leads", "dipole", "residual", "std", "vcg", "state")
        if another_day and state is None:
            raise SignalError(
                "another_day=True needs a person: estimate one with personalise(reference_mv, ...)."
            )

        def call(x: Tensor, mask: Tensor, rows: slice) -> list[Array]:
            given = (state, window_states)
            held, alone = (None if values is None else self._tensor(values[rows]) for values in given)
            with self._not_learning():
                if another_day and held is not None:
                    out = render_another_day(self.model, x, mask, held, alone)
                else:
                    out = self.model(x, mask, state=held, steps=steps)
            return [to_numpy(getattr(out, name)) for name in names]

        return joined_parts(names, self._batches(call, ecg, observed, batch_size))

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

    def shared_state(self, ecg: Any, observed: NDArray[np.bool_]) -> Array:
        """The one W [S] of a person from all windows [n, 12, T] together, which share their leads."""
        return np.asarray(self.shared_states(np.asarray(ecg)[None], observed, batch_size=len(ecg))[0])

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
            states = self.model.estimate(self.model.slots(x, seen), people=part.shape[1])
            return to_numpy(states[-1])

        cuts = [slice(at, at + most) for at in range(0, people, most)]
        return np.concatenate(self.parallel.map(call, cuts))

    def remembers_beat(self, state: Array) -> bool:
        """Whether one of these W [n, S] holds a beat: its recording had a whole one."""
        memory = torch.from_numpy(state[:, self.model.fast.size :])
        return bool((self.model.memory.split(memory)[1] != 0).any())

    def state_path(
        self, ecg: Any, observed: NDArray[np.bool_], *, steps: int, batch_size: int = 128
    ) -> Array:
        """W at every inner step, [steps + 1, n, S]."""

        def call(x: Tensor, mask: Tensor, _: slice) -> Tensor:
            return self.model.estimate(self.model.slots(x, mask), steps=steps).transpose(0, 1)

        return self._joined(call, ecg, observed, batch_size).swapaxes(0, 1)

    def closed_form_windows(self, ecg: Any, observed: NDArray[np.bool_], *, batch_size: int = 512) -> Array:
        """Leads [n, 12, T] in mV of the closed-form lift alone."""
        return self._joined(lambda x, mask, _: self.model.closed_form(x, mask), ecg, observed, batch_size)

    def remembered_windows(
        self, ecg: Any, observed: NDArray[np.bool_], state: Array, *, batch_size: int = 128
    ) -> Array:
        """Leads [n, 12, T] in mV as the closed-form part of state [n, S] completes them: no network."""

        def call(x: Tensor, mask: Tensor, rows: slice) -> Tensor:
            return self.model.remembered(x, mask, self._tensor(state[rows]))

        return self._joined(call, ecg, observed, batch_size)

    def embed_windows(
        self, ecg: Any, observed: NDArray[np.bool_], *, batch_size: int = 128, in_turn: bool = False
    ) -> Array:
        """Frozen features [n, F] of windows [n, 12, T]; in_turn: see `_batches`."""

        def call(x: Tensor, mask: Tensor, _: slice) -> Tensor:
            return self.model.features(x, mask)

        return self._joined(call, ecg, observed, batch_size, in_turn=in_turn)

    def _joined(
        self,
        call: Callable[[Tensor, Tensor, slice], Tensor],
        ecg: Any,
        observed: NDArray[np.bool_],
        batch_size: int,
        *,
        in_turn: bool = False,
    ) -> Array:
        """Results of call(windows, mask, rows) of all batches in one array."""

        def one(x: Tensor, mask: Tensor, rows: slice) -> Array:
            with self._not_learning():
                return to_numpy(call(x, mask, rows))

        return np.concatenate(self._batches(one, ecg, observed, batch_size, in_turn=in_turn))

    def _tensor(self, values: Any) -> Tensor:
        return torch.from_numpy(np.array(values, dtype=np.float32)).to(self.device)

    def _tensors(self, ecg: Any, observed: NDArray[np.bool_]) -> tuple[Tensor, Tensor]:
        mask = np.broadcast_to(np.asarray(observed, bool), (len(ecg), 12))
        if not mask.any(1).all():
            row = int(np.flatnonzero(~mask.any(1))[0])
            raise SignalError(f"Window {row} has no observed lead: give at least one.")
        return self._tensor(ecg), torch.from_numpy(mask.copy()).to(self.device)

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


def to_numpy(x: Tensor) -> Array:
    return x.float().cpu().numpy()


def joined_parts(names: Sequence[str], parts: Sequence[Sequence[Array]]) -> dict[str, Array]:
    """Arrays by name from those of consecutive batches."""
    return {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(names)}
