"""A TCP proxy that counts commands, and stops, stalls or cuts at one of them. It changes no byte."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from urllib.parse import urlsplit

from faults.commands import Cutter, postgres_commands, redis_commands
from tests.support.tcp_proxy import Link, TcpProxy, shut

_ANSWER_SECONDS = 1.0
"""How long to wait for a server's answer; some commands, such as Terminate, have none."""


class Way(StrEnum):
    """What happens to the n-th command, or to the process that sent it."""

    KILL_BEFORE = "kill before"
    KILL_AFTER = "kill after"
    CUT_BEFORE = "cut before"
    CUT_AFTER = "cut after"
    STALL = "stall"


class Trap:
    """Counts the commands of one victim over several proxies, and springs at one of them.

    at: the number of that command, from 1, or a piece of its text; None: the trap only counts.
    commands: how many commands have come so far.
    held: how many commands have had to wait because of `stall`.
    command: the one at which the trap sprang.
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
        """Tells the trap how to kill the victim; called once that has been started."""
        self._kill = kill
        self._victim_known.set()

    def stall(self) -> None:
        """Holds everything, in both directions, until `flow` is called."""
        self.flowing.clear()

    def flow(self) -> None:
        """Lets everything that was held go on."""
        self.flowing.set()

    def pass_on(self, link: TrappedLink, command: bytes) -> bool:
        """Sends a command on, or springs; returns False if the connection is to be ended."""
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

    def _spring(self, link: TrappedLink, command: bytes) -> bool:
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


class TrappedLink(Link):
    """A connection whose commands pass the trap one by one.

    answered: the server has answered something since the connection was made.
    withheld: the client gets no more answers, and not the end of the connection either.
    """

    def __init__(self, client: socket.socket, server: socket.socket, cutter: Cutter, trap: Trap) -> None:
        super().__init__(client, server)
        self._cutter = cutter
        self._trap = trap
        self.withheld = False
        self.answered = threading.Event()

    def forward(self) -> None:
        """Until the client has ended, or the trap has sprung."""
        for command in self._cutter(self.client):
            if not self._trap.pass_on(self, command):
                return

    def backward(self) -> None:
        """Whatever the trap does not hold back."""
        with suppress(OSError):
            while data := self.server.recv(65536):
                self._trap.flowing.wait()
                self.answered.set()
                if not self.withheld:
                    self.client.sendall(data)
        if not self.withheld:
            shut(self.client)


class Proxy(TcpProxy):
    """Forwards to the server of a URL, a Postgres or a Redis, through a trap."""

    def __init__(self, url: str, trap: Trap) -> None:
        super().__init__(url)
        self._cutter: Cutter = redis_commands if urlsplit(url).scheme == "redis" else postgres_commands
        self._trap = trap
        self._is_away = False

    def go_away(self) -> None:
        """Cuts all connections, and refuses new ones until `come_back` is called."""
        self._is_away = True
        self.cut()

    def come_back(self) -> None:
        """Takes connections again."""
        self._is_away = False

    def greet(self, client: socket.socket) -> socket.socket:
        """Ends the connection of a client while the server is away."""
        if self._is_away:
            raise ConnectionRefusedError
        return client

    def link(self, client: socket.socket, server: socket.socket) -> Link:
        """A connection that passes the trap."""
        return TrappedLink(client, server, self._cutter, self._trap)
