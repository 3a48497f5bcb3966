import time
from itertools import pairwise

from django_batches.database import uuid7 as module
from django_batches.database.uuid7 import uuid7


def test_keys_strictly_increase_even_within_a_millisecond():
    made = [uuid7() for _ in range(50_000)]
    assert all(left < right for left, right in pairwise(made))


def test_keys_strictly_increase_when_the_clock_steps_back(monkeypatch):
    first = [uuid7() for _ in range(10)]
    now = time.time_ns()
    monkeypatch.setattr(module.time, "time_ns", lambda: now - 3_600_000_000_000)
    later = [uuid7() for _ in range(10)]
    made = first + later
    assert all(left < right for left, right in pairwise(made))


def test_a_key_is_a_uuid_of_version_7_with_its_creation_time():
    before = time.time_ns() // 1_000_000
    key = uuid7()
    assert key.version == 7
    assert key.variant == "specified in RFC 4122"
    assert before <= key.int >> 80 <= before + 60_000
