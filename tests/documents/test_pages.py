"""Every page: its links lead somewhere, its tables can be read, and README.md stays short."""

import re
from pathlib import Path

import pytest

from tests.documents.pages import PAGES, ROOT, page, rows

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)
LONGEST_CELL = 300


def anchors(file: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", file.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_every_link_between_the_pages_resolves(file: Path) -> None:
    broken = []
    for link in LINK.findall(FENCE.sub("", file.read_text(encoding="utf-8"))):
        path, _, anchor = link.partition("#")
        if path.startswith(("http://", "https://")):
            continue
        target = (file.parent / path).resolve() if path else file
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_the_readme_leads_to_every_page() -> None:
    linked = {link.partition("#")[0] for link in LINK.findall(page("README.md"))}
    assert {f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md")} <= linked


def test_the_readme_is_short() -> None:
    assert len(page("README.md").encode()) <= 10 * 1024


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_no_cell_of_a_table_is_a_paragraph(file: Path) -> None:
    cells = [cell for row in rows(file.read_text(encoding="utf-8")) for cell in row]
    assert [cell for cell in cells if len(cell) > LONGEST_CELL] == []
