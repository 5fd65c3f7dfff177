"""TLS to Postgres and Redis, certificates and names verified, unless the URL says otherwise."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kombu.exceptions import OperationalError
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy.engine import make_url

from tests.support.command_line import Outcome, outcome_of
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.tls import (
    ELSEWHERE_CERTIFICATE,
    SELF_SIGNED_CERTIFICATE,
    PostgresTlsProxy,
    TlsProxy,
    elsewhere,
)
from tests.support.users import make_users
from worker_scheduler.ledger import tls

Scheduler = Callable[..., Outcome]


@pytest.fixture
def no_certificates_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """libpq would read ~/.postgresql, and variables of its own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("PGSSLROOTCERT", "PGSSLMODE", "PGHOST", "PGHOSTADDR", "PGSERVICE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def postgres(database_url: str) -> Iterator[PostgresTlsProxy]:
    """The test's Postgres, behind TLS with a certificate for ELSEWHERE that nobody has signed."""
    with PostgresTlsProxy(database_url, ELSEWHERE_CERTIFICATE) as proxy:
        yield proxy


@pytest.fixture
def database(database_url: str) -> str:
    return str(make_url(database_url).database)


@pytest.mark.usefixtures("no_certificates_of_the_user")
class TestPostgres:
    @pytest.mark.parametrize("command", [["daily"], ["status"], ["migrate"], ["check"], ["reconcile"]])
    def test_a_certificate_that_nobody_signed_is_refused(
        self,
        command: list[str],
        postgres: PostgresTlsProxy,
        database: str,
        scheduler: Scheduler,
        ledger: Ledger,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        make_users(ledger.url, 3)
        url = postgres.url_of(database)
        monkeypatch.setenv("DATABASE_URL", url)
        outcome = scheduler(*command)
        assert outcome.status == 4
        lines = outcome.stdout.splitlines() if command == ["check"] else [outcome.error]
        (line,) = (line for line in lines if "Postgres: " in line or command != ["check"])
        assert "certificate verify failed" in line
        assert "sslmode=require" in line and "sslmode=disable" in line and "sslrootcert=" in line
        assert (make_url(url).password or url) not in outcome.stdout + outcome.stderr
        assert ledger.count() == 0

    def test_a_certificate_of_a_trusted_authority(
        self,
        postgres: PostgresTlsProxy,
        database: str,
        scheduler: Scheduler,
        ledger: Ledger,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        make_users(ledger.url, 3)
        monkeypatch.setenv(
            "DATABASE_URL", postgres.url_of(database, sslrootcert=str(ELSEWHERE_CERTIFICATE))
        )
        assert scheduler("daily").status == 0
        assert scheduler("check").status == 0
        assert postgres.forwarded > 0
        assert ledger.count() == 3

    def test_the_system_authorities_are_those_of_python(
        self,
        postgres: PostgresTlsProxy,
        database: str,
        scheduler: Scheduler,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The OpenSSL of psycopg's wheel looks in a folder that exists nowhere."""
        monkeypatch.setenv("DATABASE_URL", postgres.url_of(database))
        monkeypatch.setenv("SSL_CERT_FILE", str(ELSEWHERE_CERTIFICATE))
        assert scheduler("status").status == 0

    def test_a_certificate_for_another_name_is_refused(
        self,
        postgres: PostgresTlsProxy,
        database: str,
        scheduler: Scheduler,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        url = postgres.url_of(database, "other.example.test", sslrootcert=str(ELSEWHERE_CERTIFICATE))
        monkeypatch.setenv("DATABASE_URL", url)
        outcome = scheduler("status")
        assert outcome.status == 4
        assert "other.example.test" in outcome.error and "sslmode=require" in outcome.error

    def test_a_server_without_tls_is_refused(
        self, database_url: str, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DATABASE_URL", elsewhere(database_url))
        # libpq's own variable is not the URL.
        monkeypatch.setenv("PGSSLMODE", "disable")
        outcome = scheduler("status")
        assert outcome.status == 4
        assert "server does not support SSL" in outcome.error
        assert "sslmode=disable (no TLS)" in outcome.error

    def test_the_url_may_say_no_tls(
        self, database_url: str, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DATABASE_URL", elsewhere(database_url, sslmode="disable"))
        assert scheduler("status").status == 0

    def test_the_url_may_say_unverified(
        self,
        postgres: PostgresTlsProxy,
        database: str,
        scheduler: Scheduler,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("DATABASE_URL", postgres.url_of(database, sslmode="require"))
        assert scheduler("status").status == 0

    @pytest.mark.parametrize(
        ("url", "local"),
        [
            ("postgresql:///db", True),
            ("postgresql://localhost/db", True),
            ("postgresql://127.0.0.2:6432/db", True),
            ("postgresql://[::1]/db", True),
            ("postgresql://u@/db?host=/run/postgresql", True),
            ("postgresql://u@/db?host=localhost:5432&host=127.0.0.1:5433", True),
            ("postgresql://localhost/db?hostaddr=10.0.0.1", False),
            ("postgresql://10.0.0.1/db", False),
            ("postgresql://[fd00::1]/db", False),
            ("postgresql://postgres.default.svc/db", False),
            ("postgresql://localhost.example.com/db", False),
            ("postgresql://u@/db?host=localhost:5432&host=db:5432", False),
            ("postgresql://u@/db?host=db", False),
            ("postgresql:///db?service=production", False),
        ],
    )
    def test_only_this_machine_goes_without_saying(self, url: str, local: bool) -> None:
        found = tls.defaults(make_url(url))
        assert found.get("sslmode") == (None if local else "verify-full")
        assert bool(found.get("sslrootcert")) is not local

    def test_libpqs_own_variables_are_hosts_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        url = make_url("postgresql:///db")
        for name, value in (("PGHOST", "db"), ("PGHOSTADDR", "10.0.0.1"), ("PGSERVICE", "production")):
            with monkeypatch.context() as patched:
                patched.setenv(name, value)
                assert tls.defaults(url)["sslmode"] == "verify-full"
        assert tls.defaults(url) == {}

    @pytest.mark.parametrize("mode", ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"])
    def test_what_the_url_says_stays(self, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "sslmode" not in tls.defaults(make_url(f"postgresql://db/db?sslmode={mode}"))
        given = "postgresql://db/db?sslrootcert=system"
        assert tls.defaults(make_url(given)) == {"sslmode": "verify-full"}
        monkeypatch.setenv("PGSSLROOTCERT", "/ca.pem")
        assert tls.defaults(make_url("postgresql://db/db")) == {"sslmode": "verify-full"}


@pytest.fixture(params=["an authority that nobody knows", "another name"])
def refused(request: pytest.FixtureRequest, redis_url: str) -> Iterator[str]:
    """The URL of the test's Redis behind a certificate that must be refused."""
    if request.param == "another name":
        # Trusted, but the URL says localhost.
        with TlsProxy(redis_url, ELSEWHERE_CERTIFICATE) as proxy:
            yield f"{proxy.url}?ssl_ca_certs={ELSEWHERE_CERTIFICATE}"
    else:
        with TlsProxy(redis_url, SELF_SIGNED_CERTIFICATE) as proxy:
            yield proxy.url


def unverified(url: str) -> str:
    return f"{url.partition('?')[0]}?ssl_cert_reqs=none"


def kombu_reaches_the_broker() -> bool:
    import worker_scheduler

    with worker_scheduler.app.connection_for_write() as connection:
        # Not `default_channel`, which tries for six seconds.
        return bool(connection.channel().client.ping())


def redbeat_reaches_redis() -> bool:
    from redbeat.schedulers import ensure_conf, get_redis

    import worker_scheduler

    app = worker_scheduler.app
    app.conf.redbeat_redis_options = app.conf.redbeat_redis_options | {"retry_period": 0}
    ensure_conf(app)
    return bool(get_redis(app).ping())


@pytest.mark.slow
def test_every_client_of_redis_refuses(
    refused: str, scheduler: Scheduler, ledger: Ledger, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_users(ledger.url, 3)
    monkeypatch.setenv("REDIS_URL", refused)
    outcome = scheduler("daily")
    assert (outcome.status, broker.everything()) == (4, {})
    assert "CERTIFICATE_VERIFY_FAILED" in outcome.error
    password = make_url(refused).password
    assert password is None or password not in outcome.stderr
    checked = scheduler("check")
    assert checked.status == 4
    faults = checked.faults
    assert [fault.split()[1] for fault in faults] == ["Redis:", "broker:"]
    assert all("CERTIFICATE_VERIFY_FAILED" in fault for fault in faults)
    assert all("ssl_cert_reqs=none" in fault for fault in faults)
    with pytest.raises((RedisError, OperationalError), match="CERTIFICATE_VERIFY_FAILED"):
        kombu_reaches_the_broker()
    with pytest.raises(RedisError, match="CERTIFICATE_VERIFY_FAILED"):
        redbeat_reaches_redis()


@pytest.mark.slow
def test_another_broker_is_verified_too(
    refused: str, scheduler: Scheduler, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CELERY_BROKER_URL reaches Celery past our settings."""
    make_users(ledger.url, 3)
    monkeypatch.setenv("CELERY_BROKER_URL", refused)
    checked = scheduler("check")
    assert checked.status == 4
    (fault,) = checked.faults
    assert fault.startswith("FAULT broker: ") and "CERTIFICATE_VERIFY_FAILED" in fault
    with pytest.raises((RedisError, OperationalError), match="CERTIFICATE_VERIFY_FAILED"):
        kombu_reaches_the_broker()
    assert redbeat_reaches_redis()


def test_each_url_speaks_for_itself(
    refused: str, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker's URL turns verification off only for the broker, and REDIS_URL only for RedBeat."""
    monkeypatch.setenv("REDIS_URL", refused)
    monkeypatch.setenv("CELERY_BROKER_URL", unverified(refused))
    assert kombu_reaches_the_broker()
    with pytest.raises(RedisError, match="CERTIFICATE_VERIFY_FAILED"):
        redbeat_reaches_redis()


def test_each_url_speaks_for_itself_the_other_way(
    refused: str, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", unverified(refused))
    monkeypatch.setenv("CELERY_BROKER_URL", refused)
    assert redbeat_reaches_redis()
    with pytest.raises((RedisError, OperationalError), match="CERTIFICATE_VERIFY_FAILED"):
        kombu_reaches_the_broker()


def test_the_right_name_passes(redis_url: str) -> None:
    """This shows that the tests above are refused because of the name."""
    with TlsProxy(redis_url, SELF_SIGNED_CERTIFICATE) as proxy:
        client = Redis.from_url(f"{proxy.url}?ssl_ca_certs={SELF_SIGNED_CERTIFICATE}")
        assert client.ping()
        client.close()


WITHOUT_PRIVILEGES = """
import os
from worker_scheduler.ledger.database import Database
url = os.environ["DATABASE_URL"].replace("postgresql:", "postgresql+psycopg:", 1)
with Database(url).autocommit():  # as root, who may read this Python
    pass
os.setgroups([])
os.setgid(54321)
os.setuid(54321)
with Database(url).autocommit():
    print("connected")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_verified_connection_when_the_home_folder_cannot_be_read(
    postgres: PostgresTlsProxy, database: str, tmp_path: Path
) -> None:
    """libpq looks there for a certificate of the client, and gives up if it may not look."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    url = postgres.url_of(database, sslrootcert=str(ELSEWHERE_CERTIFICATE))
    given = {"DATABASE_URL": url, "REDIS_URL": "redis://127.0.0.1:1/0", "PATH": "/bin", "HOME": str(home)}
    outcome = outcome_of([sys.executable, "-c", WITHOUT_PRIVILEGES], given, Path("/"))
    assert (outcome.status, outcome.stdout) == (0, "connected\n"), outcome.stderr
