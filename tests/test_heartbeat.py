"""A heartbeat goes on through outages, and ends when the lease is another's."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from tests.support.waiting import wait_until
from worker_scheduler.errors import StoreUnavailable
from worker_scheduler.heartbeat import Heart, beating
from worker_scheduler.ledger.database import Database


def test_it_beats_until_its_owner_is_done() -> None:
    beats: list[None] = []

    def renew() -> bool:
        beats.append(None)
        return True

    with beating(renew, 0.01, "test"):
        wait_until(lambda: len(beats) >= 3, 10, "three beats")
    assert "test" not in {thread.name for thread in threading.enumerate()}


def test_it_survives_an_outage() -> None:
    answers = [StoreUnavailable("away"), StoreUnavailable("still away"), None]
    beats: list[None] = []

    def renew() -> bool:
        if answers and (outage := answers.pop(0)):
            raise outage
        beats.append(None)
        return True

    with beating(renew, 0.01, "test"):
        wait_until(lambda: len(beats) >= 2, 10, "beats after the outage")


def test_it_ends_when_the_lease_is_anothers() -> None:
    beats: list[None] = []

    def renew() -> bool:
        beats.append(None)
        return False

    with beating(renew, 0.01, "test"), beating(lambda: True, 0.01, "another"):
        wait_until(lambda: beats, 10, "the first beat")
    assert len(beats) == 1


def test_one_heart_keeps_all_leases_and_none_for_longer() -> None:
    heart = Heart(0.01)
    before = set(threading.enumerate())  # other hearts of this process among them
    beats: list[str] = []

    def renewing(name: str, answer: bool = True) -> Callable[[], bool]:
        def renew() -> bool:
            beats.append(name)
            return answer

        return renew

    with heart.beating(renewing("a"), "a"):
        with heart.beating(renewing("b"), "b"), heart.beating(renewing("another's", False), "c"):
            wait_until(lambda: beats.count("a") >= 3 and beats.count("b") >= 3, 10, "three beats of each")
        ended = len(beats)
        wait_until(lambda: len(beats) >= ended + 3, 10, "beats of the one that is left")
    assert set(beats[ended + 1 :]) == {"a"}  # one of the others may have been under way
    assert beats.count("another's") == 1
    assert [thread.name for thread in set(threading.enumerate()) - before] == ["heart"]


def test_waiting_too_long_for_a_connection_is_an_outage(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stalled Postgres holds every connection; who finds none free must try again, not die."""
    database = Database(database_url.replace("postgresql:", "postgresql+psycopg:"), size=1)
    monkeypatch.setattr(database._engine.pool, "_timeout", 0.05)

    def ask() -> int:
        with database.autocommit() as connection:
            return int(connection.execute(text("SELECT 1")).scalar_one())

    with (
        database.autocommit(),
        ThreadPoolExecutor() as thread,
        pytest.raises(StoreUnavailable, match="no connection of 1 became free"),
    ):
        thread.submit(ask).result(30)
    assert ask() == 1
    database.dispose()
