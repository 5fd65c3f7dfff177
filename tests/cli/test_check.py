"""`scheduler check` names what would stop a tick: a fault where none could work, a warning otherwise."""

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from redis import Redis
from sqlalchemy.engine import make_url

from tests.support.command_line import Outcome
from tests.support.databases import new_database, url_of
from tests.support.ledger import Ledger
from tests.support.users import make_users
from tests.support.valkey import valkey
from worker_scheduler import embedded
from worker_scheduler.ledger import inspection
from worker_scheduler.ledger.inspection import RIGHTS

Scheduler = Callable[..., Outcome]


def warnings(outcome: Outcome) -> list[str]:
    return [line for line in outcome.stdout.splitlines() if line.startswith("warn")]


@pytest.fixture
def role(ledger: Ledger, deployed: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A role with every right of a scheduler, as which check connects."""
    name = f"checked_{uuid4().hex[:8]}"
    make_users(ledger.url, 3)
    ledger.execute(
        f"CREATE ROLE {name} LOGIN PASSWORD 'p'",
        f"GRANT SELECT ON users TO {name}",
        *(f"GRANT {rights.replace(' ', ', ')} ON {table} TO {name}" for table, rights in RIGHTS.items()),
        f"GRANT EXECUTE ON FUNCTION sync_jobs_add_month(text, uuid, uuid) TO {name}",
        f"GRANT EXECUTE ON FUNCTION sync_history_add_month(text, integer, integer) TO {name}",
    )
    url = make_url(ledger.url).set(username=name, password="p")
    monkeypatch.setenv("DATABASE_URL", url.render_as_string(hide_password=False))
    yield name
    ledger.execute(f"DROP OWNED BY {name}", f"DROP ROLE {name}")


def test_a_role_with_every_right_has_no_fault(role: str, scheduler: Scheduler) -> None:
    outcome = scheduler("check")
    assert (outcome.status, outcome.faults, warnings(outcome)) == (0, [], [])
    assert "ok    rights: this role may do what ticks and reconcile do" in outcome.stdout


@pytest.mark.parametrize(
    ("revoked", "named"),
    [
        ("UPDATE ON sync_runs", "UPDATE on sync_runs"),
        ("INSERT ON sync_selected_users", "INSERT on sync_selected_users"),
        ("DELETE ON sync_probes", "DELETE on sync_probes"),
        ("SELECT ON sync_passes", "SELECT on sync_passes"),
        (
            "ALL ON sync_tasks",
            "DELETE on sync_tasks, INSERT on sync_tasks, SELECT on sync_tasks, UPDATE on",
        ),
        ("EXECUTE ON FUNCTION sync_jobs_add_month(text, uuid, uuid)", "EXECUTE on sync_jobs_add_month"),
        (
            "EXECUTE ON FUNCTION sync_history_add_month(text, integer, integer)",
            "EXECUTE on sync_history_add_month",
        ),
        ("INSERT ON sync_requests", "INSERT on sync_requests"),
        ("UPDATE ON sync_schedule", "UPDATE on sync_schedule"),
        ("DELETE ON sync_run_samples", "DELETE on sync_run_samples"),
    ],
)
def test_a_missing_right_is_named(
    revoked: str, named: str, role: str, ledger: Ledger, scheduler: Scheduler
) -> None:
    ledger.execute(f"REVOKE {revoked} FROM {role}")
    outcome = scheduler("check")
    assert outcome.status == 2
    (fault,) = outcome.faults
    assert fault.startswith("FAULT rights: this role lacks ") and named in fault


@pytest.mark.parametrize(
    ("lacking", "named"),
    [
        ("SELECT ON sync_stopped_runs", "SELECT on sync_stopped_runs"),
        ("INSERT ON sync_job_events", "INSERT on sync_job_events"),
        ("UPDATE (reason_class) ON sync_jobs", "UPDATE (reason_class) on sync_jobs"),
        (None, None),
    ],
)
def test_a_role_of_workers_that_lacks_a_right_is_a_warning(
    lacking: str | None, named: str | None, role: str, ledger: Ledger, scheduler: Scheduler
) -> None:
    """As it is when somebody made the role by the rights of an earlier version, after the migration."""
    worker = f"worker_{role}"
    columns = ", ".join(inspection._COLUMNS_OF_WORKERS)
    ledger.execute(
        f"CREATE ROLE {worker}",
        f"GRANT SELECT, UPDATE ({columns}) ON sync_jobs TO {worker}",
        f"GRANT SELECT ON sync_stopped_runs TO {worker}",
        f"GRANT INSERT ON sync_job_events TO {worker}",
        *([f"REVOKE {lacking} FROM {worker}"] if lacking else []),
    )
    outcome = scheduler("check")
    said = [line for line in warnings(outcome) if worker in line]
    ledger.execute(f"DROP OWNED BY {worker}", f"DROP ROLE {worker}")
    assert (outcome.status, outcome.faults) == (0, [])
    assert len(said) == (1 if lacking else 0)
    if named:
        assert f"the role {worker} may change jobs, but lacks {named}: if workers use it" in said[0]


def test_a_role_that_may_not_use_the_schema(role: str, ledger: Ledger, scheduler: Scheduler) -> None:
    ledger.execute("REVOKE USAGE ON SCHEMA public FROM PUBLIC")
    outcome = scheduler("check")
    assert outcome.status == 2
    assert any(
        "Postgres refuses this role: permission denied for schema public" in f for f in outcome.faults
    )


def test_row_level_security_that_hides_all_users_is_a_fault(
    role: str, ledger: Ledger, scheduler: Scheduler
) -> None:
    ledger.execute("ALTER TABLE users ENABLE ROW LEVEL SECURITY")
    outcome = scheduler("check")
    assert outcome.status == 2
    (fault,) = outcome.faults
    assert "users has no user for this role, since row level security of users hides them" in fault


def test_row_level_security_below_a_view_is_a_fault(
    role: str, ledger: Ledger, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.execute(
        "ALTER TABLE users ENABLE ROW LEVEL SECURITY",
        "CREATE VIEW active AS SELECT id, github_login FROM users",
        'CREATE VIEW "of : active" WITH (security_invoker) AS SELECT * FROM active',
        "ALTER VIEW active SET (security_invoker)",
        f'GRANT SELECT ON active, "of : active" TO {role}',
    )
    monkeypatch.setenv("USERS_RELATION", '"of : active"')
    outcome = scheduler("check")
    assert outcome.status == 2
    (fault,) = outcome.faults
    assert "row level security of users hides them" in fault


def test_row_level_security_that_shows_some_users_is_a_warning(
    role: str, ledger: Ledger, scheduler: Scheduler
) -> None:
    ledger.execute(
        "ALTER TABLE users ENABLE ROW LEVEL SECURITY",
        f"CREATE POLICY a_few ON users FOR SELECT TO {role} USING (github_login <> 'user-1')",
    )
    outcome = scheduler("check")
    assert outcome.status == 0
    (warning,) = warnings(outcome)
    assert "row level security of users may hide users from this role" in warning
    assert "users has 2 users" in outcome.stdout


def test_row_level_security_of_our_own_tables_is_a_fault(
    role: str, ledger: Ledger, scheduler: Scheduler
) -> None:
    ledger.execute("ALTER TABLE sync_jobs ENABLE ROW LEVEL SECURITY")
    outcome = scheduler("check")
    assert outcome.status == 2
    (fault,) = outcome.faults
    assert "row level security hides rows of sync_jobs" in fault


@pytest.mark.parametrize("guarded", [False, True])
def test_no_user_at_all_is_a_warning(
    guarded: bool, role: str, ledger: Ledger, scheduler: Scheduler
) -> None:
    ledger.execute("TRUNCATE users")
    if guarded:
        ledger.execute("ALTER TABLE users ENABLE ROW LEVEL SECURITY")
    outcome = scheduler("check")
    assert outcome.status == 0
    (warning,) = warnings(outcome)
    assert "users has 0 users" in warning and "is USERS_RELATION the right one?" in warning


def test_more_users_than_a_tick_takes_is_a_warning(
    role: str, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAX_ENQUEUED_JOBS", "2")
    (warning,) = warnings(scheduler("check"))
    assert "users has 3 users; a tick takes at most 2, so the daily tick is refused" in warning


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("default_transaction_isolation", "'serializable'", "serializable"),
        ("statement_timeout", "'50ms'", "50"),
    ],
)
def test_a_setting_that_ends_statements_is_a_warning(
    name: str, value: str, shown: str, role: str, ledger: Ledger, scheduler: Scheduler
) -> None:
    ledger.execute(f"ALTER ROLE {role} SET {name} = {value}")
    outcome = scheduler("check")
    assert outcome.status == 0
    (warning,) = warnings(outcome)
    assert f"{name} is {shown}" in warning


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "WIN1251"])
def test_an_encoding_that_lacks_characters_is_a_warning(
    encoding: str, servers: embedded.Servers, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_database(servers.database_url, "template0", encoding) as name:
        url = url_of(servers.database_url, name)
        make_users(url, 1)
        Ledger(url).execute(f"ALTER DATABASE {name} SET datestyle = 'SQL, DMY'")
        monkeypatch.setenv("DATABASE_URL", url)
        assert scheduler("migrate").status == 0
        outcome = scheduler("check")
    assert (outcome.status, outcome.faults) == (0, [])
    (warning,) = warnings(outcome)
    assert f"the database's encoding is {encoding}" in warning


# --- Redis ------------------------------------------------------------------------------------------


@pytest.fixture
def users(ledger: Ledger) -> None:
    make_users(ledger.url, 1)


def test_a_redis_cluster_is_a_fault(
    users: None, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with valkey(tmp_path, "--cluster-enabled", "yes") as url:
        monkeypatch.setenv("REDIS_URL", url)
        outcome = scheduler("check")
    assert outcome.status == 2
    assert any(f.startswith("FAULT Redis: the server is a part of a Redis Cluster") for f in outcome.faults)


@pytest.mark.parametrize("writable", ["yes", "no"])
def test_a_replica_is_a_fault(
    writable: str,
    users: None,
    scheduler: Scheduler,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    with valkey(tmp_path, "--replicaof", "127.0.0.1 1", "--replica-read-only", writable) as url:
        monkeypatch.setenv("REDIS_URL", url)
        outcome = scheduler("check")
    assert outcome.status == 4
    assert any("the server is a replica of 127.0.0.1:1, and what is written" in f for f in outcome.faults)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--min-replicas-to-write", "1"), "NOREPLICAS"),
        (("--maxmemory", "1mb", "--maxmemory-policy", "noeviction"), "OOM|used memory"),
    ],
)
def test_a_redis_that_takes_no_writes_is_a_fault(
    options: tuple[str, ...],
    words: str,
    users: None,
    scheduler: Scheduler,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    with valkey(tmp_path, *options) as url:
        if "--maxmemory" in options:
            with Redis.from_url(url) as client:
                client.config_set("maxmemory", "1")
        monkeypatch.setenv("REDIS_URL", url)
        outcome = scheduler("check")
    assert outcome.status == 4
    assert any("the server takes no writes: " in f for f in outcome.faults), outcome


RULES = "~* &* +@all"


@pytest.mark.parametrize(
    "rules",
    [
        f"{RULES} -evalsha",
        f"{RULES} -set",
        f"{RULES} -lpush",
        "~worker_scheduler:* ~scheduler* ~backfill* ~unacked* &* +@all",
        "~scheduler* ~daily* ~backfill* ~unacked* &* +@all",
        f"{RULES} -hvals",
    ],
)
def test_a_user_who_may_not_do_what_a_tick_does_is_a_fault(
    rules: str, users: None, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with valkey(tmp_path) as url:
        with Redis.from_url(url) as client:
            client.execute_command("ACL", "SETUSER", "limited", "on", ">secret", *rules.split())
        named = make_url(url).set(username="limited", password="secret")
        monkeypatch.setenv("REDIS_URL", named.render_as_string(hide_password=False))
        outcome = scheduler("check")
    assert outcome.status == 2
    assert any("this user may not do what a tick does" in f for f in outcome.faults), outcome
    assert "secret" not in outcome.stdout


@pytest.mark.parametrize("entry", [b"\xff", b"\xff\xfe", b"5", b"x" * 10_000_000])
def test_what_others_put_among_the_held_messages_stops_no_check(
    entry: bytes, users: None, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with valkey(tmp_path) as url, Redis.from_url(url) as client:
        client.hset("unacked", "x", entry)
        monkeypatch.setenv("REDIS_URL", url)
        outcome = scheduler("check")
    assert (outcome.status, outcome.faults, warnings(outcome)) == (0, [], [])


def test_a_key_of_another_kind_among_celerys_is_a_warning(
    users: None, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with valkey(tmp_path) as url, Redis.from_url(url) as client:
        client.set("p:unacked", "x")
        monkeypatch.setenv("REDIS_URL", url)
        monkeypatch.setenv("REDIS_KEY_PREFIX", "p:")
        outcome = scheduler("check")
    assert (outcome.status, outcome.faults) == (0, [])
    (line,) = warnings(outcome)
    assert "the key 'p:unacked' is not a hash, so nobody sees the messages that workers hold" in line


def test_the_trial_leaves_no_key_and_touches_no_queue(
    users: None, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with valkey(tmp_path) as url, Redis.from_url(url) as client:
        client.lpush("daily", "a message")
        monkeypatch.setenv("REDIS_URL", url)
        assert scheduler("check").faults == []
        assert client.keys() == [b"daily"]
        assert client.lrange("daily", 0, -1) == [b"a message"]


def test_a_prefix_that_a_socket_url_does_not_take_is_a_warning(
    users: None, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    socket = Path("/tmp") / f"check-{uuid4().hex[:8]}.sock"
    with valkey(tmp_path, "--unixsocket", str(socket)) as url:
        monkeypatch.setenv("REDIS_URL", url)
        monkeypatch.setenv("REDIS_KEY_PREFIX", "p:")
        monkeypatch.setenv("CELERY_BROKER_URL", f"redis+socket://{socket}")
        outcome = scheduler("check")
    socket.unlink(missing_ok=True)
    assert (outcome.status, outcome.faults) == (0, [])
    first, second = warnings(outcome)
    assert "REDIS_KEY_PREFIX='p:' is not put before the queues of redis+socket://" in first
    assert "with redis+socket:// reconcile cannot see what the broker holds" in second
