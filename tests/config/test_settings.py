"""The documents' tables against the code: no variable or option is missing, and none is wrong."""

import re
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field, SecretStr, create_model
from pydantic.fields import FieldInfo

from worker_scheduler.config import values
from worker_scheduler.config.options import BackfillOptions
from worker_scheduler.config.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
FIELDS = {name.upper(): field for name, field in Settings.model_fields.items()}
OPTIONS = {"--" + name.replace("_", "-"): field for name, field in BackfillOptions.model_fields.items()}


def rows(first_cell: str) -> dict[str, str]:
    """The rows of the documents' tables: what `first_cell` captures, and the rest of the row."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *DOCUMENTS))
    found = re.findall(rf"^\| `{first_cell}` \|(.*)\|\s*$", text, re.MULTILINE)
    assert len(found) == len(dict(found)), "a variable or an option has two rows"
    return dict(found)


DOCUMENTS = [
    path for name in ("commands", "configuration") if (path := ROOT / "docs" / f"{name}.md").exists()
]
VARIABLE, OPTION = "([A-Z_]+)", "(--[a-z-]+)(?: [^`]+)?"


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
    assert set(rows(VARIABLE)) == set(FIELDS)


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_its_defaults_are_the_settings(name: str) -> None:
    row, field = rows(VARIABLE)[name], FIELDS[name]
    if field.is_required() or field.default in (None, ""):
        return  # what stands there is prose
    assert any(f"`{text}`" in row for text in written(field)), row


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_it_says_what_a_variable_is_for_and_what_is_allowed(name: str) -> None:
    row = without_quotes(rows(VARIABLE)[name])
    assert f"| {without_quotes(FIELDS[name].description or '')} |" in row
    assert f"| {without_quotes(values.allowed(FIELDS[name]))} " in row


@pytest.mark.parametrize("name", ["database_url", "redis_url", "celery_broker_url"])
def test_what_may_hold_a_password_is_secret(name: str) -> None:
    assert SecretStr.__name__ in str(Settings.model_fields[name].annotation)


def test_every_option_of_a_backfill_has_a_row() -> None:
    assert set(OPTIONS) <= set(rows(OPTION))


@pytest.mark.parametrize("name", [name for name, field in OPTIONS.items() if "{low}" in str(field)])
def test_the_bounds_of_an_option_are_those_of_its_type(name: str) -> None:
    assert f"| {values.bounds(OPTIONS[name])} " in rows(OPTION)[name]


@pytest.mark.parametrize("optional", [False, True])
@pytest.mark.parametrize(
    ("low", "high", "words", "allowed", "bounds"),
    [
        (2, 7, "a whole number from {low} to {high}", "a whole number from 2 to 7", "2 to 7"),
        (0, values.MAX_BIGINT, "a whole number from {low}", "a whole number from 0", "from 0"),
        (1, values.MAX_BIGINT, "{low} to {high}, or 0x…", "1 to 2^63-1, or 0x…", "from 1"),
    ],
)
def test_the_words_for_a_bound_follow_the_field(
    low: int, high: int, words: str, allowed: str, bounds: str, optional: bool
) -> None:
    kind = Annotated[int, Field(ge=low, le=high), values.Allowed(words)]
    model = create_model("Model", value=(kind | None, None) if optional else (kind, 5))
    for described in (kind, model.model_fields["value"]):
        assert (values.allowed(described), values.bounds(described)) == (allowed, bounds)


def test_the_numbers_of_the_bounds_stand_in_one_file_only() -> None:
    numbers = re.findall(r"le=([0-9_]{4,})", (ROOT / "worker_scheduler/config/values.py").read_text())
    assert {"5000", "3650", "86_400"} <= set(numbers)
    spelt = "|".join({*numbers, *(number.replace("_", "") for number in numbers)})
    for folder in ("config", "cli"):
        for path in (ROOT / "worker_scheduler" / folder).glob("*.py"):
            if path.name != "values.py":
                assert not re.findall(rf"\b(?:{spelt})\b", path.read_text()), path.name
