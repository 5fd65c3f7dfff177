"""Slots: when the daily cron is due. The caller passes the time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from celery.schedules import crontab


@dataclass(frozen=True)
class Slot:
    """A point in time at which the cron says that the run of a local date is due."""

    due_at: datetime
    day: date


@dataclass(frozen=True)
class Calendar:
    """A cron in a time zone; the settings have checked both."""

    cron: str
    timezone: str

    def slots(self, after: datetime, until: datetime) -> list[Slot]:
        """The slots with after < due_at <= until, in the order of time. This defines what a slot is.

        A wall time that is skipped in spring counts as the time that is later by the length of the gap. A
        wall time that is repeated in autumn counts once, the first time. Celery's crontab does the same.
        """
        zone = ZoneInfo(self.timezone)
        fields = crontab.from_string(self.cron)
        day = after.astimezone(zone).date() - timedelta(days=1)
        last = until.astimezone(zone).date()
        found: set[Slot] = set()
        while day <= last:
            if _matches(fields, day):
                found.update(Slot(due_at=at, day=day) for at in _times(fields, day, zone))
            day += timedelta(days=1)
        return sorted((s for s in found if after < s.due_at <= until), key=lambda s: (s.due_at, s.day))

    def last_of_days(self, after: datetime, until: datetime) -> list[Slot]:
        """The last slot of each day, of those with after < due_at <= until, in the order of time.

        A cron of every minute has half a million slots per year. On a day with one UTC offset, the last
        wall time is the last slot. Only a day on which the offset changes, and the day of `until`, need a
        look at all their slots.
        """
        zone = ZoneInfo(self.timezone)
        fields = crontab.from_string(self.cron)
        last_time = time(max(fields.hour), max(fields.minute))
        day = after.astimezone(zone).date() - timedelta(days=1)
        end = until.astimezone(zone).date()
        found: list[Slot] = []
        while day <= end:
            if _matches(fields, day):
                at = datetime.combine(day, last_time, tzinfo=zone).astimezone(UTC)
                times = [at] if at <= until and _is_even(day, zone) else _times(fields, day, zone)
                in_bounds = [at for at in times if after < at <= until]
                if in_bounds:
                    found.append(Slot(due_at=max(in_bounds), day=day))
            day += timedelta(days=1)
        return sorted(found, key=lambda slot: (slot.due_at, slot.day))

    def latest(self, until: datetime) -> Slot | None:
        """The latest slot at or before `until`; None if the last eight years have none."""
        for days in (2, 32, 367, 8 * 366):  # 29 February may be eight years away
            slots = self.last_of_days(until - timedelta(days=days), until)
            if slots:
                return slots[-1]
        return None


def local_date(at: datetime, timezone: str) -> date:
    """The date in a time zone, an IANA name, at a point in time."""
    return at.astimezone(ZoneInfo(timezone)).date()


def _matches(fields: crontab, day: date) -> bool:
    return (
        day.month in fields.month_of_year
        and day.day in fields.day_of_month
        and day.isoweekday() % 7 in fields.day_of_week
    )


def _is_even(day: date, zone: ZoneInfo) -> bool:
    """Whether the UTC offset is the same at both ends of the day."""
    midnight = datetime.combine(day, time(), tzinfo=zone)
    return midnight.utcoffset() == (midnight + timedelta(days=1)).utcoffset()


def _times(fields: crontab, day: date, zone: ZoneInfo) -> Iterator[datetime]:
    for hour in fields.hour:
        for minute in fields.minute:
            # fold=0: the first of two equal wall times; in a gap the offset before it, so a later time.
            yield datetime.combine(day, time(hour, minute), tzinfo=zone).astimezone(UTC)
