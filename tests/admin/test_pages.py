"""The pages of the admin: their content, and the number of their queries."""

import re
from datetime import timedelta

import pytest
from django.contrib.auth import get_user_model
from django.contrib.contenttypes.models import ContentType
from django.db import connection
from django.urls import reverse
from django.utils import timezone, translation

from django_batches import database, exponential
from django_batches.admin import timeline
from django_batches.admin.jobs_page import PAGE_SIZE, SCAN_LIMIT
from django_batches.models import Batch, BatchJob, TimeBucket

from .. import tasks
from ..admin_data import analyze, batch_of, batchworker_is_there, new_callback, text_of, url
from ..road import statements

pytestmark = pytest.mark.django_db

LIST = "admin:django_batches_batch_changelist"


@pytest.fixture
def client(client):
    client.force_login(get_user_model().objects.create_superuser("root", password="root"))
    return client


def positions(html):
    return [int(number) for number in re.findall(r">#(\d+)</a>", html)]


def test_the_changelist_shows_status_progress_and_failures(client):
    batch = batch_of("Images of product 7", succeeded=4, failed=2, created=4)
    html = text_of(client.get(reverse(LIST)))
    assert "Images of product 7" in html and str(batch.pk)[-8:] in html
    assert "batch-badge--running" in html and "6 / 10" in html and "60 %" in html
    assert f"{url('jobs', batch)}?status=failed" in html
    assert 'aria-valuetext="60 %: 4 succeeded, 2 failed, 4 pending"' in html


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"status__exact": "failed"}, {"with failures"}),
        ({"queue": "mail"}, {"mail"}),
        ({"failures": "yes"}, {"with failures"}),
        ({"failures": "no"}, {"mail", "stuck", "moving"}),
        ({"moves": "no"}, {"stuck"}),
        ({"moves": "yes"}, {"moving"}),
        ({"created": "hour"}, {"with failures", "mail", "stuck", "moving"}),
        ({"q": "mai"}, {"mail"}),
    ],
)
def test_filters_and_search(client, query, found):
    batch_of("with failures", failed=1)
    batch_of("mail", succeeded=1, queue="mail")
    batch_of("stuck", created=1)
    moving = batch_of("moving", created=1)
    TimeBucket.objects.create(batch=moving, starts_at=timezone.now(), succeeded=1)
    html = text_of(client.get(reverse(LIST, query=query)))
    shown = {name for name in ("with failures", "mail", "stuck", "moving") if f">{name} <span" in html}
    assert shown == found


@pytest.mark.parametrize(
    "lookup", ["registered_callbacks__contains", "metadata__api_token__startswith", "reason__contains", "jobs__error"]
)
def test_lookups_that_are_not_filters_are_rejected(client, lookup):
    batch_of(metadata={"api_token": "s3cret"})
    assert client.get(reverse(LIST, query={lookup: "s"})).status_code == 400


def test_search_finds_a_batch_by_its_id_the_end_of_it_or_the_id_of_a_job(client):
    batch, other = batch_of("wanted", succeeded=1), batch_of("other", succeeded=1)
    job, callback = batch.jobs.get(), new_callback(batch)
    keys = [
        str(batch.pk), batch.pk.hex, str(batch.pk)[-8:], str(batch.pk)[-13:], str(job.pk), callback.pk.hex,
        f"batch-tests-{job.pk.hex}-3", batch.pk.hex[-4:].upper(),
    ]  # fmt: skip
    for key in keys:
        html = text_of(client.get(reverse(LIST, query={"q": key})))
        assert "wanted" in html and "other <span" not in html, key
    assert other.pk != batch.pk


def test_search_also_finds_descriptions_that_look_like_an_id(client):
    batch_of("facade of the shop", succeeded=1)
    assert "facade of the shop" in text_of(client.get(reverse(LIST, query={"q": "facade"})))


def test_the_batch_page_shows_progress_failures_callbacks_and_metadata(client):
    batch = batch_of(succeeded=4, failed=2, cancelled=1, running=1, scheduled=1, created=1, metadata={"product": 7})
    new_callback(batch, "failure", status="failed", error="E: no", attempts=1)
    html = text_of(client.get(url("change", batch)))
    heading = "Why isn't it progressing?"
    for part in ("70 %", "errors.<wbr>TooLarge<wbr>", "Retry (2)", heading, "tests.tasks.told"):
        assert part in html, part
    assert "&quot;product&quot;: 7" in html and "Jobs ended over time" in html and "batch-milestones" in html
    assert "Retry failed (2)" in html


def test_large_numbers_have_thousands_separators(client):
    batch = batch_of(failed=1, created=1)
    database.batches().filter(pk=batch.pk).update(
        total=12_345, pending=1_234, succeeded=9_876, failed=1_235, sealed_at=batch.created_at
    )
    for name in ("change", "jobs"):
        html = text_of(client.get(url(name, batch)))
        for shown in ("9,876", "1,235", "1,234"):
            assert f">{shown}<" in html, (name, shown)
    assert "batch-counter--cancelled batch-counter--zero" in text_of(client.get(url("change", batch)))


def test_the_first_failure_is_shown_until_a_retry_of_the_job_succeeds(client):
    batch = batch_of(failed=1, succeeded=1, created=1)
    failed, succeeded = batch.jobs.get(status="failed"), batch.jobs.get(status="succeeded")
    for job, is_shown in ((failed, True), (succeeded, False)):
        database.batches().filter(pk=batch.pk).update(first_failure=job)
        assert ("First failure" in text_of(client.get(url("change", batch)))) is is_shown


def test_empty_and_just_opened_batches_have_pages(client):
    for fields in ({}, {"status": "open", "sealed_at": None, "started_at": None, "finished_at": None}):
        batch = batch_of("", **fields)
        text_of(client.get(url("change", batch)))
        text_of(client.get(url("jobs", batch)))
    text_of(client.get(reverse(LIST)))


def test_invalid_urls_return_404_and_invalid_query_strings_are_ignored(client):
    batch = batch_of(failed=1)
    assert client.get("/admin/django_batches/batch/what/change/").status_code == 302
    assert client.get("/admin/django_batches/batch/what/delete/").status_code == 404
    missing = "01a200c9-4bb0-7000-8097-95c111c15be5"
    for path in ("jobs/", "live/", "do/retry/", "delete/"):
        assert client.get(f"/admin/django_batches/batch/{missing}/{path}").status_code == 404, path
    assert client.get(url("act", batch, "explode")).status_code == 404
    assert client.get(url("act", batch, "retry-job", job="x")).status_code == 404
    assert client.get(url("act", batch, "retry-job", job=missing)).status_code == 404
    assert client.get(url("act", batch, "retry-group", fingerprint="x")).status_code == 404
    for query in (
        {"status": "x", "after": "-1"},
        {"after": "9" * 30},
        {"before": "ä"},
        {"job": "x"},
        {"fingerprint": "x"},
    ):
        text_of(client.get(url("jobs", batch, **query)))
    text_of(client.get(reverse("admin:django_batches_batch_live", query={"id": "x"})))
    text_of(client.get(reverse(LIST, query={"queue": "\0", "created": "x", "failures": "x", "moves": "x"})))


def test_a_job_of_another_batch_returns_404(client):
    batch, other = batch_of(failed=1), batch_of(failed=1)
    job = other.jobs.get()
    assert client.post(url("act", batch, "retry-job", job=job.pk)).status_code == 404
    job.refresh_from_db()
    assert job.status == "failed"


COUNTS = {"succeeded": 60, "failed": 120, "cancelled": 70, "running": 60, "queued": 5, "scheduled": 60, "created": 80}


def test_the_jobs_page_pages_through_each_status_in_both_directions(client):
    batch = batch_of(**COUNTS)
    expected = {
        "": range(455), "failed": range(60, 180), "cancelled": range(180, 250), "succeeded": range(60),
        "in_flight": range(250, 315), "to_run": range(315, 455),
    }  # fmt: skip
    for status, positions_of_status in expected.items():
        seen, pages = walk(client, f"{url('jobs', batch)}?status={status}", "next")
        assert seen == list(positions_of_status), status
        back, _ = walk(client, pages[-1], "prev")
        # The pages come in reverse order, the jobs of each page in forward order.
        assert sorted(back) == list(positions_of_status), status
        last, _ = walk(client, f"{url('jobs', batch)}?status={status}&before=455", "next")
        assert last == list(positions_of_status)[-PAGE_SIZE:], status


def walk(client, address, relation):
    """Follows the links of a relation. Returns the positions of the jobs, and the URLs of the pages."""
    seen, pages = [], []
    while address:
        pages.append(address)
        html = text_of(client.get(address))
        seen += positions(html)
        found = re.search(rf'rel="{relation}" href="([^"]*)"', html)
        address = address.partition("?")[0] + found[1].replace("&amp;", "&") if found else ""
        assert len(pages) < 20
    return seen, pages


def test_the_jobs_page_shows_the_jobs_of_a_failure_group(client):
    batch = batch_of(failed=3, succeeded=1)
    group = batch.failure_groups.get()
    html = text_of(client.get(url("jobs", batch, fingerprint=group.fingerprint)))
    assert positions(html) == [1, 2, 3] and "3 jobs failed with shop.errors.TooLarge in the same place." in html


def test_a_scan_for_rare_jobs_stops_early_and_says_so(client, monkeypatch):
    monkeypatch.setattr("django_batches.admin.jobs_page.SCAN_LIMIT", 100)
    batch = batch_of(failed=250, created=1)
    BatchJob.objects.filter(batch=batch, position=240).update(status="succeeded")
    html, requests = text_of(client.get(url("jobs", batch, status="succeeded"))), 1
    while not positions(html):
        following = re.search(r'href="([^"]*)">Continue searching', html)
        html = text_of(client.get(url("jobs", batch) + following[1].replace("&amp;", "&")))
        requests += 1
    assert positions(html) == [240] and requests == 3
    assert SCAN_LIMIT > 10 * PAGE_SIZE


def test_long_arguments_and_results_are_shown_by_their_size(client):
    batch = batch_of(failed=1)
    database.jobs().update(arguments='[["' + "x" * 500_000 + '"],{}]', result_text='"' + "y" * 1_500_000 + '"')
    html = text_of(client.get(url("jobs", batch)))
    assert "488.3\xa0KB of JSON, not shown" in html and "1.4\xa0MB of JSON, not shown" in html
    assert "xxx" not in html and "yyy" not in html


def test_a_page_needs_as_many_queries_for_a_hundred_thousand_jobs_as_for_ten(client, redis):
    """Pinned: one more query per page is a decision, one per row is a bug."""
    batchworker_is_there(seconds=600)
    ContentType.objects.get_for_model(Batch)  # cached per process
    pages = {
        LIST: lambda batch: reverse(LIST),
        "change": lambda batch: url("change", batch),
        "jobs": lambda batch: url("jobs", batch),
        "failed jobs": lambda batch: url("jobs", batch, status="failed"),
        "live": lambda batch: reverse("admin:django_batches_batch_live", query={"id": str(batch.pk)}),
        "live_page": lambda batch: url("live_page", batch),
        "confirm": lambda batch: url("act", batch, "retry"),
    }
    limits = {LIST: 6, "change": 18, "jobs": 6, "failed jobs": 6, "live": 4, "live_page": 18, "confirm": 4}
    queries_of = {name: [] for name in pages}
    for counts in (
        {"succeeded": 4, "failed": 2, "running": 1, "queued": 1, "scheduled": 1, "created": 1},
        {"succeeded": 60_000, "failed": 19_000, "running": 500, "queued": 500, "scheduled": 10_000, "created": 10_000},
    ):
        wipe()
        batch = batch_of(**counts)
        analyze()
        for name, page in pages.items():
            address = page(batch)
            with statements() as queries:
                text_of(client.get(address))
            queries_of[name].append(len(queries))
    assert {name: few for name, (few, many) in queries_of.items() if few != many or few > limits[name]} == {}, (
        queries_of
    )


def test_the_changelist_needs_as_many_queries_for_many_batches_as_for_one(client):
    counts = []
    for count in (1, 30):
        for index in range(count):
            batch_of(f"{index}", succeeded=3, failed=1, created=2)
        with statements() as queries:
            text_of(client.get(reverse(LIST)))
        counts.append(len(queries))
    assert counts[0] == counts[1], counts


def wipe():
    with connection.cursor() as cursor:
        for table in (database.BUCKET, database.FAILURE_GROUP, database.JOB, database.BATCH):
            cursor.execute(f"DELETE FROM {table}")


def test_every_page_renders_while_redis_is_down(client, settings, asked_once):
    settings.CACHES = {
        **settings.CACHES,
        "batches": {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": "redis://127.0.0.1:1/1"},
    }
    batch = batch_of(succeeded=1, failed=1, created=3)
    for path in (
        reverse(LIST),
        url("change", batch),
        url("jobs", batch),
        url("live_page", batch),
        url("act", batch, "retry"),
    ):
        text_of(client.get(path))
    assert "Redis does not answer" in text_of(client.get(url("change", batch)))


def test_the_pages_have_no_inline_style_or_script(client):
    batch = batch_of(succeeded=1, failed=1, created=3)
    new_callback(batch)
    for path in (
        reverse(LIST),
        url("change", batch),
        url("jobs", batch),
        url("act", batch, "retry"),
        url("delete", batch),
    ):
        html = text_of(client.get(path))
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:", html), path
        assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", html)), path


PAYLOADS = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", '"><svg onload=alert(1)>',
    "'><b onmouseover=alert(1)>", "</title><script>alert(1)</script>", "</textarea><script>alert(1)</script>",
    "</pre><script>alert(1)</script>", "javascript:alert(1)", "<a href=javascript:alert(1)>x</a>",
    "{{ 7|add:7 }}<script>", "{% debug %}<i onclick=x>", "<iframe srcdoc='<script>alert(1)</script>'>",
    "<svg><animate onbegin=alert(1)>", "<details open ontoggle=alert(1)>", "<body onload=alert(1)>",
    "<math><mi xlink:href=data:x,<script>alert(1)</script>>", "<input autofocus onfocus=alert(1)>",
    "<style>@import 'x'</style>", "<link rel=stylesheet href=x>", "<base href=//evil>", "<object data=x>",
    "<embed src=x>", "<form action=//evil><button>", "<meta http-equiv=refresh content=0>",
    "&lt;script&gt;<u onclick=x>", "<!--<script>-->", "\u2028<script>alert(1)</script>",
    "<scr<script>ipt>alert(1)</script>", "<x onclick=alert(1)>`${7*7}`", "]]><script>x",
]  # fmt: skip


@pytest.mark.parametrize("payload", PAYLOADS)
def test_text_from_users_and_exceptions_is_escaped_on_every_page(client, payload):
    assert len(set(PAYLOADS)) == 30
    batch = batch_of(payload, failed=1, created=1, queue=payload[:100], metadata={payload: payload}, reason=payload,
                     cancelled_at=timezone.now())  # fmt: skip
    batch.failure_groups.update(error_type=payload, sample=payload, fingerprint=payload[:16])
    texts = {"func": payload, "error": payload, "error_type": payload, "traceback": payload, "worker": payload[:200]}
    database.jobs().update(
        **texts, arguments=f"[[{payload!r}],{{}}]", result_text=payload, fingerprint=payload[:16], queue=payload
    )
    new_callback(batch, status="failed", **texts)
    job = batch.jobs.first()
    paths = [
        reverse(LIST), url("change", batch), url("jobs", batch), url("jobs", batch, fingerprint=payload[:16]),
        url("act", batch, "retry-job", job=job.pk), url("act", batch, "cancel"), url("history", batch),
    ]  # fmt: skip
    for path in paths:
        html = text_of(client.get(path))
        if "<" in payload:
            assert payload not in html.replace("&lt;script&gt;", ""), path
            assert "alert(1)>" not in html.replace("&gt;", ""), path
        assert 'href="javascript' not in html
    panels = client.get(url("live_page", batch)).json()["panels"]
    if "<" in payload:
        assert payload not in "".join(panels.values())


def test_the_timeline_has_at_most_sixty_columns():
    for seconds in (1, 590, 3 * 3600, 30 * 3600, 20 * 86_400):
        batch = batch_of(created=1)
        start = timezone.now().replace(second=0, microsecond=0) - timedelta(seconds=seconds)
        moments = {start + timedelta(seconds=part * seconds // 9 // 10 * 10) for part in range(10)}
        TimeBucket.objects.bulk_create([TimeBucket(batch=batch, starts_at=moment, succeeded=2) for moment in moments])
        drawn = timeline.draw(batch)
        assert 1 <= len(drawn.columns) <= 61, seconds
        counted = sum(int(column.counts[0]) for column in drawn.columns)
        assert counted == 2 * len(moments), seconds


def test_numbers_in_attributes_are_not_localized(client):
    batch = batch_of(succeeded=1234, failed=1234, created=1234)
    with translation.override("de"):
        client.cookies["django_language"] = "de"
        html = text_of(client.get(url("change", batch), headers={"accept-language": "de"}))
    for attribute in re.findall(r'(?: x| y| x1| x2| width| height|viewBox|aria-valuenow)="([^"]*)"', html):
        assert re.fullmatch(r"[\d. ]+(rem)?", attribute), attribute


def test_the_pages_work_without_time_zones(client, settings):
    settings.USE_TZ = False
    batch = batch_of(succeeded=4, failed=2, running=1, created=1)
    for path in (reverse(LIST), url("change", batch), url("jobs", batch), url("live_page", batch)):
        text_of(client.get(path))


def test_the_batch_page_shows_the_limits_of_the_batch(client):
    limits = {"concurrency": 5, "max_failures": 0, "key": "nightly", "no_retry": ValueError}
    with Batch.open(**limits, backoff=exponential(5, factor=3, limit=600)) as batch:
        batch.enqueue(tasks.ok)
    page = client.get(f"/admin/django_batches/batch/{batch.pk}/change/").content.decode()
    for text in (
        "5.0 s, × 3 each time, at most 10 min",
        "builtins.ValueError",
        "nightly",
        "Concurrency",
        "Failures allowed",
    ):
        assert text in page
