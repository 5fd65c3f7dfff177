"""A TCP proxy on a port of its own; the tests and the fault suite build theirs on it."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Self
from urllib.parse import urlsplit, urlunsplit


class Link:
    """A client's connection to the proxy, and the proxy's own to the server for it."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server

    def carry(self) -> None:
        """Forwards in both directions until the client has ended, or `forward` wants no more."""
        back = threading.Thread(target=self._carry_back, daemon=True)
        back.start()
        with suppress(OSError):
            self.forward()
        shut(self.client)
        shut(self.server)
        back.join()

    def forward(self) -> None:
        """Sends to the server what the client sends; raises OSError if either is gone."""
        while data := self.client.recv(65536):
            self.server.sendall(data)

    def backward(self) -> None:
        """Sends to the client what the server sends, and the end of it; raises OSError likewise."""
        while data := self.server.recv(65536):
            self.client.sendall(data)
        self.client.shutdown(socket.SHUT_WR)

    def _carry_back(self) -> None:
        try:
            self.backward()
        except OSError:
            # A server that is killed may reset the connection. The client must see that, not wait for ever.
            shut(self.client)


class TcpProxy:
    """Forwards every connection to the server of a URL, from entering the block until leaving it."""

    scheme_suffix = ""
    """What the proxy's URL has after the scheme of the URL given."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None and parts.port is not None
        self._parts = parts
        self._target = (parts.hostname, parts.port)
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._accept, daemon=True)

    @property
    def url(self) -> str:
        """The URL given, with the proxy's host and port."""
        scheme = self._parts.scheme + self.scheme_suffix
        credentials, at, _ = self._parts.netloc.rpartition("@")
        netloc = f"{credentials}{at}localhost:{self._listener.getsockname()[1]}"
        return urlunsplit(self._parts._replace(scheme=scheme, netloc=netloc))

    def greet(self, client: socket.socket) -> socket.socket:
        """Returns the connection to use for a client that has connected; OSError refuses the client."""
        return client

    def link(self, client: socket.socket, server: socket.socket) -> Link:
        """What carries a new connection."""
        return Link(client, server)

    def cut(self) -> None:
        """Ends every connection that is open now, for both of its sides."""
        for connection in list(self._open):
            shut(connection)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        shut(self._listener)  # close() would leave accept() waiting
        self._listener.close()
        self.cut()
        self._thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, accepted: socket.socket) -> None:
        with (
            suppress(OSError),
            self._known(accepted),
            self._known(self.greet(accepted)) as client,
            self._known(socket.create_connection(self._target)) as server,
        ):
            for connection in (client, server):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.link(client, server).carry()

    @contextmanager
    def _known(self, connection: socket.socket) -> Iterator[socket.socket]:
        with connection:
            self._open.add(connection)
            try:
                yield connection
            finally:
                self._open.discard(connection)


def shut(connection: socket.socket) -> None:
    """Ends a connection in both directions, and every call that waits for it; the caller closes it."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
