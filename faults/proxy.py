"""A TCP proxy that counts commands, and stops, stalls or cuts at one of them. It changes no byte."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from typing import Self
from urllib.parse import urlsplit, urlunsplit

from faults.commands import Cutter, postgres_commands, redis_commands

_ANSWER_SECONDS = 1.0
"""How long a server may take for a command; some, such as Terminate, have no answer."""


class Way(StrEnum):
    """What happens to the n-th command, or to who sent it."""

    KILL_BEFORE = "kill before"
    KILL_AFTER = "kill after"
    CUT_BEFORE = "cut before"
    CUT_AFTER = "cut after"
    STALL = "stall"


class Trap:
    """Counts the commands of one victim over several proxies, and springs at one of them.

    at: the number of that command, from 1, or a piece of its text; None: it only counts.
    held: how many commands waited for an end of `stall`.
    """

    def __init__(
        self, at: int | bytes | None = None, way: Way = Way.KILL_BEFORE, stall_seconds: float = 0.0
    ) -> None:
        self._at = at
        self._way = way
        self._stall_seconds = stall_seconds
        self._lock = threading.Lock()
        self._kill: Callable[[], None] | None = None
        self._victim_known = threading.Event()
        self.flowing = threading.Event()
        self.flowing.set()
        self.commands = 0
        self.held = 0
        self.sprung = threading.Event()
        self.command = b""

    def aim(self, kill: Callable[[], None]) -> None:
        """Says how the victim is killed, once it has been started."""
        self._kill = kill
        self._victim_known.set()

    def stall(self) -> None:
        """Nothing passes in either direction until `flow`."""
        self.flowing.clear()

    def flow(self) -> None:
        """What was held goes on."""
        self.flowing.set()

    def pass_on(self, link: Link, command: bytes) -> bool:
        """Sends a command on, or springs; False: the link is to be closed."""
        self._wait_for_flow()
        with self._lock:
            self.commands += 1
            at = self._at
            chosen = at in command if isinstance(at, bytes) else self.commands == at
        if not chosen:
            link.server.sendall(command)
            return True
        self.command = command
        return self._spring(link, command)

    def _wait_for_flow(self) -> None:
        if not self.flowing.is_set():
            with self._lock:
                self.held += 1
            self.flowing.wait()

    def _spring(self, link: Link, command: bytes) -> bool:
        after = self._way in {Way.KILL_AFTER, Way.CUT_AFTER}
        if self._way is Way.STALL:
            self.sprung.set()
            self.stall()
            threading.Timer(self._stall_seconds, self.flow).start()
            self.flowing.wait()
            link.server.sendall(command)
            return True
        if after:
            link.withheld = True
            link.server.sendall(command)
            link.answered.wait(_ANSWER_SECONDS)
        if self._way in {Way.KILL_BEFORE, Way.KILL_AFTER}:
            self._victim_known.wait()
            assert self._kill is not None
            self._kill()
        self.sprung.set()
        return False


class Link:
    """One connection of a client and its twin to the server."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.withheld = False
        self.answered = threading.Event()

    def close(self) -> None:
        """Both sides see the end."""
        for connection in (self.client, self.server):
            # Closing alone would leave the other thread's recv() waiting.
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


class Proxy:
    """Forwards to the server of a URL, a Postgres or a Redis, by way of a trap."""

    def __init__(self, url: str, trap: Trap) -> None:
        self._parts = urlsplit(url)
        self._cutter: Cutter = redis_commands if self._parts.scheme == "redis" else postgres_commands
        self._trap = trap
        self._links: set[Link] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """The URL given, by way of the proxy."""
        credentials = self._parts.netloc.rpartition("@")[0]
        place = f"127.0.0.1:{self._listener.getsockname()[1]}"
        return urlunsplit(self._parts._replace(netloc=f"{credentials}@{place}"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for link in list(self._links):
            link.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection((str(self._parts.hostname), self._parts.port or 0))
        except OSError:  # the server is down: so is the proxy
            client.close()
            return
        for connection in (client, server):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = Link(client, server)
        self._links.add(link)
        threading.Thread(target=self._answer, args=(link,), daemon=True).start()
        with suppress(OSError):
            for command in self._cutter(client):
                if not self._trap.pass_on(link, command):
                    break
        link.close()
        self._links.discard(link)

    def _answer(self, link: Link) -> None:
        with suppress(OSError):
            while data := link.server.recv(65536):
                self._trap.flowing.wait()
                link.answered.set()
                if not link.withheld:
                    link.client.sendall(data)
        if not link.withheld:
            link.close()
