"""Windows scored on one lead set: the job that missing-lead and transfer are cut into.

A job takes a block of windows and one lead set, renders with every method, and returns scores per window and
lead. No rendering outlives its job, so memory does not grow with the number of windows. What several tables
need of a window is rendered once: the states after every inner step come from one run of the loop, and the
model's own rendering serves the table of lead sets, that of the inner steps and the personal one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ecggen.eval.baselines import Method, ModelMethod, ridge_solve
from ecggen.eval.bootstrap import PatientBootstrap
from ecggen.eval.lead_sets import LeadSet, given_only
from ecggen.eval.metrics import MEASURES, LeadScores, score_leads
from ecggen.eval.personal import (
    ANOTHER_DAY,
    MEMORY,
    ONE_PASS,
    PERSONAL,
    REFERENCE_REGRESSION,
    REGRESSION,
    Pairs,
)
from ecggen.eval.result import Array, Renderer, WindowFolder, check_split, trained_steps
from ecggen.eval.workers import Task, Workers
from ecggen.models.blocks import GAUSSIAN_90

#: What a score is of: ("method", name), ("ttt", step or kind), or (protocol, personal method).
Key = tuple[str, str | int]
COVERAGE: Key = ("coverage", "model")  # [n, 12, 1], share of samples within the model's 90 % interval
REFERENCE_RIDGE = 1e-3  # relative; a reference of a few seconds holds few independent samples


@dataclass
class Scoring:
    """What all jobs share. methods: fitted, and prepared for every lead set (`Method.prepare`)."""

    renderer: Renderer
    folders: Mapping[str, WindowFolder]
    methods: Sequence[Method]
    batch_size: int


@dataclass
class Split:
    """One split of a window folder, with the bootstrap draws that all methods share.

    Windows stay on disk until a job asks for them. people: pairs with a reference, and draws over theirs.
    """

    name: str
    rows: Array  # [n] rows of the folder, ascending
    windows: Array  # of the folder, may be memory-mapped
    observed: Array  # [n, 12] bool
    records: Array  # [n] str
    draws: PatientBootstrap
    people: Sequence[tuple[Pairs, PatientBootstrap]] = ()

    @classmethod
    def read(cls, folder: WindowFolder, name: str, bootstrap: int, seed: int) -> Split:
        """Raises EvalError when the split is empty."""
        rows = check_split(folder, name)
        draws = PatientBootstrap(np.asarray(folder.patient)[rows].tolist(), bootstrap, seed)
        records = np.asarray(folder.record, dtype=str)[rows]
        return cls(name, rows, folder.windows, np.asarray(folder.observed[rows], dtype=bool), records, draws)

    def read_ecg(self, rows: Array) -> Array:
        """[len(rows), 12, T] mV of these rows of the split."""
        return np.asarray(self.windows[self.rows[rows]], dtype=np.float32)

    def scores(self, rendered: Array, rows: Array, leads: LeadSet) -> LeadScores:
        """rendered [len(rows), 12, T] -> scores [n, 12] of hidden, truly recorded leads of these rows."""
        part = score_leads(self.read_ecg(rows), rendered, leads.hidden & self.observed[rows])
        values = np.full((len(self.rows), *part.values.shape[1:]), np.nan)
        values[rows] = part.values
        return LeadScores(values)


@dataclass(frozen=True)
class Block:
    """A job: rows [k] of a folder and the leads that are given.

    steps: inner steps of the table `ttt`, none where it does not apply; records [k]: the record of each row,
    where one W per record is scored as well; people: those of them with a reference.
    """

    folder: str
    leads: LeadSet
    rows: Array
    steps: tuple[int, ...] = ()
    records: Array | None = None
    people: Sequence[Pairs] = ()


@dataclass(frozen=True)
class SetScores:
    """Scores [n, 12, 4] of the windows of a split on one lead set; NaN = not scored."""

    folder: str
    data: Split
    leads: LeadSet
    steps: tuple[int, ...]
    values: Mapping[Key, Array]

    @property
    def methods(self) -> list[str]:
        """The model and every baseline."""
        return [str(name) for kind, name in self.values if kind == "method"]

    def method(self, name: str) -> LeadScores:
        """Of every hidden lead."""
        return LeadScores(self.values["method", name])

    def headline(self, name: str) -> LeadScores:
        """Of hidden independent leads that no algebra gives."""
        return self.method(name).select(self.leads.headline)


def record_blocks(records: Array, most: int) -> list[Array]:
    """Places of windows that make a job each: whole records, at most about `most` windows together.

    records [n]: the record of each window. Records come in the order of their first windows.
    """
    _, first, code = np.unique(records, return_index=True, return_inverse=True)
    order = np.argsort(first[code], kind="stable")
    sizes = np.bincount(code.reshape(-1))[code[np.sort(first)]]
    cuts, size = [0], 0
    for count in sizes:
        if size and size + count > most:
            cuts.append(cuts[-1] + size)
            size = 0
        size += int(count)
    return [order[a:b] for a, b in zip(cuts, [*cuts[1:], len(order)], strict=True) if b > a]


def score_sets(
    workers: Workers[Scoring], sets: Sequence[tuple[str, Split, LeadSet, tuple[int, ...]]]
) -> Iterator[SetScores]:
    """The scores of each (folder, split, lead set, inner steps of the table `ttt`), in order; see
    `Workers.measure`."""

    def task(folder: str, data: Split, leads: LeadSet, steps: tuple[int, ...]) -> Task:
        usable = data.records[leads.usable(data.observed)]
        by_record = bool(steps) and len(np.unique(usable)) < len(usable)  # several windows of some record

        def block(at: Array) -> Block:
            rows, records = data.rows[at], data.records[at] if by_record else None
            return Block(folder, leads, rows, steps, records, [pairs.among(rows) for pairs, _ in data.people])

        return score_block, record_blocks(data.records, workers.context.batch_size), block

    measured = workers.measure([task(*each) for each in sets], "windows of lead sets")
    for each, values in zip(sets, measured, strict=True):
        yield SetScores(*each, values)


def start_state(renderer: Renderer) -> Array:
    """[S], the learned start W0 of a renderer's model, nothing guessed or remembered."""
    return np.asarray(renderer.model.start.detach().cpu().numpy())


def reference_regression(reference: Array, test: Array, given: Array) -> Array:
    """Every lead regressed on the given leads of its own reference, instantaneous, one fit per window.

    reference, test [m, 12, T] mV, given [12] bool -> [m, 12, T] float32.
    """
    full = reference.astype(np.float64)
    inputs = full[:, given]
    gram = inputs @ inputs.transpose(0, 2, 1)
    weights = ridge_solve(gram, inputs @ full.transpose(0, 2, 1), REFERENCE_RIDGE)
    return (weights.transpose(0, 2, 1).astype(np.float32) @ test[:, given]).astype(np.float32)


def score_block(context: Scoring, block: Block) -> dict[Key, Array]:
    """The job: every score [k, 12, 4] of a block."""
    scorer = _BlockScorer(context, block)
    if len(scorer.use):
        scorer.score_methods()
        if block.steps:
            scorer.score_inner_steps()
        for pairs in block.people:
            scorer.score_personal(pairs)
    for method in context.methods:
        scorer.values.setdefault(("method", method.name), scorer.blank(len(MEASURES)))
    return scorer.values


class _BlockScorer:
    """The windows of one block that hold the given leads, and what was rendered of them so far."""

    def __init__(self, context: Scoring, block: Block) -> None:
        self.context, self.block, self.leads = context, block, block.leads
        self.folder, self.renderer = context.folders[block.folder], context.renderer
        self.trained = trained_steps(self.renderer)
        self.observed = np.asarray(self.folder.observed[block.rows], dtype=bool)
        self.use = np.flatnonzero(self.leads.usable(self.observed))
        self.values: dict[Key, Array] = {}
        if len(self.use):
            self.ecg = np.asarray(self.folder.windows[block.rows[self.use]], dtype=np.float32)
            self.shown = given_only(self.ecg, self.leads.mask)

    def blank(self, measures: int) -> Array:
        return np.full((*self.observed.shape, measures), np.nan)

    def render(self, part: Array | slice = slice(None), **choice: Any) -> Mapping[str, Array]:
        """The model's rendering of some of the windows."""
        size = self.context.batch_size
        return self.renderer.render_windows(self.shown[part], self.leads.mask, batch_size=size, **choice)

    def put(self, key: Key, rendered: Array, leads: Array) -> None:
        """Scores of hidden, truly recorded leads among `leads` [12]."""
        values = self.values[key] = self.blank(len(MEASURES))
        values[self.use] = score_leads(self.ecg, rendered, leads & self.observed[self.use]).values

    def score_methods(self) -> None:
        """The model and every baseline on hidden leads."""
        state = {}
        if self.block.steps:  # a given state renders as the loop that led to it would, without the loop
            most, mask = self.context.batch_size, self.leads.mask
            steps = self.block.steps[-1]
            self.path = self.renderer.state_path(self.shown, mask, steps=steps, batch_size=most)
            state = {"state": self.path[self.trained]}
        self.rendered: dict[str, Array] = {}
        for method in self.context.methods:
            if isinstance(method, ModelMethod):
                self.model = self.render(**state)
                self.rendered[method.name] = self.model["leads"]
            else:
                self.rendered[method.name] = method.predict(self.ecg, self.leads.mask)
            self.put(("method", method.name), self.rendered[method.name], self.leads.hidden)
        if "std" in self.model:
            inside = np.abs(self.ecg - self.model["leads"]) <= GAUSSIAN_90 * self.model["std"]
            there = self.leads.headline & self.observed[self.use]
            share = self.values[COVERAGE] = self.blank(1)
            share[self.use, :, 0] = np.where(there, inside.mean(axis=2), np.nan)

    def score_inner_steps(self) -> None:
        """The model after each of the steps, from W0 alone, and with one W per record."""
        states: dict[int | str, Array] = {step: self.path[step] for step in self.block.steps}
        states["w0"] = np.tile(start_state(self.renderer), (len(self.use), 1))
        if self.block.records is not None:
            states["record"] = self.record_states(self.block.records[self.use])
        for key, state in states.items():
            out = self.model if key == self.trained else self.render(state=state)
            self.put(("ttt", key), out["leads"], self.leads.headline)

    def record_states(self, records: Array) -> Array:
        """[n, S], one W per record from all its windows; records of as many windows share a batch."""
        _, code, counts = np.unique(records, return_inverse=True, return_counts=True)
        order = np.argsort(code, kind="stable")  # the windows of each record, one after the other
        out = np.empty_like(self.model["state"])
        for count in np.unique(counts):
            windows = order[counts[code[order]] == count]
            ecg = self.shown[windows].reshape(-1, count, *self.shown.shape[1:])
            size = self.context.batch_size
            states = self.renderer.shared_states(ecg, self.leads.mask, batch_size=size)
            out[windows] = np.repeat(np.asarray(states), count, axis=0)
        return out

    def score_personal(self, pairs: Pairs) -> None:
        """Windows whose person has a reference, where the reference has the given leads as well."""
        at = np.searchsorted(self.block.rows, pairs.test)
        recorded = np.asarray(self.folder.observed[pairs.reference], dtype=bool)
        # A lead without a reference cannot be learned from it: it is scored for no method.
        scorable = self.observed[at] & recorded
        keep = np.flatnonzero(self.leads.usable(scorable))
        if not len(keep):
            return
        assert pairs.states is not None
        at, mask, inside = at[keep], self.leads.mask, np.searchsorted(self.use, at[keep])
        given, (state, start) = self.shown[inside], pairs.states[keep].swapaxes(0, 1)
        rendered = {
            PERSONAL: self.render(inside, state=state)["leads"],
            ONE_PASS: self.render(inside, state=start)["leads"],
            "model": self.model["leads"][inside],
            MEMORY: self.renderer.remembered_windows(given, mask, state, batch_size=self.context.batch_size),
            REGRESSION: self.rendered[REGRESSION][inside],
        }
        if pairs.protocol == "records":
            session = self.model["state"][inside]
            rendered[ANOTHER_DAY] = self.render(inside, state=state, another_day=True, window_states=session)[
                "leads"
            ]
        reference = given_only(self.folder.windows[pairs.reference[keep]], recorded[keep])
        rendered[REFERENCE_REGRESSION] = reference_regression(reference, given, mask)
        leads, first = self.leads.headline & scorable[keep], pairs.score_from[keep]
        for name, leads_mv in rendered.items():
            values = self.values[pairs.protocol, name] = self.blank(len(MEASURES))
            values[at] = score_leads(self.ecg[inside], leads_mv, leads, first).values
