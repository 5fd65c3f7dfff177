"""Times, settings and helpers of the tests about due days."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.support.ledger import Ledger
from worker_scheduler.fanout.context import TickContext

MIDNIGHT = datetime(2026, 11, 23, tzinfo=UTC)
SLOT = MIDNIGHT + timedelta(hours=2)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
INTERVAL = timedelta(seconds=60)


def deployed_at(ledger: Ledger, since: datetime) -> None:
    ledger.execute(f"UPDATE sync_origin SET since = '{since}'")


def given(context: TickContext, **settings: Any) -> TickContext:
    return replace(context, settings=context.settings.model_copy(update=settings))


def states(ledger: Ledger) -> dict[str, str]:
    rows = ledger.rows("SELECT partition_key, state FROM sync_runs ORDER BY partition_key")
    return {row["partition_key"].removeprefix("daily:2026-11-"): row["state"] for row in rows}
