"""Use of a trained model: load, render, embed, personalise.

`render`, `embed` and `personalise` take raw recordings (mV, any rate and length) and apply the checkpoint's
own preprocessing inside. Windows as the pipeline stores them: `ecggen.inference.windows`.
"""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from ecggen.data.rpeaks import detect_r_peaks
from ecggen.inference.person import Person, load_person
from ecggen.inference.recordings import (
    Recording,
    Rendered,
    SignalError,
    SignalWarning,
    Windows,
    directions_3d,
    lead_rows,
    neighbours,
    recording,
    sampling_rate,
    to_rendered,
    to_windows,
    window_starts,
)
from ecggen.inference.windows import Array, Out, WindowRenderer, joined_parts, to_numpy
from ecggen.leads import LEADS
from ecggen.models.ecggen import ECGGen
from ecggen.training.checkpoint import CheckpointError, load_checkpoint
from ecggen.training.devices import pick_device
from ecggen.utils.config import PreprocessConfig, config_of_checkpoint

Names = Iterable[str] | str  # of leads
NAMES = ("leads", "vcg", "std", "state")  # what a Rendered is made of
_PREPROCESS = {field.name for field in fields(PreprocessConfig)}


def load(path: str | Path, device: str = "auto") -> Renderer:
    """A model from a results folder or a checkpoint file.

    Raises CheckpointError, DeviceError, ConfigError.
    """
    target = pick_device(device)
    content = load_checkpoint(path)
    config = config_of_checkpoint(content["config"])
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
        leads: Names,
        person: Person | str | Path | None = None,
        directions: ArrayLike | None = None,
        another_day: bool = False,
    ) -> Rendered:
        """Complete a recording to twelve leads and a VCG.

        signal_mv [n_leads, n_samples] in mV (or [n_samples] for one lead), fs in Hz, leads: the names of the
        rows. person: its W is held; from `personalise`, or the file it was saved to. another_day: the
        person's reference is of another session, and its W is down-weighted by how much beats change between
        sessions. directions [n, 3]: electrodes outside the twelve leads, as lead vectors on the Frank axes
        (+x left, +y inferior, +z posterior; mV per mV of the dipole, as in `ecggen.leads.DOWER`); they see
        the dipole alone.

        A lead that is flat or without numbers counts as not recorded and is rendered; a SignalWarning says
        so, and what else is doubtful in the recording. Raises LeadError, SignalError, CheckpointError.
        """
        return self._rendered([self._recording(signal_mv, fs, leads)], person, directions, another_day)[0]

    def render_batch(
        self, signals_mv: Iterable[ArrayLike], fs: float, leads: Names, *, batch_size: int = 96
    ) -> Iterator[Rendered]:
        """`render` of many recordings of the same leads and rate, in order; windows of several share a batch.

        signals_mv: one recording [n_leads, n_samples] after the other, of any lengths; read as they are
        needed, so that memory does not grow with their number. Equal to `render` one by one to rounding
        (1e-5 mV). On a CPU batches run side by side. Raises LeadError, SignalError, naming the recording.
        """
        call = functools.partial(self._rendered, in_turn=True)
        return self._over_recordings(signals_mv, fs, leads, None, batch_size, call)

    def embed(self, signal_mv: ArrayLike, fs: float, leads: Names) -> Array:
        """Frozen features [n_windows, F] of consecutive windows; arguments, warnings, errors as `render`."""
        return self._embedded([self._recording(signal_mv, fs, leads)])[0]

    def embed_batch(
        self, signals_mv: Iterable[ArrayLike], fs: float, leads: Names, *, batch_size: int = 96
    ) -> Iterator[Array]:
        """`embed` of many recordings, in order; arguments and errors as `render_batch`. Equal to `embed` one
        by one to rounding."""
        call = functools.partial(self._embedded, in_turn=True)
        return self._over_recordings(signals_mv, fs, leads, self.time_len, batch_size, call)

    def _embedded(self, recordings: list[Recording], *, in_turn: bool = False) -> list[Array]:
        """Features of the windows of recordings of the same leads."""
        for one in recordings:
            self._warn_without_beat(one)
        cuts = [self._windows(one, self.time_len) for one in recordings]
        windows = np.concatenate([cut.windows for cut in cuts])
        return _by_recording(self.embed_windows(windows, recordings[0].observed, in_turn=in_turn), cuts)

    def personalise(self, reference_mv: ArrayLike, fs: float, leads: Names) -> Person:
        """W of one person from a reference recording, by test-time training over all its windows together.

        Arguments, warnings and errors as `render`; the more leads the reference has, the more W can say.
        """
        one = self._recording(reference_mv, fs, leads)
        state = self.shared_state(self._windows(one, self.time_len).windows, one.observed)
        self._warn_without_beat(one, state[None])
        names = tuple(LEADS[row] for row in one.rows)
        return Person(state, names, one.raw.shape[1] / one.fs, self.fingerprint())

    def _recording(self, signal_mv: ArrayLike, fs: Any, leads: Names, name: str = "") -> Recording:
        """Checked and filtered as the training records were."""
        stored = {key: value for key, value in self.preprocessing.items() if key in _PREPROCESS}
        return recording(signal_mv, fs, leads, self.fs, PreprocessConfig(**stored), name)

    def _warn_without_beat(self, one: Recording, state: Array | None = None) -> None:
        """Warn of a recording in which no heartbeat was found; state [n, S]: its own W, where it is known."""
        beats = (
            self.remembers_beat(state) if state is not None else len(detect_r_peaks(one.conditioned, self.fs))
        )
        if not beats:
            warnings.warn(
                f"{one.name}No whole heartbeat was found in the recording: none is remembered, and what is "
                "made of it means little.",
                SignalWarning,
                stacklevel=4,
            )

    def _windows(self, one: Recording, stride: int | None) -> Windows:
        return to_windows(one, self.time_len, stride, self.fs)

    def _rendered(
        self,
        recordings: list[Recording],
        person: Person | str | Path | None = None,
        directions: ArrayLike | None = None,
        another_day: bool = False,
        *,
        in_turn: bool = False,
    ) -> list[Rendered]:
        """Recordings of the same leads; neighbouring windows share W unless that of a person is held."""
        vectors = directions_3d(directions)
        cuts = [self._windows(one, None) for one in recordings]
        windows, observed = np.concatenate([cut.windows for cut in cuts]), recordings[0].observed
        if person is None and not another_day:
            numbers, places = neighbours([len(cut.windows) for cut in cuts])
            size, call = 128 // numbers.shape[1], self._render_neighbours
            parts = joined_parts(
                NAMES, self._batches(call, windows[numbers], observed, size, in_turn=in_turn)
            )
            flat = {name: x.reshape(-1, *x.shape[2:]) for name, x in parts.items()}
            outs = [{name: x[place] for name, x in flat.items()} for place in places]
        else:
            state = None if person is None else np.tile(self._person_state(person), (len(windows), 1))
            whole = self.render_windows(windows, observed, state=state, another_day=another_day)
            split = zip(*(_by_recording(whole[name], cuts) for name in NAMES), strict=True)
            outs = [dict(zip(NAMES, part, strict=True)) for part in split]
        for one, out in zip(recordings, outs, strict=True):
            self._warn_without_beat(one, out["state"] if person is None else None)
        each = zip(recordings, cuts, outs, strict=True)
        return [to_rendered(one, cut, out, self.fs, vectors) for one, cut, out in each]

    def _render_neighbours(self, x: Tensor, mask: Tensor, _: slice) -> list[Array]:
        """NAMES, [n, k, ...] each, of n groups of k windows x [n, k, 12, T] that share W; mask [n, 12]."""
        people, each = x.shape[:2]
        with self._not_learning():
            out = self.model(x.transpose(0, 1).flatten(0, 1), mask.repeat(each, 1), people=people)
            return [
                to_numpy(getattr(out, name).unflatten(0, (each, people)).transpose(0, 1)) for name in NAMES
            ]

    def _over_recordings(
        self,
        signals_mv: Iterable[ArrayLike],
        fs: float,
        leads: Names,
        stride: int | None,
        batch_size: int,
        call: Callable[[list[Recording]], list[Out]],
    ) -> Iterator[Out]:
        """call of groups of recordings of the same leads, about a batch of windows each, side by side."""
        names, rate = [LEADS[row] for row in lead_rows(leads)], sampling_rate(fs)

        def groups() -> Iterator[list[Recording]]:
            group: list[Recording] = []
            filled = 0
            for number, signal in enumerate(signals_mv):
                one = self._recording(signal, rate, names, f"Recording {number}: ")
                count = len(window_starts(one.conditioned.shape[1], self.time_len, stride, self.fs))
                if group and (filled + count > batch_size or one.rows != group[0].rows):
                    yield group
                    group, filled = [], 0
                group.append(one)
                filled += count
            if group:
                yield group

        return itertools.chain.from_iterable(self.parallel.stream(call, groups()))

    def _person_state(self, person: Person | str | Path) -> Array:
        if isinstance(person, (str, Path)):
            person = load_person(person)
        if not isinstance(person, Person):
            raise SignalError(
                f"person is {person!r}: give what personalise(reference_mv, ...) returned, or its file."
            )
        if person.model != self.fingerprint():
            raise CheckpointError(
                f"This person's state was estimated by model {person.model}, this is {self.fingerprint()}: "
                "personalise again with this model."
            )
        return person.state


def _by_recording(values: Array, cuts: Sequence[Windows]) -> list[Array]:
    """Values [n, ...] of all windows, recording by recording."""
    return np.split(values, np.cumsum([len(cut.windows) for cut in cuts])[:-1])
