"""ecggen: a 12-lead ECG as the rendering of a quasi-static heart state."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "load": "ecggen.inference.renderer",
    "load_person": "ecggen.inference.person",
    "detect_r_peaks": "ecggen.data.tokenizer",
}
__all__ = ["__version__", "detect_r_peaks", "load", "load_person"]


def __getattr__(name: str) -> Any:
    # Imported on first use, so that reading the version or a lead name does not wait for torch.
    if name in _PUBLIC:
        import importlib

        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'ecggen' has no attribute {name!r}")
