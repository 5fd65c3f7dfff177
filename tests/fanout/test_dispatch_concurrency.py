"""DISPATCH_CONCURRENCY: several dispatchers of one run at once, each a `scheduler.dispatch` task."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from itertools import islice
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from tests.support.command_line import Outcome
from tests.support.contexts import HandedClock, Requests, context_at
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.processes import started, worker_of
from tests.support.users import make_users
from worker_scheduler.clock import utc_now
from worker_scheduler.config.options import DailyOptions, parse_daily, require_partition_key
from worker_scheduler.errors import BadInput
from worker_scheduler.fanout import extra_dispatcher, tick
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.fanout.planner import Planner
from worker_scheduler.fanout.report import Report
from worker_scheduler.ledger import runs
from worker_scheduler.ledger.runs import NewRun
from worker_scheduler.ledger.tables import Kind
from worker_scheduler.publisher import GroupMessage

ROOT = Path(__file__).resolve().parents[2]
DAY = "2026-11-23"
KEY = f"daily:{DAY}"
USERS = 400

Scheduler = Callable[..., Outcome]


@pytest.fixture
def options() -> DailyOptions:
    return parse_daily({"date": DAY})


@pytest.fixture
def four(deployed: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[TickContext]:
    monkeypatch.setenv("DISPATCH_CONCURRENCY", "4")
    monkeypatch.setenv("ENQUEUE_BATCH_SIZE", "5")
    monkeypatch.setenv(
        "ENQUEUE_SLEEP_SECONDS", "0.001"
    )  # otherwise one dispatcher takes thousands of jobs at once
    with context_at(utc_now) as context:
        yield context


def test_a_run_is_shared_and_nothing_else_changes(
    four: TickContext, ledger: Ledger, broker: Broker, options: DailyOptions
) -> None:
    make_users(ledger.url, USERS)
    with ThreadPoolExecutor(3) as threads, ExitStack() as stack:
        others = []

        class Threads(Requests):
            """Extra dispatchers that are threads of this process."""

            def request_extra(self, partition_key: str, number: int) -> None:
                for _ in range(number):
                    other = stack.enter_context(context_at(utc_now))
                    others.append(
                        threads.submit(extra_dispatcher.dispatch, other, partition_key, "no handover")
                    )

        report = tick.daily(replace(four, dispatcher_requests=Threads()), options)
        extra = [other.result(60) for other in others]
    assert len(extra) == 3
    assert sum(other.batches for other in extra) + report.batches == USERS // 5
    assert sum(other.batches for other in extra) > 0
    assert (report.outcome, report.jobs_enqueued, report.enqueue_failures) == ("enqueued", USERS, 0)
    messages = broker.messages("daily")
    assert sorted(message.task_id for message in messages) == [str(job["job_id"]) for job in ledger.jobs()]
    assert ledger.value("SELECT state FROM sync_runs") == "ENQUEUED"


@pytest.mark.slow
def test_workers_of_the_queue_scheduler_dispatch_too(
    scheduler: Scheduler,
    ledger: Ledger,
    broker: Broker,
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_users(ledger.url, USERS)
    shared = {"DISPATCH_CONCURRENCY": "3", "ENQUEUE_SLEEP_SECONDS": "0.05", "ENQUEUE_BATCH_SIZE": "5"}
    for name, value in shared.items():
        monkeypatch.setenv(name, value)
    logs = [tmp_path / f"{name}.log" for name in ("one", "two")]
    with ExitStack() as stack:
        for log in logs:
            worker = worker_of(environment | shared, log, "scheduler", "-n", f"{log.stem}@%h")
            stack.enter_context(started(worker)).wait_for_log("ready.")
        report = scheduler("daily", "--date", DAY, "--json").report
    assert (report["jobs_inserted"], report["jobs_enqueued"]) == (USERS, USERS)
    assert report["batches"] < USERS // 5
    assert broker.counts() == {"daily": USERS}
    assert all("batch enqueued" in log.read_text() for log in logs)


def test_by_default_no_extra_dispatcher_is_asked_for(
    scheduler: Scheduler, ledger: Ledger, broker: Broker
) -> None:
    make_users(ledger.url, 3)
    assert scheduler("daily", "--date", DAY).status == 0
    assert broker.counts() == {"daily": 3}


def test_a_tick_with_nothing_to_dispatch_asks_for_no_dispatcher(
    four: TickContext, ledger: Ledger, options: DailyOptions
) -> None:
    requests = Requests()
    context = replace(four, dispatcher_requests=requests)
    make_users(ledger.url, USERS)
    assert tick.daily(context, options).jobs_enqueued == USERS
    assert requests.extra == [(KEY, 3)]
    assert tick.daily(context, options).outcome == "nothing_to_do"
    assert requests.extra == [(KEY, 3)]


def test_a_batch_of_a_dispatcher_that_died_is_dispatched_by_the_tick(
    deployed: None, ledger: Ledger, broker: Broker, options: DailyOptions
) -> None:
    make_users(ledger.url, USERS)
    clock = HandedClock()
    settings = {"dispatch_concurrency": 2, "enqueue_batch_size": 5}

    class DyingDispatcher(Requests):
        """An extra dispatcher that claims a batch and dies."""

        def request_extra(self, partition_key: str, number: int) -> None:
            until = clock.now + timedelta(seconds=20)
            ledger.execute(
                f"UPDATE sync_batches SET claimed_by = gen_random_uuid(), claimed_until = '{until}'"
                " WHERE number = 0"
            )

    with context_at(clock, **settings) as context:
        dying = replace(
            context,
            dispatcher_requests=DyingDispatcher(),
            pause=lambda _: clock.forward(timedelta(seconds=5)),
        )
        report = tick.daily(dying, options)
    assert (report.outcome, report.jobs_enqueued) == ("enqueued", USERS)
    assert broker.count("daily") == USERS


class Overtaken:
    """A publisher whose first batches another dispatcher takes over just after they are published."""

    repeatable = True

    def __init__(self, context: TickContext, overtake: Callable[[], object]) -> None:
        self._context = context
        self._overtake: Callable[[], object] | None = overtake

    def publish(self, groups: Sequence[GroupMessage]) -> list[UUID | None]:
        epochs = self._context.publisher.publish(groups)
        overtake, self._overtake = self._overtake, None
        if overtake is not None:
            overtake()
        return epochs


def test_a_batch_that_was_taken_over_is_counted_once(
    deployed: None, ledger: Ledger, broker: Broker, options: DailyOptions
) -> None:
    make_users(ledger.url, 25)
    clock = HandedClock()
    others: list[Report] = []

    def overtake() -> None:
        clock.forward(timedelta(seconds=45))
        others.append(dispatched_by_an_extra(context))

    with context_at(clock) as context:
        slow = replace(context, publisher=Overtaken(context, overtake))
        report = tick.daily(slow, options)
    assert sum(one.jobs_enqueued for one in [report, *others]) == broker.count("daily") == 25
    assert others[0].jobs_enqueued > 0


def dispatched_by_an_extra(context: TickContext) -> Report:
    return extra_dispatcher.dispatch(context, KEY, "no handover")


def test_an_extra_dispatcher_finds_nothing_left(
    four: TickContext, ledger: Ledger, options: DailyOptions
) -> None:
    assert dispatched_by_an_extra(four).outcome == "nothing_to_do"
    make_users(ledger.url, 10)
    tick.daily(four, options)
    assert dispatched_by_an_extra(four).outcome == "nothing_to_do"


def test_an_extra_dispatcher_does_not_wait_for_a_dead_planner(
    deployed: None, ledger: Ledger, broker: Broker
) -> None:
    make_users(ledger.url, 25)
    clock = HandedClock()
    with context_at(clock) as context:
        new = NewRun(uuid4(), KEY, Kind.DAILY, "scheduler.daily", None, None, "a tick that died", None)
        with context.database.transaction() as connection:
            run = runs.open_run(connection, new, clock(), clock() + timedelta(seconds=45))
        assert run is not None
        list(islice(Planner(context.database, context.relation, clock).chunks(run, batch_size=10), 1))
        # Each look for more batches brings the end of the planner's lease nearer.
        waiting = replace(context, pause=lambda _: clock.forward(timedelta(seconds=20)))
        report = dispatched_by_an_extra(waiting)
    assert (report.outcome, report.jobs_enqueued) == ("enqueued", 10)
    assert broker.count("daily") == 10
    assert ledger.value("SELECT state FROM sync_runs") == "PLANNING"


@pytest.mark.parametrize("key", ["", "a b", "k" * 201, None, 3])
def test_a_bad_key_is_refused(key: object) -> None:
    with pytest.raises(BadInput, match="partition_key="):
        require_partition_key(key)
