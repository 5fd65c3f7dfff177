"""The files that `@FILE` names: lists of ids or logins, read within bounds."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from worker_scheduler.errors import BadInput
from worker_scheduler.redaction import escape_control_characters, show

MAX_BYTES = 64 * 2**20
"""Room for 1,700,000 ids, one per line."""

_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
# Only what ends a line in a text file: str.splitlines() also splits at characters that no editor shows.
_LINE_END = re.compile(r"\r\n|\r|\n")


def with_files_read(option: str, parts: list[str] | None) -> list[str] | None:
    """Replaces each `@FILE` by the file's items, which lines or commas separate.

    Linux allows 128 KiB in one argument (MAX_ARG_STRLEN), which is about 3,500 ids. Raises BadInput if a
    file cannot be read.
    """
    if parts is None:
        return None
    items: list[str] = []
    for part in parts:
        if part.startswith("@"):
            lines = _LINE_END.split(_text(option, part))
            items.extend(line.strip().rstrip(",") for line in lines if line.strip())
        else:
            items.append(part)
    return items


def _text(option: str, part: str) -> str:
    try:
        content = _content(Path(part[1:]))
        if content.startswith(_UTF_16):
            raise ValueError("it is UTF-16, save it as UTF-8")
        # Some editors begin a file with a byte order mark, which belongs to no item.
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"byte {error.start} is not UTF-8"
    except OSError as error:
        reason = error.strerror or str(error)
    except ValueError as error:
        reason = str(error)
    raise BadInput(
        f"{option}={show(part)}: the file cannot be read: {escape_control_characters(reason)}"
    ) from None


def _content(path: Path) -> bytes:
    """Raises ValueError for what is not a file of at most MAX_BYTES. A device or a pipe may have no end, or
    never begin: opening it must not wait, and it is not read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is not a regular file")
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES // 2**20} MiB")
    return content
