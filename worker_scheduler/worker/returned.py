"""What a handler may return: anything but work that is still to be done."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Coroutine, Generator
from contextlib import suppress


class UnfinishedWork(TypeError):
    """The handler returned something that does its work only if somebody awaits or iterates it."""


def require_finished(returned: object) -> None:
    """Raises UnfinishedWork if a handler returned an awaitable, a generator or an async generator.

    A coroutine and a generator are closed, so that Python prints no warning about them besides.
    """
    fault = None
    with suppress(Exception):  # a proxy may be unable to say what it stands for; its value is dropped
        fault = _fault_of(returned)
    if fault is None:
        return
    if isinstance(returned, Coroutine | Generator):
        with suppress(Exception):  # it may have begun, and raise anything when it is closed
            returned.close()
    raise UnfinishedWork(f"the handler returned {fault}")


def _fault_of(returned: object) -> str | None:
    run = "call asyncio.run() in the handler"
    if isinstance(returned, Generator):
        return "a generator, which nobody iterates: iterate it in the handler"
    if isinstance(returned, AsyncGenerator):
        return f"an async generator, which nobody iterates: {run}"
    if isinstance(returned, Coroutine):
        return f"a coroutine, which nobody awaits: {run}"
    if isinstance(returned, Awaitable):
        return f"an object to await ({type(returned).__name__}), which nobody awaits: {run}"
    return None
