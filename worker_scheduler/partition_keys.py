"""Partition keys: how a run's key is built, and which keys are valid. Nothing else checks a key."""

from __future__ import annotations

import re
from datetime import date

DAILY_PREFIX = "daily:"
"""Every daily run's key begins with it, and no backfill's does."""
LONGEST_KEY = 200
"""Characters."""
PARTITION_KEY = re.compile(rf"[A-Za-z0-9._:-]{{1,{LONGEST_KEY}}}")
RESERVED = frozenset({"daily", "backfill"})
"""No backfill's key: commands take `daily` for the schedule."""
CAMPAIGN = re.compile(r"[A-Za-z0-9._-]{1,64}")


def daily_partition(day: date) -> str:
    """Returns the key of a daily run: `daily:2026-11-23`."""
    return f"{DAILY_PREFIX}{day.isoformat()}"


def backfill_partition(day: date, backfill_days: int, campaign: str | None) -> str:
    """Returns the key of a backfill: `backfill:2026-11-23:30d`, or `backfill:2026-11-23:30d:campaign`."""
    suffix = "" if campaign is None else f":{campaign}"
    return f"backfill:{day.isoformat()}:{backfill_days}d{suffix}"


def is_daily(partition_key: str) -> bool:
    """Whether a valid key is that of a daily run."""
    return partition_key.startswith(DAILY_PREFIX)


def daily_date(partition_key: str) -> date:
    """The day of a daily run's key. Raises ValueError if it is not such a key."""
    return date.fromisoformat(partition_key.removeprefix(DAILY_PREFIX))


def check_key(value: object) -> str:
    """Returns `value` if it is the key of a partition, daily or not. Raises ValueError with the reason."""
    if not isinstance(value, str) or not PARTITION_KEY.fullmatch(value):
        raise ValueError("is not a valid partition key")
    return value


def check_backfill_key(value: object) -> str:
    """Returns `value` if a backfill may have this key. Raises ValueError with the reason."""
    if isinstance(value, str) and value.startswith(DAILY_PREFIX):
        raise ValueError("belongs to the daily run")
    if value in RESERVED:
        raise ValueError("is reserved")
    return check_key(value)


def check_campaign(value: str) -> str:
    """Returns `value` if it may end the key of a backfill. Raises ValueError with the reason."""
    if not CAMPAIGN.fullmatch(value):
        raise ValueError("is not a valid campaign name")
    return value
