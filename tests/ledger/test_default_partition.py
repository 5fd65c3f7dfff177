"""A run whose random id is in no month has its jobs in the default partition, and goes on there."""

from collections.abc import Callable

from tests.support.command_line import Outcome
from tests.support.contexts import HandedClock, context_at
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.months import add_runs_in_no_month, finish_all, places

Scheduler = Callable[..., Outcome]


def test_a_run_in_no_month_goes_on(ledger: Ledger, scheduler: Scheduler, broker: Broker) -> None:
    add_runs_in_no_month(ledger)
    assert places(ledger) == {"sync_jobs_monthless": 6}
    # Those without a job get one, and the unique index sees them all.
    report = scheduler("daily", "--date", "2026-11-23", "--json").report
    assert (report["outcome"], report["jobs_inserted"]) == ("enqueued", 3)
    assert len({job["user_id"] for job in ledger.jobs("daily:2026-11-23")}) == 6
    assert places(ledger) == {"sync_jobs_monthless": 9}
    with context_at(HandedClock()) as context:
        finish_all(context, ledger, HandedClock())
    assert ledger.states() == {"COMPLETED": 9}
