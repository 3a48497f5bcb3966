"""Child batches in the admin: parents, trees, the jobs that wait for them, and the effect of actions on them."""

import re
from datetime import timedelta

import pytest
from django.contrib.auth import get_user_model
from django.urls import reverse
from django.utils import timezone, translation

from django_batches import Batch, database
from django_batches.models import FailureGroup
from django_batches.testing import drain

from .. import tasks
from ..admin_data import analyze, batch_of, batchworker_is_there, chain, child_of, new_callback, text_of, url
from ..monitoring.test_diagnosis import row_of_child
from ..road import statements

pytestmark = pytest.mark.django_db

LIST = "admin:django_batches_batch_changelist"


@pytest.fixture
def client(client):
    client.force_login(get_user_model().objects.create_superuser("root", password="root"))
    return client


def words_of(html):
    """The text of a page without markup."""
    return " ".join(re.sub(r"<[^>]*>", " ", html).replace("&amp;", "&").split())


def names_in_the_list(html):
    return re.findall(r'change/[^"]*">([^<]*?) ?<span class="batch-sub"', html)


def wide(count, **fields):
    """A batch in which each job waits for one child batch."""
    batch = batch_of("wide", waiting=count, **fields)
    database.batches().bulk_create([row_of_child(job) for job in batch.jobs.all()])
    return batch


def test_the_batch_page_shows_the_parent_batches(client):
    batches = chain(3)
    html = text_of(client.get(url("change", batches[3])))
    trail = words_of(html[html.index("batch-trail") : html.index("</nav>", html.index("batch-trail"))])
    assert trail.endswith("Opened by level 0 job #0 level 1 job #0 level 2 job #0 this batch")
    assert url("change", batches[0]) in html and url("jobs", batches[2]) + "?job=" in html
    assert "batch-trail" not in text_of(client.get(url("change", batches[0])))


def test_of_many_parent_batches_the_topmost_and_the_nearest_are_shown(client):
    html = text_of(client.get(url("change", chain(12)[-1])))
    trail = words_of(html[html.index("batch-trail") : html.index("</nav>", html.index("batch-trail"))])
    assert re.findall(r"level \d+|\d+ more levels", trail) == [
        "level 0", "7 more levels", "level 8", "level 9", "level 10", "level 11",
    ]  # fmt: skip


def test_the_callback_that_opened_a_batch_is_shown(client):
    batch = batch_of("first stage", succeeded=1)
    callback = new_callback(batch, "success", status="waiting")
    html = text_of(client.get(url("change", child_of(callback, "second stage", created=1))))
    assert "success callback" in words_of(html)
    tree = client.get(url("live_page", batch)).json()["panels"]["children"]
    assert "second stage" in tree and "success callback" in tree
    assert str(callback.pk) in tree
    opener = words_of(text_of(client.get(url("jobs", batch, job=callback.pk))))
    assert callback.func in opener and "No matching jobs" not in opener


def test_a_child_batch_keeps_its_page_when_the_job_that_opened_it_is_deleted(client):
    batches = chain(2)
    database.jobs().filter(batch=batches[1]).delete()
    html = text_of(client.get(url("change", batches[2])))
    assert "batch-trail" not in html
    text_of(client.get(reverse(LIST, query={"level": "all"})))


def test_the_batch_page_shows_the_tree_of_child_batches_with_counts(client):
    batch = batch_of("sort", waiting=2, succeeded=1)
    first, second = batch.jobs.filter(status="waiting")
    left = child_of(first, "left", succeeded=3, failed=1, running=4)
    child_of(second, "right", succeeded=8)
    deep = child_of(left.jobs.get(position=3), "deep", created=1, is_paused=True)
    html = client.get(url("live_page", batch)).json()["panels"]["children"]
    words = words_of(html)
    assert "1 running 1 succeeded" in words and "left job #1 running" in words and "deep job #3 paused" in words
    assert "4 / 8" in words and url("change", deep) in html
    assert f"?inside={batch.pk}&amp;status__exact=running" in html


def test_of_many_child_batches_the_failed_and_running_ones_are_shown(client):
    batch = wide(1000)
    children = Batch.objects.filter(parent__batch=batch)
    ended = children.order_by("pk")[:997].values("pk")
    database.batches().filter(pk__in=list(ended.values_list("pk", flat=True))).update(
        status="succeeded", pending=0, in_flight=0, succeeded=1, finished_at=timezone.now()
    )
    bad = ended[500]["pk"]
    database.batches().filter(pk=bad).update(status="failed", succeeded=0, failed=1, description="the bad one")
    words = words_of(client.get(url("live_page", batch)).json()["panels"]["children"])
    assert "the bad one" in words and "and 980 more" in words
    assert "1 failed" in words and "3 running" in words and "996 succeeded" in words
    assert words.count("0 / 1") == 3


def test_child_batches_below_the_shown_levels_are_counted(client):
    batches = chain(6)
    words = words_of(client.get(url("live_page", batches[0])).json()["panels"]["children"])
    assert "level 3" in words and "level 4" not in words and words.endswith("1 child batch")


def test_a_batch_without_child_batches_has_no_tree(client):
    batch = batch_of(created=1)
    assert client.get(url("live_page", batch)).json()["panels"]["children"].strip() == ""


def test_live_updates_contain_the_child_batches(client):
    batches = chain(2, succeeded=1, running=1)
    found = client.get(url("live_page", batches[0])).json()["batches"]
    assert {key: one["text"]["done"] for key, one in found.items()} == {
        str(batches[0].pk): "0 / 1", str(batches[1].pk): "0 / 1", str(batches[2].pk): "1 / 2",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["change", "live_page", "jobs", "waiting jobs", "list", "inside", "confirm"])
def test_a_page_needs_as_many_queries_for_a_thousand_child_batches_as_for_ten(client, name, redis):
    batchworker_is_there()
    pages = {
        "change": lambda batch: url("change", batch),
        "live_page": lambda batch: url("live_page", batch),
        "jobs": lambda batch: url("jobs", batch),
        "waiting jobs": lambda batch: url("jobs", batch, status="waiting"),
        "list": lambda batch: reverse(LIST, query={"level": "all"}),
        "inside": lambda batch: reverse(LIST, query={"inside": str(batch.pk)}),
        "confirm": lambda batch: url("act", batch, "cancel"),
    }
    limits = {"change": 21, "live_page": 21, "jobs": 8, "waiting jobs": 8, "list": 9, "inside": 10, "confirm": 5}
    counts = []
    for count in (10, 1000):
        batch = wide(count)
        analyze()
        with statements() as queries:
            text_of(client.get(pages[name](batch)))
        counts.append(len(queries))
    # One more query counts the child batches, if there are more than the diagnosis loads.
    more = 1 if name in ("change", "live_page") else 0
    assert counts[1] <= counts[0] + more and counts[1] <= limits[name], counts


@pytest.mark.parametrize("name", ["change", "live_page"])
def test_the_page_of_a_deep_tree_needs_a_bounded_number_of_queries(client, name, redis):
    batchworker_is_there()
    batches = chain(12)
    for batch, most in ((batches[0], 34), (batches[6], 30), (batches[12], 20)):
        with statements() as queries:
            text_of(client.get(url(name, batch)))
        assert len(queries) <= most, len(queries)


def test_the_changelist_shows_only_the_top_level_unless_filtered_or_searched(client):
    top = batch_of("top", waiting=1)
    child = child_of(top.jobs.get(), "lower", created=1)

    def shown(**query):
        return sorted(names_in_the_list(text_of(client.get(reverse(LIST, query=query)))))

    assert shown() == ["top"] == shown(level="top")
    assert shown(level="all") == ["lower", "top"]
    assert shown(level="child") == ["lower"] == shown(q="lower") == shown(q=str(child.pk)) == shown(inside=str(top.pk))
    assert shown(q="lower", level="top") == []
    assert shown(inside=str(top.jobs.get().pk)) == ["lower"]
    for nonsense in ("x", "01a200c9-4bb0-7000-8097-95c111c15be5"):
        assert shown(inside=nonsense) == []


def test_the_changelist_shows_the_parent_of_a_child_batch(client):
    top = batch_of("Nightly import", waiting=1)
    child_of(top.jobs.get(), "chunks", created=1)
    words = words_of(text_of(client.get(reverse(LIST, query={"level": "all"}))))
    assert "job #0 of “Nightly import”" in words


def test_the_deadline_filter(client):
    now, given = timezone.now(), timedelta(minutes=4)
    batch_of("in time", created=1, deadline=600, deadline_at=now + given)
    batch_of("too late", created=1, deadline=240, deadline_at=now - given)
    batch_of("was late", succeeded=1, deadline=240, deadline_at=now - given)
    batch_of("was in time", succeeded=1, deadline=900, deadline_at=now + given)
    batch_of("none", created=1)
    every = text_of(client.get(reverse(LIST)))
    assert re.findall(r'data-batch-show="overdue">([^<]+)<', every) == ["ended late", "overdue"]
    for value, found in (("overdue", ["too late"]), ("late", ["was late"])):
        assert names_in_the_list(text_of(client.get(reverse(LIST, query={"deadline": value})))) == found


def test_the_batch_page_shows_the_deadline(client):
    late = timezone.now() - timedelta(minutes=2)
    words = words_of(text_of(client.get(url("change", batch_of(created=1, deadline=240, deadline_at=late)))))
    assert "It has been overdue since" in words and "Deadline 4 min" in words and "missed" in words
    soon = timezone.now() + timedelta(minutes=2)
    html = text_of(client.get(url("change", batch_of(created=1, deadline=480, deadline_at=soon))))
    assert "batch-milestone--planned" in html and "overdue since" not in html


def test_a_job_shows_the_child_batches_of_its_last_run(client):
    batch = batch_of(succeeded=1, waiting=1)
    done, waiting = batch.jobs.order_by("position")
    merge = child_of(waiting, "merge", created=1)
    database.jobs().filter(pk=done.pk).update(dispatch=2)
    done.refresh_from_db()
    child_of(done, "of its last run", succeeded=1)
    child_of(done, "of a run before", cancelled=1, parent_dispatch=1)
    html = text_of(client.get(url("jobs", batch)))
    words = words_of(html)
    assert "waiting for its child batch merge running" in words and url("change", merge) in html
    assert "opened the child batch of its last run succeeded" in words and "of a run before" not in words


def test_a_job_shows_only_a_few_of_many_child_batches(client):
    batch = batch_of(waiting=1)
    job = batch.jobs.get()
    for index in range(5):
        child_of(job, f"child {index}", created=1)
    html = text_of(client.get(url("jobs", batch)))
    assert "and 2 more" in words_of(html) and f"?inside={job.pk}" in html


def test_a_job_links_to_the_child_batch_that_made_it_fail(client):
    with Batch.open("top") as batch:
        batch.enqueue(tasks.two_children)
    drain(raise_failures=False)
    html = text_of(client.get(url("jobs", batch)))
    guilty = Batch.objects.get(description="bad")
    assert "failed because of its child batch bad failed" in words_of(html) and url("change", guilty) in html
    assert "good" not in words_of(html)


def test_waiting_for_child_batches_and_waiting_to_run_are_counted_separately(client):
    batch = wide(2)
    other = batch_of(waiting=3, created=2, scheduled=1, running=1)
    for job in other.jobs.filter(status="waiting"):
        child_of(job, created=1)
    words = words_of(client.get(url("live_page", other)).json()["panels"]["progress"])
    assert words.endswith("0 succeeded 0 failed 0 cancelled 1 running or queued 3 waiting for child batches 3 to run")
    assert "waiting" not in words_of(client.get(url("live_page", batch_of(created=1))).json()["panels"]["progress"])
    for status, statuses in (("waiting", {"waiting"}), ("to_run", {"to run", "scheduled"})):
        html = text_of(client.get(url("jobs", other, status=status)))
        assert len(re.findall(r'class="batch-job"', html)) == 3, status
        assert statuses
    assert len(re.findall(r'class="batch-job"', text_of(client.get(url("jobs", batch, status="waiting"))))) == 2


def test_the_confirmation_explains_the_effect_on_child_batches(client):
    batches = chain(3)
    words = words_of(text_of(client.get(url("act", batches[0], "cancel"))))
    assert "The child batches of its jobs are cancelled too, at every level. This affects 3 batches below it." in words
    assert "Child batches continue to run. Pause them on their own pages." in words_of(
        text_of(client.get(url("act", batches[0], "pause")))
    )
    assert "child batches" not in words_of(text_of(client.get(url("act", batches[3], "cancel"))))


def test_the_confirmation_of_a_delete_counts_the_whole_tree(client):
    with Batch.open("sort") as batch:
        batch.enqueue(tasks.sort, [3, 1, 2])
    drain()
    page = text_of(client.get(url("delete", batch)))
    assert "Its child batches are deleted too, at every level." in page and "This affects 2 batches below it." in page
    client.post(url("delete", batch))
    assert not Batch.objects.exists()


def test_the_confirmation_of_a_retry_counts_jobs_that_failed_because_of_child_batches(client):
    with Batch.open("top") as batch:
        batch.enqueue(tasks.two_children)
    drain(raise_failures=False)
    batch.refresh_from_db()
    job, bad = batch.jobs.get(), Batch.objects.get(description="bad")
    group = FailureGroup.objects.get(batch=batch)
    assert "This affects 1 job." in text_of(client.get(url("act", batch, "retry")))
    assert "This affects 1 job." in text_of(client.get(url("act", batch, "retry-group", fingerprint=group.fingerprint)))
    assert "This affects this job." in text_of(client.get(url("act", batch, "retry-job", job=job.pk)))
    assert "the jobs that failed because of it wait for it again" in text_of(client.get(url("act", bad, "retry")))
    assert client.post(url("act", batch, "retry")).status_code == 302
    assert Batch.objects.get(pk=bad.pk).round == 1


def test_the_pages_of_child_batches_have_no_inline_style_or_script_and_are_translated(client):
    batches = chain(3)
    for path in (
        url("change", batches[0]),
        url("change", batches[2]),
        url("jobs", batches[0]),
        url("act", batches[0], "cancel"),
    ):
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:", text_of(client.get(path))), path
    with translation.override("de"):
        words = words_of(text_of(client.get(url("change", batches[1]), headers={"accept-language": "de"})))
    assert "Geöffnet von" in words and "Kind-Batches" in words and "wartet auf seinen Kind-Batch" in words


def test_descriptions_are_escaped_in_the_tree_the_parents_and_the_changelist(client):
    payload = "<script>alert(1)</script>"
    top = batch_of(payload, waiting=1)
    middle = child_of(top.jobs.get(), payload, waiting=1)
    child_of(middle.jobs.get(), payload, created=1)
    for path in (url("change", middle), url("jobs", top), reverse(LIST, query={"inside": str(top.pk)})):
        assert payload not in text_of(client.get(path)), path
    assert payload not in "".join(client.get(url("live_page", middle)).json()["panels"].values())


def test_batches_that_the_user_may_not_view_are_missing_from_tree_and_parents(client, monkeypatch):
    from django_batches.admin import BatchAdmin  # noqa: PLC0415

    batches = chain(2)
    database.batches().filter(pk__in=[batches[0].pk, batches[2].pk]).update(description="secret")
    visible = Batch.objects.filter(pk=batches[1].pk)
    monkeypatch.setattr(BatchAdmin, "get_queryset", lambda self, request: visible.all(), raising=False)
    html = text_of(client.get(url("change", batches[1])))
    assert "batch-trail" not in html and "batch-tree" not in html
    assert "secret" not in html and "It is waiting for child batches that you do not have permission to view." in html
    hidden = reverse(LIST, query={"inside": str(batches[2].parent_id)})
    assert "ok #" in text_of(client.get(hidden))
    hidden = reverse(LIST, query={"inside": str(batches[1].parent_id)})
    assert "#0" not in text_of(client.get(hidden))
    for path in (url("jobs", batches[1]), reverse(LIST, query={"level": "all"})):
        assert "secret" not in text_of(client.get(path))
