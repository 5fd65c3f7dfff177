"""What applications have named as their handler: each would do nothing, or not what its author thinks."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from functools import lru_cache, partial, wraps
from typing import Any

from worker_scheduler.worker import SyncJob

ran: list[str] = []
"""What has run to its end."""


def passes_on(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator of any kind, such as one that logs: it returns what the function returns."""

    @wraps(function)
    def wrapper(*given: Any, **named: Any) -> Any:
        return function(*given, **named)

    return wrapper


def runs_it(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that makes a plain function of an async one."""

    @wraps(function)
    def wrapper(*given: Any, **named: Any) -> Any:
        return asyncio.run(function(*given, **named))

    return wrapper


async def coroutine(job: SyncJob) -> None:
    ran.append("coroutine")


async def async_generator(job: SyncJob) -> AsyncIterator[None]:
    ran.append("async_generator")
    yield


def generator(job: SyncJob) -> Iterator[None]:
    ran.append("generator")
    yield


def no_argument() -> None:
    ran.append("no_argument")


def two_arguments(job: SyncJob, client: object) -> None:
    ran.append("two_arguments")


class Service:
    """A class whose objects do jobs in one way or another."""

    def __init__(self, *given: object) -> None: ...

    async def __call__(self, job: SyncJob) -> None:
        ran.append("call")

    async def sync(self, job: SyncJob) -> None:
        ran.append("method")

    def plain(self, job: SyncJob) -> None:
        ran.append("plain")


class Plain:
    """A class whose objects are handlers."""

    def __call__(self, job: SyncJob) -> None:
        ran.append("object")


class Decorated:
    """A class whose objects are handlers by a decorated method."""

    __call__ = passes_on(coroutine)


class Strict:
    """A class whose objects raise an error of their own for a name that they do not have."""

    def __getattr__(self, name: str) -> object:
        raise LookupError(name)

    def __call__(self, job: SyncJob) -> None:
        ran.append("strict")


class AsyncStrict(Service):
    """The same with an async `__call__`."""

    __getattr__ = Strict.__getattr__


class Lazy:
    """A proxy that cannot say what it stands for, such as one outside of its context."""

    @property  # type: ignore[misc] # Python allows it, and proxies do it
    def __class__(self) -> Any:
        raise RuntimeError("no context")

    def __bool__(self) -> bool:
        raise ValueError("ambiguous")

    def __call__(self, job: SyncJob) -> None:
        ran.append("lazy")


decorated = passes_on(passes_on(coroutine))
decorated_generator = passes_on(generator)
cached = lru_cache(coroutine)
async_partial = partial(coroutine)
partial_of_decorated = partial(passes_on(partial(coroutine)))
async_object = Service()
async_method = Service().sync
async_strict = AsyncStrict()
decorated_object = Decorated()
a_text = "text"

# Those that do what they say.
plain_partial = partial(two_arguments, client=None)
plain_object = Plain()
plain_method = Service().plain
decorated_plain = passes_on(Service().plain)
run_by_decorator = runs_it(coroutine)
strict_object = Strict()
lazy_object = Lazy()


def returns_a_coroutine(job: SyncJob) -> object:
    return coroutine(job)


async def _started(job: SyncJob) -> None:
    await asyncio.sleep(0)
    ran.append("started")


def returns_a_started_coroutine(job: SyncJob) -> object:
    begun = _started(job)
    begun.send(None)
    return begun


class Awaitable:
    """Something else that can be awaited."""

    def __await__(self) -> Iterator[Any]:
        yield


def returns_an_awaitable(job: SyncJob) -> object:
    return Awaitable()


def returns_a_generator(job: SyncJob) -> object:
    return generator(job)


def returns_an_async_generator(job: SyncJob) -> object:
    return async_generator(job)
