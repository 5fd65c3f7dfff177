"""A heartbeat continues through outages, and stops when its lease is lost."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from tests.support.waiting import wait_until
from worker_scheduler.errors import StoreUnavailable
from worker_scheduler.leases import Renewal, SharedHeartbeat, heartbeat
from worker_scheduler.ledger.database import Database


def test_it_renews_until_its_holder_is_done() -> None:
    renewals: list[None] = []

    def renew() -> bool:
        renewals.append(None)
        return True

    with heartbeat(renew, 0.01, "test"):
        wait_until(lambda: len(renewals) >= 3, 10, "three renewals")
    assert "test" not in {thread.name for thread in threading.enumerate()}


def test_it_survives_an_outage() -> None:
    answers = [StoreUnavailable("away"), StoreUnavailable("still away"), None]
    renewals: list[None] = []

    def renew() -> bool:
        if answers and (outage := answers.pop(0)):
            raise outage
        renewals.append(None)
        return True

    with heartbeat(renew, 0.01, "test"):
        wait_until(lambda: len(renewals) >= 2, 10, "renewals after the outage")


def test_it_stops_when_the_lease_is_lost() -> None:
    renewals: list[None] = []

    def renew() -> bool:
        renewals.append(None)
        return False

    with heartbeat(renew, 0.01, "test"), heartbeat(lambda: True, 0.01, "another"):
        wait_until(lambda: renewals, 10, "the first renewal")
    assert len(renewals) == 1


def test_one_thread_renews_all_leases_while_their_blocks_run() -> None:
    before = set(threading.enumerate())  # other heartbeats of this process among them
    renewals: list[str] = []

    def renew(held: Sequence[str]) -> Renewal[str]:
        renewals.extend(held)
        return Renewal(lost=["lost"])

    shared = SharedHeartbeat(renew, 0.01)
    with shared.keep("a", "a"):
        with shared.keep("b", "b"), shared.keep("lost", "c"):
            wait_until(
                lambda: renewals.count("a") >= 3 and renewals.count("b") >= 3, 10, "three renewals of each"
            )
        ended = len(renewals)
        wait_until(lambda: len(renewals) >= ended + 3, 10, "renewals of the one that is left")
    assert set(renewals[ended + 1 :]) == {"a"}  # one of the others may have been under way
    assert renewals.count("lost") == 1
    assert [thread.name for thread in set(threading.enumerate()) - before] == ["shared heartbeat"]


def test_a_lease_that_is_held_up_is_tried_again_before_the_next_heartbeat() -> None:
    renewals: list[Sequence[str]] = []

    def renew(held: Sequence[str]) -> Renewal[str]:
        renewals.append(sorted(held))
        return Renewal(held_up=["b"])

    shared = SharedHeartbeat(renew, 0.4)
    with shared.keep("a", "a"), shared.keep("b", "b"):
        wait_until(lambda: renewals.count(["a", "b"]) >= 2, 10, "two heartbeats")
    first, second = (at for at, held in enumerate(renewals) if held == ["a", "b"])
    assert first == 0
    assert renewals[first + 1 : second] == [["b"]] * (second - 1)
    assert second > 1


def test_a_heartbeat_that_took_too_long_is_followed_by_the_next_one_at_once() -> None:
    """What it has written may be as old as it."""
    began: list[float] = []

    def renew() -> bool:
        began.append(time.monotonic())
        if len(began) == 1:
            time.sleep(1.2)
        return True

    with heartbeat(renew, 1.0, "test"):
        wait_until(lambda: len(began) >= 2, 10, "the second one")
    assert began[1] - began[0] < 1.7


def test_waiting_too_long_for_a_connection_is_an_outage(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stalled Postgres holds every connection; a heartbeat that finds none free must try again."""
    database = Database(database_url.replace("postgresql:", "postgresql+psycopg:"), size=1)
    monkeypatch.setattr(database._engine.pool, "_timeout", 0.05)

    def ask() -> int:
        with database.autocommit() as connection:
            return int(connection.execute(text("SELECT 1")).scalar_one())

    with (
        database.autocommit(),
        ThreadPoolExecutor() as thread,
        pytest.raises(StoreUnavailable, match="none of 1 connections became free"),
    ):
        thread.submit(ask).result(30)
    assert ask() == 1
    database.dispose()
