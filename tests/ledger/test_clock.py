"""The ledger's clock is that of Postgres, whatever a host's clock says and however times are written."""

import logging
import re
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
from freezegun import freeze_time
from sqlalchemy import Connection
from sqlalchemy.engine import make_url

from tests.support.command_line import Outcome
from tests.support.ledger import Ledger
from tests.support.proxy import Proxy
from tests.support.users import make_users
from worker_scheduler import logs
from worker_scheduler.clock import refresh, utc_now
from worker_scheduler.errors import StoreUnavailable
from worker_scheduler.ledger import clock as ledger_clock
from worker_scheduler.ledger.clock import HostWatch, LedgerClock
from worker_scheduler.ledger.database import Database

MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
CLOSE = timedelta(seconds=5)
"""Postgres runs on this host, so the two differ by the time of a few statements."""


class Ticking:
    """The clocks of a host that a test moves: the monotonic one in seconds, the other by the same time."""

    def __init__(self, ahead: timedelta = timedelta(0)) -> None:
        self.seconds = 1000.0
        self.started = datetime.now(UTC) + ahead

    def monotonic(self) -> float:
        return self.seconds

    def host(self) -> datetime:
        return self.started + timedelta(seconds=self.seconds - 1000)


class Asked:
    """Counts the questions to Postgres, and can let each take a time by the test's clock."""

    def __init__(self, ticking: Ticking) -> None:
        self.times = 0
        self.takes = 0.0
        self.answer: datetime | None = None
        self._ticking = ticking
        self._now = ledger_clock.now

    def __call__(self, connection: Connection) -> datetime:
        self.times += 1
        said = self._now(connection)
        self._ticking.seconds += self.takes
        return self.answer or said


@pytest.fixture
def ticking() -> Ticking:
    return Ticking()


@pytest.fixture
def asked(ticking: Ticking, monkeypatch: pytest.MonkeyPatch) -> Asked:
    counting = Asked(ticking)
    monkeypatch.setattr(ledger_clock, "now", counting)
    return counting


@pytest.fixture
def make_database() -> Iterator[Callable[[str], Database]]:
    made: list[Database] = []

    def make(url: str) -> Database:
        made.append(Database(url.replace("postgresql:", "postgresql+psycopg:", 1), size=1))
        return made[-1]

    yield make
    for database in made:
        database.dispose()


@pytest.fixture
def database(make_database: Callable[[str], Database], database_url: str) -> Database:
    return make_database(database_url)


@pytest.fixture
def clock(database: Database, ticking: Ticking) -> LedgerClock:
    return LedgerClock(database, ask_every_seconds=10, host=ticking.host, monotonic=ticking.monotonic)


@pytest.mark.parametrize("ahead", [30 * DAY, 5 * MINUTE, -5 * MINUTE, -400 * DAY])
def test_the_time_is_that_of_postgres_on_a_host_with_another_clock(
    ahead: timedelta, database: Database
) -> None:
    clock = LedgerClock(database, ask_every_seconds=10, host=lambda: utc_now() + ahead)
    assert abs(clock() - utc_now()) < CLOSE
    assert clock().tzinfo is UTC
    assert abs(clock.host_ahead_seconds - ahead.total_seconds()) < CLOSE.total_seconds()


@pytest.mark.parametrize("style", ["SQL, DMY", "German", "Postgres, MDY", "ISO, YMD"])
@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "UTC"])
def test_no_date_style_and_no_time_zone_of_the_database_changes_the_time(
    style: str, zone: str, ledger: Ledger, make_database: Callable[[str], Database]
) -> None:
    name = make_url(ledger.url).database
    ledger.execute(
        f"ALTER DATABASE \"{name}\" SET datestyle = '{style}'",
        f"ALTER DATABASE \"{name}\" SET timezone = '{zone}'",
        f'ALTER DATABASE "{name}" SET extra_float_digits = -15',
    )
    clock = LedgerClock(make_database(ledger.url), ask_every_seconds=10)
    assert abs(clock() - utc_now()) < CLOSE


def test_it_asks_once_and_counts_on(clock: LedgerClock, asked: Asked, ticking: Ticking) -> None:
    first = clock()
    ticking.seconds += 3600
    assert clock() - first == timedelta(hours=1)
    assert asked.times == 1


def test_it_asks_again_when_its_answer_is_old(clock: LedgerClock, asked: Asked, ticking: Ticking) -> None:
    clock()
    ticking.seconds += 9.9
    refresh(clock)
    assert asked.times == 1
    ticking.seconds += 0.1
    for _ in range(3):
        refresh(clock)
    assert asked.times == 2


def test_after_a_suspension_it_asks_again_at_once(
    clock: LedgerClock, asked: Asked, ticking: Ticking
) -> None:
    """A monotonic clock stands still while the machine is suspended; the host's clock does not."""
    first = clock()
    ticking.seconds += 1
    ticking.started += timedelta(hours=8)
    asked.answer = first + timedelta(hours=8)
    refresh(clock)
    assert asked.times == 2
    assert clock() == asked.answer


def test_an_old_answer_is_corrected_even_if_both_clocks_stood_still(
    clock: LedgerClock, asked: Asked, ticking: Ticking
) -> None:
    first = clock()
    ticking.seconds += 10
    asked.answer = first + timedelta(hours=8)
    refresh(clock)
    assert clock() == asked.answer


@pytest.mark.parametrize("off", [timedelta(hours=-1), timedelta(hours=1)])
def test_a_step_of_the_servers_clock_is_followed(
    off: timedelta, clock: LedgerClock, asked: Asked, ticking: Ticking
) -> None:
    first = clock()
    ticking.seconds += 10
    asked.answer = first + off
    refresh(clock)
    assert clock() == first + off


def test_the_first_answer_counts_for_the_middle_of_its_round_trip(clock: LedgerClock, asked: Asked) -> None:
    asked.answer, asked.takes = datetime(2026, 11, 23, tzinfo=UTC), 0.4
    assert clock() == asked.answer + timedelta(seconds=0.2)


def test_a_slow_answer_does_not_replace_a_count_that_it_allows(
    clock: LedgerClock, asked: Asked, ticking: Ticking
) -> None:
    """Postgres took 8 s to answer, and the count lies somewhere within them."""
    first = clock()
    ticking.seconds += 10
    asked.takes, asked.answer = 8.0, first + timedelta(seconds=10.5)
    refresh(clock)
    assert asked.times == 2
    assert clock() - first == timedelta(seconds=18)


def test_it_counts_on_while_postgres_is_away(
    make_database: Callable[[str], Database], database_url: str, ticking: Ticking
) -> None:
    with Proxy(database_url, cut_after=10**9) as proxy:
        clock = LedgerClock(
            make_database(proxy.url),
            ask_every_seconds=10,
            host=ticking.host,
            monotonic=ticking.monotonic,
        )
        first = clock()
    ticking.seconds += 60
    refresh(clock)
    assert clock() - first == timedelta(seconds=60)


def test_without_a_first_answer_there_is_no_time(make_database: Callable[[str], Database]) -> None:
    clock = LedgerClock(make_database("postgresql://127.0.0.1:1/db"), ask_every_seconds=10)
    refresh(clock)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match=r"Postgres at 127\.0\.0\.1:1/db is unavailable"):
            clock()


def test_threads_that_call_at_once_ask_once(database: Database, asked: Asked) -> None:
    clock = LedgerClock(database, ask_every_seconds=10)
    seen: list[datetime] = []
    threads = [threading.Thread(target=lambda: seen.append(clock())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(seen) == 8
    assert asked.times == 1


@pytest.mark.parametrize(("ahead", "named"), [(2.5, 0), (2.6, 1), (-2.6, 1)])
def test_a_host_that_differs_is_named_once(
    ahead: float, named: int, caplog: pytest.LogCaptureFixture
) -> None:
    logs.configure("INFO")
    watch = HostWatch(2.5)
    for _ in range(3):
        watch(ahead)
    assert _warnings(caplog) == named
    watch(0.0)
    watch(ahead)
    assert _warnings(caplog) == 2 * named


def _warnings(caplog: pytest.LogCaptureFixture) -> int:
    said = [r for r in caplog.records if "this host's clock differs" in r.getMessage()]
    assert all(r.levelno == logging.WARNING for r in said)
    return len(said)


def test_jobs_cost_no_question_each(
    scheduler: Callable[..., Outcome], ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    from worker_scheduler.wiring import process_worker

    make_users(ledger.url, 20)
    assert scheduler("daily").status == 0
    asked = Asked(Ticking())
    monkeypatch.setattr(ledger_clock, "now", asked)
    for job in ledger.jobs():
        process_worker().run(job["job_id"], lambda _: None)
    assert ledger.states() == {"COMPLETED": 20}
    assert asked.times <= 2  # more than one only if the jobs take longer than an eighth of a lease


@pytest.mark.parametrize(
    ("ahead", "severity"), [(30 * DAY, "warn "), (-5 * MINUTE, "warn "), (timedelta(0), "ok   ")]
)
def test_check_warns_about_a_host_that_differs(
    ahead: timedelta, severity: str, scheduler: Callable[..., Outcome], ledger: Ledger
) -> None:
    make_users(ledger.url, 1)
    with freeze_time(datetime.now(UTC) + ahead, tick=True, ignore=["celery", "kombu", "redis"]):
        outcome = scheduler("check")
    assert outcome.status == 0, outcome
    said = re.search(
        r"^(.{5}) clock: this host .*?([\d.]+) s( ahead of| behind)?", outcome.stdout, re.MULTILINE
    )
    assert said is not None, outcome
    assert said[1] == severity
    assert abs(float(said[2]) - abs(ahead.total_seconds())) < CLOSE.total_seconds()
    sides = {30 * DAY: " ahead of", -5 * MINUTE: " behind"}
    assert said[3] == sides.get(ahead)
