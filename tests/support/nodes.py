"""Real processes as nodes of pytest-celery, which otherwise knows only containers."""

import signal as signals
from typing import Any

from pytest_celery import CeleryTestContainer, CeleryTestNode, CeleryTestWorker

from tests.support.processes import Process


class ProcessContainer(CeleryTestContainer):  # type: ignore[misc]
    """A process where pytest-celery expects a container; the base class's `__init__` wants Docker."""

    def __init__(self, name: str, process: Process, ready_prompt: str) -> None:
        self._name = name
        self._process = process
        self._ready_prompt = ready_prompt

    @property
    def process(self) -> Process:
        return self._process

    @property
    def id(self) -> str:
        return f"{self._name}-{self._process.pid}"

    @property
    def name(self) -> str:
        return self._name

    @property
    def status(self) -> str:
        return "running" if self._process.running else "exited"

    @property
    def ready_prompt(self) -> str:
        return self._ready_prompt

    @property
    def celeryconfig(self) -> dict[str, Any]:
        return {}

    def logs(self, *_: Any, **__: Any) -> str:
        return self._process.log()

    def ready(self) -> bool:
        self._process.wait_for_log(self._ready_prompt)
        return True

    def reload(self) -> None:
        """Nothing is cached."""

    def kill(self, signal: str | int = "SIGKILL") -> None:
        self._process.send(signals.Signals[signal] if isinstance(signal, str) else signals.Signals(signal))
        self._process.wait(30)

    def restart(self, timeout: int = 10) -> None:
        self._process.kill()
        self._process.start()

    def teardown(self) -> None:
        self._process.kill()

    @classmethod
    def version(cls) -> str:
        import celery

        return str(celery.__version__)

    @classmethod
    def log_level(cls) -> str:
        return "INFO"

    @classmethod
    def worker_name(cls) -> str:
        return "worker"

    @classmethod
    def worker_queue(cls) -> str:
        return "scheduler"


def worker_node(process: Process, app: Any) -> CeleryTestWorker:
    """Starts a worker; call `teardown` in the end."""
    process.start()
    return CeleryTestWorker(ProcessContainer("worker", process, "ready."), app)


def beat_node(process: Process, app: Any) -> CeleryTestNode:
    """Starts a Beat; call `teardown` in the end."""
    process.start()
    return CeleryTestNode(ProcessContainer("beat", process, "beat: Starting"), app)
