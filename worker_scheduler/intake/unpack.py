"""Unpacks compressed bodies, up to a bound: kombu would unpack 280 bytes to 300 MB."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Protocol

from kombu.compression import get_encoder

from worker_scheduler.intake.readable import MAX_BYTES, Unreadable


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


_DECOMPRESSORS: dict[str, Callable[[], _Decompressor]] = {
    "application/x-gzip": zlib.decompressobj,
    "application/x-bz2": bz2.BZ2Decompressor,
    # Its dictionary, too, is as large as the message says.
    "application/x-lzma": lambda: lzma.LZMADecompressor(memlimit=8 * MAX_BYTES),
}
"""By kombu's names. The libraries for the other methods cannot be told where to stop."""


def unpack(body: str | bytes, method: object, accepted: str | None) -> bytes:
    """The body without its compression.

    accepted: the deployment's `task_compression`. Raises Unreadable if the method is another one, or if
    the body has more than MAX_BYTES when it is unpacked, of which no more are unpacked.
    """
    name = _full_name(accepted)
    if name is None:
        raise Unreadable("it is compressed, and task_compression is not set")
    if _full_name(method) != name:
        raise Unreadable("it is compressed by another method than task_compression")
    if name not in _DECOMPRESSORS:
        raise Unreadable("its compression cannot be bounded: set task_compression to gzip, bzip2 or lzma")
    decompressor = _DECOMPRESSORS[name]()
    try:
        unpacked = decompressor.decompress(body.encode() if isinstance(body, str) else body, MAX_BYTES + 1)
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
        raise Unreadable(f"it cannot be unpacked: {error}") from error
    if len(unpacked) > MAX_BYTES:
        raise Unreadable(f"it has more than {MAX_BYTES} bytes when it is unpacked")
    if not decompressor.eof:
        raise Unreadable("it cannot be unpacked: its end is missing")
    return unpacked


def _full_name(method: object) -> str | None:
    """kombu's full name of a method, which may be given by a short one; None if there is no such method."""
    try:
        return str(get_encoder(method)[1])
    except (KeyError, TypeError):
        return None
