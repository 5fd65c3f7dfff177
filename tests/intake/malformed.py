"""Messages that no worker can read: a good one with one part replaced, and texts that are no message."""

import base64
import bz2
import copy
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

ODD: list[Any] = [
    None,
    5,
    -1,
    1.5,
    True,
    "",
    "x",
    "\x1b[2J\n",
    "9" * 400,
    [],
    [1],
    [None],
    {},
    {"a": 1},
    [[]],
]

PACK: dict[str, Callable[[bytes], bytes]] = {
    "application/x-bz2": bz2.compress,
    "application/x-gzip": zlib.compress,
    "application/x-lzma": lzma.compress,
}


def good(queue: str, user_id: str = "u", task_id: str | None = None) -> dict[str, Any]:
    """A message of `sync_user`, as Celery makes it."""
    identity = task_id or str(uuid4())
    body = [[user_id, "daily:2026-11-23", "test"], {}, {"callbacks": None, "errbacks": None}]
    return {
        "body": json.dumps(body),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py",
            "task": "sync_user",
            "id": identity,
            "shadow": None,
            "eta": None,
            "expires": None,
            "group": None,
            "retries": 0,
            "timelimit": [None, None],
            "root_id": identity,
            "parent_id": None,
            "argsrepr": "()",
            "kwargsrepr": "{}",
            "origin": "test",
            "ignore_result": True,
        },
        "properties": {
            "correlation_id": identity,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": 0,
            "body_encoding": "utf-8",
            "delivery_tag": str(uuid4()),
        },
    }


def changed(queue: str, *path: str, value: Any) -> dict[str, Any]:
    """A good message but for one value."""
    message = good(queue)
    *parents, last = path
    part: Any = message
    for name in parents:
        part = part[name]
    part[last] = value
    return message


def without(queue: str, *path: str) -> dict[str, Any]:
    """A good message in which one part is missing."""
    message = good(queue)
    *parents, last = path
    part: Any = message
    for name in parents:
        part = part[name]
    del part[last]
    return message


def compressed(queue: str, method: str, plain: bytes) -> dict[str, Any]:
    """A message whose header names a compression."""
    message = changed(queue, "headers", "compression", value=method)
    message["properties"]["body_encoding"] = "base64"
    message["body"] = base64.b64encode(PACK[method](plain)).decode()
    return message


def texts() -> Iterator[bytes]:
    """Entries that are no JSON, or no object."""
    yield from (b"null", b"5", b"[]", b'"x"', b"{}", b"", b"{", b"\xff\xfe", b"\x80\x04K\x01.", b"[" * 5000)
    yield from (b"NaN", b"true", b'{"__type__": "uuid", "__value__": 5}', b"9" * 5000, b'{"body": null}')


def malformed(queue: str) -> Iterator[bytes]:
    """More than 200 entries for a queue."""
    yield from texts()
    paths: list[tuple[str, ...]] = [
        ("body",),
        ("content-type",),
        ("content-encoding",),
        ("headers",),
        ("properties",),
    ]
    fields = good(queue)
    paths += [("headers", name) for name in fields["headers"]]
    paths += [("properties", name) for name in fields["properties"]]
    paths += [("properties", "delivery_info", name) for name in ("exchange", "routing_key")]
    for path in paths:
        yield json.dumps(without(queue, *path)).encode()
        for value in ODD:
            yield json.dumps(changed(queue, *path, value=value)).encode()
    for body in [
        [],
        [1],
        [[], {}],
        [[], {}, {}, {}],
        [5, {}, {}],
        [[], 5, {}],
        [[], {}, 5],
        ["args", {}, {}],
    ]:
        yield json.dumps(changed(queue, "body", value=json.dumps(body))).encode()
    odd_parts: list[dict[str, Any]] = [
        {"chord": 5},
        {"chain": 5},
        {"callbacks": 5},
        {"errbacks": [5]},
        {"chain": [[]]},
    ]
    for embedded in odd_parts:
        three = [["u", "k", "t"], {}, embedded]
        yield json.dumps(changed(queue, "body", value=json.dumps(three))).encode()
    for name in ("eta", "expires"):
        odd_times = ("0001-01-01T00:00:00", "10000-01-01T00:00:00", "2026-13-01", 1e300)
        for time in ("garbage", *odd_times, "9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00"):
            yield json.dumps(changed(queue, "headers", name, value=time)).encode()
    for limits in ([1], [1, 2, 3], ["a", "b"], [-1, None], [1e300, 1e300], "ab", {"0": 1}):
        yield json.dumps(changed(queue, "headers", "timelimit", value=limits)).encode()
    for task in ("no.such.task", "sync_user ", "scheduler.dispatch"):
        yield json.dumps(changed(queue, "headers", "task", value=task)).encode()
    for method in PACK:
        yield json.dumps(compressed(queue, method, b"0" * 1_000_000)).encode()
    yield from _older(queue)


def _older(queue: str) -> Iterator[bytes]:
    """Messages of Celery's protocol 1, and half of one."""
    bodies: list[Any] = [
        {"task": "sync_user"},
        {"task": "sync_user", "id": "x", "args": 5, "kwargs": []},
        {},
        [],
    ]
    for body in bodies:
        message = copy.deepcopy(good(queue))
        message["headers"] = {}
        message["body"] = json.dumps(body)
        yield json.dumps(message).encode()
