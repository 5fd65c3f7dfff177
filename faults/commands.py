"""Cuts what a client sends into commands: of Postgres' protocol and of Redis'. It understands none."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

_PROTOCOL_3 = 3
_LAST_OF_A_REQUEST = frozenset(b"QSHFXp")
"""Query, Sync, Flush, FunctionCall, Terminate, and the answer to a password's challenge: after each of
them a client waits. What goes before (Parse, Bind, Describe, Execute) belongs to the same request."""

Cutter = Callable[[socket.socket], Iterator[bytes]]


class _Ended(Exception):
    """The client said nothing more."""


class _Reader:
    """Whole pieces of a stream that arrives in whatever pieces it likes."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = bytearray()

    def take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._more()
        return self._cut(count)

    def line(self) -> bytes:
        while (end := self._buffer.find(b"\r\n")) < 0:
            self._more()
        return self._cut(end + 2)

    def _more(self) -> None:
        try:
            data = self._connection.recv(65536)
        except OSError:
            data = b""
        if not data:
            raise _Ended
        self._buffer += data

    def _cut(self, count: int) -> bytes:
        piece = bytes(self._buffer[:count])
        del self._buffer[:count]
        return piece


def postgres_commands(connection: socket.socket) -> Iterator[bytes]:
    """Each request: its messages up to the one after which the client waits for an answer."""
    reader = _Reader(connection)
    try:
        # What comes first has a length and no type: the wish for TLS, which is declined, or the start.
        started = False
        while not started:
            length = reader.take(4)
            rest = reader.take(int.from_bytes(length) - 4)
            started = int.from_bytes(rest[:2]) == _PROTOCOL_3
            yield length + rest
        request = b""
        while True:
            head = reader.take(5)
            request += head + reader.take(int.from_bytes(head[1:]) - 4)
            if head[0] in _LAST_OF_A_REQUEST:
                yield request
                request = b""
    except _Ended:
        return


def redis_commands(connection: socket.socket) -> Iterator[bytes]:
    """Each array of bulk strings, however long; one by one where a client sends several at once."""
    reader = _Reader(connection)
    try:
        while True:
            command = reader.line()
            for _ in range(int(command[1:])):
                size = reader.line()
                command += size + reader.take(int(size[1:]) + 2)
            yield command
    except _Ended:
        return
