"""The metrics for Prometheus: correct, cheap, and only for authorised readers."""

import os
import subprocess
import sys
from collections import Counter
from datetime import timedelta

import pytest
from django.core.checks import run_checks
from django.test import override_settings
from django.urls import reverse
from django.utils import timezone
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from django_batches import Batch, database
from django_batches.coordinator import totals
from django_batches.coordinator.loop import Coordinator
from django_batches.models import Lease
from django_batches.monitoring import metrics
from django_batches.transitions import applying, deleting, repairing
from django_batches.transport.outcomes import Kind

from .. import tasks
from ..admin_data import batch_of, batchworker_is_there, new_callback, user_with
from ..commanding import batches
from ..processes import ROOT, wait_until
from ..road import claim, outcome_of, statements
from .test_diagnosis import at

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.urls("tests.browser.urls")]

TOKEN = "a-token-of-our-own"
BASE = {"CACHE": "batches", "NAMESPACE": "tests"}


def read(text=None):
    """The samples, by name and label."""
    found = {}
    for family in text_string_to_metric_families(text or metrics.text()):
        for sample in family.samples:
            label = next(iter(sample.labels.values()), None)
            found[sample.name.removeprefix("django_batches_"), label] = sample.value
    return found


def only(found, name):
    return {label: value for (family, label), value in found.items() if family == name and value}


@pytest.fixture
def coordinator(redis):
    repairing.repairs()  # drop those of other tests
    coordinator = Coordinator("loop", lambda: True)
    assert coordinator._lease.acquire()
    coordinator._begin()
    return coordinator


def test_batches_and_jobs_by_status(redis):
    batch_of(succeeded=5, failed=2, cancelled=1, running=3, queued=2, created=4, scheduled=6)
    batch_of(created=2, is_paused=True), batch_of(running=1, cancelled_at=timezone.now())
    batch_of(created=1, status="open", sealed_at=None)
    batch_of(succeeded=50), batch_of(failed=1), batch_of(succeeded=1, finished_at=timezone.now() - timedelta(hours=2))
    found = read()
    assert only(found, "batches") == {"running": 1, "paused": 1, "cancelling": 1, "open": 1}
    assert only(found, "jobs") == {
        "succeeded": 5, "failed": 2, "cancelled": 1, "running": 4, "queued": 2, "to_run": 13,
    }  # fmt: skip
    assert only(found, "batches_ended_last_hour") == {"succeeded": 1, "failed": 1}


def test_a_batch_that_is_being_deleted_counts_no_jobs(redis):
    assert deleting.begin_deletion(batch_of(succeeded=5).pk)
    found = read()
    assert only(found, "batches") == {"deleting": 1} and only(found, "jobs") == {}
    assert only(found, "batches_ended_last_hour") == {}


def test_the_age_of_the_oldest_due_row(redis):
    now = timezone.now()
    batch, paused = batch_of(created=2, scheduled=2), batch_of(created=1, is_paused=True)
    callback = new_callback(batch_of(succeeded=1, open_callbacks=1))
    database.jobs().filter(batch=batch, status="created").update(created_at=now - timedelta(minutes=3))
    database.jobs().filter(batch=batch, position=0).update(due_at=now - timedelta(minutes=2))
    database.jobs().filter(batch=paused).update(created_at=now - timedelta(days=1))
    database.jobs().filter(pk=callback.pk).update(created_at=now - timedelta(minutes=1))
    found = read()
    assert found["oldest_due_seconds", "callback"] == pytest.approx(60, abs=5)
    assert found["oldest_due_seconds", "scheduled"] == pytest.approx(120, abs=5)
    assert found["oldest_due_seconds", "job"] == pytest.approx(180, abs=5)


def test_a_retry_counts_from_when_it_became_due(redis):
    batch = batch_of(created=1)
    now = timezone.now()
    database.jobs().filter(batch=batch).update(created_at=now - timedelta(days=1), due_at=now - timedelta(minutes=1))
    assert read()["oldest_due_seconds", "job"] == pytest.approx(60, abs=5)


@pytest.mark.parametrize("again", ["retried by a user", "failed an attempt", "returned"])
@pytest.mark.parametrize("kind", ["job", "callback"])
def test_a_job_that_runs_again_counts_from_then_and_not_from_when_it_was_added(kind, again, redis):
    with Batch.open(max_attempts=2) as batch:
        (batch.on_finish if kind == "callback" else batch.enqueue)(tasks.boom)
    (job,) = claim(batch, callbacks=kind == "callback")
    database.jobs().update(created_at=timezone.now() - timedelta(days=1))
    outcome_kind = Kind.INTERRUPTED if again == "returned" else Kind.FAILED
    applying.record([outcome_of(job, outcome_kind, is_final=again == "retried by a user")])
    row = database.jobs().get(pk=job.id)
    if again == "retried by a user":
        row.retry()
    row.refresh_from_db()
    assert row.status == "created"
    assert read()["oldest_due_seconds", kind] == pytest.approx(0, abs=5)


def test_the_lag_of_the_stream(redis, keys):
    with Batch.open() as batch:
        batch.map(tasks.ok, range(3))
    emitted = int((timezone.now() - timedelta(minutes=2)).timestamp() * 1000)
    for index, job in enumerate(claim(batch)):
        redis.xadd(keys.outcomes, {"o": outcome_of(job).dumps()}, id=f"{emitted}-{index + 1}")
    found = read()
    assert found["outcome_stream_entries", None] == 3
    assert found["outcome_stream_oldest_seconds", None] == pytest.approx(120, abs=5)


def test_the_active_coordinator_counts_outcomes_losses_and_repairs(coordinator, redis, keys):
    with Batch.open() as batch:
        batch.map(tasks.ok, range(6))
    kinds = [Kind.SUCCEEDED] * 3 + [Kind.FAILED, Kind.KILLED, Kind.INTERRUPTED]
    for job, kind in zip(claim(batch), kinds, strict=True):
        redis.xadd(keys.outcomes, {"o": outcome_of(job, kind).dumps()})
    drifting = batch_of(created=3)
    database.batches().filter(pk=drifting.pk).update(pending=2, succeeded=1)  # the sum is right, but not the rows
    for _ in range(2):
        coordinator._poll.soon()
        coordinator.turn()
    found = read()
    assert only(found, "outcomes_total") == {"succeeded": 3, "failed": 1, "killed": 1, "interrupted": 1}
    assert (found["losses_total", None], found["repairs_total", None]) == (2, 1)
    assert 0 < redis.ttl(keys.totals) <= totals.TTL


def test_counters_only_grow_and_are_written_once(coordinator, redis):
    coordinator._recorder.counts["succeeded"] += 2
    for _ in range(3):
        coordinator._poll.soon()
        coordinator.turn()
    assert totals.read(redis) == {"succeeded": 2}


def test_counts_are_kept_while_redis_is_down(redis, monkeypatch):
    counts = Counter(succeeded=2)
    monkeypatch.setattr(redis.connection_pool, "get_connection", refuse)
    with pytest.raises(ConnectionError):
        totals.add(redis, counts)
    monkeypatch.undo()
    totals.add(redis, counts)
    assert totals.read(redis) == {"succeeded": 2} and not counts


def refuse(*args):
    raise ConnectionError


def test_whether_there_is_an_active_coordinator_and_redis_answers(redis, settings):
    found = read()
    assert (found["coordinator_up", None], found["redis_up", None]) == (0, 1)
    batchworker_is_there()
    at("redis://127.0.0.1:1/1", settings)
    batch_of(created=2)
    found = read()
    assert (found["coordinator_up", None], found["redis_up", None], found["jobs", "to_run"]) == (1, 0, 2)
    assert ("outcome_stream_entries", None) not in found


def test_the_number_of_queries_does_not_grow_with_the_jobs(redis):
    batch_of(succeeded=5, created=5)
    with statements() as for_few:
        metrics.text()
    for _ in range(5):
        batch_of(succeeded=500, created=500, failed=500)
    with statements() as for_many:
        metrics.text()
    assert len(for_few) == len(for_many) <= 15


def test_registering_the_collector_queries_nothing(redis):
    registry = CollectorRegistry(auto_describe=True)
    with statements() as made:
        registry.register(metrics.BatchesCollector())
    assert made == [] and registry.get_sample_value("django_batches_redis_up") == 1


def test_the_command_prints_the_metrics(redis):
    batch_of(created=2)
    result = batches("metrics")
    assert result.code == 0 and read(result.out)["jobs", "to_run"] == 2


class TestView:
    def get(self, client, **headers):
        return client.get(reverse("django_batches:metrics"), headers=headers)

    def test_staff_with_the_view_permission_may_read_it(self, client, redis):
        refused = self.get(client)
        assert refused.status_code == 401 and refused["WWW-Authenticate"] == "Bearer"
        for name, status in (("view_batch", 200), ("retry_batch", 401)):
            client.force_login(user_with(name))
            assert self.get(client).status_code == status
        customer = user_with("view_batch", name="customer")
        customer.is_staff = False
        customer.save()
        client.force_login(customer)
        assert self.get(client).status_code == 401

    def test_the_token_grants_access(self, client, redis):
        with override_settings(DJANGO_BATCHES={**BASE, "METRICS_TOKEN": TOKEN}):
            response = self.get(client, authorization=f"Bearer {TOKEN}")
            assert response.status_code == 200 and response["Content-Type"].startswith("text/plain")
            assert read(response.content.decode())["redis_up", None] == 1
            for wrong in (f"Bearer {TOKEN}x", "Bearer ", "Bearer", f"Basic {TOKEN}", TOKEN, "Bearer \u00e9"):
                assert self.get(client, authorization=wrong).status_code == 401

    def test_an_empty_setting_accepts_no_token(self, client):
        assert self.get(client, authorization="Bearer ").status_code == 401
        assert self.get(client, authorization="Bearer").status_code == 401

    def test_allows_only_get(self, client):
        assert client.post(reverse("django_batches:metrics")).status_code == 405

    def test_without_the_extra_it_names_the_extra(self, client, monkeypatch):
        monkeypatch.setattr(metrics, "is_available", False)
        assert self.get(client).status_code == 401
        with override_settings(DJANGO_BATCHES={**BASE, "METRICS_TOKEN": TOKEN}):
            response = self.get(client, authorization=f"Bearer {TOKEN}")
        assert response.status_code == 501 and b'pip install "django-batches[prometheus]"' in response.content


@pytest.mark.parametrize("token", ["short", 7, None])
def test_a_weak_token_fails_the_system_check(token):
    with override_settings(DJANGO_BATCHES={**BASE, "METRICS_TOKEN": token}):
        (message,) = [message for message in run_checks() if message.id == "django_batches.E002"]
    assert "at least 16 characters" in message.msg


def test_without_the_extra_the_app_works_and_the_command_names_the_extra():
    block = "import sys; sys.modules['prometheus_client'] = None; "
    code = f"{block}from django.core.management import execute_from_command_line as run; run(sys.argv)"
    environment = os.environ | {"DJANGO_SETTINGS_MODULE": "tests.settings", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, "batches", "metrics"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.strip() == (
        'CommandError: The metrics need prometheus_client: pip install "django-batches[prometheus]"'
    )


def test_a_worker_process_updates_the_metrics(start_worker, redis):
    with Batch.open() as batch:
        batch.map(tasks.ok, range(20))
    start_worker("--workers", 2)
    wait_until(lambda: Batch.objects.get(pk=batch.pk).finished_at)
    wait_until(lambda: read()["outcomes_total", "succeeded"] == 20)
    assert Lease.objects.exists() and read()["coordinator_up", None] == 1
