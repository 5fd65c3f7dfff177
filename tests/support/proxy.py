"""A TCP proxy that cuts all connections after a number of bytes, and shows what clients send."""

import socket
import threading
from collections.abc import Callable

from tests.support.tcp_proxy import Link, TcpProxy


class Proxy(TcpProxy):
    """Forwards to the server of a URL.

    cut_after: once so many bytes went from clients to the server, every connection is cut, and new
    ones are too, until `heal` is called. None: never.
    watch: is shown what a client sends, before the server gets it.
    forwarded: how many bytes went from clients to the server.
    """

    def __init__(
        self, url: str, *, cut_after: int | None = None, watch: Callable[[bytes], None] = lambda data: None
    ) -> None:
        super().__init__(url)
        self.cut_after = cut_after
        self.watch = watch
        self.forwarded = 0
        self._lock = threading.Lock()

    def heal(self) -> None:
        """Forwards everything from now on."""
        self.cut_after = None

    def link(self, client: socket.socket, server: socket.socket) -> Link:
        return _CountedLink(client, server, self)

    def admit(self, data: bytes) -> bytes:
        """Counts what may still pass of `data`, and returns it."""
        with self._lock:
            if self.cut_after is not None:
                data = data[: max(0, self.cut_after - self.forwarded)]
            self.forwarded += len(data)
        return data


class _CountedLink(Link):
    def __init__(self, client: socket.socket, server: socket.socket, proxy: Proxy) -> None:
        super().__init__(client, server)
        self._proxy = proxy

    def forward(self) -> None:
        while data := self.client.recv(4096):
            self._proxy.watch(data)
            admitted = self._proxy.admit(data)
            self.server.sendall(admitted)
            if len(admitted) < len(data):
                self._proxy.cut()
                return
