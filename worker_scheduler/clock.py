"""The type of a clock, and the real one; only entry points name the real one, the rest is handed it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]
"""Gives the present as an aware datetime in UTC."""


def utc_now() -> datetime:
    """The present, in UTC."""
    return datetime.now(UTC)
