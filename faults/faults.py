"""Defines a fault, and chooses which faults a run plays, in which order. The seed decides all of it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import date, timedelta
from enum import StrEnum

from faults.proxy import Way

USERS_PER_FAULT = 40
DEFAULT_FAULTS = 400
FEWEST_FAULTS = 350
"""A run of DEFAULT_FAULTS or more fails if fewer faults than this have struck."""
_FIRST_DAY = date(2000, 1, 1)


class Kind(StrEnum):
    """The kinds of faults; docs/faults.md has a line for each."""

    TICK = "tick, at a command"
    GROUP_TICK = "tick with PUBLISHER=group, at a command"
    RECONCILE = "reconcile, at a command"
    RANDOM_TICK = "tick killed at a random time"
    RANDOM_RECONCILE = "reconciler killed at a random time"
    HERD = "ten ticks at once"
    LOCKLESS_HERD = "ten ticks at once, locks off"
    BUSY_WORKER = "worker killed while it runs a job"
    IDLE_WORKER = "worker killed while it waits"
    RESTART = "Postgres restarted"
    FLUSH = "Redis flushed"
    STALL = "Postgres and Redis stalled"
    FULL = "Redis full"
    HELD = "sync_jobs locked"
    AWAY = "Postgres away for longer than a lease"
    OLDER_DATA = "Redis restarted from older data, under load"
    WRONG_CLOCK = "a host whose clock is wrong"
    BROKEN_VIEW = "a run that cannot be planned, Redis flushed"
    SILENT_BROKER = "RabbitMQ takes no messages"
    BAD_HANDLER = "handlers that hang, break or lie"
    STUBBORN_HANDLER = "handlers that do not stop, or fail again"
    BEAT = "Beat killed"


STEPS = (Kind.TICK, Kind.GROUP_TICK, Kind.RECONCILE)
ANYWHERE = (*STEPS, Kind.RANDOM_TICK, Kind.RANDOM_RECONCILE, Kind.HERD, Kind.LOCKLESS_HERD)
"""Faults that do not touch servers or workers, so that several lanes can play them in parallel."""

_FIXED = {
    Kind.RANDOM_TICK: 12,
    Kind.RANDOM_RECONCILE: 12,
    Kind.HERD: 6,
    Kind.LOCKLESS_HERD: 6,
    Kind.BUSY_WORKER: 12,
    Kind.IDLE_WORKER: 6,
    Kind.RESTART: 6,
    Kind.FLUSH: 6,
    Kind.STALL: 6,
    Kind.FULL: 6,
    Kind.HELD: 6,
    Kind.AWAY: 6,
    Kind.OLDER_DATA: 4,
    Kind.WRONG_CLOCK: 12,
    Kind.BROKEN_VIEW: 4,
    Kind.SILENT_BROKER: 6,
    Kind.BAD_HANDLER: 20,
    Kind.STUBBORN_HANDLER: 3,
    Kind.BEAT: 3,
}


@dataclass(frozen=True)
class Fault:
    """One fault, which no other shares its partition or users with. `seed` decides what is random in it."""

    number: int
    kind: Kind
    seed: int
    way: Way | None = None
    step: int | None = None

    @property
    def day(self) -> date:
        return _FIRST_DAY + timedelta(days=self.number)

    @property
    def partition_key(self) -> str:
        return f"daily:{self.day}"

    @property
    def first_user(self) -> int:
        return self.number * USERS_PER_FAULT

    def __str__(self) -> str:
        where = "" if self.step is None else f", {self.way}, step {self.step}"
        return f"fault {self.number} ({self.kind}{where})"


def choose(
    seed: int,
    count: int,
    steps: dict[Kind, int],
    only: frozenset[Kind] | None,
    without: frozenset[Kind] = frozenset(),
) -> list[Fault]:
    """Returns the faults of a run, in order.

    steps: how many commands an undisturbed tick or pass sends. only: play only these kinds. without: these
    cannot be played here; others take their places.

    A run always kills a tick before and after each of its commands. The faults at other commands, and
    the other ways (cut, stall), are chosen at random until there are `count` faults.
    """
    chance = random.Random(seed)
    wanted: list[tuple[Kind, Way | None, int | None]] = [
        (kind, None, None) for kind, number in _FIXED.items() if kind not in without for _ in range(number)
    ]
    every = [(kind, way, step + 1) for kind in STEPS for way in Way for step in range(steps[kind])]
    always = [one for one in every if one[0] is Kind.TICK and one[1] in {Way.KILL_BEFORE, Way.KILL_AFTER}]
    others = [one for one in every if one not in set(always)]
    chance.shuffle(others)
    wanted += [*always, *others[: max(0, count - len(wanted) - len(always))]]
    if only is not None:
        wanted = [one for one in [*wanted, *others] if one[0] in only]
        chance.shuffle(wanted)
        wanted = wanted[:count]
    chance.shuffle(wanted)
    return [
        Fault(number, kind, chance.getrandbits(32), way, step)
        for number, (kind, way, step) in enumerate(wanted)
    ]
