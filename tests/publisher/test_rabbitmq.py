"""RabbitMQ that gives no answer, or refuses. matrix/ has the tests with a real one."""

import re
import time
from collections.abc import Iterator

import pytest
from celery import Celery

from tests.support import amqp_peer as peers
from tests.support.amqp_peer import Refusal, amqp_peer
from tests.support.application import fresh_app
from tests.support.command_line import in_this_process
from worker_scheduler.errors import StoreUnavailable
from worker_scheduler.probe_ids import new_probe_id
from worker_scheduler.publisher import rabbitmq
from worker_scheduler.publisher.broker import OpaqueBroker
from worker_scheduler.publisher.dispatch_message import DispatchSender
from worker_scheduler.publisher.group import GroupPublisher
from worker_scheduler.publisher.probe_message import probe_message

PATIENCE = 0.5


@pytest.fixture(params=["low on memory", None])
def app(
    request: pytest.FixtureRequest, deployed: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Celery, str]]:
    """An app whose broker blocks it or is silent, and what it says then."""
    monkeypatch.setattr(rabbitmq, "PATIENCE_SECONDS", PATIENCE)
    said = f"takes no messages: {request.param}" if request.param else f"no answer within {PATIENCE} s"
    with amqp_peer(request.param) as url:
        monkeypatch.setenv("CELERY_BROKER_URL", url)
        with fresh_app():
            import worker_scheduler

            yield worker_scheduler.app, said


def test_a_publish_ends_in_one_line(app: tuple[Celery, str]) -> None:
    celery, said = app
    for _ in range(2):
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match=f"unavailable: .*RabbitMQ .*{said}$"):
            DispatchSender(celery).send("daily:2026-11-23", "scheduler", "id")
        assert time.monotonic() - began < 4 * PATIENCE


def test_a_task_that_retries_ends_too(app: tuple[Celery, str]) -> None:
    """By default Celery publishes up to four times, each time on a new connection."""
    celery, _ = app
    began = time.monotonic()
    with pytest.raises(Exception, match="RabbitMQ"):
        celery.send_task("scheduler.dispatch", queue="scheduler")
    assert time.monotonic() - began < 10


def test_check_says_that_no_message_is_taken(app: tuple[Celery, str]) -> None:
    _, said = app
    outcome = in_this_process("check")
    (line,) = [line for line in outcome.stdout.splitlines() if line.startswith("FAULT broker")]
    assert re.search(f"is unavailable: .*RabbitMQ .*{said}$", line)
    assert outcome.status == 4


def test_a_connection_that_is_blocked_is_closed_at_once(app: tuple[Celery, str]) -> None:
    celery, _ = app
    connection = celery.connection_for_write()
    with pytest.raises(Exception, match="RabbitMQ"):
        celery.amqp.Producer(connection.default_channel).publish({}, routing_key="x")
    began = time.monotonic()
    connection.close()
    assert time.monotonic() - began < PATIENCE


REFUSALS = (peers.LOGIN, peers.HOST, peers.QUEUE, peers.BINDING, peers.PUBLISH)


@pytest.fixture
def refusing(
    request: pytest.FixtureRequest, deployed: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Celery]:
    """An app whose broker refuses what the parameter names."""
    monkeypatch.setattr(rabbitmq, "PATIENCE_SECONDS", PATIENCE)
    with amqp_peer(None, request.param) as url:
        monkeypatch.setenv("CELERY_BROKER_URL", url)
        with fresh_app():
            import worker_scheduler

            yield worker_scheduler.app


def refused(*refusals: Refusal) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("refusing", refusals, ids=[one.text for one in refusals], indirect=True)


@refused(*REFUSALS)
def test_a_refusal_is_one_line(refusing: Celery, request: pytest.FixtureRequest) -> None:
    said = request.node.callspec.params["refusing"].text
    with pytest.raises(StoreUnavailable, match=f"unavailable: .*{said}$"):
        DispatchSender(refusing).send("daily:2026-11-23", "daily", "id")
    with pytest.raises(StoreUnavailable, match=f"unavailable: .*{said}$"):
        GroupPublisher(refusing, OpaqueBroker()).publish([probe_message(new_probe_id(), "daily")])
    outcome = in_this_process("check")
    (line,) = [line for line in outcome.stdout.splitlines() if line.startswith("FAULT broker")]
    assert line.endswith(said)
    assert outcome.status == 4


@refused(peers.MESSAGE)
def test_a_message_that_is_not_wanted_is_named(refusing: Celery) -> None:
    with pytest.raises(StoreUnavailable, match=r"unavailable: RabbitMQ does not take the message"):
        DispatchSender(refusing).send("daily:2026-11-23", "daily", "id")
