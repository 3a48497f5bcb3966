import json
from datetime import UTC, datetime, timedelta

import pytest
from django.test import override_settings

from django_batches.calls.options import Options, earliest_start, exponential, seconds
from django_batches.transitions.job_status import backoff_delay


def test_the_defaults():
    assert Options.of() == Options("default", 180, 1, "0.0")


def test_times_are_seconds_or_timedeltas():
    assert Options.of(queue="q", timeout=timedelta(minutes=2), backoff=timedelta(seconds=3)) == Options(
        "q", 120, 1, "3.0"
    )
    assert Options.of(timeout=1.2).timeout == 2
    assert seconds(timedelta(milliseconds=500), "x") == 0.5


def test_an_earliest_start_is_converted_to_the_time_zone_of_the_database():
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    assert earliest_start(noon) == noon
    with override_settings(USE_TZ=False, TIME_ZONE="Asia/Tokyo"):
        assert earliest_start(noon) == datetime(2026, 1, 1, 21)
        assert earliest_start(datetime(2026, 1, 1, 12)) == datetime(2026, 1, 1, 12)


def test_using_changes_only_what_is_given():
    options = Options.of(queue="q", timeout=10, max_attempts=3, backoff=[1, 2])
    assert options.using(queue="other") == Options("other", 10, 3, "[1.0, 2.0]")
    assert options.using(max_attempts=1, timeout=5, backoff=0) == Options("q", 5, 1, "0.0")


@pytest.mark.parametrize(
    "given",
    [
        {"queue": ""},
        {"queue": "x" * 101},
        {"queue": 3},
        {"queue": "a\nb"},
        {"timeout": 0},
        {"timeout": -1},
        {"timeout": "10"},
        {"timeout": float("nan")},
        {"max_attempts": 0},
        {"max_attempts": True},
        {"max_attempts": 1.5},
        {"backoff": -1},
        {"backoff": []},
        {"backoff": "5"},
        {"backoff": [1, None]},
    ],
    ids=str,
)
def test_the_error_of_an_invalid_option_names_it(given):
    name = next(iter(given))
    with pytest.raises((TypeError, ValueError), match=f"^{name}:"):
        Options.of(**given)


def test_an_exponential_backoff_grows_to_its_limit_with_jitter():
    backoff = Options.of(backoff=exponential(10, factor=3, limit=100, jitter=0)).backoff
    assert [backoff_delay(backoff, attempt) for attempt in (1, 2, 3, 4, 5000)] == [10, 30, 90, 100, 100]
    backoff = Options.of(backoff=exponential(timedelta(seconds=100), jitter=0.5)).backoff
    drawn = [backoff_delay(backoff, 1) for _ in range(200)]
    assert all(50 <= delay <= 100 for delay in drawn) and len(set(drawn)) > 100
    for wrong in ({"jitter": 2}, {"factor": 0.5}, {"first": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            exponential(**wrong)


def test_no_retry_takes_exception_types():
    assert Options.of(no_retry=ValueError).no_retry == '["builtins.ValueError"]'
    assert Options.of(no_retry=[KeyError, json.JSONDecodeError]).using(no_retry=()).no_retry == "[]"
    for wrong in ("ValueError", [int], [ValueError()]):
        with pytest.raises(TypeError, match="exception type"):
            Options.of(no_retry=wrong)


@pytest.mark.parametrize(("backoff", "delays"), [("0", [0, 0]), ("5.0", [5, 5]), ("[5, 30, 120]", [5, 30, 120, 120])])
def test_the_delay_before_the_next_attempt(backoff, delays):
    assert [backoff_delay(backoff, attempt) for attempt in range(1, len(delays) + 1)] == delays
