"""Ids and logins of users that somebody named, kept so that memory does not grow with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from tempfile import SpooledTemporaryFile
from typing import IO
from uuid import UUID

_IN_MEMORY_BYTES = 16 * 2**20
"""1,000,000 ids. What is more goes into a file without a name, in the folder that TMPDIR says."""
_ID_BYTES = 16


def _spool() -> IO[bytes]:
    return SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)


@dataclass(frozen=True)
class NamedUsers:
    """Ids and logins, in the order in which they were added. Raises OSError if the disk has no space."""

    _ids: IO[bytes] = field(default_factory=_spool)
    _logins: IO[bytes] = field(default_factory=_spool)

    def add_id(self, user_id: UUID) -> None:
        """Adds a user by id."""
        self._ids.write(user_id.bytes)

    def add_login(self, login: str) -> None:
        """Adds a user by login, which has no line end."""
        self._logins.write(login.encode() + b"\n")

    @property
    def is_empty(self) -> bool:
        """Whether nobody was added."""
        return not self._ids.tell() and not self._logins.tell()

    def ids(self, at_most: int) -> Iterator[list[UUID]]:
        """The ids, `at_most` in each list. Nobody can be added after it was called."""
        self._ids.seek(0)
        while some := self._ids.read(at_most * _ID_BYTES):
            yield [UUID(bytes=some[at : at + _ID_BYTES]) for at in range(0, len(some), _ID_BYTES)]

    def logins(self, at_most: int) -> Iterator[list[str]]:
        """The logins, `at_most` in each list. Nobody can be added after it was called."""
        self._logins.seek(0)
        some: list[str] = []
        for line in self._logins:
            some.append(line[:-1].decode())
            if len(some) == at_most:
                yield some
                some = []
        if some:
            yield some
