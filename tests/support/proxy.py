"""A TCP proxy on a port of its own, which can cut its connections midway, or speak TLS in front."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit, urlunsplit

SELF_SIGNED_CERTIFICATE = Path(__file__).with_name("self_signed.pem")
"""For localhost, until 2126, with its key; of no use but for tests. Made by `openssl req -x509
-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 36500 -subj /CN=localhost
-addext subjectAltName=DNS:localhost,IP:127.0.0.1`."""


class Proxy:
    """Forwards to the server of a URL.

    cut_after: once so many bytes went from clients to the server, every connection is cut, and new
    ones are too, until `heal` is called. None: never.
    watch: is shown what a client sends, before the server gets it.
    """

    def __init__(
        self,
        url: str,
        *,
        tls: bool = False,
        cut_after: int | None = None,
        watch: Callable[[bytes], None] = lambda data: None,
    ) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None and parts.port is not None
        self._parts = parts
        self._target = (parts.hostname, parts.port)
        self._tls = _tls_context() if tls else None
        self.cut_after = cut_after
        self.forwarded = 0
        self._watch = watch
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._accept, daemon=True)

    @property
    def url(self) -> str:
        """The URL given, by way of the proxy; with its `rediss` scheme where it speaks TLS."""
        credentials, _, _ = self._parts.netloc.rpartition("@")
        place = f"localhost:{self._listener.getsockname()[1]}"
        netloc = f"{credentials}@{place}" if credentials else place
        scheme = f"{self._parts.scheme}s" if self._tls else self._parts.scheme
        return urlunsplit(self._parts._replace(scheme=scheme, netloc=netloc))

    def heal(self) -> None:
        """Forwards everything from now on."""
        self.cut_after = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Closing alone would leave accept() waiting.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._cut()
        self._thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with suppress(OSError), self._known(plain):
            client = self._tls.wrap_socket(plain, server_side=True) if self._tls else plain
            with self._known(client), self._known(socket.create_connection(self._target)) as server:
                back = threading.Thread(target=_pump, args=(server, client), daemon=True)
                back.start()
                self._pump_counting(client, server)
                with suppress(OSError):
                    server.shutdown(socket.SHUT_RDWR)
                back.join()

    def _pump_counting(self, client: socket.socket, server: socket.socket) -> None:
        while data := client.recv(4096):
            self._watch(data)
            with self._lock:
                left = len(data) if self.cut_after is None else max(0, self.cut_after - self.forwarded)
                self.forwarded += min(left, len(data))
            server.sendall(data[:left])
            if left < len(data):
                self._cut()
                return

    @contextmanager
    def _known(self, connection: socket.socket) -> Iterator[socket.socket]:
        with connection:
            self._open.add(connection)
            try:
                yield connection
            finally:
                self._open.discard(connection)

    def _cut(self) -> None:
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def _tls_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(SELF_SIGNED_CERTIFICATE)
    return context
