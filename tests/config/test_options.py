"""The options of a tick: whatever is given, a value that is allowed comes out, or one clear line."""

import unicodedata
from collections.abc import Callable
from datetime import date
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from worker_scheduler.config.options import BackfillOptions, DailyOptions, parse_backfill, parse_daily
from worker_scheduler.errors import BadInput

anything = st.one_of(
    st.text(),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.none(),
    st.lists(st.one_of(st.text(), st.integers(), st.none()), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.binary(),
)
uuids = st.lists(st.uuids(), min_size=1, max_size=5)
logins = st.lists(
    st.text(
        st.characters(codec="ascii", categories=["L", "N"], include_characters="-"), min_size=1, max_size=39
    ),
    min_size=1,
    max_size=5,
)


def fault(parse: Callable[[dict[str, object]], object], given_options: dict[str, object]) -> str:
    with pytest.raises(BadInput) as caught:
        parse(given_options)
    return str(caught.value)


@given(name=st.sampled_from(sorted(BackfillOptions.model_fields)), value=anything)
@example(name="user_ids", value=["\ud800"])
@example(name="github_logins", value="\u202e")
@example(name="backfill_days", value=10**400)
@example(name="backfill_days", value=1e400)
@example(name="enqueue_sleep_seconds", value="1e400")
@example(name="confirm", value="true")
def test_any_value_is_parsed_or_refused_in_one_printable_line(name: str, value: Any) -> None:
    try:
        parsed = parse_backfill({"backfill_days": 1, name: value})
    except BadInput as error:
        text = str(error)
        assert text.startswith(f"--{name.replace('_', '-')}=")
        assert ": allowed is " in text
        # Every character in it can be printed, and none ends a line or controls a terminal.
        assert not {unicodedata.category(character) for character in text} & {"Cc", "Cs", "Zl", "Zp"}
        assert len(text) < 400
    else:
        assert isinstance(parsed, BackfillOptions)


@given(value=st.dates())
def test_every_date_is_read_back(value: date) -> None:
    assert parse_daily({"date": value.isoformat()}).date == value
    assert parse_daily({"date": value}).date == value


@given(value=st.text(max_size=12))
@example("2026-11-23T00:00:00")
@example("2026-W48-1")
@example("2026-327")
def test_no_other_text_is_a_date(value: str) -> None:
    try:
        parsed = parse_daily({"date": value}).date
    except BadInput as error:
        assert "--date=" in str(error)
    else:
        assert parsed is not None
        assert parsed.isoformat() == value


@given(ids=uuids, spell=st.sampled_from([str, lambda i: str(i).upper(), lambda i: i.hex]))
def test_ids_as_a_list_and_as_text_are_the_same(ids: list[UUID], spell: Callable[[UUID], str]) -> None:
    spelt = [spell(user_id) for user_id in ids]
    expected = list(dict.fromkeys(ids))
    for form in (spelt, tuple(spelt), ",".join(spelt), [" , ".join(spelt)], [*spelt, *spelt]):
        assert parse_backfill({"backfill_days": 1, "user_ids": form}).user_ids == expected


@given(
    identity=st.uuids(),
    spell=st.sampled_from(
        [
            lambda i: f"{{{i}}}",
            lambda i: f"urn:uuid:{i}",
            lambda i: f"{i.hex[:4]}-{i.hex[4:]}",
            lambda i: f"{i}-",
        ]
    ),
)
def test_no_other_spelling_is_an_id(identity: UUID, spell: Callable[[UUID], str]) -> None:
    given_options: dict[str, object] = {"backfill_days": 1, "user_ids": spell(identity)}
    assert "which is not a UUID" in fault(parse_backfill, given_options)


def test_a_list_is_shown_as_it_would_be_typed() -> None:
    line = fault(parse_backfill, {"backfill_days": 1, "user_ids": ["nope", "a"]})
    assert line.startswith("--user-ids='nope,a' has the item 'nope', which is not a UUID")


@given(names=logins)
def test_logins_as_a_list_and_as_text_are_the_same(names: list[str]) -> None:
    expected = list(dict.fromkeys(names))
    for form in (names, ",".join(names), [f" {name} " for name in names]):
        assert parse_backfill({"backfill_days": 1, "github_logins": form}).github_logins == expected


@given(days=st.integers())
@example(0)
@example(1)
@example(3650)
@example(3651)
def test_backfill_days_have_bounds(days: int) -> None:
    for form in (days, str(days), float(days) if abs(days) < 2**53 else days):
        if 1 <= days <= 3650:
            assert parse_backfill({"backfill_days": form}).backfill_days == days
        else:
            assert fault(parse_backfill, {"backfill_days": form}).startswith("--backfill-days=")


@given(seconds=st.floats(allow_nan=True, allow_infinity=True))
@example(0.0)
@example(-0.0)
@example(3600.0)
@example(float("nan"))
def test_pacing_has_bounds(seconds: float) -> None:
    for form in (seconds, repr(seconds)):
        options: dict[str, object] = {"enqueue_sleep_seconds": form}
        if 0 <= seconds <= 3600:
            assert parse_daily(options).enqueue_sleep_seconds == seconds
        else:
            assert fault(parse_daily, options).startswith("--enqueue-sleep-seconds=")


@pytest.mark.parametrize("name", ["user_ids", "github_logins"])
@pytest.mark.parametrize("empty", [[], "", [""], ["", "a"], ","])
def test_an_empty_choice_never_means_everybody(name: str, empty: object) -> None:
    assert fault(parse_backfill, {"backfill_days": 1, name: empty}).startswith(
        f"--{name.replace('_', '-')}="
    )


def test_no_choice_means_everybody() -> None:
    parsed = parse_backfill({"backfill_days": 1, "user_ids": None, "github_logins": None})
    assert not parsed.chosen


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("name", ["backfill_days", "enqueue_batch_size", "backfill_max_users"])
def test_a_boolean_is_no_number(name: str, value: bool) -> None:
    assert "is a boolean" in fault(parse_backfill, {"backfill_days": 1, name: value})


@pytest.mark.parametrize("value", [1, 0, "true", "1", None])
@pytest.mark.parametrize("name", ["confirm", "dry_run", "allow_missing"])
def test_nothing_but_a_boolean_is_a_flag(name: str, value: object) -> None:
    assert "is neither true nor false" in fault(parse_backfill, {"backfill_days": 1, name: value})


def test_an_unknown_option_is_named_with_those_there_are() -> None:
    allowed = ", ".join(sorted(DailyOptions.model_fields))
    line = fault(parse_daily, {"dat": "2026-11-23"})
    assert line == f"unknown option 'dat' (did you mean date?): allowed are {allowed}"
    line = fault(parse_daily, {"xyzzy": "2026-11-23"})
    assert line == f"unknown option 'xyzzy': allowed are {allowed}"


def test_every_fault_is_named_at_once() -> None:
    line = fault(parse_backfill, {"backfill_days": 0, "user_ids": "x", "campaign": "a b"})
    assert all(f"--{name}=" in line for name in ("backfill-days", "user-ids", "campaign"))


def test_a_password_in_an_option_is_not_shown() -> None:
    line = fault(parse_backfill, {"backfill_days": "postgres://user:secret@h/db"})
    assert "secret" not in line
