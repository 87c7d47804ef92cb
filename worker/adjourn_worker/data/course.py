"""PURE. How far data is on its way."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How far data is on its way."""

    shown: str
    """Its URI for people."""
    done: int = 0
    """Bytes that are here."""
    total: int | None = None
    unavailable: str = ""
    """Why nothing comes just now."""
