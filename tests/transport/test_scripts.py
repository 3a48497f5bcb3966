"""The Lua scripts: each may be sent twice, and none touches the keys of others."""

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


def test_a_push_sent_twice_pushes_each_job_once(scripts, push, redis):
    jobs = push(3)
    assert scripts.push(1, "default", jobs)
    assert listed(redis) == [job.rq_id for job in jobs]


def test_a_push_sent_twice_does_not_restore_a_job_that_has_ended(scripts, push, redis, monkeypatch):
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


def test_a_turn_sent_twice_returns_the_same_job(scripts, push, redis):
    push(3)
    first = scripts.turn("w", ["default"])
    again = scripts.turn("w", ["default"])
    assert first.rq_id == again.rq_id and first.message == again.message
    assert len(listed(redis)) == 2


def test_a_turn_sent_twice_finishes_a_job_once_and_returns_the_same_next_job(scripts, push, redis):
    push(3)
    first = scripts.turn("w", ["default"])
    done = {"finished": first.rq_id, "outcome": outcome(first.rq_id, scripts), "queue": "default"}
    second = scripts.turn("w", ["default"], **done)
    again = scripts.turn("w", ["default"], **done)
    assert second.rq_id == again.rq_id != first.rq_id
    assert redis.xlen(scripts.keys.outcomes) == 2  # reported twice, and counted once
    assert redis.hget("rq:worker:w", "successful_job_count") == b"1"
    assert len(listed(redis)) == 1


def test_a_job_that_is_in_the_queue_twice_is_taken_once(scripts, push, redis):
    (job,) = push(1)
    redis.rpush("rq:queue:default", job.rq_id)
    assert scripts.turn("one", ["default"]).kind == "job"
    assert scripts.turn("two", ["default"]).kind == "idle"


def test_a_job_without_a_hash_is_skipped(scripts, push, redis):
    gone, there = push(2)
    redis.delete(f"rq:job:{gone.rq_id}")
    assert scripts.turn("w", ["default"]).rq_id == there.rq_id


def test_a_job_that_rq_requeues_at_its_end_leaves_no_keys(scripts, push, redis):
    """RQ writes the fields that it knows, so that the hash has none of ours."""
    ended, there = push(2)
    queue = Queue("default", connection=redis)
    job = queue.fetch_job(ended.rq_id)
    assert scripts.turn("w", ["default"]).rq_id == ended.rq_id
    scripts.turn("w", ["default"], take=False, finished=ended.rq_id, outcome=outcome(ended.rq_id, scripts))
    queue._enqueue_job(job, at_front=True)  # as django-rq does, without checking the status
    assert redis.ttl(job.key) == -1
    assert scripts.turn("w", ["default"]).rq_id == there.rq_id
    assert not redis.exists(job.key) and listed(redis) == []


def test_queues_are_worked_in_order(scripts, push):
    push(1, "low")
    (high,) = push(1, "high")
    assert scripts.turn("w", ["high", "low"]).rq_id == high.rq_id
    assert scripts.turn("other", ["none"]).kind == "idle"


def test_without_names_the_queues_take_turns(scripts, push):
    push(50, "a")
    push(2, "b")
    taken = {scripts.turn(f"w{index}", []).queue for index in range(4)}
    assert taken == {"a", "b"}


def test_rq_finds_a_started_job_and_its_end_leaves_no_keys(scripts, push, redis):
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


def test_a_running_job_that_a_dashboard_abandons_leaves_no_keys_at_its_end(scripts, push, redis):
    push(1)
    taken = scripts.turn("w", ["default"])
    StartedJobRegistry("default", connection=redis).cleanup(timestamp=time.time() + 3600)
    assert FailedJobRegistry("default", connection=redis).get_job_ids() == [taken.rq_id]
    scripts.turn("w", [], finished=taken.rq_id, outcome=outcome(taken.rq_id, scripts), queue="default", take=False)
    assert FailedJobRegistry("default", connection=redis).get_job_ids() == []
    assert redis.keys("rq:job:*") == []


def test_a_batch_on_hold_starts_its_callbacks_but_no_jobs(scripts, push, redis):
    (job,) = push(1)
    (callback,) = push(1, callback=True)
    redis.sadd(scripts.keys.on_hold, job.owner[:32], callback.owner[:32])
    taken = scripts.turn("w", ["default"])
    assert taken.rq_id == callback.rq_id
    ((_, fields),) = redis.xrange(scripts.keys.outcomes)
    reported = Outcome.loads(fields[b"o"])
    assert (reported.kind, reported.job_id, reported.dispatch, reported.batch_id.hex) == (
        Kind.ON_HOLD,
        scripts.keys.parse(job.rq_id)[0],
        1,
        job.owner[:32],
    )
    assert redis.exists(f"rq:job:{job.rq_id}") == 0


def test_no_job_starts_while_rq_is_suspended(scripts, push, redis):
    push(1)
    redis.set("rq:suspended", 1)
    assert scripts.turn("w", []).kind == "suspended"
    redis.delete("rq:suspended")
    assert scripts.turn("w", []).kind == "job"


def test_a_turn_takes_no_job_unless_it_wants_one(scripts, push, redis):
    push(1)
    assert scripts.turn("w", [], take=False).kind == "idle"
    assert len(listed(redis)) == 1


def test_a_large_push_is_split_and_keeps_its_order(monkeypatch):
    monkeypatch.setattr(dispatch, "LARGEST", 10)
    jobs = [Pushed(str(index), "x" * size, "", 1, "") for index, size in enumerate([4, 4, 4, 30, 1, 9])]
    assert [[job.rq_id for job in part] for part in dispatch._parts(jobs)] == [["0", "1"], ["2"], ["3"], ["4", "5"]]
    assert dispatch._parts([]) == []


def test_a_connection_to_a_replica_is_replaced(scripts, push, redis):
    """Its address may lead to another server, the new primary."""
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


def test_reaping_an_executor_reports_its_job_and_retires_its_slot(scripts, push, redis):
    push(2)
    began = timezone.now()
    taken = scripts.turn("w", ["default"])
    assert scripts.reap("w", Kind.KILLED, "signal 9") == taken.rq_id
    ((_, fields),) = redis.xrange(scripts.keys.outcomes)
    reported = Outcome.loads(fields[b"o"])
    assert (reported.kind, reported.error, reported.worker) == (Kind.KILLED, "WorkerKilled: signal 9", "w")
    assert began <= reported.started_at <= timezone.now()
    # Its last turn arrives late and must not take the next job.
    late = scripts.turn("w", ["default"], finished=taken.rq_id, outcome=outcome(taken.rq_id, scripts), queue="default")
    assert late.kind == "retired" and len(listed(redis)) == 1
    assert scripts.reap("w", Kind.KILLED, "again") is None


def test_an_invalid_start_time_does_not_lose_the_outcome(scripts, push, redis):
    push(1)
    taken = scripts.turn("w", ["default"])
    redis.hset(scripts.keys.job(taken.rq_id), "started_at", "yesterday")
    scripts.reap("w", Kind.KILLED, "signal 9")
    ((_, fields),) = redis.xrange(scripts.keys.outcomes)
    reported = Outcome.loads(fields[b"o"])
    assert reported.kind == Kind.KILLED and reported.started_at is None


def test_stopping_a_job_does_not_fail_the_job_after_it(scripts, push, redis):
    push(1)
    taken = scripts.turn("w", ["default"])
    scripts.reap("w", Kind.STOPPED, "stopped", stopped="batch-tests-00-1")
    ((_, fields),) = redis.xrange(scripts.keys.outcomes)
    reported = Outcome.loads(fields[b"o"])
    assert (reported.kind, reported.execution) == (
        Kind.VANISHED,
        scripts.keys.parse(taken.rq_id),
    ) and reported.started_at is None
    assert reported.reason is VanishReason.OTHER_JOB_KILLED and reported.error.endswith(
        "because of another job: stopped"
    )


def test_a_job_whose_executor_exited_before_its_start_keeps_that_reason(scripts, push, redis):
    push(1)
    scripts.turn("w", ["default"])
    scripts.reap("w", Kind.VANISHED, "its process ended.")
    ((_, fields),) = redis.xrange(scripts.keys.outcomes)
    reported = Outcome.loads(fields[b"o"])
    assert reported.reason is VanishReason.PROCESS_ENDED and reported.error == f"{reported.reason.text}."


def test_renew_restores_a_lease_after_a_wipe_but_not_for_a_finished_job(scripts, push, redis):
    push(1)
    taken = scripts.turn("w", ["default"])
    execution = scripts.keys.execution(taken.rq_id, 1)
    assert 0 < redis.ttl(execution) <= 45
    redis.flushdb()
    scripts.renew([("w", taken.rq_id, "default")])
    assert 0 < redis.ttl(execution) <= 45
    scripts.turn("w", [], finished=taken.rq_id, outcome=outcome(taken.rq_id, scripts), queue="default", take=False)
    assert not redis.exists(execution)
    scripts.renew([("w", taken.rq_id, "default")])  # the supervisor has read the slot table a moment earlier
    assert not redis.exists(execution)


def test_every_key_expires_except_the_stream_and_the_batches_on_hold(scripts, push, redis):
    push(2, "a")
    push(2, "b")
    scripts.turn("w", [])
    scripts.reap("w", Kind.KILLED, "x")
    ours = {key.decode() for key in redis.keys("batches:*")} - {scripts.keys.outcomes, scripts.keys.on_hold}
    assert ours and all(redis.ttl(key) > 0 for key in ours)


def test_an_rq_job_is_kept_in_the_intermediate_queue(scripts, redis):
    queue = Queue("default", connection=redis)
    job = queue.enqueue("tests.tasks.ok", 1)
    taken = scripts.turn("w", ["default"])
    assert (taken.kind, taken.rq_id, taken.queue) == ("rq", job.id, "default")
    assert redis.lrange(queue.intermediate_queue_key, 0, -1) == [job.id.encode()]
