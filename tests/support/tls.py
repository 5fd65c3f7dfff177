"""Servers that speak TLS: proxies in front of the test's own Postgres and Redis."""

import socket
import ssl
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlencode

from sqlalchemy.engine import make_url

from tests.support.proxy import Proxy

ELSEWHERE = "db.example.test"
"""A host that is not this machine by its name; `hostaddr` leads there without a name server."""

ELSEWHERE_CERTIFICATE = Path(__file__).with_name("elsewhere.pem")
"""For ELSEWHERE, until 2126, with its key; of no use but for tests. Made as `self_signed.pem` is."""

_SSL_REQUEST = bytes.fromhex("0000000804d2162f")


class TlsProxy(Proxy):
    """Speaks TLS with a certificate of the caller's choice."""

    def __init__(self, url: str, certificate: Path) -> None:
        super().__init__(url, tls=True)
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(certificate)


class PostgresTlsProxy(TlsProxy):
    """Speaks Postgres' kind of TLS, which begins with a question in the clear."""

    def _serve(self, plain: socket.socket) -> None:
        with suppress(OSError):
            if plain.recv(len(_SSL_REQUEST)) == _SSL_REQUEST:
                plain.sendall(b"S")
                super()._serve(plain)
            else:
                plain.close()

    def url_of(self, database: str, host: str = ELSEWHERE, **parameters: str) -> str:
        """DATABASE_URL by way of the proxy, under the name of `host`."""
        return elsewhere(
            make_url(self.url).set(database=database).render_as_string(False), host, **parameters
        )


def elsewhere(url: str, host: str = ELSEWHERE, **parameters: str) -> str:
    """The URL of a server on this machine, which calls it by the name of another host."""
    parsed = make_url(url).set(drivername="postgresql", host=host, query={})
    query = urlencode({"hostaddr": "127.0.0.1", **parameters})
    return f"{parsed.render_as_string(hide_password=False)}?{query}"
