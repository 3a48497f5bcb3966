"""The text of an outcome in the stream."""

import json
from uuid import UUID

import pytest
from django.utils import timezone

from django_batches.transport.outcomes import Kind, Outcome, vanished
from django_batches.transport.vanished import VanishReason

JOB, BATCH = UUID(int=1), UUID(int=2)


@pytest.mark.parametrize("reason", VanishReason)
def test_a_vanished_job_keeps_the_reason(reason):
    outcome = Outcome(Kind.VANISHED, JOB, 3, BATCH, **vanished(reason, "the detail"))
    loaded = Outcome.loads(outcome.dumps())
    assert loaded == outcome and loaded.reason is reason
    assert loaded.error == f"{reason.text}: the detail" and not reason.text.endswith(".")


@pytest.mark.parametrize("reason", ["of another version", [], 7])
def test_a_reason_of_another_version_is_unknown(reason):
    data = json.loads(Outcome(Kind.VANISHED, JOB, 3, BATCH).dumps())
    assert Outcome.loads(json.dumps(data | {"reason": reason})).reason is VanishReason.UNKNOWN


def test_every_field_survives_the_stream():
    now = timezone.now()
    outcome = Outcome(
        Kind.RETRY, JOB, 3, BATCH, False, "worker", now, now, "[1]", "ValueError", "no", "Traceback", "ab", None,
        True, True, True, UUID(int=3), 0, 0.0,
    )  # fmt: skip
    assert Outcome.loads(outcome.dumps()) == outcome
    assert Outcome.loads(Outcome(Kind.FAILED, JOB, 3, BATCH).dumps()) == Outcome(Kind.FAILED, JOB, 3, BATCH)


def test_a_field_of_a_newer_version_is_ignored():
    data = json.loads(Outcome(Kind.FAILED, JOB, 3, BATCH).dumps())
    assert Outcome.loads(json.dumps(data | {"new": 1})) == Outcome(Kind.FAILED, JOB, 3, BATCH)
