"""Blocks of whole records, and scores that do not depend on how a split is cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from ecggen.eval.missing_lead import missing_lead
from ecggen.eval.reconstruction import reconstruction
from ecggen.eval.result import Result
from ecggen.eval.score import record_blocks
from ecggen.utils.config import MissingLeadConfig, ReconstructionConfig


def test_blocks_are_whole_records_in_order() -> None:
    names = np.array(["b", "b", "a", "c", "a", "d", "d", "d", "d", "e"])
    assert [at.tolist() for at in record_blocks(names, 4)] == [[0, 1, 2, 4], [3], [5, 6, 7, 8], [9]]
    assert [len(at) for at in record_blocks(names, 1)] == [2, 2, 1, 4, 1], "a long record stays whole"
    assert len(record_blocks(names, 100)) == 1 and record_blocks(names[:0], 3) == []


def assert_same(first: Result, second: Result) -> None:
    """The same tables to rounding."""
    for name, rows in first.tables.items():
        one, two = (pd.DataFrame(each) for each in (rows, second.tables[name]))
        pd.testing.assert_frame_equal(one, two, rtol=1e-5, atol=1e-6)


def test_how_a_split_is_cut_changes_nothing(renderer, folder) -> None:
    config = MissingLeadConfig(lead_sets=["I", "I+II+V2"], ttt_steps=2, bootstrap=20, context=1)
    observed = folder.observed.copy()
    observed[folder.rows("test")[[1, 4]], 7] = False  # V2 missing: blocks of fewer windows
    folder = replace(folder, observed=observed)
    whole, cut = (missing_lead(renderer, folder, replace(config, batch_size=n)) for n in (128, 3))
    assert_same(whole, cut)
    assert any(row["lead_set"] == "I+II+V2" and row["coverage"] > 0 for row in whole.tables["lead_sets"])
    whole, cut = (
        reconstruction(renderer, folder, ReconstructionConfig(batch_size=n, bootstrap=20)) for n in (128, 3)
    )
    assert_same(whole, cut)


def test_no_job_holds_more_windows_than_asked_for(renderer, folder) -> None:
    sizes = []
    render = renderer.render_windows

    def counted(ecg, observed, **choice):
        sizes.append(len(ecg))
        return render(ecg, observed, **choice)

    renderer.render_windows = counted
    missing_lead(renderer, folder, MissingLeadConfig(batch_size=4, ttt_steps=2, bootstrap=5, context=1))
    assert max(sizes) == 4 and len(folder.rows("test")) > 4
