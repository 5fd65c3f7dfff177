"""`make demo` shows a day's run on its own servers, and leaves nothing behind, however it ends."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.processes import Process, alive, started
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]


class Demo:
    """A running demo, with every process and folder of it that the test has seen."""

    def __init__(self, process: Process, temporary: Path) -> None:
        self.process = process
        self._temporary = temporary
        self._seen: set[psutil.Process] = set()
        self._folders: set[Path] = set()

    def look(self) -> bool:
        """Records the current processes and folders; returns whether the demo is still running."""
        if not self.process.running:
            return False
        try:
            self._seen |= set(psutil.Process(self.process.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            return False
        if not self._folders:
            self._folders = {path for path in Path("/tmp").glob("embedded-*") if self._is_ours(path)}
        return True

    def _is_ours(self, folder: Path) -> bool:
        """Whether a process of the demo names the folder.

        As root, the servers' folder is not below TMPDIR, where other tests have such folders, too.
        """
        return any(str(folder) in argument for process in self._seen for argument in _arguments(process))

    def require_nothing_left(self) -> None:
        assert len(self._seen) >= 5, "servers, Beat and workers were not seen"
        assert [process for process in self._seen if alive(process)] == []
        assert [folder for folder in self._folders if folder.exists()] == []
        assert list(self._temporary.iterdir()) == []


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


@pytest.fixture
def demo(environment: dict[str, str], tmp_path: Path) -> Iterator[Demo]:
    temporary = tmp_path / "temporary"
    temporary.mkdir(mode=0o755)
    without_servers = {
        name: value
        for name, value in environment.items()
        if name not in {"DATABASE_URL", "REDIS_URL", "REDIS_KEY_PREFIX"}
    }
    process = Process(
        [sys.executable, "-m", "demo"],
        without_servers | {"PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)},
        tmp_path / "demo.log",
    )
    with started(process):
        yield Demo(process, temporary)


def test_it_ends_with_every_job_completed_and_leaves_nothing(demo: Demo) -> None:
    wait_until(lambda: not demo.look(), 100, "the demo's end")
    assert demo.process.wait(1) == 0, demo.process.log()
    lines = demo.process.log().splitlines()
    assert any(line.startswith("1,000 jobs COMPLETED, 0 in any other state") for line in lines), lines
    assert any(line.startswith("What to try next") for line in lines)
    demo.require_nothing_left()


def test_an_interrupt_stops_everything_the_demo_started(demo: Demo) -> None:
    wait_until(lambda: demo.look() and "PENDING" in demo.process.log(), 60, "the first jobs")
    demo.process.send(signal.SIGINT)
    wait_until(lambda: not demo.look(), 30, "the demo's end")
    assert demo.process.wait(1) == 128 + signal.SIGINT, demo.process.log()
    assert demo.process.log().splitlines()[-1] == "demo: stopped by SIGINT"
    demo.require_nothing_left()
