"""One split of a window folder, scored by every method alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ecggen.eval.bootstrap import PatientBootstrap
from ecggen.eval.judge import Cut, Held, blocks
from ecggen.eval.lead_sets import LeadSet
from ecggen.eval.metrics import LeadScores, score_leads
from ecggen.eval.personal import Known
from ecggen.eval.result import Array, FolderLike, check_split
from ecggen.utils.config import MissingLeadConfig


@dataclass
class Evaluated:
    """One split, with the draws that all methods share. Windows stay on disk until a job asks for them."""

    split: str
    rows: Array  # [n] rows of the folder, ascending
    windows: Array  # of the folder, may be memory-mapped
    observed: Array  # [n, 12] bool
    draws: PatientBootstrap

    @classmethod
    def read(cls, folder: FolderLike, split: str, rules: MissingLeadConfig) -> Evaluated:
        """Raises EvalError when the split is empty."""
        rows = check_split(folder, split)
        patients = [str(folder.patient[row]) for row in rows]
        observed = np.asarray(folder.observed[rows], dtype=bool)
        draws = PatientBootstrap(patients, rules.bootstrap, rules.seed)
        return cls(split, rows, folder.windows, observed, draws)

    def read_ecg(self, rows: Array) -> Array:
        """[len(rows), 12, T] mV of these rows of the split."""
        return np.asarray(self.windows[self.rows[rows]], dtype=np.float32)

    def scores(self, rendered: Array, rows: Array, leads: LeadSet) -> LeadScores:
        """rendered [len(rows), 12, T] -> scores [n, 12] of hidden, truly recorded leads of these rows."""
        part = score_leads(self.read_ecg(rows), rendered, leads.hidden & self.observed[rows])
        return part.spread(rows, len(self.rows))

    def several(self, records: Array, leads: LeadSet) -> bool:
        """Does any record [n] have several windows that hold the given leads?"""
        usable = records[leads.usable(self.observed)]
        return len(np.unique(usable)) < len(usable)

    def cut(self, part: str, records: Array, most: int, known: Sequence[Known]) -> Cut:
        """The split in blocks of about `most` windows; part: the folder's name among those judged."""
        places = blocks(records, most)
        rows = [self.rows[at] for at in places]

        def held(own: Array) -> tuple[Held, ...]:
            return tuple(found for each in known if (found := each.held(own)) is not None)

        return Cut(part, len(self.rows), places, rows, [records[at] for at in places], held)
