"""The scripts inside Redis: each may be sent twice, and none touches what is not its own."""

import time
from uuid import UUID

import pytest
from django.utils import timezone
from redis.exceptions import ResponseError
from rq import Queue, Worker
from rq.registry import FailedJobRegistry, StartedJobRegistry

from django_batches.coordinator import dispatch
from django_batches.database.uuid7 import uuid7
from django_batches.transport.outcomes import Kind, Outcome
from django_batches.transport.scripts import Pushed, Scripts
from django_batches.transport.vanished import VanishReason


@pytest.fixture
def scripts(redis):
    return Scripts(redis)


@pytest.fixture
def push(scripts):
    def push(count=1, queue="default", token=1, front=False, callback=False):
        jobs = []
        batch = uuid7()
        for _ in range(count):
            job = uuid7()
            message = f'["{batch.hex}","{job.hex}",{int(callback)},"","tests.tasks.ok",180,0,1,[],[[],{{}}]]'
            rq_id = scripts.keys.rq_id(job, 1)
            jobs.append(Pushed(rq_id, message, f"{batch.hex}{int(callback)}", 180, "tests.tasks.ok"))
        assert scripts.push(token, queue, jobs, front=front)
        return jobs

    return push


def outcome(rq_id, scripts, kind=Kind.SUCCEEDED):
    job_id, dispatch = scripts.keys.parse(rq_id)
    return Outcome(kind, job_id, dispatch, uuid7())


def listed(redis, queue="default"):
    return [rq_id.decode() for rq_id in redis.lrange(f"rq:queue:{queue}", 0, -1)]


def test_a_push_sent_twice_puts_each_job_once(scripts, push, redis):
    jobs = push(3)
    assert scripts.push(1, "default", jobs)
    assert listed(redis) == [job.rq_id for job in jobs]


def test_a_push_sent_again_brings_no_job_back_that_has_ended_meanwhile(scripts, push, redis, monkeypatch):
    monkeypatch.setattr("django_batches.transport.scripts.uuid4", lambda: UUID(int=7))
    jobs = push(2)
    taken = scripts.turn("w", ["default"])
    scripts.turn("w", ["default"], take=False, finished=taken.rq_id, outcome=outcome(taken.rq_id, scripts))
    assert scripts.push(1, "default", jobs)
    assert listed(redis) == [jobs[1].rq_id]


def test_callbacks_go_to_the_front_in_their_order(push, redis):
    back = push(2)
    front = push(2, front=True)
    assert listed(redis) == [job.rq_id for job in front + back]


def test_a_push_with_an_older_token_is_refused(scripts, push, redis):
    jobs = push(1, token=5)
    redis.flushdb()
    push(1, token=5)
    assert not scripts.push(4, "default", jobs)
    assert len(listed(redis)) == 1


def test_a_turn_sent_twice_gives_the_same_job(scripts, push, redis):
    push(3)
    first = scripts.turn("w", ["default"])
    again = scripts.turn("w", ["default"])
    assert first.rq_id == again.rq_id and first.message == again.message
    assert len(listed(redis)) == 2


def test_a_finishing_turn_sent_twice_finishes_once_and_gives_the_same_next_job(scripts, push, redis):
    push(3)
    first = scripts.turn("w", ["default"])
    done = {"finished": first.rq_id, "outcome": outcome(first.rq_id, scripts), "queue": "default"}
    second = scripts.turn("w", ["default"], **done)
    again = scripts.turn("w", ["default"], **done)
    assert second.rq_id == again.rq_id != first.rq_id
    assert redis.xlen(scripts.keys.outcomes) == 2  # doubled: counted once by the books
    assert redis.hget("rq:worker:w", "successful_job_count") == b"1"
    assert len(listed(redis)) == 1


def test_a_job_that_stands_in_the_list_twice_is_taken_once(scripts, push, redis):
    (job,) = push(1)
    redis.rpush("rq:queue:default", job.rq_id)
    assert scripts.turn("one", ["default"]).kind == "job"
    assert scripts.turn("two", ["default"]).kind == "idle"


def test_a_job_without_its_hash_is_passed_over(scripts, push, redis):
    gone, there = push(2)
    redis.delete(f"rq:job:{gone.rq_id}")
    assert scripts.turn("w", ["default"]).rq_id == there.rq_id


def test_a_job_that_rq_requeues_in_the_moment_of_its_end_leaves_nothing(scripts, push, redis):
    """RQ writes the fields that it knows, so that nothing of ours is in the hash."""
    ended, there = push(2)
    queue = Queue("default", connection=redis)
    job = queue.fetch_job(ended.rq_id)
    assert scripts.turn("w", ["default"]).rq_id == ended.rq_id
    scripts.turn("w", ["default"], take=False, finished=ended.rq_id, outcome=outcome(ended.rq_id, scripts))
    queue._enqueue_job(job, at_front=True)  # as django-rq's page, which asks for no status
    assert redis.ttl(job.key) == -1
    assert scripts.turn("w", ["default"]).rq_id == there.rq_id
    assert not redis.exists(job.key) and listed(redis) == []


def test_queues_are_looked_at_in_order(scripts, push):
    push(1, "low")
    (high,) = push(1, "high")
    assert scripts.turn("w", ["high", "low"]).rq_id == high.rq_id
    assert scripts.turn("other", ["none"]).kind == "idle"


def test_without_names_every_queue_has_its_turn(scripts, push):
    push(50, "a")
    push(2, "b")
    taken = {scripts.turn(f"w{index}", []).queue for index in range(4)}
    assert taken == {"a", "b"}


def test_a_started_job_is_where_rq_looks_for_it_and_its_end_leaves_nothing(scripts, push, redis):
    (job,) = push(1)
    redis.sadd("rq:workers", "rq:worker:w")
    redis.hset("rq:worker:w", mapping={"birth": "", "pid": 1, "queues": "default"})
    taken = scripts.turn("w", ["default"])
    registry = StartedJobRegistry("default", connection=redis)
    assert registry.get_job_and_execution_ids() == [(job.rq_id, "1")]
    (worker,) = Worker.all(connection=redis)
    assert worker.get_current_job_id() == job.rq_id and worker._state == "busy"
    assert worker.get_current_executions()[0].job_id == job.rq_id
    queued = Queue("default", connection=redis)
    assert queued.job_ids == []
    running = queued.fetch_job(job.rq_id)
    assert running.get_status() == "started" and running.worker_name == "w" and running.started_at
    scripts.turn("w", ["default"], finished=taken.rq_id, outcome=outcome(taken.rq_id, scripts), queue="default")
    left = {key.decode() for key in redis.keys("rq:*")}
    assert left == {"rq:workers", "rq:worker:w", "rq:queues"}


def test_a_live_job_that_a_dashboard_abandoned_is_gone_when_it_ends(scripts, push, redis):
    push(1)
    taken = scripts.turn("w", ["default"])
    StartedJobRegistry("default", connection=redis).cleanup(timestamp=time.time() + 3600)
    assert FailedJobRegistry("default", connection=redis).get_job_ids() == [taken.rq_id]
    scripts.turn("w", [], finished=taken.rq_id, outcome=outcome(taken.rq_id, scripts), queue="default", take=False)
    assert FailedJobRegistry("default", connection=redis).get_job_ids() == []
    assert redis.keys("rq:job:*") == []


def test_a_held_batch_starts_no_job_but_its_callbacks(scripts, push, redis):
    (job,) = push(1)
    (callback,) = push(1, callback=True)
    redis.sadd(scripts.keys.on_hold, job.owner[:32], callback.owner[:32])
    taken = scripts.turn("w", ["default"])
    assert taken.rq_id == callback.rq_id
    ((_, fields),) = redis.xrange(scripts.keys.outcomes)
    held = Outcome.loads(fields[b"o"])
    assert (held.kind, held.job_id, held.dispatch, held.batch_id.hex) == (
        Kind.ON_HOLD,
        scripts.keys.parse(job.rq_id)[0],
        1,
        job.owner[:32],
    )
    assert redis.exists(f"rq:job:{job.rq_id}") == 0


def test_a_suspended_rq_starts_nothing(scripts, push, redis):
    push(1)
    redis.set("rq:suspended", 1)
    assert scripts.turn("w", []).kind == "suspended"
    redis.delete("rq:suspended")
    assert scripts.turn("w", []).kind == "job"


def test_a_turn_that_wants_nothing_takes_nothing(scripts, push, redis):
    push(1)
    assert scripts.turn("w", [], take=False).kind == "idle"
    assert len(listed(redis)) == 1


def test_a_large_push_goes_in_parts_and_in_order(monkeypatch):
    monkeypatch.setattr(dispatch, "LARGEST", 10)
    jobs = [Pushed(str(index), "x" * size, "", 1, "") for index, size in enumerate([4, 4, 4, 30, 1, 9])]
    assert [[job.rq_id for job in part] for part in dispatch._parts(jobs)] == [["0", "1"], ["2"], ["3"], ["4", "5"]]
    assert dispatch._parts([]) == []


def test_a_server_that_has_become_a_replica_is_left(scripts, push, redis):
    """Behind its address another one is the primary by now."""
    push(1)
    scripts.turn("w", ["default"], take=False)
    redis.replicaof("127.0.0.1", 1)
    try:
        with pytest.raises(ResponseError, match=r"(?i)readonly|read only"):
            scripts.turn("w", ["default"])
        assert scripts._turn._connection is None
    finally:
        redis.replicaof("NO", "ONE")
    assert scripts.turn("w", ["default"]).kind == "job"


def test_a_dead_executor_is_buried_with_its_job_in_one_step(scripts, push, redis):
    push(2)
    began = timezone.now()
    taken = scripts.turn("w", ["default"])
    assert scripts.reap("w", Kind.KILLED, "signal 9") == taken.rq_id
    ((_, fields),) = redis.xrange(scripts.keys.outcomes)
    told = Outcome.loads(fields[b"o"])
    assert (told.kind, told.error, told.worker) == (Kind.KILLED, "WorkerKilled: signal 9", "w")
    assert began <= told.started_at <= timezone.now()
    # Its last turn was still on the way: it must not take the next job.
    late = scripts.turn("w", ["default"], finished=taken.rq_id, outcome=outcome(taken.rq_id, scripts), queue="default")
    assert late.kind == "retired" and len(listed(redis)) == 1
    assert scripts.reap("w", Kind.KILLED, "again") is None


def test_a_start_that_is_no_time_does_not_cost_the_outcome(scripts, push, redis):
    push(1)
    taken = scripts.turn("w", ["default"])
    redis.hset(scripts.keys.job(taken.rq_id), "started_at", "yesterday")
    scripts.reap("w", Kind.KILLED, "signal 9")
    ((_, fields),) = redis.xrange(scripts.keys.outcomes)
    told = Outcome.loads(fields[b"o"])
    assert told.kind == Kind.KILLED and told.started_at is None


def test_stopping_a_job_spares_the_innocent_one_that_came_after_it(scripts, push, redis):
    push(1)
    taken = scripts.turn("w", ["default"])
    scripts.reap("w", Kind.STOPPED, "stopped", stopped="batch-tests-00-1")
    ((_, fields),) = redis.xrange(scripts.keys.outcomes)
    told = Outcome.loads(fields[b"o"])
    assert (told.kind, told.execution) == (Kind.VANISHED, scripts.keys.parse(taken.rq_id)) and told.started_at is None
    assert told.reason is VanishReason.OTHER_JOB_KILLED and told.error.endswith("because of another job: stopped")


def test_a_job_whose_executor_exited_before_its_start_keeps_that_reason(scripts, push, redis):
    push(1)
    scripts.turn("w", ["default"])
    scripts.reap("w", Kind.VANISHED, "its process ended.")
    ((_, fields),) = redis.xrange(scripts.keys.outcomes)
    told = Outcome.loads(fields[b"o"])
    assert told.reason is VanishReason.PROCESS_ENDED and told.error == f"{told.reason.text}."


def test_a_lease_is_written_anew_after_a_wipe_and_never_for_a_finished_job(scripts, push, redis):
    push(1)
    taken = scripts.turn("w", ["default"])
    execution = scripts.keys.execution(taken.rq_id, 1)
    assert 0 < redis.ttl(execution) <= 45
    redis.flushdb()
    scripts.renew([("w", taken.rq_id, "default")])
    assert 0 < redis.ttl(execution) <= 45
    scripts.turn("w", [], finished=taken.rq_id, outcome=outcome(taken.rq_id, scripts), queue="default", take=False)
    assert not redis.exists(execution)
    scripts.renew([("w", taken.rq_id, "default")])  # read from the board a moment too early
    assert not redis.exists(execution)


def test_every_key_of_ours_but_the_stream_and_the_held_set_expires(scripts, push, redis):
    push(2, "a")
    push(2, "b")
    scripts.turn("w", [])
    scripts.reap("w", Kind.KILLED, "x")
    ours = {key.decode() for key in redis.keys("batches:*")} - {scripts.keys.outcomes, scripts.keys.on_hold}
    assert ours and all(redis.ttl(key) > 0 for key in ours)


def test_an_ordinary_job_is_handed_over_with_rqs_own_care(scripts, redis):
    queue = Queue("default", connection=redis)
    job = queue.enqueue("tests.tasks.ok", 1)
    taken = scripts.turn("w", ["default"])
    assert (taken.kind, taken.rq_id, taken.queue) == ("rq", job.id, "default")
    assert redis.lrange(queue.intermediate_queue_key, 0, -1) == [job.id.encode()]
