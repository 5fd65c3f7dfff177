"""Memory that the main process of a prefork worker shares with the processes of its pool.

Each process of the pool notes which attempt it holds. So the main process knows what a process held that
has died, also if nobody else could tell: that process may have held a duplicate message, whose job another
worker runs. And the main process notes that the worker is being stopped, which tells a process that gets
a signal whether to hand its job back.

The memory is shared by fork. A pool that starts its processes in another way has none; its workers then
only know what Postgres knows.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
import zlib
from typing import NamedTuple
from uuid import UUID

_PROCESSES = 1024
"""How many processes a pool may have. Memory that no process has written to costs nothing."""

_BYTES = 64
"""Of one record, and of the header: a line of the processor's cache."""

_RECORD = struct.Struct("<QId16s")
_CHECKSUM = struct.Struct("<I")
_EMPTY = bytes(_BYTES)
_READS = 5
_POLL_SECONDS = 0.02


class Held(NamedTuple):
    """The attempt that a process of the pool holds.

    deadline: when the handler must have ended, by the monotonic clock, which all processes of a host share;
    0 if there is no limit, or if the handler has ended and the end is being recorded.
    """

    pid: int
    attempt: int
    deadline: float
    job_id: UUID


class PoolMemory:
    """To be made before the pool starts. `enter` is called in each process of the pool."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _BYTES * (_PROCESSES + 1))
        self._offset = 0

    def enter(self, index: int) -> None:
        """Gives this process the place of a number, in which its predecessor may have left a record."""
        if 0 <= index < _PROCESSES:
            self._offset = _BYTES * (index + 1)

    @property
    def entered(self) -> bool:
        """Whether this is a process of the pool."""
        return self._offset > 0

    def note(self, job_id: UUID, attempt: int, deadline: float) -> None:
        """Notes the attempt that this process holds now; in the main process it does nothing."""
        if self._offset:
            record = _RECORD.pack(os.getpid(), attempt, deadline, job_id.bytes)
            self._write(record + _CHECKSUM.pack(zlib.crc32(record)))

    def clear(self) -> None:
        """Notes that this process holds no attempt."""
        if self._offset:
            self._write(_EMPTY)

    def held_by(self, pid: int) -> Held | None:
        """The attempt that a process holds, or held when it died; None if it died while it wrote that."""
        for offset in range(_BYTES, _BYTES * (_PROCESSES + 1), _BYTES):
            for _ in range(_READS):  # a record that is just being written fits no checksum
                written, *_ = struct.unpack_from("<Q", self._memory, offset)
                if written != pid:
                    break
                held = self._read(offset)
                if held is not None:
                    return held if held.pid == pid else None
        return None

    def note_stop(self) -> None:
        """Notes that the worker is being stopped. It stays so."""
        self._memory[0] = 1

    @property
    def stopping(self) -> bool:
        """Whether the worker is being stopped."""
        return self._memory[0] == 1

    def wait_for_stop(self, seconds: float) -> bool:
        """Waits for so long at most until the worker is being stopped; whether it is."""
        deadline = time.monotonic() + seconds
        while not self.stopping:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def _write(self, record: bytes) -> None:
        self._memory[self._offset : self._offset + len(record)] = record

    def _read(self, offset: int) -> Held | None:
        copied = self._memory[offset : offset + _RECORD.size + _CHECKSUM.size]
        record, checksum = copied[: _RECORD.size], copied[_RECORD.size :]
        if _CHECKSUM.unpack(checksum) != (zlib.crc32(record),):
            return None
        pid, attempt, deadline, job_id = _RECORD.unpack(record)
        return Held(pid, attempt, deadline, UUID(bytes=job_id))


_shared: PoolMemory | None = None


def create() -> PoolMemory:
    """Makes the memory of this process and of those that it forks from now on."""
    global _shared  # noqa: PLW0603 - what a fork inherits is global
    _shared = PoolMemory()
    return _shared


def shared() -> PoolMemory | None:
    """The memory of this worker; None if this is no prefork worker."""
    return _shared
