"""Splits what a client sends into commands of the Postgres or Redis protocol, without interpreting them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

_PROTOCOL_3 = 3
_LAST_OF_A_REQUEST = frozenset(b"QSHFXp")
"""Query, Sync, Flush, FunctionCall, Terminate, and the answer to a password request. After each of these
the client waits. Messages before them (Parse, Bind, Describe, Execute) belong to the same request."""

Cutter = Callable[[socket.socket], Iterator[bytes]]


class _Ended(Exception):
    """The client closed the connection."""


class _Reader:
    """Reads given lengths and whole lines from a stream, whose packets may end anywhere."""

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
    """Yields each request: its messages up to the one after which the client waits for an answer."""
    reader = _Reader(connection)
    try:
        # The first messages have a length but no type: a request for TLS, which is declined, and the
        # startup message.
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
    """Yields each command (an array of bulk strings), one by one even if the client pipelines several."""
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
