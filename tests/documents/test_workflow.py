"""The GitHub workflow is valid by its public schema, and gives .ci/run the Python and servers it needs."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from matrix.__main__ import ROWS

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = ROOT / ".github/workflows/ci.yml"
CHECK = Path(sys.executable).with_name("check-jsonschema")
# The schema comes with check-jsonschema. With this proxy, a request to the network would fail.
OFFLINE = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:1")


def faults_of(workflow: Path) -> str:
    """What the public schema of GitHub workflows finds wrong with a file; empty if nothing."""
    command = [str(CHECK), "--builtin-schema", "vendor.github-workflows", "--no-cache", str(workflow)]
    checked = subprocess.run(command, env=OFFLINE, capture_output=True, text=True, check=False)
    return "" if checked.returncode == 0 else checked.stdout + checked.stderr


def test_the_workflow_follows_its_schema() -> None:
    assert faults_of(WORKFLOW) == ""


def test_the_schema_finds_a_misspelt_key(tmp_path: Path) -> None:
    """Otherwise the test above would pass for any file."""
    misspelt = tmp_path / "ci.yml"
    misspelt.write_text(WORKFLOW.read_text().replace("runs-on:", "run-on:"))
    assert "run-on" in faults_of(misspelt)


def test_ci_uses_the_oldest_supported_python() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (version,) = re.findall(r'python-version: "(.*)"', WORKFLOW.read_text())
    assert project["requires-python"] == f">={version}"


def test_ci_has_the_servers_of_the_matrix() -> None:
    services = dict(re.findall(r"image: (\w+):(\d+)\n", WORKFLOW.read_text()))
    rows = " ".join(row.name for row in ROWS)
    assert f"PostgreSQL {services['postgres']}, Redis {services['redis']}" in rows
    assert "RabbitMQ" in rows and "rabbitmq" in services
