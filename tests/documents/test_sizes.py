"""A module is one room: what has grown too long to be read at once is divided."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
A_STATE_MACHINE_STAYS_WHOLE = "test_model.py"


def longer_than(lines: int, folder: str) -> dict[str, int]:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in (ROOT / folder).rglob("*.py")
        if path.name != A_STATE_MACHINE_STAYS_WHOLE
    }
    return {name: length for name, length in lengths.items() if length > lines}


def test_no_module_has_more_than_300_lines() -> None:
    assert longer_than(300, "worker_scheduler") == {}


def test_no_file_of_tests_has_more_than_500_lines() -> None:
    assert longer_than(500, "tests") == {}
