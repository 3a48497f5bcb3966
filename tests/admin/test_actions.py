"""The actions of the admin: who may perform them, and that each is performed once."""

import threading
from datetime import timedelta

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth import get_user_model
from django.contrib.messages import get_messages
from django.db import IntegrityError, connections, transaction
from django.db.models import CASCADE, PROTECT
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from django_batches import Batch, database
from django_batches.admin import confirmation
from django_batches.exceptions import BatchError
from django_batches.models import BatchJob, FailureGroup, TimeBucket
from django_batches.transitions import applying, cancelling, deleting, repairing
from django_batches.transport.outcomes import Kind
from example_project.shop.models import Product

from .. import tasks
from ..admin_data import batch_of, child_of, new_callback, user_with
from ..road import claim, outcome_of

pytestmark = pytest.mark.django_db

LIST = "admin:django_batches_batch_changelist"
ACTIONS = {
    "retry": "retry_batch", "retry-group": "retry_batch", "retry-job": "retry_batch",
    "cancel": "cancel_batch", "cancel-job": "cancel_batch", "pause": "cancel_batch", "resume": "cancel_batch",
    "seal": "cancel_batch", "delete": "delete_batch",
}  # fmt: skip


@pytest.fixture
def admin(client):
    client.force_login(get_user_model().objects.create_superuser("root", password="root"))
    return client


def url(name, batch, *args, **query):
    return reverse(f"admin:django_batches_batch_{name}", args=[batch.pk, *args], query=query or None)


def messages_of(response):
    return [str(message) for message in get_messages(response.wsgi_request)]


def target(action):
    """A batch that allows the action, and the URL of the action."""
    query = {}
    if action == "seal":
        batch = batch_of(created=2, status="open", sealed_at=None)
    elif action == "delete":
        batch = batch_of(succeeded=2)
    else:
        batch = batch_of(succeeded=1, failed=2, created=3, is_paused=action == "resume")
    if action == "retry-group":
        query["fingerprint"] = batch.failure_groups.get().fingerprint
    if action.endswith("-job"):
        status = "failed" if action == "retry-job" else "created"
        query["job"] = batch.jobs.filter(status=status).first().pk
    return batch, url("act", batch, action, **query)


def rows():
    """Everything that an action could change."""
    return (
        list(Batch.objects.order_by("pk").values()),
        list(BatchJob.objects.order_by("pk").values("pk", "status", "dispatch")),
        list(FailureGroup.objects.values()),
    )


@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_is_neither_offered_nor_possible_without_its_permission(client, action):
    others = {"retry_batch", "cancel_batch", "delete_batch"} - {ACTIONS[action]}
    client.force_login(user_with("view_batch", *others))
    batch, address = target(action)
    before = rows()
    assert client.get(address).status_code == client.post(address).status_code == 403
    assert rows() == before
    for page in ("change", "jobs"):
        assert address.replace("&", "&amp;") not in client.get(url(page, batch)).content.decode()


@pytest.mark.parametrize("action", ACTIONS)
def test_the_permission_of_an_action_alone_does_not_allow_viewing_the_batch(client, action):
    client.force_login(user_with(ACTIONS[action]))
    batch, address = target(action)
    before = rows()
    pages = [address, reverse(LIST), url("change", batch), url("jobs", batch), url("live_page", batch),
             reverse("admin:django_batches_batch_live")]  # fmt: skip
    assert {client.get(page).status_code for page in pages} == {403}
    assert client.post(address).status_code == 403
    assert rows() == before


@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_with_its_permission_is_performed_logged_and_reported(client, action):
    user = user_with("view_batch", ACTIONS[action])
    client.force_login(user)
    _batch, address = target(action)
    before = rows()
    assert client.get(address).status_code == 200
    assert rows() == before  # the confirmation page changes nothing
    response = client.post(address)
    assert response.status_code == 302 and len(messages_of(response)) == 1
    assert rows() != before
    assert LogEntry.objects.filter(user=user).count() == 1


@pytest.mark.parametrize("action", ACTIONS)
def test_anonymous_users_are_redirected_to_the_login(client, action):
    _, address = target(action)
    before = rows()
    assert "/login/" in client.get(address)["Location"] and "/login/" in client.post(address)["Location"]
    assert rows() == before


@pytest.mark.parametrize("action", ACTIONS)
def test_actions_require_the_csrf_token(action):
    client = Client(enforce_csrf_checks=True)
    client.force_login(get_user_model().objects.create_superuser("root", password="root"))
    _, address = target(action)
    before = rows()
    assert client.post(address).status_code == 403
    assert rows() == before


@pytest.mark.parametrize("action", [action for action in ACTIONS if action != "delete"])
def test_a_double_click_performs_an_action_once(admin, action):
    _, address = target(action)
    admin.post(address)
    once = rows()
    response = admin.post(address)
    assert response.status_code == 302
    after = rows()
    assert after == once
    assert LogEntry.objects.count() == 1


def test_batches_cannot_be_added_or_edited(admin):
    batch = batch_of(succeeded=1)
    assert admin.get("/admin/django_batches/batch/add/").status_code == 403
    assert admin.post(url("change", batch), {"description": "x", "status": "open"}).status_code == 403
    assert "_save" not in admin.get(url("change", batch)).content.decode()


def test_arguments_and_results_are_hidden_without_the_permission(client):
    batch = batch_of(failed=1)
    database.jobs().update(arguments='[["secret"],{}]', result_text='"classified"')
    new_callback(batch, arguments='[["secret"],{}]')
    for codenames, is_shown in ((("view_batch",), False), (("view_batch", "view_job_arguments"), True)):
        client.force_login(user_with(*codenames))
        for page in (url("change", batch), url("jobs", batch), url("live_page", batch)):
            html = client.get(page).content.decode()
            assert ("secret" in html) == is_shown, page
            assert is_shown or "classified" not in html, page


def test_ids_from_requests_are_looked_up_in_get_queryset(admin, monkeypatch):
    mine, other = batch_of("mine", failed=1), batch_of("other", failed=1)
    from django_batches.admin import BatchAdmin  # noqa: PLC0415

    monkeypatch.setattr(
        BatchAdmin, "get_queryset", lambda self, request: Batch.objects.filter(description="mine"), raising=False
    )
    before = rows()
    for name, args in (("change", ()), ("jobs", ()), ("live_page", ()), ("act", ("retry",)), ("delete", ())):
        assert admin.get(url(name, mine, *args)).status_code == 200, name
        assert admin.get(url(name, other, *args)).status_code in (302, 404), name
        assert admin.post(url(name, other, *args)).status_code in (302, 403, 404, 405), name
    live = reverse("admin:django_batches_batch_live", query={"id": [str(mine.pk), str(other.pk)]})
    assert list(admin.get(live).json()["batches"]) == [str(mine.pk)]
    chosen = {"action": "retry_batches", "_selected_action": [str(other.pk)], "confirmed": "yes"}
    admin.post(reverse(LIST), chosen)
    assert rows() == before


def test_object_permissions_are_checked(admin, monkeypatch):
    mine, other = batch_of("mine", failed=1), batch_of("other", failed=1)
    from django_batches.admin import BatchAdmin  # noqa: PLC0415

    monkeypatch.setattr(
        BatchAdmin,
        "has_retry_permission",
        lambda self, request, obj=None: obj is None or obj.description == "mine",
        raising=False,
    )
    assert admin.post(url("act", mine, "retry")).status_code == 302
    assert admin.post(url("act", other, "retry")).status_code == 403
    assert "Retry" not in admin.get(url("change", other)).content.decode()
    mine = batch_of("mine", failed=1)
    chosen = {"action": "retry_batches", "_selected_action": [str(mine.pk), str(other.pk)], "confirmed": "yes"}
    response = admin.post(reverse(LIST), chosen)
    assert messages_of(response)[-1] == "Retry failed: 1 batch, 1 skipped. 1 job re-queued, 0 skipped."
    other.refresh_from_db()
    assert other.failed == 1


def test_retry_reports_how_many_jobs_were_queued_and_skipped(admin):
    batch = batch_of(succeeded=1, failed=3, cancelled=2)
    response = admin.post(url("act", batch, "retry"), {"expected": "3"})
    assert messages_of(response) == ["3 jobs re-queued, 0 skipped."]
    batch.refresh_from_db()
    assert (batch.status, batch.pending, batch.cancelled) == ("running", 3, 2)
    assert messages_of(admin.post(url("act", batch, "retry"), {"expected": "3"}))[-1] == "0 jobs re-queued, 3 skipped."


def test_cancelled_jobs_are_retried_if_the_box_is_checked(admin):
    batch = batch_of(succeeded=1, failed=1, cancelled=2)
    assert "Also retry 2 cancelled jobs" in admin.get(url("act", batch, "retry")).content.decode()
    admin.post(url("act", batch, "retry"), {"include_cancelled": "on"})
    batch.refresh_from_db()
    assert (batch.pending, batch.cancelled) == (3, 0)


def test_a_failure_group_is_retried_alone(admin):
    batch = batch_of(failed=4)
    odd = batch.jobs.filter(position=2)
    odd.update(fingerprint="odd")
    batch.failure_groups.update(count=3)
    FailureGroup.objects.create(batch=batch, fingerprint="odd", error_type="Odd", sample="odd", count=1)
    admin.post(url("act", batch, "retry-group", fingerprint="odd"))
    batch.refresh_from_db()
    assert (batch.pending, batch.failed) == (1, 3) and odd.get().status == "created"
    assert dict(batch.failure_groups.values_list("error_type", "count")) == {"shop.errors.TooLarge": 3, "Odd": 0}


def test_a_failed_callback_is_retried(admin):
    batch = batch_of(succeeded=1)
    callback = new_callback(batch, status="failed", attempts=1, finished_at=timezone.now())
    assert f"?job={callback.pk}" in admin.get(url("change", batch)).content.decode()
    admin.post(url("act", batch, "retry-job", job=callback.pk))
    callback.refresh_from_db()
    assert callback.status == "created"


def test_a_scheduled_callback_can_be_cancelled_after_its_batch_has_ended(admin):
    batch = batch_of(succeeded=1, open_callbacks=1)
    callback = new_callback(batch, status="scheduled", due_at=timezone.now() + timedelta(hours=1))
    address = url("act", batch, "cancel-job", job=callback.pk)
    assert address.replace("&", "&amp;") in admin.get(url("change", batch)).content.decode()
    admin.post(address)
    callback.refresh_from_db()
    batch.refresh_from_db()
    assert callback.status == "cancelled" and batch.open_callbacks == 0


def test_a_cancel_records_the_user_and_the_reason(admin):
    batch = batch_of(running=1, created=3)
    response = admin.post(url("act", batch, "cancel"), {"reason": "wrong file"})
    assert messages_of(response) == ["3 jobs cancelled. Running jobs finish first."]
    batch.refresh_from_db()
    assert batch.reason == "Cancelled by root. wrong file" and batch.cancelled == 3 and batch.pending == 1


def test_cancelling_a_batch_whose_jobs_are_all_running_is_logged(admin):
    batch = batch_of(running=2)
    assert messages_of(admin.post(url("act", batch, "cancel"))) == ["0 jobs cancelled. Running jobs finish first."]
    batch.refresh_from_db()
    assert batch.cancelled_at and LogEntry.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_atomic_requests_do_not_put_a_large_action_into_one_transaction(admin, monkeypatch):
    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", True)
    seen = []
    monkeypatch.setattr(deleting, "delete", lambda batch_id: seen.append(connections["default"].in_atomic_block) or 0)
    batch = batch_of(succeeded=1)
    admin.post(url("delete", batch))
    admin.post(url("act", batch, "delete"))
    admin.post(reverse(LIST), {"action": "delete_selected", "_selected_action": [str(batch.pk)], "confirmed": "yes"})
    assert seen == [False, False, False]


def test_changelist_actions_ask_for_confirmation_and_then_act_on_each_batch(admin):
    batches = [batch_of(f"b{index}", failed=2, created=1) for index in range(3)]
    done = batch_of("done", succeeded=1)
    chosen = {"action": "retry_batches", "_selected_action": [str(b.pk) for b in [*batches, done]]}
    before = rows()
    html = admin.post(reverse(LIST), chosen).content.decode()
    assert rows() == before and "6 jobs" in html and "b0" in html
    response = admin.post(reverse(LIST), {**chosen, "confirmed": "yes"})
    assert messages_of(response) == ["Retry failed: 3 batches, 1 skipped. 6 jobs re-queued, 0 skipped."]
    assert LogEntry.objects.count() == 3


def test_a_changelist_action_on_all_batches_needs_no_ids(admin):
    for index in range(3):
        batch_of(f"b{index}", created=1)
    chosen = {"action": "pause_batches", "select_across": "1", "_selected_action": [str(Batch.objects.first().pk)]}
    assert 'name="select_across" value="1"' in admin.post(reverse(LIST), chosen).content.decode()
    admin.post(reverse(LIST), {**chosen, "confirmed": "yes"})
    assert Batch.objects.filter(is_paused=True).count() == 3


def test_a_changelist_action_affects_as_many_batches_as_the_changelist_counts(admin, monkeypatch):
    monkeypatch.setattr(confirmation, "MAX_BATCHES", 3)
    monkeypatch.setattr(confirmation, "SHOWN", 2)
    batches = [batch_of(f"b{index}", created=1) for index in range(5)]
    chosen = {"action": "pause_batches", "select_across": "1", "_selected_action": [str(batches[0].pk)]}
    html = admin.post(reverse(LIST), chosen).content.decode()
    assert "The newest 2 of 3 selected batches." in html and "3 jobs" in html
    admin.post(reverse(LIST), {**chosen, "confirmed": "yes"})
    assert set(Batch.objects.filter(is_paused=True)) == set(batches[2:])


def test_the_changelist_offers_only_permitted_actions(client):
    batch_of(succeeded=1)
    client.force_login(user_with("view_batch", "cancel_batch"))
    html = client.get(reverse(LIST)).content.decode()
    assert "cancel_batches" in html and "pause_batches" in html
    assert "retry_batches" not in html and "delete_selected" not in html
    chosen = {"action": "retry_batches", "_selected_action": [str(Batch.objects.get().pk)], "confirmed": "yes"}
    before = rows()
    client.post(reverse(LIST), chosen)
    assert rows() == before


def test_the_changelist_does_not_use_djangos_delete_action(admin, monkeypatch):
    """Django's own action would load every job."""
    ended, alive = batch_of("ended", succeeded=3), batch_of("alive", created=1)
    chosen = {"action": "delete_selected", "_selected_action": [str(ended.pk), str(alive.pk)]}
    assert "data-batch-once" in admin.post(reverse(LIST), chosen).content.decode()
    response = admin.post(reverse(LIST), {**chosen, "confirmed": "yes"})
    assert messages_of(response) == ["Delete: 1 batch, 1 skipped. Deleted."]
    assert Batch.objects.get() == alive


def test_delete_removes_every_row_and_is_logged(admin):
    batch = batch_of("gone", succeeded=3, failed=1)
    new_callback(batch, status="succeeded")
    response = admin.post(url("delete", batch))
    assert response["Location"] == reverse(LIST) and messages_of(response) == ["Deleted."]
    assert not any(model.objects.exists() for model in (Batch, BatchJob, TimeBucket, FailureGroup))
    assert LogEntry.objects.get().object_repr == "gone"


@pytest.mark.parametrize("on_delete", [CASCADE, PROTECT])
def test_a_delete_does_not_cascade_to_rows_of_the_project(admin, monkeypatch, on_delete):
    monkeypatch.setattr(Product._meta.get_field("image_batch").remote_field, "on_delete", on_delete)
    batch, free = batch_of("held", failed=1), batch_of("free", failed=1)
    below = child_of(batch.jobs.get(), "below", succeeded=1)
    Product.objects.create(name="Teapot", image_batch=below)
    (text,) = messages_of(admin.post(url("delete", batch)))
    assert text.startswith("shop.Product.image_batch references this batch, its jobs or a batch below it")
    chosen = {"action": "delete_selected", "_selected_action": [str(batch.pk), str(free.pk)], "confirmed": "yes"}
    *_, refused, done = messages_of(admin.post(reverse(LIST), chosen))
    assert refused.startswith("held: shop.Product.image_batch references")
    assert done.startswith("Delete: 1 batch, 1 skipped")
    assert set(Batch.objects.all()) == {batch, below} and Product.objects.exists()
    assert LogEntry.objects.get().object_repr == "free"


def test_a_refused_delete_is_not_logged(admin):
    parent = batch_of(waiting=1)
    child = child_of(parent.jobs.get(), "child", succeeded=1)
    assert "depends on its outcome" in messages_of(admin.post(url("delete", child)))[0]
    assert Batch.objects.filter(pk=child.pk).exists() and not LogEntry.objects.exists()


def test_a_batch_that_has_not_ended_cannot_be_deleted(admin):
    batch = batch_of(created=1)
    assert "This is not possible now" in admin.get(url("delete", batch)).content.decode()
    assert "cannot be deleted" in messages_of(admin.post(url("delete", batch)))[0]
    assert batch.jobs.count() == 1 and not LogEntry.objects.exists()


def begin_to_delete(batch):
    """As if the process had died after the first transaction of a delete."""
    deleting.begin_deletion(batch.pk)
    batch.refresh_from_db()


def test_nothing_changes_a_batch_while_it_is_being_deleted(admin):
    batch = batch_of(succeeded=2, failed=2, cancelled=1)
    begin_to_delete(batch)
    before = rows()
    for verb in (
        batch.retry_failed,
        batch.jobs.filter(status="failed").first().retry,
        batch.jobs.filter(status="failed").retry,
    ):
        with pytest.raises(BatchError):
            verb()
    with pytest.raises(BatchError):
        batch.enqueue(tasks.ok)
    assert batch.cancel() == 0 and not batch.seal()
    assert repairing.end_batches() == 0 and not repairing.repair_counters(batch.pk)
    assert cancelling.cancel_abandoned(timezone.now(), 1) == 0 and cancelling.unfinished_cancels() == []
    with pytest.raises(IntegrityError), transaction.atomic():
        database.batches().filter(pk=batch.pk).update(finished_at=None)
    assert rows() == before
    html = admin.get(url("change", batch)).content.decode()
    assert "being deleted" in html and "Retry" not in html
    assert deleting.unfinished_deletions() == [batch.pk]


def test_an_interrupted_delete_continues_when_called_again(monkeypatch):
    monkeypatch.setattr(database, "CHUNK", 3)
    batch = batch_of(succeeded=6, failed=4)
    begin_to_delete(batch)
    database.jobs().filter(batch=batch, position__lt=5)._raw_delete("default")
    assert batch.delete() == (6, {"django_batches.Batch": 1, "django_batches.BatchJob": 5})
    assert not Batch.objects.exists() and not BatchJob.objects.exists()


def test_a_batch_that_matches_only_after_a_delete_has_started_is_kept(monkeypatch):
    batch_of("old", succeeded=1)
    late = []
    delete = deleting.delete

    def delete_while_another_is_added(batch_id):
        late.append(batch_of("old", created=2))
        return delete(batch_id)

    monkeypatch.setattr(deleting, "delete", delete_while_another_is_added)
    Batch.objects.filter(description="old").delete()
    assert Batch.objects.get() == late[0] and BatchJob.objects.count() == 2


def at_once(*calls):
    """Runs the calls in threads that start at the same time."""
    barrier, errors = threading.Barrier(len(calls)), []

    def run(call):
        try:
            barrier.wait(10)
            call()
        except Exception as error:
            errors.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=[call]) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return errors


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("round", range(20))
def test_two_concurrent_retries_queue_each_failed_job_once(monkeypatch, round):
    monkeypatch.setattr(database, "CHUNK", 7)
    with Batch.open() as batch:
        batch.map(tasks.boom, range(50))
    applying.record([outcome_of(job, Kind.FAILED) for job in claim(batch)])
    clients = []
    for name in ("ada", "bob"):
        clients.append(Client())
        clients[-1].force_login(user_with("view_batch", "retry_batch", name=name))
    responses = {}

    def press(index):
        responses[index] = clients[index].post(url("act", batch, "retry"), {"expected": "50"})

    assert at_once(lambda: press(0), lambda: press(1)) == []
    assert {response.status_code for response in responses.values()} == {302}
    batch.refresh_from_db()
    assert (batch.pending, batch.failed, batch.round) == (50, 0, 1)
    assert set(batch.jobs.values_list("status", "dispatch")) == {("created", 1)}
    queued = sum(int(messages_of(response)[0].split()[0]) for response in responses.values())
    assert queued == 50
    assert len(claim(batch)) == 50 and repairing.drift(batch.pk) == {}


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("round", range(20))
def test_a_concurrent_delete_and_retry_leave_a_whole_batch_or_none(monkeypatch, round):
    monkeypatch.setattr(database, "CHUNK", 7)
    batch = batch_of(succeeded=20, failed=20)
    errors = at_once(batch.delete, lambda: Batch.objects.get(pk=batch.pk).retry_failed())
    left = Batch.objects.filter(pk=batch.pk).first()
    if left is None:
        assert not BatchJob.objects.exists() and not FailureGroup.objects.exists()
    else:
        assert (left.pending, left.total, BatchJob.objects.count()) == (20, 40, 40)
        assert repairing.drift(left.pk) == {}
    assert all(isinstance(error, BatchError | Batch.DoesNotExist) for error in errors), errors
