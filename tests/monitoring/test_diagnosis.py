"""Why isn't a batch progressing? Each reason is found, most severe first, and quickly."""

import socket
import time
from datetime import timedelta

import pytest
from django.utils import timezone

from django_batches import Batch, database
from django_batches.models import Lease
from django_batches.monitoring.diagnosis import diagnose, probe_workers
from django_batches.transitions import deleting
from django_batches.transport.client import Keys, client

from .. import tasks
from ..admin_data import batch_of, batchworker_is_there, chain, child_of, new_callback
from ..road import statements

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def batchworker(db):
    batchworker_is_there()


@pytest.fixture
def workers(redis):
    """Registers a worker of queues with RQ."""

    def register(*queues, name="one", is_alive=True):
        keys = Keys()
        for queue in queues:
            redis.sadd(keys.workers_of(queue), keys.worker(name))
        if is_alive:
            redis.hset(keys.worker(name), "birth", "now")

    return register


def codes(batch):
    batch.refresh_from_db()
    return [finding.code for finding in diagnose(batch)]


def at(address, settings):
    settings.CACHES = {**settings.CACHES, "batches": {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": address}}


def test_an_ended_batch_has_no_findings(redis):
    assert diagnose(batch_of(succeeded=2, failed=1)) == []


def test_nothing_blocks_a_running_batch(workers):
    workers("default")
    assert codes(batch_of(running=2, queued=1, created=3)) == ["running", "queued"]


def test_no_batchworker_has_ever_run(workers):
    workers("default")
    Lease.objects.all().delete()
    batch = batch_of(created=3)
    assert codes(batch)[0] == "batchworker"
    assert "has ever run" in diagnose(batch)[0].text and "manage.py batchworker" in diagnose(batch)[0].advice


def test_no_batchworker_has_been_seen_since(workers):
    workers("default")
    batchworker_is_there(-3600)
    finding = diagnose(batch_of(created=3))[0]
    assert (finding.code, finding.level) == ("batchworker", "error") and "has been seen since" in finding.text


def test_the_batchworker_has_another_namespace(workers):
    workers("default")
    Lease.objects.update(namespace="elsewhere")
    finding = diagnose(batch_of(created=3))[0]
    assert (finding.code, finding.level) == ("namespace", "error") and "namespace elsewhere" in finding.text
    assert 'DJANGO_BATCHES["NAMESPACE"]' in finding.advice


def test_the_location_of_the_cache_is_not_a_url(settings):
    at("localhost:6379", settings)
    assert codes(batch_of(created=3))[0] == "redis"


def test_a_pause_or_cancel_does_not_stop_the_callbacks_of_an_ended_batch(workers):
    workers("default")
    batch = batch_of(cancelled=1, open_callbacks=1, is_paused=True, cancelled_at=timezone.now())
    new_callback(batch, status="created")
    assert not {"paused", "cancelling"} & set(codes(batch))


def test_redis_refuses(settings, asked_once):
    at("redis://127.0.0.1:1/1", settings)
    assert codes(batch_of(created=3))[0] == "redis"


def test_redis_accepts_the_connection_but_never_answers(settings):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        at(f"redis://127.0.0.1:{silent.getsockname()[1]}/1", settings)
        batch = batch_of(created=3)
        begun = time.monotonic()
        assert codes(batch)[0] == "redis"
        assert time.monotonic() - begun < 8  # the workers wait for 10 s


def test_the_cache_is_not_a_django_redis_cache(settings):
    settings.CACHES = {**settings.CACHES, "batches": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}
    assert codes(batch_of(created=3))[0] == "redis"


def test_no_worker_listens_on_the_queue(workers):
    workers("default")
    batch = batch_of(created=3, queue="images")
    finding = next(finding for finding in diagnose(batch) if finding.code == "no_worker")
    assert "images" in finding.text and "batchworker images" in finding.advice and finding.level == "error"


def test_a_worker_whose_host_was_lost_does_not_count(workers):
    workers("images", is_alive=False)
    assert "no_worker" in codes(batch_of(created=3, queue="images"))


def test_jobs_on_a_queue_other_than_that_of_the_batch_need_workers_too(workers):
    workers("default", "mail")
    batch = batch_of(created=3)
    database.jobs().filter(position=1).update(queue="mail")
    database.jobs().filter(position=2).update(queue="slow")
    assert [finding.text for finding in diagnose(batch) if finding.code == "no_worker"] == [
        "No worker listens on the queue “slow”."
    ]


def test_suspended_workers(workers, redis):
    workers("default")
    redis.set("rq:suspended", 1)
    assert "suspended" in codes(batch_of(created=3))


def test_a_paused_batch(workers):
    workers("default")
    batch = batch_of(created=3, is_paused=True)
    assert codes(batch) == ["paused"] and diagnose(batch)[0].level == "warning"


def test_a_batch_that_has_not_been_sealed(workers):
    workers("default")
    batch = batch_of(created=3, status="open", sealed_at=None)
    finding = next(finding for finding in diagnose(batch) if finding.code == "open")
    assert finding.level == "warning" and "6 min" in finding.text and "1 h" in finding.advice


def test_a_new_open_batch_is_not_a_warning(redis):
    with Batch.open() as batch:
        batch.enqueue(tasks.ok)
        assert {finding.level for finding in diagnose(batch)} == {"info"}


def test_scheduled_until(workers):
    workers("default")
    batch = batch_of(succeeded=2, scheduled=2)
    assert codes(batch) == ["scheduled"] and "is scheduled for" in diagnose(batch)[0].text


def test_the_longest_running_job_and_its_worker_are_named(workers):
    workers("default")
    batch = batch_of(running=3, started_at=timezone.now())
    slow = batch.jobs.get(position=1)
    database.jobs().filter(pk=slow.pk).update(started_at=timezone.now() - timedelta(hours=2), worker="web-3:batch.7")
    assert "job 1, for 2 h on worker web-3:batch.7" in diagnose(batch)[0].text


def test_a_cancel_in_progress(workers):
    workers("default")
    batch = batch_of(running=1, cancelled=2, cancelled_at=timezone.now(), reason="wrong file")
    finding = diagnose(batch)[0]
    assert finding.code == "cancelling" and finding.advice == "wrong file"


def test_a_retry_in_progress(workers):
    workers("default")
    assert "retrying" in codes(batch_of(failed=2, created=1, retry_position=1))


def test_a_deletion_in_progress(redis):
    batch = batch_of(failed=2)
    deleting.begin_deletion(batch.pk)
    assert codes(batch) == ["deleting"]


def test_jobs_waiting_behind_other_batches(workers):
    workers("default")
    assert codes(batch_of(created=2)) == ["behind"]


def test_other_batches_are_not_blamed_if_nothing_would_run_the_jobs(workers):
    batch = batch_of(created=2)
    assert codes(batch) == ["no_worker"]
    workers("default")
    Lease.objects.all().delete()
    assert codes(batch) == ["batchworker"]


def test_callbacks_on_a_queue_without_a_worker(workers):
    batch = batch_of(succeeded=2, open_callbacks=1)
    new_callback(batch, queue="mail")
    assert codes(batch) == ["no_worker", "callbacks"]


def test_overdue_since(workers):
    workers("default")
    late = timezone.now() - timedelta(minutes=2)
    batch = batch_of(running=1, deadline=240, deadline_at=late)
    finding = diagnose(batch)[0]
    assert (finding.code, finding.level, finding.advice) == ("overdue", "warning", "Its deadline was 4 min.")
    assert codes(batch_of(running=1, deadline=240, deadline_at=timezone.now() + timedelta(minutes=2))) == ["running"]


def test_a_job_that_waits_for_a_child_batch(workers):
    workers("default")
    batch = batch_of(succeeded=2, waiting=1, created=1)
    child = child_of(batch.jobs.get(status="waiting"), "merge", succeeded=3, failed=1, running=6)
    found = {finding.code: finding for finding in diagnose(batch)}
    assert found["children"].text == "Job 3 waits for its child batch “merge” (running, 4 of 10 jobs)."
    assert found["children"].batch_id == child.pk and "more_children" not in found


def test_a_callback_that_waits_for_a_child_batch(workers):
    workers("default")
    batch = batch_of(succeeded=2, open_callbacks=1)
    callback = new_callback(batch, "success", status="waiting", waited_at=timezone.now())
    child = child_of(callback, "next stage", succeeded=2, open_callbacks=1)
    new_callback(child)
    texts = [finding.text for finding in diagnose(batch)]
    assert (
        "A success callback waits for its child batch “next stage” (succeeded, its callbacks have not ended)." in texts
    )


def test_three_children_are_named_and_the_others_are_counted(workers):
    workers("default")
    batch = batch_of(waiting=1000)
    database.batches().bulk_create([row_of_child(job) for job in batch.jobs.all()])
    with statements() as queries:
        found = diagnose(batch)
    assert [finding.code for finding in found].count("children") == 3
    assert "It waits for 997 more child batches." in [finding.text for finding in found]
    assert len(queries) <= 8, len(queries)


def row_of_child(job):
    now = timezone.now()
    return Batch(
        description="x", queue="default", timeout=180, total=1, pending=1, in_flight=1, status="running",
        sealed_at=now, parent=job, parent_dispatch=job.dispatch, is_awaited=True,
    )  # fmt: skip


def test_a_paused_batch_deep_in_the_tree(workers):
    workers("default")
    batches = chain(12, created=1, is_paused=True)
    with statements() as queries:
        finding = diagnose(batches[0])[0]
    assert (finding.code, finding.level, finding.batch_id) == ("child_paused", "warning", batches[-1].pk)
    assert finding.text == "Its descendant “level 12” (12 levels down) is paused."
    assert len(queries) <= 20, len(queries)
    assert diagnose(batches[11])[0].text == "Its child batch “level 12” is paused."


def test_a_child_that_has_not_been_sealed(workers):
    workers("default")
    batches = chain(1, created=1, sealed_at=None, status="open")
    finding = diagnose(batches[0])[0]
    assert (
        finding.code == "child_open" and "“level 1” has not been sealed. Its last job was added 6 min" in finding.text
    )


def test_many_blocked_children_are_counted(workers):
    workers("default")
    batch = batch_of(waiting=5)
    for job in batch.jobs.all():
        child_of(job, created=1, is_paused=True)
    found = diagnose(batch)
    assert [finding.code for finding in found].count("child_paused") == 3
    assert "2 more batches in its tree are paused or not sealed." in [finding.text for finding in found]


def test_a_child_whose_queue_has_no_worker(workers):
    workers("default")
    batches = chain(2, created=1, queue="mail")
    finding = diagnose(batches[0])[0]
    text = "No worker listens on the queue “mail”. Its descendant “level 2” (2 levels down) needs one."
    assert (finding.code, finding.level, finding.text) == ("no_worker", "error", text)
    assert finding.batch_id == batches[2].pk and finding.advice.endswith("batchworker mail")


def test_children_that_are_no_longer_awaited_are_ignored(workers):
    workers("default")
    batch = batch_of(failed=1, running=1)
    child_of(batch.jobs.get(status="failed"), created=1, is_paused=True)
    assert codes(batch) == ["running"]


def test_callbacks_that_have_not_ended(workers):
    workers("default")
    batch = batch_of(succeeded=2, open_callbacks=1)
    new_callback(batch)
    assert codes(batch) == ["callbacks"]


def test_the_most_severe_finding_comes_first(settings):
    at("redis://127.0.0.1:1/1", settings)
    Lease.objects.all().delete()
    levels = [finding.level for finding in diagnose(batch_of(running=1, created=3, is_paused=True))]
    assert levels == sorted(levels, key=("error", "warning", "info").index) and len(set(levels)) == 3


def test_no_connection_stays_open(redis):
    def count():
        return len(client().client_list())

    before = count()
    for _ in range(20):
        probe_workers(["default"])
    assert count() <= before + 2
