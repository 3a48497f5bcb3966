"""Cases in which RQ 3.0 loses or repeats jobs, without a test in another file; and the page that lists all."""

import ast
import re

import pytest
from redis.exceptions import ResponseError
from rq import Queue, SimpleWorker
from rq.command import send_stop_job_command
from rq.job import Job

from django_batches import Batch
from django_batches.coordinator import reconcile
from django_batches.transitions import repairing
from django_batches.worker import rq_maintenance

from .. import tasks
from ..processes import ROOT, wait_until
from .test_rq_side import drive

PAGE = ROOT / "docs" / "reliability.md"
CASES = 38


def assert_succeeded_once(batch):
    assert batch.wait(60)
    assert repairing.drift(batch.pk) == {}
    found = [(job.status, job.attempts, job.losses) for job in batch.jobs.all()]
    assert found == [("succeeded", 1, 0)] * batch.total


@pytest.mark.django_db(transaction=True)
class TestCases:
    def test_a_succeeded_job_that_rq_considers_stuck_stays_succeeded(self, road, redis):
        with Batch.open() as batch:
            batch.enqueue(tasks.ok)
        road.dispatch()
        queue = Queue("default", connection=redis)
        (rq_id,) = queue.get_job_ids()
        worker = SimpleWorker([queue], connection=redis)
        redis.lpush(queue.intermediate_queue_key, rq_id)  # its horse died before it could take it away
        drive(road, worker)
        for _ in range(2):
            queue.intermediate_queue.cleanup(worker, queue)
        drive(road, worker)
        batch.refresh_from_db()
        assert_succeeded_once(batch)
        assert redis.llen(queue.intermediate_queue_key) == 0 and queue.failed_job_registry.count == 0

    def test_a_running_job_that_is_deleted_in_rq_succeeds_and_leaves_no_keys(self, start_worker, redis, ledger, gate):
        start_worker("--workers", 1)
        with Batch.open() as batch:
            batch.enqueue(tasks.begin_and_end_at, ledger.path, gate.path)
        wait_until(lambda: ledger.lines)
        job = batch.jobs.get()
        Job.fetch(f"batch-tests-{job.pk.hex}-1", connection=redis).delete()
        gate.let_through(1)
        assert_succeeded_once(batch)
        assert ledger.lines == ["begin", "end"]
        assert redis.keys("rq:job:*") == [] and redis.keys("rq:executions:*") == []

    def test_a_running_job_that_rq_cancels_succeeds(self, start_worker, redis, ledger, gate):
        start_worker("--workers", 1)
        with Batch.open() as batch:
            batch.enqueue(tasks.begin_and_end_at, ledger.path, gate.path)
        wait_until(lambda: ledger.lines)
        Job.fetch(f"batch-tests-{batch.jobs.get().pk.hex}-1", connection=redis).cancel()
        gate.let_through(1)
        assert_succeeded_once(batch)
        assert Queue("default", connection=redis).canceled_job_registry.get_job_ids() == []

    def test_commands_work_after_their_connection_was_lost(self, start_worker, redis, ledger):
        start_worker("--workers", 1)
        with Batch.open() as batch:
            batch.enqueue(tasks.begin_and_end, ledger.path, 60.0)
        wait_until(lambda: ledger.lines)
        (channel,) = wait_until(lambda: redis.pubsub_channels("rq:pubsub:*"))
        redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        wait_until(lambda: redis.pubsub_numsub(channel)[0][1] == 0)
        # Not the one that redis-py makes while it tells of the loss: that one is given up at once.
        wait_until(lambda: any(int(each["age"]) >= 1 for each in redis.client_list(_type="pubsub")))
        assert redis.pubsub_numsub(channel)[0][1] == 1
        send_stop_job_command(redis, f"batch-tests-{batch.jobs.get().pk.hex}-1")
        assert batch.wait(45)
        assert batch.jobs.get().status == "failed"

    def test_a_redis_without_memory_loses_nothing_and_stops_no_worker(self, start_worker, redis, ledger):
        worker = start_worker("--workers", 2)
        before = wait_until(lambda: len(worker.children()) == 4 and sorted(worker.children()))
        with Batch.open() as batch:
            batch.on_success(tasks.told, ledger.path)
            batch.map(tasks.sleepy, [0.05] * 60)
        wait_until(lambda: Batch.objects.get(pk=batch.pk).succeeded)
        redis.config_set("maxmemory", 1)
        try:
            wait_until(lambda: "retrying." in worker.log)
            with pytest.raises(ResponseError, match="maxmemory"):
                redis.set("x", 1)
        finally:
            redis.config_set("maxmemory", 0)
        assert_succeeded_once(batch)
        assert ledger.lines == [":succeeded:60/60"]
        assert sorted(worker.children()) == before

    def test_a_malformed_hash_stops_neither_the_coordinator_nor_the_maintenance_of_other_queues(
        self, road, redis, monkeypatch, caplog
    ):
        with Batch.open() as batch:
            batch.map(tasks.ok, range(2))
        road.dispatch()
        broken, _ = Queue("default", connection=redis).get_job_ids()
        redis.hset(f"rq:job:{broken}", mapping={"status": b"\xff", "timeout": "soon"})
        redis.lrem("rq:queue:default", 1, broken)
        monkeypatch.setattr(reconcile, "SECOND_LOOK", 0.0)
        assert road.reconciler.look() == 1
        assert road.reconciler.act() == 1
        road.run()
        batch.refresh_from_db()
        assert_succeeded_once(batch)

        redis.hset("rq:job:strange", mapping={"status": "no such status", "data": "x"})
        redis.rpush("rq:queue:aaa:intermediate", "strange")
        other = Queue("bbb", connection=redis)
        abandoned = other.enqueue(tasks.ok)
        redis.lmove("rq:queue:bbb", "rq:queue:bbb:intermediate")
        for _ in range(2):
            rq_maintenance._clean(["aaa", "bbb"])
            redis.set(other.intermediate_queue.get_first_seen_key(abandoned.id), 1)
        assert "queue aaa failed" in caplog.text
        assert abandoned.get_status(refresh=True) == "failed"
        assert not redis.exists(Queue("aaa", connection=redis).registry_cleaning_key)


def test_every_case_on_the_page_names_existing_tests_or_says_why_there_are_none():
    known = {
        f"{path.relative_to(ROOT)}::{name}" for path in (ROOT / "tests").rglob("test_*.py") for name in names(path)
    }
    rows = [line for line in PAGE.read_text().splitlines() if re.match(r"\| \d+ \|", line)]
    assert [int(row.split("|")[1]) for row in rows] == list(range(1, CASES + 1))
    for row in rows:
        named = re.findall(r"`([\w/]+\.py::\w+)`", row)
        assert named or "Cannot happen" in row, row
        assert set(named) <= known, row


def names(path):
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}
