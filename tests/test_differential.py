"""Both publishers put the same messages into Redis, field by field, whatever the jobs and options are."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st
from kombu import pools

from tests.support.hypotheses import inputs
from tests.support.messages import Broker, Message
from worker_scheduler.job_ids import JobIds
from worker_scheduler.publisher import GroupMessage, JobMessage, Publisher
from worker_scheduler.publisher.broker import RedisBroker
from worker_scheduler.publisher.group import GroupPublisher
from worker_scheduler.publisher.redis_bulk import RedisBulkPublisher

pytestmark = pytest.mark.timeout(600)  # 5,000 batches take their time

# What may differ: how a message is known to its transport.
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
        "track_started": st.booleans(),
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
    """The task as a deployment may have it, by Celery's `task_annotations`."""
    task = app.tasks["sync_user"]
    before = {name: getattr(task, name) for name in options}
    for name, value in options.items():
        setattr(task, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(task, name, value)


@contextmanager
def configured(app: Celery, key_prefix: str, route: dict[str, Any]) -> Iterator[None]:
    """The app as a deployment may have it, by `global_keyprefix` and `task_routes`."""
    before = app.conf.broker_transport_options, app.conf.task_routes
    try:
        set_up(app, {**before[0], "global_keyprefix": key_prefix}, {"sync_user": route})
        yield
    finally:
        set_up(app, *before)


def set_up(app: Celery, transport_options: dict[str, Any], task_routes: object) -> None:
    app.conf.broker_transport_options, app.conf.task_routes = transport_options, task_routes
    app.amqp.flush_routes()
    app.amqp.__dict__.pop("router", None)
    # Connections of before know another prefix.
    pools.reset()
    app._pool = app.amqp._producer_pool = None


def published(publisher: Publisher, group_message: GroupMessage, broker: Broker) -> list[dict[str, Any]]:
    """What a worker would take, decoded; the queue is empty afterwards."""
    queue = group_message.message.queue
    publisher.publish([group_message])
    messages = broker.messages(queue)
    broker.lose_queue(queue)
    tags = [UUID(message.raw["properties"].pop(RANDOM)) for message in messages]
    assert len(set(tags)) == len(group_message.jobs)
    return [decoded(message) for message in messages]


def decoded(message: Message) -> dict[str, Any]:
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
)
def test_both_publishers_say_the_same(
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
) -> None:
    there = Broker(broker.url, broker.key_prefix + prefix)
    group_message = GroupMessage(
        group_id=group_id,
        marker=str(uuid4()),  # else a batch that was pushed before
        message=JobMessage(queue, partition_key, triggered_by, backfill_days),
        jobs=JobIds.of((str(job_id), str(user_id)) for job_id, user_id in ids),
    )
    with task_with(app, options), configured(app, there.key_prefix, route):
        bulk = RedisBulkPublisher(app, there.url, there.key_prefix)
        group = GroupPublisher(app, RedisBroker(there.url, there.key_prefix))
        expected = published(group, group_message, there)
        assert published(bulk, group_message, there) == expected
    assert [message["headers"]["id"] for message in expected] == [str(job_id) for job_id, _ in ids]


def test_a_time_in_a_message_is_that_of_its_batch(app: Celery, broker: Broker) -> None:
    """A run may last for hours: what its first batch says must not be repeated by its last."""
    bulk = RedisBulkPublisher(app, broker.url, broker.key_prefix)
    message = JobMessage("daily", "daily:2026-11-23", "scheduler.daily", None)
    jobs = JobIds.of([(str(uuid4()), str(uuid4()))])
    with task_with(app, {"expires": 3600}):
        for _ in range(2):
            bulk.publish([GroupMessage(uuid4(), str(uuid4()), message, jobs)])
    first, second = (message.headers["expires"] for message in broker.messages("daily"))
    assert first < second
