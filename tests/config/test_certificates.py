"""`rediss://`: certificates are verified, for broker and RedBeat alike, unless the URL says otherwise."""

from collections.abc import Callable, Iterator

import pytest
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from tests.support.command_line import Outcome
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.tls import SELF_SIGNED_CERTIFICATE, TlsProxy
from tests.support.users import make_users

Scheduler = Callable[..., Outcome]


@pytest.fixture
def tls(redis_url: str) -> Iterator[TlsProxy]:
    """The test's Redis, behind TLS with a certificate that nobody has signed."""
    with TlsProxy(redis_url, SELF_SIGNED_CERTIFICATE) as proxy:
        yield proxy


def redbeat_reaches_redis() -> bool:
    from redbeat.schedulers import ensure_conf, get_redis

    import worker_scheduler

    app = worker_scheduler.app
    # Beat tries for a minute; one try is enough here.
    app.conf.redbeat_redis_options = app.conf.redbeat_redis_options | {"retry_period": 0}
    ensure_conf(app)
    return bool(get_redis(app).ping())


def celery_reaches_the_broker() -> bool:
    """Connects by kombu, as workers, Beat and `celery call` do; redis-bulk publishes without kombu."""
    import worker_scheduler

    with worker_scheduler.app.connection_for_write() as connection:
        return bool(connection.default_channel.client.ping())


@pytest.mark.parametrize("spelling", ["none", "NONE", "CERT_NONE"])
def test_an_unverified_certificate_where_the_url_says_so(
    spelling: str,
    tls: TlsProxy,
    scheduler: Scheduler,
    ledger: Ledger,
    broker: Broker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_users(ledger.url, 3)
    monkeypatch.setenv("REDIS_URL", f"{tls.url}?ssl_cert_reqs={spelling}")
    assert scheduler("daily").status == 0
    assert broker.counts() == {"daily": 3}
    assert tls.forwarded > 0
    assert redbeat_reaches_redis()
    assert celery_reaches_the_broker()
    assert scheduler("check").status == 0


@pytest.mark.slow
def test_a_bare_url_refuses_it(
    tls: TlsProxy,
    scheduler: Scheduler,
    ledger: Ledger,
    broker: Broker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_users(ledger.url, 3)
    monkeypatch.setenv("REDIS_URL", tls.url)
    outcome = scheduler("daily")
    assert outcome.status == 4
    assert "CERTIFICATE_VERIFY_FAILED" in outcome.error
    assert broker.everything() == {}
    with pytest.raises(RedisError, match="CERTIFICATE_VERIFY_FAILED"):
        redbeat_reaches_redis()
    with pytest.raises((RedisError, OperationalError), match="CERTIFICATE_VERIFY_FAILED"):
        celery_reaches_the_broker()


def test_a_certificate_that_is_trusted_by_name(
    tls: TlsProxy, scheduler: Scheduler, ledger: Ledger, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_users(ledger.url, 3)
    monkeypatch.setenv("REDIS_URL", f"{tls.url}?ssl_ca_certs={SELF_SIGNED_CERTIFICATE}")
    assert scheduler("daily").status == 0
    assert broker.counts() == {"daily": 3}
    assert redbeat_reaches_redis()


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_every_spelling_of_a_postgres_url(
    scheme: str, scheduler: Scheduler, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_users(ledger.url, 1)
    monkeypatch.setenv("DATABASE_URL", f"{scheme}://{ledger.url.partition('://')[2]}")
    for command in ("migrate", "daily", "status", "check"):
        assert scheduler(command).status == 0
