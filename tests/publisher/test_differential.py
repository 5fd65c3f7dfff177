"""Both publishers put the same messages into Redis, field by field, for any jobs and options."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from celery import Celery
from celery._state import _task_stack
from hypothesis import given
from hypothesis import strategies as st
from kombu import pools

from tests.support.hypotheses import inputs
from tests.support.messages import Broker, Message
from worker_scheduler.config.settings import load
from worker_scheduler.errors import ConfigurationError
from worker_scheduler.job_ids import JobIds
from worker_scheduler.publisher import GroupMessage, Publisher, SharedFields
from worker_scheduler.publisher.choice import choose
from worker_scheduler.publisher.group import GroupPublisher
from worker_scheduler.publisher.redis_broker import RedisBroker
from worker_scheduler.publisher.redis_bulk import RedisBulkPublisher

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # 5,000 batches take their time

# The only field that may differ: the transport's id of the message.
RANDOM = "delivery_tag"

keys = st.from_regex(r"[A-Za-z0-9._:-]{1,200}", fullmatch=True)
queues = st.one_of(
    st.sampled_from(["daily", "backfill"]), st.from_regex(r"[a-z][a-z0-9._-]{0,20}", fullmatch=True)
)
prefixes = st.from_regex(r"[A-Za-z0-9._:{}-]{0,20}", fullmatch=True)
jobs = st.lists(st.tuples(st.uuids(), st.uuids()), min_size=1, max_size=4, unique_by=lambda job: job[0])
task_options = st.fixed_dictionaries(
    {},
    optional={
        "time_limit": st.integers(100, 10_000),
        "soft_time_limit": st.integers(1, 100),
        "ignore_result": st.booleans(),
        "expires": st.just(datetime(2126, 11, 23, tzinfo=UTC)),
        "delivery_mode": st.sampled_from([1, 2]),
    },
)


# What `task_routes` may add to messages whose queue the publisher names.
routes = st.fixed_dictionaries(
    {},
    optional={
        "queue": st.sampled_from(["daily", "elsewhere"]),
        "delivery_mode": st.sampled_from([1, 2]),
        "headers": st.dictionaries(st.from_regex(r"x-[a-z]{1,8}", fullmatch=True), st.text(max_size=20)),
    },
)


@pytest.fixture
def app(deployed: None) -> Celery:
    import worker_scheduler

    worker_scheduler.app.loader.import_default_modules()
    return worker_scheduler.app


@contextmanager
def task_with(app: Celery, options: dict[str, Any]) -> Iterator[None]:
    """Gives the task options, as a deployment may do with Celery's `task_annotations`."""
    task = app.tasks["sync_user"]
    before = {name: getattr(task, name, None) for name in options}
    try:
        set_options(task, options)
        yield
    finally:
        set_options(task, before)


def set_options(task: Any, options: dict[str, Any]) -> None:
    for name, value in options.items():
        setattr(task, name, value)
    task._exec_options = None  # Celery caches the options after it has read them once


@contextmanager
def configured(app: Celery, key_prefix: str, task_routes: Any) -> Iterator[None]:
    """Configures the app as a deployment may do, with `global_keyprefix` and `task_routes`."""
    before = app.conf.broker_transport_options, app.conf.task_routes
    try:
        set_up(app, {**before[0], "global_keyprefix": key_prefix}, task_routes)
        yield
    finally:
        set_up(app, *before)


def set_up(app: Celery, transport_options: dict[str, Any], task_routes: object) -> None:
    app.conf.broker_transport_options, app.conf.task_routes = transport_options, task_routes
    app.amqp.flush_routes()
    app.amqp.__dict__.pop("router", None)
    # Connections that were opened earlier use another prefix.
    pools.reset()
    app._pool = app.amqp._producer_pool = None


@contextmanager
def within_a_task(app: Celery) -> Iterator[None]:
    """Publishes as the task `scheduler.daily_tick` does: Celery adds its parent's fields to messages."""
    task = app.tasks["scheduler.daily_tick"]
    task.push_request(id=str(uuid4()), root_id=str(uuid4()), called_directly=False)
    _task_stack.push(task)
    try:
        yield
    finally:
        _task_stack.pop()
        task.pop_request()


def published(publisher: Publisher, group_message: GroupMessage, broker: Broker) -> list[dict[str, Any]]:
    """Publishes, empties the queue and returns the decoded messages that a worker would take."""
    queue = group_message.shared.queue
    publisher.publish([group_message])
    messages = broker.messages(queue)
    broker.lose_queue(queue)
    tags = [UUID(message.raw["properties"].pop(RANDOM)) for message in messages]
    assert len(set(tags)) == len(group_message.job_ids)
    return [decoded(message) for message in messages]


def decoded(message: Message) -> dict[str, Any]:
    """Decodes a message. Of its time to live, in milliseconds from its publication, only the sign stays."""
    properties = message.raw["properties"]
    if "expiration" in properties:
        properties["expiration"] = int(properties["expiration"]) > 0
    return {**message.raw, "body": message.body}


@inputs(0.25)
@given(
    ids=jobs,
    group_id=st.uuids(),
    queue=queues,
    partition_key=keys,
    triggered_by=st.sampled_from(["scheduler.daily", "scheduler.backfill"]),
    backfill_days=st.one_of(st.none(), st.integers(1, 3650)),
    options=task_options,
    prefix=prefixes,
    route=routes,
    within=st.booleans(),
)
def test_both_publishers_send_the_same_messages(
    app: Celery,
    broker: Broker,
    ids: list[tuple[UUID, UUID]],
    group_id: UUID,
    queue: str,
    partition_key: str,
    triggered_by: str,
    backfill_days: int | None,
    options: dict[str, Any],
    prefix: str,
    route: dict[str, Any],
    within: bool,
) -> None:
    there = Broker(broker.url, broker.key_prefix + prefix)
    group_message = GroupMessage(
        group_id=group_id,
        marker=str(uuid4()),  # a new one, or the publisher would take it for a batch that was sent already
        shared=SharedFields(queue, partition_key, triggered_by, backfill_days),
        job_ids=JobIds.of((str(job_id), str(user_id)) for job_id, user_id in ids),
    )
    parent = within_a_task(app) if within else nullcontext()
    with task_with(app, options), configured(app, there.key_prefix, {"sync_user": route}), parent:
        bulk = RedisBulkPublisher(app, there.url, there.key_prefix)
        group = GroupPublisher(app, RedisBroker(there.url, there.key_prefix))
        expected = published(group, group_message, there)
        assert published(bulk, group_message, there) == expected
    assert [message["headers"]["id"] for message in expected] == [str(job_id) for job_id, _ in ids]
    for message in expected:  # whether a command or a task published it
        assert (message["headers"]["root_id"], message["headers"]["parent_id"]) == (
            message["headers"]["id"],
            None,
        )
        assert ("timelimit" in message["headers"]) == bool({"time_limit", "soft_time_limit"} & {*options})
        assert ("expires" in message["headers"]) == ("expires" in options)


UNSUPPORTED: list[tuple[dict[str, Any], Any]] = [
    ({"compression": "gzip"}, {}),
    ({"serializer": "yaml"}, {}),
    ({"priority": 4}, {}),
    ({}, {"sync_user": {"queue": "daily", "priority": 4}}),
    ({}, [lambda *_, **__: {"queue": "daily"}]),
]


@pytest.mark.parametrize(("options", "task_routes"), UNSUPPORTED)
def test_options_that_redis_bulk_cannot_copy_select_group(
    app: Celery, broker: Broker, options: dict[str, Any], task_routes: Any
) -> None:
    settings, state = load(), RedisBroker(broker.url, broker.key_prefix)
    assert choose(app, settings, state).name == "redis-bulk"
    with task_with(app, options), configured(app, broker.key_prefix, task_routes):
        choice = choose(app, settings, state)
        assert (choice.name, type(choice.publisher)) == ("group", GroupPublisher)
        if not isinstance(task_routes, list):  # one message does not show what a route function may do
            bulk = RedisBulkPublisher(app, broker.url, broker.key_prefix)
            with pytest.raises(ConfigurationError, match=r"redis-bulk cannot publish: .*; set PUBLISHER="):
                bulk.publish([some_group()])
    assert broker.counts() == {}


def some_group() -> GroupMessage:
    jobs = JobIds.of([(str(uuid4()), str(uuid4()))])
    message = SharedFields("daily", "daily:2026-11-23", "scheduler.daily", None)
    return GroupMessage(uuid4(), str(uuid4()), message, jobs)


def test_times_in_messages_are_those_of_their_batch(app: Celery, broker: Broker) -> None:
    """A run may last for hours, so its last batch must not repeat the times of its first."""
    bulk = RedisBulkPublisher(app, broker.url, broker.key_prefix)
    with task_with(app, {"expires": 3600}):
        for _ in range(2):
            bulk.publish([some_group()])
    first, second = (message.headers["expires"] for message in broker.messages("daily"))
    assert first < second
