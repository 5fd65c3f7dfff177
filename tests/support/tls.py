"""Servers that speak TLS: proxies in front of the test's own Postgres and Redis."""

import socket
import ssl
from pathlib import Path
from urllib.parse import urlencode

from sqlalchemy.engine import make_url

from tests.support.proxy import Proxy

SELF_SIGNED_CERTIFICATE = Path(__file__).with_name("self_signed.pem")
"""For localhost, until 2126, with its key; only for tests. Made by `openssl req -x509
-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 36500 -subj /CN=localhost
-addext subjectAltName=DNS:localhost,IP:127.0.0.1`."""

ELSEWHERE = "db.example.test"
"""A host whose name does not resolve to this machine; `hostaddr` reaches it without a name server."""

ELSEWHERE_CERTIFICATE = Path(__file__).with_name("elsewhere.pem")
"""For ELSEWHERE, until 2126, with its key; only for tests. Made as `self_signed.pem` is."""

_SSL_REQUEST = bytes.fromhex("0000000804d2162f")


class TlsProxy(Proxy):
    """Speaks TLS to clients, with a certificate of the caller's choice, and none to the server."""

    scheme_suffix = "s"  # rediss

    def __init__(self, url: str, certificate: Path) -> None:
        super().__init__(url)
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(certificate)

    def greet(self, client: socket.socket) -> socket.socket:
        return self._tls.wrap_socket(client, server_side=True)


class PostgresTlsProxy(TlsProxy):
    """Speaks Postgres' kind of TLS, which begins with a question in the clear."""

    def greet(self, client: socket.socket) -> socket.socket:
        if client.recv(len(_SSL_REQUEST)) != _SSL_REQUEST:
            raise ConnectionRefusedError("the client does not ask for TLS")
        client.sendall(b"S")
        return super().greet(client)

    def url_of(self, database: str, host: str = ELSEWHERE, **parameters: str) -> str:
        """DATABASE_URL by way of the proxy, under the name of `host`."""
        return elsewhere(
            make_url(self.url).set(database=database).render_as_string(False), host, **parameters
        )


def elsewhere(url: str, host: str = ELSEWHERE, **parameters: str) -> str:
    """The URL of a server on this machine, under the name of another host."""
    parsed = make_url(url).set(drivername="postgresql", host=host, query={})
    query = urlencode({"hostaddr": "127.0.0.1", **parameters})
    return f"{parsed.render_as_string(hide_password=False)}?{query}"
