"""A whole reconcile pass, with all rules: once, twice, by several processes, and in an outage."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest
from redis import Redis

from tests.maintenance.situations import (
    DAY,
    GRACE,
    KEY,
    LEASE,
    RULE_NAMES,
    batch_not_enqueued,
    claim,
    each_once,
    enqueue,
    finish,
    half_planned,
    lose_messages,
    put_off,
    sent,
)
from tests.support.contexts import NOON, HandedClock, at_once
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.users import make_users
from worker_scheduler.config.options import DailyOptions
from worker_scheduler.errors import StoreUnavailable
from worker_scheduler.fanout import tick
from worker_scheduler.fanout.context import TickContext
from worker_scheduler.maintenance import reconciler
from worker_scheduler.publisher.broker import OpaqueBroker


def an_expired_lock(context: TickContext, ledger: Ledger, broker: Broker) -> None:
    enqueue(context, ledger, 25)
    ledger.execute(f"INSERT INTO sync_locks VALUES (1, gen_random_uuid(), 'x', '{NOON - LEASE}', '{NOON}')")


def a_half_planned_run(context: TickContext, ledger: Ledger, broker: Broker) -> None:
    half_planned(context, ledger, leased_until=NOON)


def an_unsent_batch(context: TickContext, ledger: Ledger, broker: Broker) -> None:
    batch_not_enqueued(context, ledger, claimed_until=NOON)
    # Its publisher died before it published: the queue holds only the messages of the other two batches.
    batch = ledger.row("SELECT * FROM sync_batches WHERE number = 1")
    with Redis.from_url(broker.url) as redis:
        for text in redis.lrange(f"{broker.key_prefix}daily", 0, -1):
            if batch["first_job_id"] <= UUID(json.loads(text)["headers"]["id"]) <= batch["last_job_id"]:
                redis.lrem(f"{broker.key_prefix}daily", 1, text)


def lost_data(context: TickContext, ledger: Ledger, broker: Broker) -> None:
    enqueue(context, ledger, 25)
    broker.lose_everything()


def lost_messages(context: TickContext, ledger: Ledger, broker: Broker) -> None:
    enqueue(context, ledger, 25)
    ledger.execute(f"UPDATE sync_batches SET enqueued_at = '{NOON - GRACE}'")
    lose_messages(broker)


def dead_workers(context: TickContext, ledger: Ledger, broker: Broker) -> None:
    for job_id in enqueue(context, ledger, 25):
        claim(context, job_id)
    ledger.execute(f"UPDATE sync_jobs SET leased_until = '{NOON}'")
    lose_messages(broker)


def jobs_put_off(context: TickContext, ledger: Ledger, broker: Broker) -> None:
    for job_id in enqueue(context, ledger, 25):
        put_off(context, job_id, NOON)
    lose_messages(broker)


def a_missed_slot(context: TickContext, ledger: Ledger, broker: Broker) -> None:
    make_users(ledger.url, 25)
    ledger.execute(f"UPDATE sync_origin SET since = '{NOON - timedelta(days=1)}'")


Situation = Callable[[TickContext, Ledger, Broker], None]
SITUATIONS: list[Situation] = [
    *(an_expired_lock, a_half_planned_run, an_unsent_batch, lost_data),
    *(lost_messages, dead_workers, jobs_put_off, a_missed_slot),
]


@pytest.mark.parametrize("together", [1, 4], ids=["one", "four-at-once"])
@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.__name__)
@pytest.mark.slow
def test_a_pass_leaves_one_message_per_job_however_many_run_at_once(
    situation: Situation, together: int, context: TickContext, ledger: Ledger, broker: Broker
) -> None:
    situation(context, ledger, broker)
    for results in (at_once(context, together, reconciler.reconcile) for _ in range(3)):
        assert [error for result in results for error in result.errors] == []
    job_ids = [job["job_id"] for job in ledger.jobs(KEY)]
    assert len(job_ids) == 25
    assert sent(broker) == each_once(job_ids)
    assert ledger.states(KEY) == {"PENDING": 25}
    assert ledger.value("SELECT count(*) FROM sync_locks") == 0
    assert ledger.row("SELECT state, leased_until FROM sync_runs") == {
        "state": "ENQUEUED",
        "leased_until": None,
    }
    # Another pass changes nothing.
    before = ledger.everything(), broker.everything()
    assert reconciler.reconcile(context).put_right == dict.fromkeys(RULE_NAMES, 0)
    assert (ledger.everything(), broker.everything()) == before


def test_several_at_once_share_the_jobs_of_the_dead(
    context: TickContext, ledger: Ledger, broker: Broker
) -> None:
    dead_workers(context, ledger, broker)
    assert sum(at_once(context, 4, reconciler.dead_workers)) == 25


def test_several_at_once_finish_a_run_once(context: TickContext, ledger: Ledger) -> None:
    enqueue(context, ledger, 25)
    ledger.execute("UPDATE sync_jobs SET status = 'COMPLETED'")
    assert sum(at_once(context, 4, reconciler.finished_runs)) == 1


@pytest.mark.parametrize("ticks", [1, 4])
def test_a_tick_and_reconcile_at_once(
    ticks: int, context: TickContext, ledger: Ledger, broker: Broker
) -> None:
    make_users(ledger.url, 250)
    settings = context.settings.model_copy(update={"scheduler_lock_enabled": False})
    context = replace(context, settings=settings)
    turn = iter(range(ticks))

    def either(own: TickContext) -> object:
        if next(turn, None) is None:
            return [reconciler.reconcile(own) for _ in range(5)]
        return tick.daily(own, DailyOptions(date=DAY))

    at_once(context, ticks + 2, either)
    reconciler.reconcile(context)
    assert sent(broker) == each_once([job["job_id"] for job in ledger.jobs(KEY)])
    assert ledger.count(KEY) == 250


def test_an_older_schedulers_rows_are_left_alone(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    ledger.execute(
        "INSERT INTO sync_jobs (job_id, user_id, status, triggered_by, partition_key, created_at)"
        " SELECT gen_random_uuid(), gen_random_uuid(), status, 'scheduler.daily', 'daily:2020-01-01',"
        " '2020-01-01' FROM unnest(ARRAY['PENDING', 'RUNNING', 'COMPLETED']) AS status"
    )
    before = ledger.everything()
    clock.forward(timedelta(hours=1))
    assert reconciler.reconcile(context).put_right == dict.fromkeys(RULE_NAMES, 0)
    assert (ledger.everything(), broker.counts()) == (before, {})


def test_an_outage_of_the_broker_stops_only_the_rules_that_need_it(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:
    from worker_scheduler.publisher.redis_broker import RedisBroker

    first, second = enqueue(context, ledger, 2)
    claim(context, first)
    finish(context, second)
    clock.forward(LEASE)
    with Redis.from_url(broker.url) as redis:
        port = redis.connection_pool.connection_kwargs["port"]
    unreachable = RedisBroker(f"redis://:topsecret@localhost:1/{port % 10}", "")
    result = reconciler.reconcile(replace(context, broker=unreachable))
    assert result.put_right["dead_workers"] == 1
    assert "finished_runs" in result.put_right
    assert "lost_broker_data" not in result.put_right
    assert {type(error) for error in result.errors} == {StoreUnavailable}
    assert result.exit_status == 4
    assert "topsecret" not in json.dumps(result.as_json())
    assert reconciler.reconcile(context).errors == []


def test_nothing_is_sent_again_by_a_broker_other_than_redis(
    context: TickContext, ledger: Ledger, broker: Broker, clock: HandedClock
) -> None:

    enqueue(context, ledger, 5)
    broker.lose_everything()
    clock.forward(10 * GRACE)
    opaque = replace(context, broker=OpaqueBroker())
    assert reconciler.reconcile(opaque).put_right == dict.fromkeys(RULE_NAMES, 0)
    assert broker.counts() == {}
