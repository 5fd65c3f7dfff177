"""A peer that speaks as much AMQP as a publisher needs, and confirms no message."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from struct import pack, unpack

_START = b"\x00\x09" + pack(">I", 0) + pack(">I", 5) + b"PLAIN" + pack(">I", 5) + b"en_US"
_ANSWERS = {
    (10, 11): ((10, 30), pack(">HIH", 100, 131072, 0)),  # start-ok: tune
    (10, 40): ((10, 41), b"\x00"),  # open
    (20, 10): ((20, 11), pack(">I", 0)),  # channel.open
    (40, 10): ((40, 11), b""),  # exchange.declare
    (50, 10): ((50, 11), b"\x01q" + pack(">II", 0, 0)),  # queue.declare
    (50, 20): ((50, 21), b""),  # queue.bind
    (85, 10): ((85, 11), b""),  # confirm.select
}
_PUBLISH = (60, 40)
_BLOCKED = (10, 60)
_NACK = (60, 120)
_CLOSE_CONNECTION, _CLOSE_CHANNEL = (10, 50), (20, 40)
_FIRST_CHANNEL_METHOD = 40


@dataclass(frozen=True)
class Refusal:
    """What a peer does not do. method: of AMQP. It closes the connection or the channel with this text."""

    method: tuple[int, int]
    code: int
    text: str

    def frame(self, channel: int) -> bytes:
        """The frame that says so."""
        close = _CLOSE_CHANNEL if self.method[0] >= _FIRST_CHANNEL_METHOD else _CLOSE_CONNECTION
        said = pack(">HB", self.code, len(self.text)) + self.text.encode() + pack(">HH", *self.method)
        return _frame(channel, close, said)


LOGIN = Refusal((10, 11), 403, "ACCESS_REFUSED - Login was refused")
HOST = Refusal((10, 40), 530, "NOT_ALLOWED - vhost h not found")
QUEUE = Refusal((50, 10), 406, "PRECONDITION_FAILED - inequivalent arg")
BINDING = Refusal((50, 20), 403, "ACCESS_REFUSED - access to queue refused")
PUBLISH = Refusal((60, 40), 403, "ACCESS_REFUSED - access to exchange refused")
MESSAGE = Refusal((60, 40), 0, "")
"""The message is nacked, as by a queue that is full and has the policy reject-publish."""


def _frame(channel: int, method: tuple[int, int], arguments: bytes) -> bytes:
    payload = pack(">HH", *method) + arguments
    return pack(">BHI", 1, channel, len(payload)) + payload + b"\xce"


def _exactly(peer: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not (more := peer.recv(size - len(data))):
            raise ConnectionError
        data += more
    return data


def _serve(peer: socket.socket, blocked: str | None, refusal: Refusal | None) -> None:
    with peer:
        try:
            _exactly(peer, 8)
            peer.sendall(_frame(0, (10, 10), _START))
            while True:
                kind, channel, size = unpack(">BHI", _exactly(peer, 7))
                payload = _exactly(peer, size + 1)
                method = unpack(">HH", payload[:4]) if kind == 1 else None
                if refusal is not None and method == refusal.method:
                    nack = _frame(channel, _NACK, pack(">QB", 1, 0))
                    peer.sendall(refusal.frame(channel) if refusal.code else nack)
                elif method in _ANSWERS:
                    peer.sendall(_frame(channel, *_ANSWERS[method]))
                elif method == _PUBLISH and blocked is not None:
                    peer.sendall(_frame(0, _BLOCKED, bytes([len(blocked)]) + blocked.encode()))
        except OSError:
            return


@contextmanager
def amqp_peer(blocked: str | None, refusal: Refusal | None = None) -> Iterator[str]:
    """Yields its URL.

    blocked: why it blocks a connection that publishes; None: it is silent. refusal: what it refuses.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=_serve, args=(peer, blocked, refusal), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"amqp://guest:guest@127.0.0.1:{server.getsockname()[1]}//"
