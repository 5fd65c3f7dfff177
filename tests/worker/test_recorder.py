"""What a worker's main loop has written later; if it cannot be, a line names the job."""

from collections.abc import Callable
from uuid import UUID, uuid4

import pytest

from tests.support.application import fresh_app
from tests.support.users import user_id
from worker_scheduler import logs, wiring
from worker_scheduler.errors import StoreRefused, StoreUnavailable
from worker_scheduler.worker import recorder
from worker_scheduler.worker.recorder import Recorder

KEY = "backfill:2026-11-23:30d"
OTHER = uuid4()


def refused() -> None:
    raise StoreRefused("permission denied")


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    logs.configure("INFO")
    caplog.set_level("INFO", "worker_scheduler")
    return lambda: [record.getMessage() for record in caplog.records]


def test_an_end_that_is_not_recorded_names_its_job(
    deployed: None, job_id: UUID, lines: Callable[[], list[str]]
) -> None:
    recording = Recorder(wiring.job_names)
    recording.note(job_id, refused, 30, user_id="of the message")
    assert lines() == [
        f'event="end of a job not recorded" job_id={job_id} partition_key={KEY} user_id={user_id(1)}'
        ' github_login=user-1 reason="permission denied"'
    ]


def test_without_the_ledger_it_is_named_as_its_message_does(
    deployed: None, monkeypatch: pytest.MonkeyPatch, lines: Callable[[], list[str]]
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://postgres@127.0.0.1:1/nowhere")
    with fresh_app():
        recording = Recorder(wiring.job_names)
        recording.note(OTHER, refused, 60, user_id="1", partition_key=KEY)
        assert wiring.job_names(OTHER) == {"job_id": str(OTHER)}
    assert f"job_id={OTHER} user_id=1 partition_key={KEY} reason=" in lines()[-1]


def test_if_too_many_wait_the_main_loop_does_not_ask_for_a_name(
    monkeypatch: pytest.MonkeyPatch, lines: Callable[[], list[str]]
) -> None:
    monkeypatch.setattr(recorder, "_MOST_WAITING", 1)
    asked: list[UUID] = []

    def names(job_id: UUID, **in_message: str) -> dict[str, str]:
        asked.append(job_id)
        return {}

    recording = Recorder(names)
    monkeypatch.setattr(recording, "_write_all", lambda: None)
    for _ in range(2):
        recording.note(OTHER, refused, 0, user_id="1", partition_key=KEY)
    assert f'job_id={OTHER} user_id=1 partition_key={KEY} reason="1 others wait"' in lines()[-1]
    assert asked == []


def test_an_outage_is_logged_too(lines: Callable[[], list[str]]) -> None:
    def away() -> None:
        raise StoreUnavailable("Postgres is away")

    Recorder(lambda job_id, **_: {"job_id": str(job_id)}).note(OTHER, away, 30)
    assert lines() == [f'event="end of a job not recorded" job_id={OTHER} reason="Postgres is away"']
