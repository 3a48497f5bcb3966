"""A host whose clock is wrong by an hour decides nothing: PostgreSQL has a clock of its own."""

from datetime import timedelta

import pytest
import time_machine
from django.utils import timezone

from django_batches import Batch
from django_batches.coordinator.lease import Lease
from django_batches.coordinator.loop import Coordinator
from django_batches.database import uuid7
from django_batches.transitions import applying
from django_batches.transport.outcomes import Kind

from .. import tasks
from ..road import outcome_of

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgresql]

AHEAD, BEHIND = timedelta(hours=1), timedelta(hours=-1)


@pytest.fixture(autouse=True)
def keys_of_today(monkeypatch):
    """Keys never decrease, so after a test with a clock that is ahead, all keys would be of the future."""
    monkeypatch.setattr(uuid7, "_last", uuid7._last)


@pytest.fixture
def look_after(redis):
    """Runs a coordinator for one turn, with all its periodic steps."""

    def turn():
        answers = iter([False, False])
        Coordinator("active_coordinator", lambda: next(answers, True)).run()

    return turn


def open_batch(**options):
    batch = Batch.open(**options).__enter__()
    batch.enqueue(tasks.ok)
    batch.block.flush()
    return batch


def test_a_released_lease_is_free_at_once():
    with time_machine.travel(AHEAD):
        lease = Lease("ahead")
        assert lease.acquire()
        lease.release()
    assert Lease("next").acquire()


def test_a_coordinator_whose_clock_is_ahead_cancels_no_open_batch_too_early(look_after):
    batch = open_batch(deadline=1800)
    with time_machine.travel(AHEAD + timedelta(minutes=10)):
        look_after()
    batch.refresh_from_db()
    assert (batch.cancelled_at, batch.overdue_at) == (None, None)


@pytest.mark.parametrize("error", [AHEAD, BEHIND])
def test_a_deadline_follows_the_clock_of_the_database(look_after, error):
    with time_machine.travel(timezone.now() + error):
        batch = open_batch(deadline=1800)
    expected = pytest.approx((timezone.now() + timedelta(seconds=1800)).timestamp(), abs=60)
    assert batch.deadline_at.timestamp() == expected
    look_after()
    batch.refresh_from_db()
    assert (batch.overdue_at, batch.deadline_at.timestamp()) == (None, expected)
    batch.seal()
    applying.record([outcome_of(batch.jobs.get(), Kind.FAILED)])
    with time_machine.travel(timezone.now() + error):
        batch.retry_failed()
    look_after()
    batch.refresh_from_db()
    assert (batch.round, batch.overdue_at, batch.deadline_at.timestamp()) == (1, None, expected)


def test_the_open_batch_of_a_creator_whose_clock_is_behind_is_not_cancelled(look_after):
    with time_machine.travel(BEHIND - timedelta(minutes=10)):
        batch = open_batch()
        empty = Batch.open().__enter__()
    look_after()
    for each in (batch, empty):
        each.refresh_from_db()
        assert each.cancelled_at is None
        assert abs(each.grown_at - timezone.now()) < timedelta(minutes=1)


def test_an_open_batch_whose_creator_has_died_is_cancelled(look_after):
    batch = open_batch()
    Batch.objects.update(grown_at=timezone.now() - timedelta(hours=2))
    look_after()
    batch.refresh_from_db()
    assert batch.cancelled_at


def test_a_coordinator_whose_clock_is_far_ahead_prunes_nothing_too_early(look_after):
    with Batch.open() as batch:
        pass
    with time_machine.travel(timedelta(days=100)):
        look_after()
    batch.refresh_from_db()
    assert batch.has_ended
