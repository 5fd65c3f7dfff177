"""docs/reliability.md names the test of each promise; here each name is held against the tests."""

import re
from pathlib import Path

TESTS = Path(__file__).parent
DOCUMENT = (TESTS.parent / "docs" / "reliability.md").read_text()


def test_every_test_that_is_named_exists() -> None:
    defined = {
        name
        for file in TESTS.glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)
    }
    files = {file.name for file in TESTS.glob("test_*.py")}
    named = set(re.findall(r"`(?:test_\w+\.py)?(?:::)?(test_\w+)`", DOCUMENT))
    assert len(named) > 30
    assert named - defined == set()
    assert set(re.findall(r"test_\w+\.py", DOCUMENT)) - files == set()


def test_every_rule_of_reconcile_is_in_the_table() -> None:
    from worker_scheduler import reconciler

    rows = re.findall(r"^\| `(\w+)` \|", DOCUMENT, re.M)
    assert rows == [rule.__name__ for rule in reconciler.RULES]


def test_nothing_is_abbreviated() -> None:
    assert "…" not in DOCUMENT
