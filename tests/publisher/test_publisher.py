"""The messages of a batch: their contents, and what happens when the broker fails midway."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest
from redis import Redis

from tests.support.command_line import Outcome
from tests.support.ledger import Ledger
from tests.support.messages import Broker, Message
from tests.support.proxy import Proxy
from tests.support.users import make_users
from worker_scheduler.job_ids import JobIds
from worker_scheduler.publisher import GroupMessage, SharedFields
from worker_scheduler.publisher.redis_bulk import RedisBulkPublisher

Scheduler = Callable[..., Outcome]

DAY = "2026-11-23"
KEY = f"daily:{DAY}"


def group_ids(messages: list[Message]) -> list[str]:
    return [message.headers["group"] for message in messages]


@pytest.fixture(params=["group", "redis-bulk"])
def publisher(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of the two publishers; both publish the same messages."""
    monkeypatch.setenv("PUBLISHER", request.param)
    return str(request.param)


@pytest.mark.usefixtures("publisher")
class TestMessages:
    """Celery's task message, protocol 2."""

    def sent(self, scheduler: Scheduler, ledger: Ledger, broker: Broker, *command: str) -> list[Message]:
        make_users(ledger.url, 5)
        assert scheduler(*command, "--enqueue-batch-size", "2").status == 0
        return broker.messages(command[0])

    def test_a_daily_job(self, scheduler: Scheduler, ledger: Ledger, broker: Broker) -> None:
        messages = self.sent(scheduler, ledger, broker, "daily", "--date", DAY)
        jobs = {str(job["job_id"]): job for job in ledger.jobs()}
        assert len(messages) == len(jobs) == 5
        for message in messages:
            job = jobs[message.task_id]
            args, kwargs, embedded = message.body
            assert args == [str(job["user_id"]), KEY, "scheduler.daily"]
            assert kwargs == {}
            assert embedded == {}

    def test_a_backfill_job(self, scheduler: Scheduler, ledger: Ledger, broker: Broker) -> None:
        messages = self.sent(scheduler, ledger, broker, "backfill", "--backfill-days", "30")
        for message in messages:
            args, kwargs, _ = message.body
            assert args[2] == "scheduler.backfill"
            assert kwargs == {"backfill_days": 30}
            assert message.raw["properties"]["delivery_info"]["routing_key"] == "backfill"

    def test_the_envelope(self, scheduler: Scheduler, ledger: Ledger, broker: Broker) -> None:
        for message in self.sent(scheduler, ledger, broker, "daily"):
            assert message.raw["content-type"] == "application/json"
            assert message.raw["content-encoding"] == "utf-8"
            assert message.headers["task"] == "sync_user"
            assert message.headers["lang"] == "py"
            assert message.headers["root_id"] == message.task_id
            assert message.raw["properties"]["correlation_id"] == message.task_id
            assert message.raw["properties"]["delivery_info"]["routing_key"] == "daily"
            assert UUID(message.raw["properties"]["delivery_tag"])

    def test_a_batch_is_a_group(self, scheduler: Scheduler, ledger: Ledger, broker: Broker) -> None:
        messages = self.sent(scheduler, ledger, broker, "daily")
        batches = ledger.rows("SELECT group_id, jobs FROM sync_batches ORDER BY number")
        assert [batch["jobs"] for batch in batches] == [2, 2, 1]
        expected = [str(batch["group_id"]) for batch in batches for _ in range(batch["jobs"])]
        assert group_ids(messages) == expected
        assert [message.headers["group_index"] for message in messages] == [0, 1, 0, 1, 0]

    def test_delivery_tags_are_unique(self, scheduler: Scheduler, ledger: Ledger, broker: Broker) -> None:
        messages = self.sent(scheduler, ledger, broker, "daily")
        assert len({message.raw["properties"]["delivery_tag"] for message in messages}) == 5

    def test_messages_are_sent_in_the_order_of_the_plan(
        self, scheduler: Scheduler, ledger: Ledger, broker: Broker
    ) -> None:
        messages = self.sent(scheduler, ledger, broker, "daily")
        assert [message.task_id for message in messages] == [str(job["job_id"]) for job in ledger.jobs()]


def test_a_tick_pauses_between_batches(
    deployed: None, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    from worker_scheduler import wiring
    from worker_scheduler.config.options import parse_daily
    from worker_scheduler.fanout import tick

    make_users(ledger.url, 5)
    monkeypatch.setenv("ENQUEUE_SLEEP_SECONDS", "0.7")
    monkeypatch.setenv("ENQUEUE_BATCH_SIZE", "2")
    happened: list[Any] = []
    with wiring.tick_context("test", lambda report: happened.append(report.jobs_enqueued)) as context:
        tick.daily(replace(context, pause=happened.append), parse_daily({}))
    assert happened == [2, 0.7, 4, 0.7, 5]


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_a_broker_that_fails_midway_and_the_same_command_again(
    share: float,
    publisher: str,
    scheduler: Scheduler,
    ledger: Ledger,
    broker: Broker,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_users(ledger.url, 100)
    command = ["daily", "--json", "--enqueue-batch-size", "20", "--date"]
    with Proxy(redis_url) as proxy:
        monkeypatch.setenv("REDIS_URL", proxy.url)
        assert scheduler(*command, "2026-11-22").status == 0
        whole = proxy.forwarded
        broker.lose_everything()
        proxy.forwarded, proxy.cut_after = 0, int(share * whole)
        outcome = scheduler(*command, DAY)
        assert outcome.status == 4
        report = outcome.report
        assert (report["outcome"], report["jobs_inserted"]) == ("failed", 100)
        assert 0 <= report["jobs_enqueued"] < 100
        assert report["jobs_enqueued"] + report["enqueue_failures"] == 100
        assert report["jobs_enqueued"] == 20 * report["batches"]
        assert f"100 jobs planned and {report['jobs_enqueued']} enqueued now" in report["error"]
        assert "run the same command again to finish it" in report["error"]
        assert broker.count("daily") >= report["jobs_enqueued"]
        assert ledger.rows("SELECT * FROM sync_locks") == []
        assert ledger.states(KEY) == {"PENDING": 100}
        proxy.heal()
        again = scheduler(*command, DAY)
    assert again.status == 0
    assert again.report["outcome"] == "enqueued"
    assert again.report["jobs_inserted"] == 0
    assert again.report["jobs_enqueued"] == report["enqueue_failures"]
    messages = [message.task_id for message in broker.messages("daily")]
    assert set(messages) == {str(job["job_id"]) for job in ledger.jobs(KEY)}
    if publisher == "redis-bulk":
        assert len(messages) == 100
    else:  # only the interrupted batch may be sent twice, as a whole
        assert len(messages) <= 120
    assert scheduler(*command, DAY).report["outcome"] == "nothing_to_do"


def test_another_broker_than_redis_url(
    scheduler: Scheduler, ledger: Ledger, broker: Broker, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_users(ledger.url, 3)
    monkeypatch.setenv("CELERY_BROKER_URL", redis_url)
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    assert scheduler("daily").status == 0
    assert broker.counts() == {"daily": 3}


def test_a_broker_without_batches(
    scheduler: Scheduler, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_users(ledger.url, 300)
    monkeypatch.setenv("CELERY_BROKER_URL", "memory://")
    report = scheduler("daily", "--json").report
    assert (report["outcome"], report["jobs_enqueued"]) == ("enqueued", 300)


@pytest.mark.parametrize("variable", ["CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL"])
def test_a_second_broker_is_refused(
    scheduler: Scheduler, ledger: Ledger, broker: Broker, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise messages would be sent to one broker and looked for in the other."""
    make_users(ledger.url, 3)
    monkeypatch.setenv(variable, "redis://:s3cr3t@127.0.0.1:1/0")
    outcome = scheduler("daily")
    assert outcome.status == 2
    assert outcome.error == f"{variable} is set, and there is one broker for reading and writing: unset it"
    assert (ledger.count(), broker.counts()) == (0, {})


def test_a_server_that_has_forgotten_the_script(deployed: None, broker: Broker) -> None:
    from worker_scheduler import app

    publisher = RedisBulkPublisher(app, broker.url, broker.key_prefix)
    message = SharedFields("daily", KEY, "scheduler.daily", None)
    for number in range(2):
        with Redis.from_url(broker.url) as redis:
            redis.script_flush()
        jobs = JobIds.of([(str(uuid4()), str(uuid4())) for _ in range(3)])
        publisher.publish([GroupMessage(uuid4(), f"marker-{number}", message, jobs)] * 2)
    assert broker.counts() == {"daily": 6}
