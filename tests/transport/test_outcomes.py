"""The text of an outcome in the stream."""

import json
from uuid import UUID

import pytest

from django_batches.transport.outcomes import Kind, Outcome, vanished
from django_batches.transport.vanished import VanishReason

JOB, BATCH = UUID(int=1), UUID(int=2)


@pytest.mark.parametrize("reason", VanishReason)
def test_a_vanished_job_keeps_the_reason(reason):
    outcome = Outcome(Kind.VANISHED, JOB, 3, BATCH, **vanished(reason, "the detail"))
    loaded = Outcome.loads(outcome.dumps())
    assert loaded == outcome and loaded.reason is reason
    assert loaded.error == f"{reason.text}: the detail" and not reason.text.endswith(".")


@pytest.mark.parametrize("told", [{}, {"v": None}, {"v": "of another version"}, {"v": []}])
def test_a_reason_of_another_version_is_unknown(told):
    data = json.loads(Outcome(Kind.VANISHED, JOB, 3, BATCH).dumps())
    del data["v"]
    assert Outcome.loads(json.dumps(data | told)).reason is VanishReason.UNKNOWN


def test_other_kinds_have_no_reason():
    assert Outcome.loads(Outcome(Kind.FAILED, JOB, 3, BATCH).dumps()).reason is None
