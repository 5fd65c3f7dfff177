"""Both publishers put the same messages into Redis, field by field, whatever the jobs and options are."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st

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
) -> None:
    group_message = GroupMessage(
        group_id=group_id,
        marker=str(uuid4()),  # else a batch that was pushed before
        message=JobMessage(queue, partition_key, triggered_by, backfill_days),
        jobs=JobIds.of((str(job_id), str(user_id)) for job_id, user_id in ids),
    )
    bulk = RedisBulkPublisher(app, broker.url, broker.key_prefix)
    group = GroupPublisher(app, RedisBroker(broker.url, broker.key_prefix))
    with task_with(app, options):
        expected = published(group, group_message, broker)
        assert published(bulk, group_message, broker) == expected
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
