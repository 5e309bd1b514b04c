"""Windows scored on one lead set: the job that missing-lead and transfer are cut into.

A job takes a block of windows and one lead set, renders with every method, and returns scores per window and
lead. No rendering outlives its job, so memory does not grow with the number of windows. What several tables
need of a window is rendered once: the states after every inner step come from one run of the loop, and the
model's own rendering serves the table of lead sets, that of the inner steps and the personal one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ecggen.eval.baselines import Method, ModelMethod, ridge_solve
from ecggen.eval.bootstrap import PatientBootstrap
from ecggen.eval.lead_sets import LeadSet, given_only
from ecggen.eval.metrics import LeadScores, score_leads
from ecggen.eval.personal import (
    ANOTHER_DAY,
    MEMORY,
    ONE_PASS,
    PERSONAL,
    REFERENCE_REGRESSION,
    REGRESSION,
    ReferencePairs,
    References,
)
from ecggen.eval.result import Array, Renderer, WindowFolder, check_split, trained_steps
from ecggen.eval.workers import Workers
from ecggen.models.blocks import GAUSSIAN_90

#: What a score is of: ("method", name), ("ttt", step or kind), or (protocol, personal method).
Key = tuple[str, str | int]
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

    Windows stay on disk until a job asks for them.
    """

    name: str
    rows: Array  # [n] rows of the folder, ascending
    windows: Array  # of the folder, may be memory-mapped
    observed: Array  # [n, 12] bool
    records: Array  # [n] str
    draws: PatientBootstrap

    @classmethod
    def read(cls, folder: WindowFolder, name: str, bootstrap: int, seed: int) -> Split:
        """Raises EvalError when the split is empty."""
        rows = check_split(folder, name)
        draws = PatientBootstrap([str(folder.patient[row]) for row in rows], bootstrap, seed)
        records = np.array([str(folder.record[row]) for row in rows])
        return cls(name, rows, folder.windows, np.asarray(folder.observed[rows], dtype=bool), records, draws)

    def read_ecg(self, rows: Array) -> Array:
        """[len(rows), 12, T] mV of these rows of the split."""
        return np.asarray(self.windows[self.rows[rows]], dtype=np.float32)

    def several_windows(self, leads: LeadSet) -> bool:
        """Whether any record has several windows that hold the given leads."""
        usable = self.records[leads.usable(self.observed)]
        return len(np.unique(usable)) < len(usable)

    def scores(self, rendered: Array, rows: Array, leads: LeadSet) -> LeadScores:
        """rendered [len(rows), 12, T] -> scores [n, 12] of hidden, truly recorded leads of these rows."""
        part = score_leads(self.read_ecg(rows), rendered, leads.hidden & self.observed[rows])
        whole = LeadScores.empty(len(self.rows))
        whole.put(rows, part)
        return whole


@dataclass(frozen=True)
class Block:
    """A job: rows [k] of a folder and the leads that are given.

    steps: inner steps of the table `ttt`, none where it does not apply; records [k]: the record of each row,
    where one W per record is scored as well.
    """

    folder: str
    leads: LeadSet
    rows: Array
    steps: tuple[int, ...] = ()
    records: Array | None = None
    references: tuple[References, ...] = ()


@dataclass
class Scores:
    """Scores [k, 12] of windows by what was scored, NaN = not scored; covered [k, 2]: samples of hidden
    independent leads within the model's 90 % interval, and all of them."""

    leads: dict[Key, LeadScores]
    covered: Array

    @classmethod
    def empty(cls, count: int) -> Scores:
        """Of `count` windows, nothing scored yet."""
        return cls({}, np.zeros((count, 2), dtype=np.int64))

    def put(self, key: Key, rows: Array, part: LeadScores) -> None:
        """Scores of these rows."""
        if key not in self.leads:
            self.leads[key] = LeadScores.empty(len(self.covered))
        self.leads[key].put(rows, part)

    def method(self, name: str) -> LeadScores:
        """Scores of one method; NaN where no window holds the given leads."""
        return self.leads.get(("method", name)) or LeadScores.empty(len(self.covered))


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


@dataclass(frozen=True)
class Task:
    """A split to be scored on one lead set.

    folder: its name in `Scoring.folders`; steps: see Block; by_record: one W per record as well; pairs:
    people with a reference.
    """

    folder: str
    split: Split
    leads: LeadSet
    steps: tuple[int, ...] = ()
    by_record: bool = False
    pairs: Sequence[ReferencePairs] = ()

    def blocks(self, places: Iterable[Array]) -> Iterator[Block]:
        """The jobs, one for each of the places in the split."""
        for at in places:
            rows, records = self.split.rows[at], self.split.records[at] if self.by_record else None
            references = (pairs.references(rows) for pairs in self.pairs)
            present = tuple(each for each in references if each is not None)
            yield Block(self.folder, self.leads, rows, self.steps, records, present)


def scored(workers: Workers[Scoring], tasks: Sequence[Task]) -> Iterator[Scores]:
    """The scores [n, 12] of each task, in order; later jobs run while one is being read. Each is emptied when
    the next one is read: two at once would be most of the memory of an evaluation."""
    places = [record_blocks(task.split.records, workers.context.batch_size) for task in tasks]
    blocks = (block for task, at in zip(tasks, places, strict=True) for block in task.blocks(at))
    results = workers.map(score_block, blocks)
    for task, of_task in zip(tasks, places, strict=True):
        whole = Scores.empty(len(task.split.rows))
        for at, part in zip(of_task, itertools.islice(results, len(of_task)), strict=True):
            for key, scores in part.leads.items():
                whole.put(key, at, scores)
            whole.covered[at] = part.covered
        yield whole
        whole.leads.clear()


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


def score_block(context: Scoring, block: Block) -> Scores:
    """The job: every score of a block."""
    scorer = _BlockScorer(context, block)
    if len(scorer.use):
        scorer.score_methods()
        scorer.score_inner_steps()
        for references in block.references:
            scorer.score_personal(references)
    return scorer.scores


class _BlockScorer:
    """The windows of one block that hold the given leads, and what was rendered of them so far."""

    def __init__(self, context: Scoring, block: Block) -> None:
        self.context, self.block, self.leads = context, block, block.leads
        self.folder, self.renderer = context.folders[block.folder], context.renderer
        self.observed = np.asarray(self.folder.observed[block.rows], dtype=bool)
        self.use = np.flatnonzero(block.leads.usable(self.observed))
        self.scores = Scores.empty(len(block.rows))
        if not len(self.use):
            return
        self.ecg = np.asarray(self.folder.windows[block.rows[self.use]], dtype=np.float32)
        self.shown = given_only(self.ecg, self.leads.mask)
        self.path: Array | None = None  # the states of one run of the inner loop, for the table `ttt`
        if block.steps:
            steps, size = block.steps[-1], context.batch_size
            path = self.renderer.state_path(self.shown, self.leads.mask, steps=steps, batch_size=size)
            self.path = np.asarray(path)

    def render(self, **choice: Any) -> Mapping[str, Array]:
        """The model's rendering of the windows."""
        size = self.context.batch_size
        return self.renderer.render_windows(self.shown, self.leads.mask, batch_size=size, **choice)

    def keep(self, key: Key, rendered: Array, leads: Array) -> None:
        """Scores of hidden, truly recorded leads among `leads` [12]."""
        self.scores.put(key, self.use, score_leads(self.ecg, rendered, leads & self.observed[self.use]))

    def score_methods(self) -> None:
        """The model and every baseline on hidden leads."""
        for method in self.context.methods:
            if isinstance(method, ModelMethod):
                # A given state renders as the loop that led to it would, without running the loop again.
                given = {} if self.path is None else {"state": self.path[trained_steps(self.renderer)]}
                out = self.render(**given)
                self.model, self.state = np.asarray(out["leads"]), np.asarray(out["state"])
                rendered = self.model
                if "std" in out:
                    self.count_covered(np.asarray(out["std"]))
            else:
                rendered = np.asarray(method.predict(self.ecg, self.leads.mask))
                if method.name == REGRESSION:
                    self.regression = rendered
            self.keep(("method", method.name), rendered, self.leads.hidden)

    def count_covered(self, std: Array) -> None:
        """Samples within the model's own 90 % interval; std [n, 12, T] mV."""
        inside = np.abs(self.ecg - self.model) <= GAUSSIAN_90 * std
        there = self.leads.headline & self.observed[self.use]
        self.scores.covered[self.use, 0] = (inside.sum(axis=2) * there).sum(axis=1)
        self.scores.covered[self.use, 1] = there.sum(axis=1) * inside.shape[2]

    def score_inner_steps(self) -> None:
        """The model after each of the steps, from W0 alone, and with one W per record."""
        if self.path is None:
            return
        headline, trained = self.leads.headline, trained_steps(self.renderer)
        for step in self.block.steps:
            rendered = self.model if step == trained else self.render(state=self.path[step])["leads"]
            self.keep(("ttt", step), np.asarray(rendered), headline)
        start = np.tile(start_state(self.renderer), (len(self.use), 1))
        self.keep(("ttt", "w0"), np.asarray(self.render(state=start)["leads"]), headline)
        if self.block.records is not None:
            states = self.record_states(self.block.records[self.use])
            self.keep(("ttt", "record"), np.asarray(self.render(state=states)["leads"]), headline)

    def record_states(self, records: Array) -> Array:
        """[n, S], one W per record from all its windows; records of as many windows share a batch."""
        _, code, counts = np.unique(records, return_inverse=True, return_counts=True)
        order = np.argsort(code, kind="stable")  # the windows of each record, one after the other
        out = np.empty_like(self.state)
        for count in np.unique(counts):
            windows = order[counts[code[order]] == count]
            ecg = self.shown[windows].reshape(-1, count, *self.shown.shape[1:])
            size = self.context.batch_size
            states = self.renderer.shared_states(ecg, self.leads.mask, batch_size=size)
            out[windows] = np.repeat(np.asarray(states), count, axis=0)
        return out

    def score_personal(self, references: References) -> None:
        """Windows whose person has a reference, where the reference has the given leads as well."""
        recorded = np.asarray(self.folder.observed[references.reference], dtype=bool)
        # A lead without a reference cannot be learned from it: it is scored for no method.
        scorable = self.observed[references.at] & recorded
        keep = np.flatnonzero(self.leads.usable(scorable))
        if not len(keep):
            return
        at, inside = references.at[keep], np.searchsorted(self.use, references.at[keep])
        given, mask, size = self.shown[inside], self.leads.mask, self.context.batch_size
        states = {PERSONAL: references.states[keep], ONE_PASS: references.start[keep]}
        choices: dict[str, dict[str, Any]] = {name: {"state": state} for name, state in states.items()}
        if references.protocol == "records":
            choices[ANOTHER_DAY] = choices[PERSONAL] | {
                "another_day": True,
                "window_states": self.state[inside],
            }
        rendered = {
            name: self.renderer.render_windows(given, mask, batch_size=size, **choice)["leads"]
            for name, choice in choices.items()
        }
        rendered["model"] = self.model[inside]
        rendered[MEMORY] = self.renderer.remembered_windows(given, mask, states[PERSONAL], batch_size=size)
        reference = given_only(self.folder.windows[references.reference[keep]], recorded[keep])
        rendered[REFERENCE_REGRESSION] = reference_regression(reference, given, mask)
        rendered[REGRESSION] = self.regression[inside]
        leads, start = self.leads.headline & scorable[keep], references.score_from[keep]
        for name, values in rendered.items():
            part = score_leads(self.ecg[inside], np.asarray(values), leads, start)
            self.scores.put((references.protocol, name), at, part)
