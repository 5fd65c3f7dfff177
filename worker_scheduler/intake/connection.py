"""Puts every connection of the app behind the gate, whatever the scheme of its URL."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import kombu
from kombu.transport import pyamqp, redis

from worker_scheduler.config.settings import load
from worker_scheduler.intake import amqp_transport, redis_transport
from worker_scheduler.intake.gate import Gate
from worker_scheduler.intake.set_aside import SetAside
from worker_scheduler.publisher.slim import SlimMessages

_OURS: dict[type[Any], type[Any]] = {
    redis.Transport: redis_transport.Transport,
    pyamqp.Transport: amqp_transport.Transport,
    pyamqp.SSLTransport: amqp_transport.SSLTransport,
}


class GatedConnection(kombu.Connection):  # type: ignore[misc] # kombu has no types
    """A connection of an app; a subclass names the app's transports."""

    transports: Mapping[type[Any], type[Any]]

    def get_transport_cls(self) -> type[Any]:
        """kombu's transport, or ours in its place."""
        found: type[Any] = super().get_transport_cls()
        return self.transports.get(found, found)

    def _info(self, resolve: bool = True) -> tuple[tuple[str, Any], ...]:
        """What the connection is made of. kombu makes those of its pools of it, of a class of its own."""
        info = dict(super()._info(resolve))
        return tuple((info if resolve else info | {"transport": self.get_transport_cls()}).items())


class GatedMessages(SlimMessages):
    """Makes messages small, and takes them in through the gate."""

    @cached_property
    def gate(self) -> Gate:
        """The app's gate."""
        settings = load()
        url = settings.broker_url if settings.broker_is_redis else settings.redis_url.get_secret_value()
        return Gate(self.app, SetAside(url, settings.redis_key_prefix))

    @cached_property
    def Connection(self) -> type[GatedConnection]:
        """The class of the app's connections. Celery calls it by this name."""
        transports = {
            kombu_s: type("Transport", (ours,), {"gate": self.gate}) for kombu_s, ours in _OURS.items()
        }
        return type("GatedConnection", (GatedConnection,), {"transports": transports})
