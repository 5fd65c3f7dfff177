"""The wheel: it has all that the package needs, and works where its source is not."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.support.command_line import Outcome, outcome_of
from tests.support.ledger import Ledger
from tests.support.messages import Broker
from tests.support.users import make_users

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """Built as `python -m build` would, without a network: its backend is among our tools."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = (tmp_path / "dist").glob("*.whl")
    return built


def run(environment: Mapping[str, str], folder: Path, *arguments: str) -> Outcome:
    return outcome_of([sys.executable, *arguments], environment, folder)


def test_it_works_from_another_folder(
    wheel: Path,
    environment: dict[str, str],
    empty_database_url: str,
    broker: Broker,
    tmp_path: Path,
) -> None:
    with ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert {"celeryconfig.py", "worker_scheduler/ledger/migrations/env.py"} <= set(names)
    assert any(name.startswith("worker_scheduler/ledger/migrations/versions/0001") for name in names)
    assert not any(name.startswith(("tests/", "demo/")) for name in names)

    # Before our own source on the path, and nothing of the source in sight.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment |= {"PYTHONPATH": str(tmp_path / "site"), "DATABASE_URL": empty_database_url}
    where = run(environment, elsewhere, "-c", "import worker_scheduler as w; print(w.__file__)")
    assert where.stdout.startswith(str(tmp_path / "site"))
    make_users(empty_database_url, 3)
    assert run(environment, elsewhere, "-m", "worker_scheduler", "migrate").status == 0
    assert run(environment, elsewhere, "-m", "worker_scheduler", "daily").status == 0
    assert Ledger(empty_database_url).count() == 3
    called = run(
        environment, elsewhere, "-m", "celery", "-A", "worker_scheduler", "call", "scheduler.daily_tick"
    )
    assert called.status == 0, called.stderr
    assert broker.counts() == {"daily": 3, "scheduler": 1}


def test_a_foreign_celeryconfig_in_its_place_is_noticed(
    wheel: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    with ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    environment |= {"PYTHONPATH": str(tmp_path / "site")}
    theirs = tmp_path / "site" / "celeryconfig.py"
    theirs.write_text("broker_url = 'memory://'\n")
    outcome = run(
        environment, tmp_path, "-m", "celery", "-A", "worker_scheduler", "call", "scheduler.daily_tick"
    )
    assert outcome.status == 2
    assert "celeryconfig.py is not worker_scheduler's: another package has replaced it" in outcome.stderr
    theirs.unlink()
    outcome = run(
        environment, tmp_path, "-m", "celery", "-A", "worker_scheduler", "call", "scheduler.daily_tick"
    )
    assert outcome.status == 2
    assert "celeryconfig.py is missing: install worker-scheduler again" in outcome.stderr
