"""The README's tables against the code: no variable or option is missing, and none is wrong."""

import re
from pathlib import Path

import pytest
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from worker_scheduler.options import BackfillOptions
from worker_scheduler.settings import ALLOWED, Settings

README = Path(__file__).resolve().parents[1] / "README.md"
FIELDS = {name.upper(): field for name, field in Settings.model_fields.items()}


def rows() -> dict[str, str]:
    """The README's table: the variable, and the rest of its row."""
    found = re.findall(r"^\| `([A-Z_]+)` \|(.*)\|\s*$", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(found) == len(dict(found)), "a variable has two rows"
    return dict(found)


def without_quotes(text: str) -> str:
    return re.sub("[`']", "", text)


def written(field: FieldInfo) -> set[str]:
    """How a default may be written."""
    default = field.default
    if isinstance(default, bool):
        return {str(int(default))}
    if isinstance(default, int):
        return {str(default), f"{default:,}", hex(default)}
    return {str(default)}


def test_the_table_has_every_variable_and_no_other() -> None:
    assert set(rows()) == set(FIELDS)


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_its_defaults_are_the_settings(name: str) -> None:
    row, field = rows()[name], FIELDS[name]
    if field.is_required() or field.default in (None, ""):
        return  # what stands there is prose
    assert any(f"`{text}`" in row for text in written(field)), row


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_it_says_what_a_variable_is_for_and_what_is_allowed(name: str) -> None:
    row = without_quotes(rows()[name])
    assert f"| {without_quotes(FIELDS[name].description or '')} |" in row
    assert f"| {without_quotes(ALLOWED[name.lower()])} " in row


@pytest.mark.parametrize("name", ["database_url", "redis_url", "celery_broker_url"])
def test_what_may_hold_a_password_is_secret(name: str) -> None:
    assert SecretStr.__name__ in str(Settings.model_fields[name].annotation)


def test_the_readme_has_every_option_of_a_backfill() -> None:
    options = {"--" + name.replace("_", "-") for name in BackfillOptions.model_fields}
    named = re.findall(r"^\| `(--[a-z-]+)", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert options <= set(named)
