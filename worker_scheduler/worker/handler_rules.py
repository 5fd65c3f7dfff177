"""What can be a handler, as far as it can be seen without calling it: a function that does a job itself.

What cannot be seen here is noticed when the handler returns, by `returned.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import NamedTuple

_DEEPEST = 50
"""How many decorators to look through. An object may answer to every name, also to `__wrapped__`, without
end.
"""

_RUNNERS = {"run", "run_until_complete", "async_to_sync"}
"""What a decorator calls to run an async function to its end."""


class _Layer(NamedTuple):
    """Something that the handler calls. how: the way to it in words, with {} for its kind."""

    called: object
    how: str


def fault_of(handler: object, name: str) -> str | None:
    """Why this cannot be a handler, and what to write instead, in one line; None if it can, or if that
    cannot be seen.

    name: the last part of SYNC_HANDLER, for the example.
    """
    if not callable(handler):
        return f"an object of the type {type(handler).__name__}: name a function"
    try:
        return _fault_of_callable(handler, name)
    except Exception:  # noqa: BLE001 - a proxy may not even say of which class it is
        return None


def _fault_of_callable(handler: object, name: str) -> str | None:
    if inspect.isclass(handler):
        return "a class: write a function that makes an object of it and does the job, def handle(job)"
    for layer in _layers(handler):
        kind, instead = _late_kind(layer.called, name)
        if kind is not None:
            return f"{layer.how.format(kind)}: write {instead} and name handle"
    if not _takes_a_job(handler):
        return "a function that cannot be called with one argument: write def handle(job)"
    return None


def _layers(handler: object) -> Iterator[_Layer]:
    """The handler, what it is a partial of or decorates, the `__call__` of an object, and so on."""
    layer: _Layer | None = _Layer(handler, "{}")
    for _ in range(_DEEPEST):
        if layer is None:
            return
        yield layer
        layer = _below(layer)


def _below(layer: _Layer) -> _Layer | None:
    called, how = layer
    if isinstance(called, partial):
        return _Layer(called.func, "a partial of {}" if how == "{}" else how)
    if isinstance(called, MethodType):
        return _Layer(called.__func__, how)
    if _runs_async(called):
        return None
    wrapped = _wrapped(called)
    if wrapped is not None:
        return _Layer(wrapped, "a decorator around {}" if how == "{}" else how)
    own_call = getattr(type(called), "__call__", None)  # noqa: B004 - the function itself is looked at
    if isinstance(own_call, FunctionType):
        return _Layer(own_call, "an object with {} as its __call__" if how == "{}" else how)
    return None


def _wrapped(called: object) -> object | None:
    try:
        found: object = called.__wrapped__  # type: ignore[attr-defined]
    except Exception:  # noqa: BLE001 - an attribute of the application's object may raise anything
        return None
    return found if callable(found) else None


def _late_kind(called: object, name: str) -> tuple[str | None, str]:
    """The kind of a function whose code does not run when it is called, and what to write instead; or
    None.
    """
    if isinstance(called, partial):  # `inspect` looks through it; here, the layer below is what counts
        return None, ""
    if _says(inspect.isasyncgenfunction, called):
        main = f"async def main(job): async for _ in {name}(job): pass"
        return "an async generator function", f"{main} and def handle(job): asyncio.run(main(job))"
    if _says(inspect.iscoroutinefunction, called):
        return "an async function", f"def handle(job): asyncio.run({name}(job))"
    if _says(inspect.isgeneratorfunction, called):
        return "a generator function", f"def handle(job): for _ in {name}(job): pass"
    return None, ""


def _says(check: Callable[[object], bool], called: object) -> bool:
    try:
        return check(called)
    except Exception:  # noqa: BLE001 - an attribute of the application's object may raise anything
        return False


def _runs_async(called: object) -> bool:
    """Whether a decorator seems to run the async function inside it.

    If this guess is wrong, the jobs fail.
    """
    own_call = called if isinstance(called, FunctionType) else getattr(type(called), "__call__", None)  # noqa: B004
    return isinstance(own_call, FunctionType) and bool(_RUNNERS & set(_names(own_call.__code__)))


def _names(code: CodeType) -> Iterator[str]:
    yield from (*code.co_names, *code.co_freevars)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _takes_a_job(handler: object) -> bool:
    """Whether a function can be called with one argument; True if that cannot be seen.

    A decorated function shows the signature of the inner one, but the decorator may add arguments to the
    call.
    """
    if not isinstance(handler, FunctionType | MethodType | partial) or hasattr(handler, "__signature__"):
        return True
    try:
        inspect.signature(handler, follow_wrapped=False).bind(None)
    except TypeError:
        return False
    except ValueError:  # no signature is known
        return True
    return True
