"""The files of `--users-file`: read as a stream, so that a million users need no more memory than a few."""

from __future__ import annotations

import codecs
import io
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from worker_scheduler.config.options import id_or_login
from worker_scheduler.errors import BadInput
from worker_scheduler.named_users import NamedUsers
from worker_scheduler.redaction import escape_control_characters, show

_STANDARD_INPUT = "-"
_BLOCK_BYTES = 64 * 2**10
_LONGEST_ITEM = 1000
"""Characters, blanks included; no item has as many. A file without line ends must not fill the memory."""
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_PIECE = re.compile(r"[\n,#]|[^\n,#]+")


def read_users(paths: list[str]) -> NamedUsers:
    """The users of all files. Raises BadInput if one cannot be read, or names nobody."""
    named = NamedUsers()
    for path in paths:
        try:
            _add_users(named, path)
        except (OSError, ValueError) as error:
            reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
            raise BadInput(
                f"--users-file={show(path)}: {escape_control_characters(reason)}{_hint(path)}"
            ) from None
    return named


def _add_users(named: NamedUsers, path: str) -> None:
    """Raises ValueError for a file that names nobody: it must not count as a choice that was not made."""
    found = False
    with _opened(path) as file:
        for line, item in _items(_decoded(file)):
            found = True
            try:
                user = id_or_login(item)
            except ValueError as error:
                raise ValueError(f"line {line} {error}") from None
            if isinstance(user, str):
                named.add_login(user)
            else:
                named.add_id(user)
    if not found:
        raise ValueError("there is no id and no login in it")


@contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    if path != _STANDARD_INPUT:
        with Path(path).open("rb") as file:
            yield file
    elif sys.stdin is None:
        raise ValueError("standard input is closed")
    else:
        yield sys.stdin.buffer


def _decoded(file: IO[bytes]) -> Iterator[str]:
    """The text of the file block by block, without a byte order mark, and with each line end as \\n."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(), translate=True)
    read = 0
    while True:
        block = file.read(_BLOCK_BYTES)
        if not read and block.startswith(_UTF_16):
            raise ValueError("it is UTF-16, save it as UTF-8")
        read += len(block)
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:  # whose object may begin in an earlier block
            raise ValueError(f"byte {read - len(error.object) + error.start} is not UTF-8") from None
        yield text
        if not block:
            return


def _items(blocks: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Each item with its line. Lines and commas separate items; # begins a comment, to the line's end."""
    line, item, in_comment = 1, "", False
    for block in blocks:
        for piece in _PIECE.findall(block):
            if piece in {"\n", ",", "#"}:
                if not in_comment and (whole := item.strip()):
                    yield line, whole
                item = ""
                in_comment = piece == "#" or (in_comment and piece == ",")
                line += piece == "\n"
            elif not in_comment:
                item += piece
                if len(item) > _LONGEST_ITEM:
                    raise ValueError(f"line {line} has an item of more than {_LONGEST_ITEM} characters")
    if whole := item.strip():
        yield line, whole


def _hint(path: str) -> str:
    without = path.removeprefix("@")
    if without != path and os.path.isfile(without):  # noqa: PTH113 - Path raises for what no path can be
        return f"; did you mean {show(without)}, without @?"
    return ""
