"""The watchdog: when it starts a pass, how many at once, and how they end."""

import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

import psutil
import pytest

from tests.support.contexts import INSTANT, HandedClock, context_at
from tests.support.ledger import Ledger
from tests.support.processes import alive
from tests.support.waiting import wait_until
from worker_scheduler import logs
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.ledger.database import Database
from worker_scheduler.maintenance import reconciler, watchdog
from worker_scheduler.maintenance.watchdog import OVERDUE_INTERVALS, Watchdog

INTERVAL = timedelta(seconds=60)
OVERDUE = INTERVAL * OVERDUE_INTERVALS
WAITS = "import time; time.sleep(600)"
ENDS = "pass"


@pytest.fixture
def clock() -> HandedClock:
    return HandedClock()


@pytest.fixture
def context(deployed: None, clock: HandedClock) -> Iterator[TickContext]:
    with context_at(clock) as context:
        yield context


def own_children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if alive(child) and WAITS in child.cmdline()]


@pytest.fixture
def dog(context: TickContext, clock: HandedClock) -> Iterator[Callable[[str], Watchdog]]:
    """A watchdog whose passes are processes that run this code."""

    def make(code: str) -> Watchdog:
        def command(_: datetime) -> list[str]:
            return [sys.executable, "-c", code]

        return Watchdog(context.database, clock, INTERVAL, command)

    yield make
    for child in own_children():
        child.kill()


def begun(ledger: Ledger) -> datetime | None:
    rows = ledger.rows("SELECT begun_at FROM sync_passes WHERE name = 'reconcile'")
    return rows[0]["begun_at"] if rows else None


@pytest.mark.parametrize(("since", "starts"), [(OVERDUE, True), (OVERDUE - INSTANT, False)])
def test_a_pass_is_overdue_one_and_a_half_intervals_after_the_last_one(
    since: timedelta,
    starts: bool,
    dog: Callable[[str], Watchdog],
    context: TickContext,
    clock: HandedClock,
    ledger: Ledger,
) -> None:
    assert reconciler.reconcile_if_due(context) is not None
    clock.forward(since)
    dog(ENDS).look()
    assert (begun(ledger) == clock.now) == starts


def test_the_pass_of_a_watchdog_counts_as_the_last_one(
    dog: Callable[[str], Watchdog], context: TickContext, clock: HandedClock, ledger: Ledger
) -> None:
    first = clock.now
    dog(ENDS).look()
    assert begun(ledger) == first
    dog(ENDS).look()
    assert reconciler.reconcile_if_due(context) is None
    clock.forward(OVERDUE - INSTANT)
    dog(ENDS).look()
    assert begun(ledger) == first
    assert reconciler.reconcile_if_due(context) is not None


def test_beside_two_passes_that_take_long_no_third_one_is_started(
    dog: Callable[[str], Watchdog], clock: HandedClock, ledger: Ledger
) -> None:
    watching = dog(WAITS)
    for number in range(4):
        watching.look()
        assert len(own_children()) == min(number + 1, 2)
        clock.forward(OVERDUE)
    own_children()[0].kill()
    wait_until(lambda: len(own_children()) == 1, 10, "the end of one")
    watching.look()
    assert len(own_children()) == 2


def test_a_pass_that_takes_too_long_is_cut_off(
    dog: Callable[[str], Watchdog], clock: HandedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching = dog(WAITS)
    watching.look()
    watching.look()
    (child,) = own_children()
    monkeypatch.setattr(watchdog, "_LONGEST_PASS_SECONDS", 0.0)
    watching.look()
    wait_until(lambda: not alive(child), 10, "its end")


def test_the_end_of_the_block_ends_the_passes_at_once(
    dog: Callable[[str], Watchdog], monkeypatch: pytest.MonkeyPatch
) -> None:
    watching = dog(WAITS)
    watching.interval = timedelta(seconds=0.1)
    with watching.watching():
        (child,) = wait_until(own_children, 20, "a pass")
        left = time.monotonic()
    assert not alive(child)
    assert time.monotonic() - left < 5


def test_the_end_of_the_block_does_not_wait_for_postgres(
    dog: Callable[[str], Watchdog], ledger: Ledger
) -> None:
    watching = dog(ENDS)
    watching.interval = timedelta(seconds=0.1)
    with ledger.locked("sync_passes"):
        with watching.watching():
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            wait_until(lambda: ledger.value(waiting), 20, "a look that waits")
            left = time.monotonic()
        assert time.monotonic() - left < 5


def test_a_worker_that_stops_starts_no_more_passes(
    dog: Callable[[str], Watchdog], ledger: Ledger, clock: HandedClock
) -> None:
    watching = dog(WAITS)
    watching.look()
    first = begun(ledger)
    watching.start_no_more()
    clock.forward(OVERDUE)
    watching.look()
    assert begun(ledger) == first
    assert len(own_children()) == 1


def test_an_outage_is_one_line_and_the_next_look_tries_again(
    dog: Callable[[str], Watchdog], ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    logs.configure("INFO")
    watching = dog(ENDS)
    reachable = watching.database
    watching.database = Database("postgresql+psycopg://nobody@127.0.0.1:1/nothing")
    for _ in range(3):
        watching.look()
    watching.database = reachable
    watching.look()
    lines = [record.getMessage() for record in caplog.records if "cannot look" in record.getMessage()]
    assert len(lines) == 1
    assert "127.0.0.1:1" in lines[0]
    assert begun(ledger) is not None


def test_a_process_that_cannot_be_started_does_not_end_the_watchdog(
    dog: Callable[[str], Watchdog], clock: HandedClock, ledger: Ledger
) -> None:
    watching = dog(ENDS)
    watching.command = lambda _: ["/nothing/here"]
    watching.look()
    clock.forward(OVERDUE)
    watching.look()
    assert begun(ledger) == clock.now
