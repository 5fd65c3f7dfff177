"""The wheel: it has all that the package needs, and works without the source."""

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

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
CALL = ("-m", "celery", "-A", "worker_scheduler", "call", "scheduler.daily_tick")


def build(folder: Path, version: str) -> Path:
    """The wheel, as `python -m build` would make it, but without a network: we have its backend."""
    hatchling = [sys.executable, "-m", "hatchling", "build"]
    options = ["--target", f"wheel:{version}", "--directory", str(folder / "dist")]
    subprocess.run([*hatchling, *options], cwd=ROOT, check=True, capture_output=True)
    (built,) = (folder / "dist").glob("*.whl")
    return built


def run(environment: Mapping[str, str], folder: Path, *arguments: str) -> Outcome:
    return outcome_of([sys.executable, *arguments], environment, folder)


@pytest.fixture
def site(environment: dict[str, str], tmp_path: Path) -> Path:
    """A folder with the unpacked wheel, which stands before our own source on the path."""
    folder = tmp_path / "site"
    with ZipFile(build(tmp_path, "standard")) as archive:
        archive.extractall(folder)
    environment["PYTHONPATH"] = str(folder)
    return folder


@pytest.mark.parametrize("version", ["standard", "editable"])
def test_it_brings_the_package_and_nothing_else(version: str, tmp_path: Path) -> None:
    names = set(ZipFile(build(tmp_path, version)).namelist())
    top_level = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert "worker_scheduler/celeryconfig.py" in names
    assert (
        top_level
        == {
            "standard": {"worker_scheduler"},
            "editable": {"worker_scheduler", "_editable_impl_worker_scheduler.pth"},
        }[version]
    )


def test_it_works_from_another_folder(
    site: Path,
    environment: dict[str, str],
    empty_database_url: str,
    broker: Broker,
    tmp_path: Path,
) -> None:
    """Beside another application's celeryconfig.py, too."""
    (site / "celeryconfig.py").write_text("raise SystemExit('the wrong celeryconfig.py was read')\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment |= {"DATABASE_URL": empty_database_url}
    where = run(environment, elsewhere, "-c", "import worker_scheduler as w; print(w.__file__)")
    assert where.stdout.startswith(str(site))
    make_users(empty_database_url, 3)
    assert run(environment, elsewhere, "-m", "worker_scheduler", "migrate").status == 0
    assert run(environment, elsewhere, "-m", "worker_scheduler", "daily").status == 0
    assert Ledger(empty_database_url).count() == 3
    called = run(environment, elsewhere, *CALL)
    assert called.status == 0, called.stderr
    assert broker.counts() == {"daily": 3, "scheduler": 1}


def test_another_applications_celeryconfig_does_not_stand_in_for_ours(
    site: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    (site / "worker_scheduler" / "celeryconfig.py").unlink()
    (site / "celeryconfig.py").write_text("broker_url = 'memory://'\n")
    outcome = run(environment, tmp_path, *CALL)
    assert outcome.status == 2
    assert "worker_scheduler/celeryconfig.py is missing: install worker-scheduler again" in outcome.stderr
