"""Faults of the application: handlers that hang, break or lie, for some of a run's users."""

from __future__ import annotations

from faults import bad_handlers, databases, handler, invariants
from faults.bad_handlers import LIMIT_SECONDS, MAX_ATTEMPTS, RETRY_ON
from faults.faults import USERS_PER_FAULT, Fault, Kind
from faults.lane import REPAIR_SECONDS, Broken, Lane
from tests.support.waiting import Overdue, wait_until

CONCURRENCY = 4
BAD_USERS = CONCURRENCY
"""So they may fill the pool, all at once."""
HANDLER_SECONDS = 0.05
SETTINGS = {
    handler.SECONDS: str(HANDLER_SECONDS),
    "JOB_TIMEOUT_SECONDS": str(LIMIT_SECONDS),
    "SYNC_MAX_ATTEMPTS": str(MAX_ATTEMPTS),
    "SYNC_RETRY_ON": RETRY_ON,
}
_JOBS_SECONDS = USERS_PER_FAULT * HANDLER_SECONDS
_LOST_SECONDS = 3.0 + 3.0 + LIMIT_SECONDS
"""Celery tells of a lost process after 2 to 3 s; a pass sends the message, which takes it 3 s at most."""
_GRACE_SECONDS = 30.0
"""From JobTimeout until a process is replaced; also the longest wait before a second attempt."""
BAD_REPAIR_SECONDS = _JOBS_SECONDS + MAX_ATTEMPTS * _LOST_SECONDS + REPAIR_SECONDS
STUBBORN_REPAIR_SECONDS = LIMIT_SECONDS + _GRACE_SECONDS + _LOST_SECONDS + BAD_REPAIR_SECONDS
"""While processes are held for so long, the other jobs may have to wait for one."""
REPAIR = {Kind.BAD_HANDLER: BAD_REPAIR_SECONDS, Kind.STUBBORN_HANDLER: STUBBORN_REPAIR_SECONDS}


def play(lane: Lane, fault: Fault) -> bool:
    """Gives some users of the fault bad handlers, which the seed chooses.

    Returns whether each of these handlers has begun. Raises Broken.
    """
    chance = lane.chance(fault)
    lane.prepare(fault)
    choice = bad_handlers.names(stubborn=fault.kind is Kind.STUBBORN_HANDLER)
    numbers = chance.sample(range(fault.first_user, fault.first_user + USERS_PER_FAULT), BAD_USERS)
    bad = dict(zip(numbers, chance.sample(choice, BAD_USERS), strict=True))
    databases.name_bad_handlers(lane.direct_url, fault.first_user, USERS_PER_FAULT, bad)
    lane.finish(fault, lane.tick(fault))
    jobs = invariants.bad_jobs(lane.direct_url, fault)
    if len(jobs) != BAD_USERS:
        raise Broken(f"{fault}: {len(jobs)} jobs of {BAD_USERS} bad handlers")

    def begun() -> bool:
        return jobs <= {entry.job_id for entry in handler.read(lane.record) if entry.what == "began"}

    try:
        return wait_until(begun, REPAIR[fault.kind], "the bad handlers", poll_seconds=0.1)
    except Overdue as overdue:
        raise Broken(f"{fault}: {overdue}; the worker serves nobody") from None
