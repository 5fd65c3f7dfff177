"""Chooses the publisher: redis-bulk, which is atomic, if it fits; otherwise Celery's own way."""

from __future__ import annotations

from dataclasses import dataclass

from celery import Celery
from celery.signals import after_task_publish, before_task_publish

from worker_scheduler.config.settings import Settings
from worker_scheduler.errors import ConfigurationError
from worker_scheduler.publisher import Publisher, template
from worker_scheduler.publisher.broker import BrokerState
from worker_scheduler.publisher.group import GroupPublisher
from worker_scheduler.publisher.redis_bulk import RedisBulkPublisher


@dataclass(frozen=True)
class Choice:
    """Which publisher is in use, and why."""

    publisher: Publisher
    name: str
    reason: str


def choose(app: Celery, settings: Settings, broker: BrokerState) -> Choice:
    """Chooses by PUBLISHER. Raises ConfigurationError if redis-bulk is demanded and does not fit."""
    if settings.publisher == "group":
        return Choice(GroupPublisher(app, broker), "group", "PUBLISHER=group")
    obstacle = _obstacle(app, settings)
    if settings.publisher == "redis-bulk" and obstacle is not None:
        raise ConfigurationError([f"PUBLISHER=redis-bulk does not fit: {obstacle}; leave it at auto"])
    if obstacle is not None:
        return Choice(GroupPublisher(app, broker), "group", obstacle)
    bulk = RedisBulkPublisher(app, settings.broker_url, settings.redis_key_prefix)
    return Choice(bulk, "redis-bulk", "a plain Redis list, JSON, protocol 2")


def _obstacle(app: Celery, settings: Settings) -> str | None:
    """Why a message's text cannot be copied with other ids; None if it can."""
    conf, options = app.conf, app.conf.broker_transport_options
    checks = {
        "the broker is not Redis": not settings.broker_is_redis,
        "task_serializer is not json": conf.task_serializer != "json",
        "task_protocol is not 2": conf.task_protocol != 2,
        "task_compression is set": bool(conf.task_compression),
        "body_encoding is not utf-8": options.get("body_encoding") != "utf-8",
        "messages have priorities": conf.task_default_priority is not None
        or conf.task_queue_max_priority is not None,
        "task_send_sent_event is on": bool(conf.task_send_sent_event),
        # Tracing libraries connect here, and would need one call per message.
        "a handler of before_task_publish or after_task_publish is connected": bool(
            before_task_publish.receivers or after_task_publish.receivers
        ),
    }
    return next((reason for reason, applies in checks.items() if applies), None) or template.obstacle(app)
