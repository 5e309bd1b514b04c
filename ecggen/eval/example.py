"""A window for the figures."""

from __future__ import annotations

import numpy as np

from ecggen.eval.lead_sets import given_only
from ecggen.eval.result import Array, Renderer, WindowFolder


def example(renderer: Renderer, folder: WindowFolder, rows: Array, given: Array) -> dict[str, Array]:
    """Arrays [1, ...] of the first of the rows with all leads recorded, rendered from the leads given [12];
    empty where there is none."""
    rows = rows[np.asarray(folder.observed[rows], dtype=bool).all(axis=1)][:1]
    if not len(rows):
        return {}
    ecg = np.asarray(folder.windows[rows], dtype=np.float32)
    out = renderer.render_windows(given_only(ecg, given), given)
    arrays = {"example_recorded": ecg, "example_rendered": out["leads"], "example_vcg": out["vcg"]}
    if folder.frank is not None and given.all():
        arrays["example_frank"] = np.asarray(folder.frank[rows])
    return {"fs": np.asarray(folder.fs), "example_given": given, **arrays}
