"""Windows judged on one lead set: the job that missing-lead and transfer are cut into.

A job takes a block of windows and one lead set, renders with every method, and gives back scores per window
and lead. No rendering outlives its job, so memory does not grow with the number of windows. What several
tables need of a window is rendered once: the states after every inner step come from one run of the loop, and
the model's own rendering serves the table of lead sets, that of the inner steps and the personal one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ecggen.eval.baselines import Method, ModelMethod
from ecggen.eval.lead_sets import LeadSet, given_only
from ecggen.eval.metrics import LeadScores, score_leads
from ecggen.eval.moments import ridge_solve
from ecggen.eval.result import Array, FolderLike, RendererLike
from ecggen.eval.spread import Spread
from ecggen.models.blocks import GAUSSIAN_90

#: Names of the personal methods, see `ecggen.eval.personal`.
HELD, ONE_PASS, ANOTHER_DAY = "model_personal", "model_one_pass", "model_another_day"
MEMORY, OWN_REGRESSION, REGRESSION = "memory", "linear_regression_reference", "linear_regression"
#: What a score is of: ("method", name), ("ttt", step or kind), or (protocol, personal method).
Key = tuple[str, str | int]
REFERENCE_RIDGE = 1e-3  # relative; a reference of a few seconds holds few independent samples


@dataclass
class Judged:
    """What all jobs share. methods: fitted, and prepared for every lead set (`Method.prepare`)."""

    renderer: RendererLike
    folders: Mapping[str, FolderLike]
    methods: Sequence[Method]
    batch_size: int


@dataclass(frozen=True)
class Held:
    """Windows of a block whose person was recorded before, one protocol.

    at [m]: which of the block; reference [m]: rows of the folder; score_from [m]: first sample that counts;
    states, start [m, S]: W of the reference after, and before, the inner steps.
    """

    protocol: str
    at: Array
    reference: Array
    score_from: Array
    states: Array
    start: Array


@dataclass(frozen=True)
class Block:
    """A job: rows [k] of the folder `part`, seen through `leads`, what they are judged on."""

    part: str
    leads: LeadSet
    rows: Array
    steps: tuple[int, ...] = ()  # inner steps of the table `ttt`; none: the table does not ask
    records: Array | None = None  # [k], the record of each row, for one W per record
    held: tuple[Held, ...] = ()


@dataclass
class Scored:
    """Scores [k, 12] of the windows of a block by what was judged, NaN = not scored; covered [k, 2]: samples
    of hidden independent leads within the model's 90 % interval, and all of them."""

    scores: dict[Key, LeadScores] = field(default_factory=dict)
    covered: Array | None = None


def blocks(names: Array, most: int) -> list[Array]:
    """Places of windows that make a job each: whole records, at most about `most` windows together.

    names [n]: the record of each window. Records come in the order of their first windows.
    """
    _, first, code = np.unique(names, return_index=True, return_inverse=True)
    order = np.argsort(first[code], kind="stable")
    sizes = np.bincount(code.reshape(-1))[code[np.sort(first)]]
    cuts, size = [0], 0
    for count in sizes:
        if size and size + count > most:
            cuts.append(cuts[-1] + size)
            size = 0
        size += int(count)
    return [order[a:b] for a, b in zip(cuts, [*cuts[1:], len(order)], strict=True) if b > a]


def judge(context: Judged, block: Block) -> Scored:
    """The job."""
    return _Judge(context, block).scored()


def reference_states(context: Judged, job: tuple[str, Array]) -> tuple[Array, Array]:
    """(W [k, S] after the inner steps, before them) of rows [k] of a folder, from all their leads."""
    part, rows = job
    folder, renderer = context.folders[part], context.renderer
    observed = np.asarray(folder.observed[rows], dtype=bool)
    ecg = given_only(np.asarray(folder.windows[rows]), observed)
    path = state_path(renderer, ecg, observed, trained_steps(renderer), context.batch_size)
    if path is not None:
        return path[-1], path[0]
    size = context.batch_size
    after, before = (renderer.states(ecg, observed, steps=n, batch_size=size) for n in (None, 0))
    return np.asarray(after), np.asarray(before)


def trained_steps(renderer: RendererLike) -> int:
    """K, the inner steps that the model was trained with."""
    return int(renderer.config.model.ttt.steps)


def state_path(
    renderer: RendererLike, ecg: Array, observed: Array, steps: int, batch_size: int
) -> Array | None:
    """[steps + 1, n, S], the state after each step of one run; None if the renderer cannot tell."""
    path = getattr(renderer, "state_path", None)
    return None if path is None else np.asarray(path(ecg, observed, steps=steps, batch_size=batch_size))


def start_state(renderer: RendererLike) -> Array | None:
    """[S], the learned start W0 of a renderer's model, nothing guessed or remembered; None without one."""
    start = getattr(renderer.model, "start", None)
    return None if start is None else np.asarray(start.detach().cpu().numpy())


def reference_regression(reference: Array, test: Array, given: Array) -> Array:
    """Every lead regressed on the given leads of its own reference, instantaneous, one fit per window.

    reference, test [m, 12, T] mV, given [12] bool -> [m, 12, T] float32.
    """
    full = reference.astype(np.float64)
    inputs = full[:, given]
    gram = inputs @ inputs.transpose(0, 2, 1)
    weights = ridge_solve(gram, inputs @ full.transpose(0, 2, 1), REFERENCE_RIDGE)
    return (weights.transpose(0, 2, 1).astype(np.float32) @ test[:, given]).astype(np.float32)


class _Judge:
    """One block on its way through a job."""

    def __init__(self, context: Judged, block: Block) -> None:
        self.context, self.block, self.leads = context, block, block.leads
        self.folder, self.renderer = context.folders[block.part], context.renderer
        self.observed = np.asarray(self.folder.observed[block.rows], dtype=bool)
        self.use = np.flatnonzero(block.leads.usable(self.observed))
        self.found = Scored()

    def scored(self) -> Scored:
        """Everything that the block is judged on."""
        if len(self.use):
            rows = self.block.rows[self.use]
            self.ecg = np.asarray(self.folder.windows[rows], dtype=np.float32)
            self.shown = given_only(self.ecg, self.leads.mask)
            path = self._path()
            self._methods(path)
            if self.block.steps:
                self._inner_steps(path)
            for held in self.block.held:
                self._personal(held)
        return self.found

    def _path(self) -> Array | None:
        """States of one run of the inner loop, as far as any table asks; None: one run per step instead."""
        if not self.block.steps:
            return None
        return state_path(
            self.renderer, self.shown, self.leads.mask, self.block.steps[-1], self.context.batch_size
        )

    def _render(self, **choice: Any) -> Mapping[str, Array]:
        size = self.context.batch_size
        return self.renderer.render_windows(self.shown, self.leads.mask, batch_size=size, **choice)

    def _keep(self, key: Key, rendered: Array, leads: Array) -> None:
        """Scores of hidden, truly recorded leads among `leads` [12]."""
        part = score_leads(self.ecg, rendered, leads & self.observed[self.use])
        self.found.scores[key] = part.spread(self.use, len(self.observed))

    def _methods(self, path: Array | None) -> None:
        """The model and every baseline on hidden leads."""
        for method in self.context.methods:
            if isinstance(method, ModelMethod):
                # A held state renders as the loop that led to it would, without running the loop again.
                held = {} if path is None else {"state": path[trained_steps(self.renderer)]}
                out = self._render(**held)
                self.model, self.state = np.asarray(out["leads"]), np.asarray(out["state"])
                rendered = self.model
                if "std" in out:
                    self._cover(rendered, np.asarray(out["std"]))
            else:
                rendered = np.asarray(method.predict(self.ecg, self.leads.mask))
                if method.name == REGRESSION:
                    self.regression = rendered
            self._keep(("method", method.name), rendered, self.leads.hidden)

    def _cover(self, rendered: Array, std: Array) -> None:
        inside = np.abs(self.ecg - rendered) <= GAUSSIAN_90 * std
        there = self.leads.headline & self.observed[self.use]
        covered = np.zeros((len(self.observed), 2), dtype=np.int64)
        covered[self.use, 0] = (inside.sum(axis=2) * there).sum(axis=1)
        covered[self.use, 1] = there.sum(axis=1) * inside.shape[2]
        self.found.covered = covered

    def _inner_steps(self, path: Array | None) -> None:
        headline = self.leads.headline
        trained = trained_steps(self.renderer)
        for step in self.block.steps:
            if step == trained:
                rendered = self.model
            else:
                choice: dict[str, Any] = {"steps": step} if path is None else {"state": path[step]}
                rendered = np.asarray(self._render(**choice)["leads"])
            self._keep(("ttt", step), rendered, headline)
        start = start_state(self.renderer)
        if start is not None:
            held = self._render(state=np.tile(start, (len(self.use), 1)))
            self._keep(("ttt", "w0"), np.asarray(held["leads"]), headline)
        if self.block.records is not None and hasattr(self.renderer, "shared_states"):
            held = self._render(state=self._record_states(self.block.records[self.use]))
            self._keep(("ttt", "record"), np.asarray(held["leads"]), headline)

    def _record_states(self, records: Array) -> Array:
        """[n, S], one W per record from all its windows; records of as many windows share a batch."""
        shared: Any = self.renderer
        _, code, counts = np.unique(records, return_inverse=True, return_counts=True)
        order = np.argsort(code, kind="stable")  # the windows of each record, one after the other
        out: Array | None = None
        for count in np.unique(counts):
            windows = order[counts[code[order]] == count]
            ecg = self.shown[windows].reshape(-1, count, *self.shown.shape[1:])
            size = self.context.batch_size
            found = np.asarray(shared.shared_states(ecg, self.leads.mask, batch_size=size))
            out = np.empty((len(records), found.shape[1]), found.dtype) if out is None else out
            out[windows] = np.repeat(found, count, axis=0)
        assert out is not None, "no window"
        return out

    def _personal(self, held: Held) -> None:
        """Windows whose person was recorded before, where the reference has the given leads as well."""
        recorded = np.asarray(self.folder.observed[held.reference], dtype=bool)
        # A lead without a reference cannot be learned from it: it is scored for no method.
        scorable = self.observed[held.at] & recorded
        keep = np.flatnonzero(self.leads.usable(scorable))
        if not len(keep):
            return
        at, inside = held.at[keep], np.searchsorted(self.use, held.at[keep])
        given, mask, size = self.shown[inside], self.leads.mask, self.context.batch_size
        states = {HELD: held.states[keep], ONE_PASS: held.start[keep]}
        made: dict[str, Array] = {}
        if held.protocol == "records":
            out = self.renderer.render_windows(
                given, mask, state=states[HELD], another_day=True, batch_size=size, own=self.state[inside]
            )
            made[ANOTHER_DAY] = np.asarray(out["leads"])
        for name, state in states.items():
            out = self.renderer.render_windows(given, mask, state=state, batch_size=size)
            made[name] = np.asarray(out["leads"])
        made["model"] = self.model[inside]
        made[MEMORY] = np.asarray(
            self.renderer.remembered_windows(given, mask, states[HELD], batch_size=size)
        )
        reference = np.asarray(self.folder.windows[held.reference[keep]], dtype=np.float32)
        made[OWN_REGRESSION] = reference_regression(given_only(reference, recorded[keep]), given, mask)
        made[REGRESSION] = self.regression[inside]
        for name, rendered in made.items():
            scored = self.leads.headline & scorable[keep]
            part = score_leads(self.ecg[inside], rendered, scored, held.score_from[keep])
            self.found.scores[held.protocol, name] = part.spread(at, len(self.observed))


@dataclass(frozen=True)
class Cut:
    """A split cut into blocks. places[i]: which of its `count` windows block i has; rows, records: of the
    blocks; held(rows): what is held of their people, put together only when a block is handed out; see Block.
    """

    part: str
    count: int
    places: Sequence[Array]
    rows: Sequence[Array]
    records: Sequence[Array]
    held: Callable[[Array], tuple[Held, ...]]

    def joined(self, parts: Iterable[Scored]) -> Scored:
        """Scores of the blocks as they come, put together to those of the split, [count, 12]."""
        whole = Scored(covered=np.zeros((self.count, 2), dtype=np.int64))
        for places, part in zip(self.places, parts, strict=True):
            for key, scores in part.scores.items():
                if key not in whole.scores:
                    whole.scores[key] = LeadScores.nothing(self.count)
                whole.scores[key].put(places, scores)
            if whole.covered is not None and part.covered is not None:
                whole.covered[places] = part.covered
        return whole


@dataclass(frozen=True)
class Asked:
    """A split on one lead set; steps: see Block; by_record: one W per record is judged as well."""

    cut: Cut
    leads: LeadSet
    steps: tuple[int, ...] = ()
    by_record: bool = False

    def blocks(self) -> Iterator[Block]:
        """The jobs."""
        cut = self.cut
        for rows, records in zip(cut.rows, cut.records, strict=True):
            one = records if self.by_record else None
            yield Block(cut.part, self.leads, rows, self.steps, one, cut.held(rows))


def judged(spread: Spread[Judged], asked: Sequence[Asked]) -> Iterator[Scored]:
    """The scores of each split on its lead set, in order; later jobs run while one is being read. Each is
    gone when the next one is asked for: two at once would be most of what an evaluation holds."""
    results = spread.map(judge, (block for each in asked for block in each.blocks()))
    for each in asked:
        whole = each.cut.joined(itertools.islice(results, len(each.cut.rows)))
        yield whole
        whole.scores.clear()
