"""Partition keys: which key a run gets, and which keys are valid."""

import re
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.command_line import in_this_process
from worker_scheduler.config.options import parse_backfill, require_partition_key
from worker_scheduler.errors import BadInput
from worker_scheduler.partition_keys import PARTITION_KEY, backfill_partition, daily_partition

campaigns = st.from_regex(r"\A[A-Za-z0-9._-]{1,64}\Z")
days = st.integers(min_value=1, max_value=3650)


def test_the_documented_names() -> None:
    day = date(2026, 11, 23)
    assert daily_partition(day) == "daily:2026-11-23"
    assert backfill_partition(day, 30, None) == "backfill:2026-11-23:30d"
    assert backfill_partition(day, 30, "campaign") == "backfill:2026-11-23:30d:campaign"


@given(day=st.dates())
def test_a_daily_key_holds_only_the_day(day: date) -> None:
    key = daily_partition(day)
    assert PARTITION_KEY.fullmatch(key)
    assert date.fromisoformat(key.removeprefix("daily:")) == day


@given(
    st.tuples(st.dates(), days, st.none() | campaigns), st.tuples(st.dates(), days, st.none() | campaigns)
)
def test_two_backfills_share_a_key_only_if_they_are_the_same(
    one: tuple[date, int, str | None], other: tuple[date, int, str | None]
) -> None:
    assert (backfill_partition(*one) == backfill_partition(*other)) is (one == other)


@given(st.dates(), days, st.none() | campaigns)
def test_a_backfills_key_may_also_be_given(day: date, backfill_days: int, campaign: str | None) -> None:
    key = backfill_partition(day, backfill_days, campaign)
    parsed = parse_backfill({"backfill_days": backfill_days, "partition_key": key})
    assert parsed.partition_key == key


@given(st.from_regex(r"\A[A-Za-z0-9._:-]{1,200}\Z") | st.text(max_size=201))
def test_exactly_the_documented_keys_are_allowed(key: str) -> None:
    allowed = re.fullmatch(r"(?!daily:)[A-Za-z0-9._:-]{1,200}", key) is not None
    try:
        assert parse_backfill({"backfill_days": 1, "partition_key": key}).partition_key == key
        assert allowed
    except BadInput as error:
        assert not allowed
        assert str(error).startswith("--partition-key=")


@given(campaigns | st.text(max_size=65))
def test_exactly_the_documented_campaigns_are_allowed(campaign: str) -> None:
    allowed = re.fullmatch(r"[A-Za-z0-9._-]{1,64}", campaign) is not None
    try:
        assert parse_backfill({"backfill_days": 1, "campaign": campaign}).campaign == campaign
        assert allowed
    except BadInput as error:
        assert not allowed
        assert str(error).startswith("--campaign=")


@pytest.mark.parametrize("key", ["", "a b", "a/b", "é", "k" * 201, "key\n", "a'; DROP TABLE sync_jobs; --"])
def test_every_place_refuses_the_same_keys_for_the_same_reason(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1:1/db")
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    reason = "is not a valid partition key: allowed is [A-Za-z0-9._:-]{1,200}"
    assert reason in in_this_process("status", key).error
    assert reason in in_this_process("backfill", "--backfill-days=1", f"--partition-key={key}").error
    with pytest.raises(BadInput) as caught:
        require_partition_key(key)
    assert reason in str(caught.value)
