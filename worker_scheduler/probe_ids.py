"""The ids of probes: messages of `sync_user` that no job has, reserved so that a worker knows them.

A job's id is random (version 4) or begins with a time (version 7); these have version 8 (RFC 9562).
"""

from __future__ import annotations

import secrets
from uuid import UUID

PREFIX = "ffffffff-ffff-8fff-"
"""Every probe's id begins with it, and no other id does."""


def new_probe_id() -> UUID:
    """The id for one probe."""
    random = 0x8000 | secrets.randbits(14)
    return UUID(f"{PREFIX}{random:04x}-{secrets.randbits(48):012x}")


def is_probe(message_id: UUID) -> bool:
    """Whether the message with this id, which is its task's id, is a probe."""
    return str(message_id).startswith(PREFIX)
