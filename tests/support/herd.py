"""Runs one function in many real processes at the same moment: `python -m tests.support.herd`.

The processes are forked from one that has imported everything, so that they begin together.
"""

import importlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryFile

from tests.support.command_line import Outcome


def run_herd(
    environment: Mapping[str, str], size: int, function: str, *arguments: str, deadline_seconds: float = 90
) -> list[Outcome]:
    """Calls `package.module:function` with the arguments in `size` processes; returns their outcomes."""
    root = Path(__file__).resolve().parents[2]
    ended = subprocess.run(
        [sys.executable, "-m", "tests.support.herd", str(size), function, *arguments],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
        timeout=deadline_seconds,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return [Outcome(**outcome) for outcome in json.loads(ended.stdout)]


def work(arguments: list[str]) -> int:
    """Runs the job with the given id as a worker would, and prints its attempt if it got the job."""
    from uuid import UUID

    from worker_scheduler import logs
    from worker_scheduler.config.settings import load
    from worker_scheduler.wiring import process_worker

    logs.configure(load().log_level)
    process_worker().run(UUID(arguments[0]), lambda job: print(job.attempt))
    return 0


def _main(size: int, function: str, arguments: list[str]) -> None:
    for warm in ("worker_scheduler.wiring", "worker_scheduler.celery_app"):
        importlib.import_module(warm)
    module, _, name = function.partition(":")
    call = getattr(importlib.import_module(module), name)
    gate, opener = os.pipe()
    children = []
    for _ in range(size):
        output = TemporaryFile("w+")  # noqa: SIM115 - read when its writer has ended
        pid = os.fork()
        if pid == 0:
            os.close(opener)
            os.read(gate, 1)  # returns when the last holder of the other end closes it
            stdout, stderr = io.StringIO(), io.StringIO()
            with redirect_stdout(stdout), redirect_stderr(stderr):
                status = call(arguments)
            json.dump({"status": status, "stdout": stdout.getvalue(), "stderr": stderr.getvalue()}, output)
            output.flush()
            os._exit(0)
        children.append((pid, output))
    os.close(opener)
    outcomes = []
    for pid, output in children:
        _, ended = os.waitpid(pid, 0)
        assert ended == 0, ended
        output.seek(0)
        outcomes.append(json.load(output))
    print(json.dumps(outcomes))


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
