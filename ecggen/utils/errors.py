"""The base of every error that a user can cause and mend."""

from __future__ import annotations


class EcggenError(ValueError):
    """Input that cannot be used; the message says what, its value, what is allowed and what to do."""
