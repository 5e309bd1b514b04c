"""Fixtures of the evaluations, defined in small_folder.py."""

from small_folder import folder, renderer

__all__ = ["folder", "renderer"]
