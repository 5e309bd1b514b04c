"""One split of a window folder, read once and scored by every method alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ecggen.eval.bootstrap import PatientBootstrap
from ecggen.eval.lead_sets import LeadSet
from ecggen.eval.metrics import LeadScores, score_leads
from ecggen.eval.result import Array, FolderLike, check_split
from ecggen.utils.config import MissingLeadConfig


@dataclass
class Evaluated:
    """One split, read once, with the draws that all methods share."""

    split: str
    rows: Array  # [n] rows of the folder, ascending
    ecg: Array  # [n, 12, T] mV
    observed: Array  # [n, 12] bool
    draws: PatientBootstrap

    @classmethod
    def read(cls, folder: FolderLike, split: str, rules: MissingLeadConfig) -> Evaluated:
        """Raises EvalError when the split is empty."""
        rows = check_split(folder, split)
        patients = np.asarray(folder.patient, dtype=str)[rows].tolist()
        return cls(
            split,
            rows,
            np.asarray(folder.windows[rows], dtype=np.float32),
            np.asarray(folder.observed[rows], dtype=bool),
            PatientBootstrap(patients, rules.bootstrap, rules.seed),
        )

    def scores(self, rendered: Array, rows: Array, leads: LeadSet) -> LeadScores:
        """rendered [len(rows), 12, T] -> scores [n, 12] of hidden, truly recorded leads of these rows."""
        part = score_leads(self.ecg[rows], rendered, leads.hidden & self.observed[rows])
        full: list[Array] = []
        for values in (part.r, part.rmse, part.mae, part.snr):
            whole = np.full(self.observed.shape, np.nan)
            whole[rows] = values
            full.append(whole)
        constant = np.zeros(self.observed.shape, dtype=bool)
        constant[rows] = part.constant
        return LeadScores(full[0], full[1], full[2], full[3], constant)
