"""Which messages Redis holds, by their ids: read in chunks from kombu's keys, changed nowhere.

An entry that cannot be read has no id and is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import cast

from redis import Redis

from worker_scheduler.probe_ids import PREFIX

CHUNK = 1000
"""Entries per command, so that neither Redis nor this process is busy with one for long."""

_ID = re.compile(rb'"id": ?"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"')
"""A task's id among the headers. In a body, which is a text inside the entry, quotes are escaped."""
_PROBE = re.compile(rb'"id": ?"' + PREFIX.encode())


def is_probe_entry(entry: bytes) -> bool:
    """Whether an entry of a list or of `unacked` is a probe's."""
    return _PROBE.search(entry) is not None


def waiting(client: Redis, key: str) -> Iterator[list[str]]:
    """Yields the ids of the messages in a list, in chunks.

    From the end where messages are pushed: what is pushed during the search moves the others towards the
    part that is still to be read, so none is passed over. client: one that does not decode what it reads.
    """
    start = 0
    while entries := cast(list[bytes], client.lrange(key, start, start + CHUNK - 1)):
        yield _ids(entries)
        start += CHUNK


def taken(client: Redis, key: str) -> Iterator[list[str]]:
    """Yields the ids of the messages that workers have taken and not acknowledged, in chunks.

    key: kombu's hash `unacked`. client: one that does not decode what it reads.
    """
    cursor = 0
    while True:
        cursor, entries = cast(tuple[int, dict[bytes, bytes]], client.hscan(key, cursor, count=CHUNK))
        if entries:
            yield _ids(entries.values())
        if cursor == 0:
            return


def _ids(entries: Iterable[bytes]) -> list[str]:
    return [match[1].decode() for entry in entries if (match := _ID.search(entry))]
