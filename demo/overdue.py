"""Makes the daily tick overdue, as after two days without a Beat, so that Beat sends it when it starts.

This writes only RedBeat's entry. Beat itself finds that a slot has passed, and sends the tick.
"""

from datetime import UTC, datetime, timedelta

from redbeat import RedBeatSchedulerEntry

from worker_scheduler import app
from worker_scheduler.celery_app import DAILY_TICK_ENTRY


def main() -> None:
    """Writes the entry of the daily tick as Beat would, but with a last run two days ago."""
    definition = app.conf.beat_schedule[DAILY_TICK_ENTRY]
    entry = RedBeatSchedulerEntry(name=DAILY_TICK_ENTRY, app=app, **definition)
    entry.last_run_at = datetime.now(UTC) - timedelta(days=2)
    entry.save()


if __name__ == "__main__":
    main()
