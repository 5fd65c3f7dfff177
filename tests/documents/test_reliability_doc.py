"""The documents name the test of each promise; here each name is compared with the tests."""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
RELIABILITY = ROOT / "docs" / "reliability.md"

TEST_FILES: defaultdict[str, set[str]] = defaultdict(set)
for folder in ("tests", "matrix", "clocks", "pools"):
    for file in (ROOT / folder).rglob("test_*.py"):
        TEST_FILES[file.name] |= set(re.findall(r"^ *def (test_\w+)", file.read_text(), re.M))
"""The tests that the files of each name define."""

NAMED = re.compile(r"`(?:[\w/]+/)?(test_\w+\.py)?(?:(::)?(test_\w+))?`")
"""`file.py`, `file.py::test`, `::test` in the file that was named last on the same line, or `test`."""


def named_tests(text: str) -> Iterator[tuple[str | None, str | None]]:
    """Each file and test that a document names; None for the part that it leaves out."""
    for line in text.splitlines():
        last_file = None
        for file, colons, test in NAMED.findall(line):
            if not file and not test:
                continue
            assert file or last_file or not colons, f"::{test} follows no file in: {line}"
            last_file = file or last_file
            yield last_file if file or colons else None, test or None


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_test_that_is_named_is_defined_in_the_file_that_is_named(document: Path) -> None:
    everywhere = set().union(*TEST_FILES.values())
    for file, test in named_tests(document.read_text()):
        assert file is None or file in TEST_FILES, file
        defined = everywhere if file is None else TEST_FILES[file]
        assert test is None or test in defined, f"{file or 'no file'} defines {test}"


def test_a_name_belongs_to_the_file_before_it_on_its_line() -> None:
    text = "`test_a.py`, `tests/b/test_b.py::test_x`, `::test_y`, `test_z`"
    assert list(named_tests(text)) == [
        ("test_a.py", None),
        ("test_b.py", "test_x"),
        ("test_b.py", "test_y"),
        (None, "test_z"),
    ]
    assert len({test for _, test in named_tests(RELIABILITY.read_text()) if test}) > 30


def test_every_rule_of_reconcile_has_its_place() -> None:
    from worker_scheduler.maintenance import reconciler

    headings = re.findall(r"^### `(\w+)`$", RELIABILITY.read_text(), re.M)
    assert headings == [rule.__name__ for rule in reconciler.RULES]


def test_every_file_that_is_named_exists() -> None:
    named = set(re.findall(r"`((?:\w+/)*\w+\.py)`", RELIABILITY.read_text()))
    folders = (ROOT, ROOT / "worker_scheduler")
    assert [path for path in sorted(named) if not any((folder / path).exists() for folder in folders)] == []


def test_nothing_is_abbreviated() -> None:
    assert "…" not in RELIABILITY.read_text()
