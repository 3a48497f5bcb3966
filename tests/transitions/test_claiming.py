"""Due rows are claimed once, in turns over the batches, and never more than a queue processes soon."""

import pytest
from rq import Queue

from django_batches import Batch, database
from django_batches.coordinator import dispatch
from django_batches.coordinator.dispatch import Flow
from django_batches.coordinator.lease import LeaseLost
from django_batches.database.uuid7 import uuid7
from django_batches.models import BatchJob
from django_batches.transitions import applying, claiming
from django_batches.transitions.frontier import Frontier, queues as queues_with_jobs
from django_batches.transport.client import known_queues
from django_batches.transport.outcomes import Kind

from .. import tasks
from ..road import claim, outcome_of

pytestmark = pytest.mark.django_db(transaction=True)


def fill(count, queue="default", **options):
    with Batch.open(queue=queue, **options) as batch:
        batch.map(tasks.ok, range(count))
    return batch


def test_a_claim_increments_the_dispatch_and_counts_for_the_window(road):
    batch = fill(3)
    claimed = claiming.claim_jobs("default", 2, road.lease)
    assert [(job.arguments, job.dispatch) for job in claimed] == [("[[0],{}]", 1), ("[[1],{}]", 1)]
    batch.refresh_from_db()
    assert (batch.in_flight, batch.pending) == (2, 3)
    assert [job.status for job in batch.jobs.all()] == ["queued", "queued", "created"]


def test_a_queue_is_filled_in_turns_over_the_batches(road):
    large, small = fill(50), fill(3)
    claimed = claiming.claim_jobs("default", 8, road.lease)
    assert [job.batch_id for job in claimed] == [small.pk] * 3 + [large.pk] * 5
    assert [job.position for job in claimed] == [0, 1, 2, 0, 1, 2, 3, 4]


def test_all_queues_with_waiting_jobs_are_found(road):
    for queue in ("b", "a", "c"):
        fill(2, queue)
    assert queues_with_jobs() == ["a", "b", "c"]
    claim()
    assert queues_with_jobs() == []


def test_a_batch_does_not_exceed_its_window(road, monkeypatch):
    monkeypatch.setattr(claiming, "WINDOW", 5)
    batch = fill(20)
    first = claiming.claim_jobs("default", 100, road.lease)
    assert len(first) == 5
    assert claiming.claim_jobs("default", 100, road.lease) == []
    applying.record([outcome_of(job) for job in first[:2]])
    assert len(claiming.claim_jobs("default", 100, road.lease)) == 2
    batch.refresh_from_db()
    assert batch.in_flight == 5


def test_paused_and_cancelled_batches_are_skipped(road):
    fill(2).pause()
    free = fill(2)
    claimed = claiming.claim_jobs("default", 100, road.lease)
    assert {job.batch_id for job in claimed} == {free.pk}


def test_more_batches_than_one_claim_considers_take_turns(road, monkeypatch):
    monkeypatch.setattr("django_batches.transitions.frontier.BATCHES", 2)
    batches = [fill(5) for _ in range(5)]
    seen, frontier = [], Frontier()
    for _ in range(3):
        seen += [job.batch_id for job in claiming.claim_jobs("default", 2, road.lease, frontier)]
    assert set(seen) == {batch.pk for batch in batches}


def test_a_claim_continues_after_the_last_one_and_includes_jobs_that_were_put_back(road):
    batch, frontier = fill(6), Frontier()

    def claimed(limit):
        return [job.position for job in claiming.claim_jobs("default", limit, road.lease, frontier)]

    first = claiming.claim_jobs("default", 2, road.lease, frontier)
    applying.record([outcome_of(job, Kind.ON_HOLD) for job in first])
    assert claimed(2) == [2, 3]
    frontier.include(batch.pk, 5)
    assert claimed(1) == [4]
    frontier.include(batch.pk)
    assert claimed(1) == [0]
    frontier.restart()
    assert claimed(9) == [1, 5] and frontier.is_reached


def test_a_search_steps_over_large_batches_and_finds_those_between_them(road, monkeypatch):
    monkeypatch.setattr("django_batches.transitions.frontier.LARGE", 2)
    first, second, third, fourth = batches = [fill(count) for count in (5, 1, 5, 1)]
    frontier = Frontier()
    assert frontier.find_batches("default") == [batch.pk for batch in batches]
    claimed = [claiming.claim_jobs("default", 8, road.lease, frontier) for _ in range(2)]
    assert [len(jobs) for jobs in claimed] == [8, 4] and frontier.is_reached
    assert frontier.positions == {batch.pk: batch.total for batch in Batch.objects.all()}
    assert frontier.find_batches("default") == []
    for later in (first, fourth, second, third):
        later.enqueue(tasks.ok)
    assert frontier.find_batches("default") == [batch.pk for batch in batches]


def test_a_batch_whose_creators_clock_is_behind_is_found_before_the_frontier(road):
    """Its key is smaller than those of batches that were claimed before."""
    old, new = fill(2), fill(2)
    frontier = Frontier()
    frontier.include(new.pk)
    assert not frontier.is_reached and frontier.find_batches("default") == [old.pk, new.pk]
    frontier.before = old.pk
    assert frontier.find_batches("default") == [new.pk]
    frontier.include(old.pk)
    assert frontier.find_batches("default") == [old.pk, new.pk]


def test_the_frontier_stays_before_a_skipped_batch(road):
    passed, free, frontier = fill(3), fill(3), Frontier()
    passed.pause()
    assert {job.batch_id for job in claiming.claim_jobs("default", 9, road.lease, frontier)} == {free.pk}
    assert not frontier.is_reached
    passed.resume()
    assert {job.batch_id for job in claiming.claim_jobs("default", 9, road.lease, frontier)} == {passed.pk}
    assert frontier.is_reached


@pytest.mark.parametrize("restarts", [False, True])
def test_batches_before_the_one_whose_turn_it_is_are_not_forgotten(road, monkeypatch, restarts):
    monkeypatch.setattr("django_batches.transitions.frontier.BATCHES", 2)
    for _ in range(5):
        fill(5)
    frontier, counts = Frontier(), []
    for limit in (2, 2, 100, 100, 100, 100):
        counts.append(len(claiming.claim_jobs("default", limit, road.lease, frontier)))
        assert sum(counts) == 25 or not frontier.is_reached
        if restarts:
            frontier.restart()
    assert counts == [2, 2, 5, 8, 8, 0] and frontier.is_reached != restarts


def test_a_job_before_the_frontier_is_claimed_after_a_search_has_found_it(road):
    fill(5)
    frontier = Frontier()
    first = claiming.claim_jobs("default", 4, road.lease, frontier)
    applying.record([outcome_of(first[1], Kind.ON_HOLD)])
    assert [job.position for job in claiming.claim_jobs("default", 9, road.lease, frontier)] == [4]
    assert claiming.claim_jobs("default", 9, road.lease, frontier) == [] and not frontier.is_reached
    assert [job.position for job in claiming.claim_jobs("default", 9, road.lease, frontier)] == [1]
    assert frontier.is_reached


def test_a_lost_lease_claims_nothing(road):
    fill(2)
    road.lease.token += 1
    with pytest.raises(LeaseLost):
        claiming.claim_jobs("default", 2, road.lease)
    assert not BatchJob.objects.filter(status="queued").exists()


def test_scheduled_rows_wait_until_they_are_due(road):
    batch = fill(1, max_attempts=2, backoff=3600)
    applying.record([outcome_of(job, Kind.FAILED) for job in claim()])
    assert claiming.promote_due(road.lease) == []
    batch.jobs.update(due_at=batch.created_at)
    assert claiming.promote_due(road.lease) == [(batch.pk, 0, "default")]
    assert batch.jobs.get().status == "created"


def test_rows_that_are_due_at_once_are_promoted_in_chunks(road, monkeypatch):
    monkeypatch.setattr(database, "CHUNK", 2)
    batch = fill(5, max_attempts=2, backoff=3600)
    applying.record([outcome_of(job, Kind.FAILED) for job in claim()])
    batch.jobs.update(due_at=batch.created_at)
    monkeypatch.setattr(database, "TIME_BUDGET", -1.0)
    assert [len(claiming.promote_due(road.lease)) for _ in range(4)] == [2, 2, 1, 0]
    batch.jobs.update(status="scheduled")
    monkeypatch.setattr(database, "TIME_BUDGET", 60.0)
    assert len(claiming.promote_due(road.lease)) == 5


def test_a_burst_waits_for_due_jobs_and_jobs_in_flight(road):
    now = road.lease()
    assert not claiming.has_work([], now)
    batch = fill(1, "images")
    assert claiming.has_work([], now) and claiming.has_work(["images"], now)
    assert not claiming.has_work(["other"], now)
    batch.pause()
    assert not claiming.has_work([], now)
    batch.resume()
    claimed = claim()
    assert claiming.has_work([], now)
    applying.record([outcome_of(job) for job in claimed])
    assert not claiming.has_work([], now)


def test_a_queue_holds_less_than_a_second_of_work_at_any_speed():
    flow = Flow()
    flow.look(0, 0.0)
    assert flow.room(workers=2) == 8
    flow.pushed(8, 0.0)
    flow.look(6, 0.1)
    assert flow.room(workers=2) == 0  # the two jobs that were taken may run for any time
    flow.look(2, 0.2)
    assert flow.room(workers=2) == 16 - 2  # four ended in 0.2 s
    flow.pushed(14, 0.7)  # a slow claim
    flow.look(12, 0.9)
    assert flow.room(workers=2) == 0  # more than half full
    flow.look(12, 5.0)
    assert flow.room(workers=2) == 0  # and no worker takes any
    flow.look(0, 7.0)
    assert flow.room(workers=0) == 4


@pytest.mark.parametrize("rate", [10, 40, 100, 400, 1500])
def test_a_small_batch_behind_a_huge_one_starts_within_a_second(rate):
    """With a simulated clock: a claim every 25 ms, in turns over the batches."""
    for arrival in (step / 40 for step in range(80, 120)):
        flow, queue, moment, done, taken = Flow(), [], 0.0, 0.0, []
        while "small" not in taken:
            moment += 0.025
            done += rate * 0.025
            taken, queue = queue[: int(done)], queue[int(done) :]
            done -= int(done)
            flow.look(len(queue), moment)
            if room := flow.room(workers=2):
                small = moment >= arrival and "small" not in queue
                queue += ["small" if small else "huge"] + ["huge"] * (room - 1)
                flow.pushed(room, moment)
            assert moment < arrival + 1.0


def test_an_empty_queue_is_filled_by_the_rate_of_its_busy_time():
    flow = Flow()
    flow.pushed(8, 0.0)
    flow.look(0, 0.01)
    flow.pushed(8, 0.5)
    flow.look(0, 0.51)
    assert flow.room(workers=2) == 560  # 14 in 0.02 s


def test_a_pause_without_due_jobs_does_not_lower_the_rate():
    """After the last jobs of a batch, nothing looks at the queue before the next batch."""
    flow = Flow()
    flow.pushed(8, 0.0)
    flow.look(0, 0.01)
    flow.pushed(32, 0.01)
    flow.look(0, 0.9)
    assert flow.room(workers=2) == 608  # 38 in 0.05 s
    flow.pushed(32, 0.9)
    flow.look(0, 9.0)
    assert flow.room(workers=2) == 8  # as at the start: 32 in 8 s would slow a fast queue down for its first second


def test_a_pushed_job_is_readable_by_rq(road, redis, keys):
    fill(3, "images")
    assert road.dispatch() == 3
    queue = Queue("images", connection=redis)
    (first, *_rest) = queue.jobs
    assert len(queue) == 3
    assert first.func_name == "django_batches.execution.run" and first.args == ()
    assert first.description == "tests.tasks.ok" and first.timeout == 180 and first.get_status() == "queued"
    assert known_queues(redis) == ["default", "images"]


def test_an_older_coordinator_cannot_push(road, redis):
    fill(1)
    redis.set(f"{road.dispatcher._scripts.keys.own}:fence", road.lease.token + 1)
    with pytest.raises(LeaseLost):
        road.dispatch()
    assert redis.llen("rq:queue:default") == 0


def test_plain_rq_jobs_that_always_wait_do_not_block_batches(road, redis):
    """If they counted as jobs of batches, a queue that is never half empty would get none."""
    for _ in range(20):
        Queue("default", connection=redis).enqueue(tasks.ok)
    batch = fill(3)
    assert road.dispatch() == 3
    batch.refresh_from_db()
    assert batch.in_flight == 3


def test_plain_rq_jobs_are_counted_again_even_if_there_is_room(road, redis):
    """With an old count, the queue would get more and more jobs of batches."""
    for _ in range(20):
        Queue("default", connection=redis).enqueue(tasks.ok)
    fill(3)
    assert road.dispatch() == 3
    flow = road.dispatcher._flows["default"]
    assert (flow.others, flow.length) == (20, 23)
    redis.ltrim("rq:queue:default", 20, -1)
    flow.counted_at -= dispatch.RECOUNT
    road.dispatcher._rooms(["default"])
    assert flow.others == 0


def test_a_long_queue_is_counted_at_both_ends(road, redis, keys, monkeypatch):
    monkeypatch.setattr(dispatch, "FAR", 2)
    ours = [keys.rq_id(uuid7(), 1) for _ in range(3)]
    redis.rpush("rq:queue:default", "a", ours[0], "b", ours[1], "c", ours[2])
    assert road.dispatcher._others_in("default", 6) == 4
    redis.rpop("rq:queue:default", 3)
    assert road.dispatcher._others_in("default", 3) == 2


def test_jobs_behind_many_jobs_of_another_project_run(road, redis):
    batch = fill(1)
    redis.rpush("rq:queue:default", *[f"batch-other-{uuid7().hex}-1" for _ in range(200)])
    assert road.dispatch() == 1
    assert road.work() == 1 and road.record() == 1
    batch.refresh_from_db()
    assert batch.status == "succeeded" and redis.llen("rq:queue:default") == 200
