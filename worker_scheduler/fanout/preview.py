"""Preview: what a tick would do, by classes of users, how long it would take, and its plan token."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import Connection

from worker_scheduler.config.options import TickOptions
from worker_scheduler.config.settings import Settings
from worker_scheduler.errors import Refused
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.fanout.selection import Caps, Selection
from worker_scheduler.ledger import batches, runs
from worker_scheduler.ledger.preview import classes
from worker_scheduler.ledger.runs import NewRun
from worker_scheduler.ledger.tables import Kind
from worker_scheduler.plan_token import PlanToken


@dataclass(frozen=True)
class Preview:
    """What a tick would do.

    would_create, exist, in_flight: of the selected users, those without a job in the partition, with a
    final one, and with one that is not final. would_enqueue: new jobs, and those that are not sent yet.
    unknown: named users who do not exist. over_cap: how many more users are selected than may be.
    pacing_seconds: the pauses between batches. rate_seconds: how long workers take at the rate that was
    measured; None if none was.
    """

    would_create: int
    would_enqueue: int
    exist: int
    in_flight: int
    unknown: int
    over_cap: int
    pacing_seconds: float
    rate_seconds: float | None
    token: PlanToken

    def as_json(self) -> dict[str, Any]:
        """As it is printed with --json, beside would_enqueue."""
        fields = {**vars(self), "token": str(self.token)}
        del fields["would_enqueue"]
        return fields


def foresee(
    context: TickContext,
    connection: Connection,
    new: NewRun,
    options: TickOptions,
    selected: Selection,
    caps: Caps,
) -> Preview:
    """Counts what the tick of `new` would do, in the transaction in which its users are selected."""
    run = runs.get(connection, new.partition_key)
    run_id = None if run is None else run.run_id
    found = classes(
        connection,
        selected.identity,
        context.relation,
        new.partition_key,
        run_id,
        on_page=partial(context.pause, 0),
    )
    unsent = 0 if run_id is None else batches.unsent_jobs(connection, run_id)
    would_enqueue = found.without_job + unsent
    unknown = selected.unknown.total + selected.unknown_excluded.total
    return Preview(
        would_create=found.without_job,
        would_enqueue=would_enqueue,
        exist=found.final,
        in_flight=found.in_flight,
        unknown=unknown,
        over_cap=caps.exceeded_by(selected.total),
        pacing_seconds=_pacing_seconds(would_enqueue, options, context.settings),
        rate_seconds=_rate_seconds(connection, new.kind, would_enqueue, context.clock()),
        token=PlanToken(
            created=found.without_job,
            existing=found.in_flight + found.final,
            unknown=unknown,
            request=_digest(f"{new.partition_key} {new.backfill_days}")[:8],
            users=found.digest[:16],
        ),
    )


def refuse_changed_plan(expected: PlanToken, now: PlanToken, allowed_drift: int) -> None:
    """Raises Refused if the plan is another one than was expected.

    allowed_drift: by how much the counts may differ in all; 0: the users must be the same, too.
    """
    if expected.request != now.request:
        raise Refused(
            "--expect-plan is the token of another partition or another --backfill-days:"
            " make a dry run of this one"
        )
    drift = expected.drift(now)
    if expected == now or 0 < allowed_drift >= drift:
        return
    named = (
        ("would be created", expected.created, now.created),
        ("have a job", expected.existing, now.existing),
        ("unknown", expected.unknown, now.unknown),
    )
    counts = ", ".join(f"{name} {old} then and {new} now" for name, old, new in named)
    raise Refused(
        f"the selection has changed since the dry run: {counts}{'' if drift else ', but other users'}:"
        f" make another dry run, or accept it with --allow-drift {max(1, drift)}"
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _pacing_seconds(job_count: int, options: TickOptions, settings: Settings) -> float:
    given = options.enqueue_sleep_seconds
    sleep_seconds = settings.enqueue_sleep_seconds if given is None else given
    batch_size = options.enqueue_batch_size or settings.enqueue_batch_size
    return max(0, math.ceil(job_count / batch_size) - 1) * sleep_seconds


def _rate_seconds(connection: Connection, kind: Kind, job_count: int, now: datetime) -> float | None:
    rate = _jobs_per_second(connection, kind, now)
    return job_count / rate if rate else None


def _jobs_per_second(_connection: Connection, _kind: Kind, _now: datetime) -> float | None:
    """The measured rate. None until samples of runs are taken: then it is the answer of
    `jobs_per_second(connection, kind, now)` of the ledger's module of samples.
    """
    return None
