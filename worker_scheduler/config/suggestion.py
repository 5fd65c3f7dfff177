"""Finds the name that a misspelt one stands for."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def closest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Returns the known name most like `name`, or None. cutoff: 0 accepts any name, 1 only the same one."""
    found = get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return found[0] if found else None


def nearest(name: str, known: Iterable[str], at_most: int = 3) -> list[str]:
    """Returns the known names most like `name`, the most like it first."""
    return get_close_matches(name, list(known), n=at_most, cutoff=0)
