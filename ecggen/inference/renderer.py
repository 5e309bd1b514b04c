"""Use of a trained model: load, render, embed, personalise.

`render`, `embed` and `personalise` take raw recordings (mV, any rate and length) and apply the checkpoint's
own preprocessing inside. What takes windows as the pipeline stores them is `ecggen.inference.windows`'s.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ecggen.inference.person import Person
from ecggen.inference.recordings import (
    Recording,
    Rendered,
    Windows,
    directions_3d,
    fewest_windows,
    neighbours,
    recording,
    to_recordings,
    to_windows,
    window_starts,
)
from ecggen.inference.windows import Array, Out, WindowRenderer, joined_parts, to_numpy
from ecggen.leads import LEADS, lead_indices
from ecggen.models.ecggen import ECGGen
from ecggen.training.checkpoint import CheckpointError, load_checkpoint
from ecggen.training.devices import pick_device
from ecggen.utils.config import config_from_dict

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


class Renderer(WindowRenderer):
    """A model for recordings of any rate and length; `ecggen.load` makes it."""

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
            found = joined_parts(names, batches(call, windows, observed, 128 // windows.shape[1]))
            flat = {name: x.reshape(-1, *x.shape[2:]) for name, x in found.items()}
            return [{name: x[row] for name, x in flat.items()} for row in rows]
        windows = np.concatenate([cut.windows for cut in cuts])
        state = None if person is None else np.tile(self._person_state(person), (len(windows), 1))
        call = functools.partial(self._render, names, state, None, another_day, None)
        found = joined_parts(names, batches(call, windows, observed, 128))
        parts = zip(*(_parted(found[name], cuts) for name in names), strict=True)
        return [dict(zip(names, part, strict=True)) for part in parts]

    def _render_neighbours(self, names: Sequence[str], x: Tensor, mask: Tensor, _: slice) -> list[Array]:
        """[n, k, ...] of n groups of k windows x [n, k, 12, T] that have one W; mask [n, 12]."""
        people, each = x.shape[:2]
        with self._not_learning():
            out = self.model(x.transpose(0, 1).flatten(0, 1), mask.repeat(each, 1), people=people)
            return [
                to_numpy(getattr(out, name).unflatten(0, (each, people)).transpose(0, 1)) for name in names
            ]

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

    def _person_state(self, person: Person) -> Array:
        if person.model != self.fingerprint():
            raise CheckpointError(
                f"This person's state was estimated by model {person.model}, this is {self.fingerprint()}: "
                "personalise again with this model."
            )
        return person.state


def _parted(values: Array, cuts: Sequence[Windows]) -> list[Array]:
    """Values [n, ...] of all windows, recording by recording."""
    return np.split(values, np.cumsum([len(cut.windows) for cut in cuts])[:-1])
