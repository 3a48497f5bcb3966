"""Progress outside the admin: the template tag, the JSON view, and the texts."""

from datetime import timedelta

import pytest
from django.core.checks import run_checks
from django.template import Context, Template
from django.test import override_settings
from django.urls import reverse
from django.utils import timezone, translation

from django_batches.models import TimeBucket
from django_batches.models.throughput_and_eta import Throughput, throughputs
from django_batches.monitoring import formatting
from django_batches.monitoring.progress import WIDTH, segments, snapshot, state

from ..admin_data import batch_of
from ..road import statements

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.browser.urls")]

STATUS = {"CACHE": "batches", "NAMESPACE": "tests"}


def may_see_images(request, batch):
    return batch.description == "Images"


def may_see_by_accident(request, batch):
    return request.user.has_perm  # the call is missing


def permitted(path):
    return override_settings(DJANGO_BATCHES={**STATUS, "STATUS_PERMISSION": f"tests.monitoring.test_progress.{path}"})


def get_status(client, *batches):
    return client.get(reverse("django_batches:status", query={"id": [str(batch.pk) for batch in batches]}))


def render(batch, text="{% load batches %}{% batch_progress batch %}", **context):
    return Template(text).render(Context({"batch": batch, **context}))


def test_without_a_batch_there_is_no_bar():
    assert render(None).strip() == "" and render("").strip() == ""


def test_the_views_check_access_themselves_and_do_not_require_a_login(client, settings):
    batch = batch_of("Images")
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "django.contrib.auth.middleware.LoginRequiredMiddleware"]
    with permitted("may_see_images"):
        assert get_status(client, batch).status_code == 200
    assert client.get(reverse("django_batches:metrics")).status_code == 401


def test_the_view_refuses_everyone_by_default(client, admin_client):
    batch = batch_of()
    assert get_status(client, batch).status_code == get_status(admin_client, batch).status_code == 403


def test_the_view_returns_the_batches_that_the_callback_permits(client):
    mine, other = batch_of("Images", succeeded=3, failed=1, created=4), batch_of("Salaries", succeeded=1)
    with permitted("may_see_images"):
        response = get_status(client, mine, other)
        assert list(response.json()["batches"]) == [str(mine.pk)]
        assert get_status(client, other).status_code == 403
    shown = response.json()["batches"][str(mine.pk)]
    assert (shown["total"], shown["pending"], shown["succeeded"], shown["failed"]) == (8, 4, 3, 1)
    assert shown["progress"] == 0.5 and shown["status"] == "running" and not shown["is_over"]
    assert "no-store" in response["Cache-Control"] and response["Content-Type"] == "application/json"
    assert "Salaries" not in response.content.decode()


def test_a_missing_batch_looks_like_a_refused_one(client):
    batch = batch_of("Salaries")
    with permitted("may_see_images"):
        refused = get_status(client, batch)
        batch.pk = "01a200c9-4bb0-7000-8097-95c111c15be5"
        assert (get_status(client, batch).status_code, get_status(client, batch).content) == (403, refused.content)


@pytest.mark.parametrize("path", ["os.system", "tests.monitoring.test_progress.nothing", "nothing.at.all"])
def test_a_missing_or_forbidden_callback_refuses_and_fails_the_system_check(client, path, caplog):
    with override_settings(DJANGO_BATCHES={**STATUS, "STATUS_PERMISSION": path}):
        assert get_status(client, batch_of("Images")).status_code == 403
        assert "STATUS_PERMISSION" in caplog.text
        assert "django_batches.E004" in [message.id for message in run_checks()]


def test_a_callback_must_return_true_and_not_a_truthy_value(client):
    with permitted("may_see_by_accident"):
        assert get_status(client, batch_of("Images")).status_code == 403


def test_the_view_allows_only_get_and_a_hundred_ids_and_ignores_invalid_ones(client):
    batches = [batch_of("Images") for _ in range(2)]
    with permitted("may_see_images"):
        assert client.post(reverse("django_batches:status")).status_code == 405
        query = {"id": ["x"] * 99 + [str(batch.pk) for batch in batches]}
        assert len(client.get(reverse("django_batches:status", query=query)).json()["batches"]) == 1
        assert client.get(reverse("django_batches:status")).status_code == 403


def test_one_request_for_many_batches_costs_two_queries(client):
    batches = [batch_of("Images", succeeded=2, failed=1, created=1) for _ in range(10)]
    with permitted("may_see_images"), statements() as made:
        assert len(get_status(client, *batches).json()["batches"]) == 10
    assert len(made) == 2


def test_the_tag_draws_a_bar_with_a_text_for_screen_readers():
    batch = batch_of("Images", succeeded=3, failed=1, created=4)
    html = render(batch)
    assert 'role="progressbar"' in html and 'aria-valuenow="50"' in html and 'aria-label="Images"' in html
    assert 'aria-valuetext="50 %: 3 succeeded, 1 failed, 4 pending"' in html
    assert f'data-batch="{batch.pk}"' in html and 'data-batch-live="/batches/status/"' in html
    assert 'type="module"' in html and "style=" not in html


def test_the_bar_of_an_ended_batch_does_not_poll():
    assert "data-batch-live" not in render(batch_of(succeeded=2))


@pytest.mark.urls("example_project.urls")
def test_the_bar_does_not_poll_if_the_view_is_not_included(settings):
    settings.ROOT_URLCONF = "django.contrib.auth.urls"
    assert "data-batch-live" not in render(batch_of(created=2))


def test_the_tag_can_omit_its_assets_and_uses_the_nonce():
    batch = batch_of(created=1)
    assert "<script" not in render(batch, "{% load batches %}{% batch_progress batch assets=False %}")
    assert render(batch, csp_nonce="abc").count('nonce="abc"') == 2


class LazyNonce:
    """Like the nonces of Django and django-csp: created, and added to the response, when it is first read."""

    text = ""

    def __bool__(self):
        return bool(self.text)

    def __str__(self):
        self.text = "made"
        return self.text


def test_the_tag_reads_a_lazy_nonce_only_if_it_needs_one():
    batch, nonce = batch_of(created=1), LazyNonce()
    render(batch, "{% load batches %}{% batch_progress batch assets=False %}", csp_nonce=nonce)
    assert not nonce
    assert render(batch, csp_nonce=nonce).count('nonce="made"') == 2


def test_the_tag_escapes_the_description():
    html = render(batch_of("<script>alert(1)</script>\"'", created=1))
    assert "<script>alert" not in html and "&lt;script&gt;" in html


@pytest.mark.parametrize(
    "counts",
    [
        {}, {"succeeded": 1}, {"succeeded": 999_999, "failed": 1}, {"failed": 7, "cancelled": 1, "succeeded": 1},
        {"succeeded": 3, "failed": 3, "cancelled": 3}, {"in_flight": 4},
        {"succeeded": 1_000_000, "failed": 1, "cancelled": 1, "in_flight": 1},
    ],
)  # fmt: skip
def test_the_segments_fill_the_bar_and_the_smallest_is_visible(counts):
    batch = batch_of()
    ended = sum(count for name, count in counts.items() if name != "in_flight")
    batch.pending, batch.total = counts.get("in_flight", 0), ended + counts.get("in_flight", 0)
    for name, count in counts.items():
        setattr(batch, name, count)
    found = segments(batch)
    assert all((segment.width > 5) == bool(segment.count) for segment in found)
    assert sum(segment.width for segment in found) <= WIDTH
    assert [segment.x for segment in found] == [sum(s.width for s in found[:index]) for index in range(4)]
    if batch.total and not batch.pending:
        assert sum(segment.width for segment in found) == WIDTH


def test_the_eta_appears_once_the_rate_is_meaningful():
    batch = batch_of(succeeded=600, created=600)
    TimeBucket.objects.all().delete()
    assert snapshot(batch, throughputs([batch])[batch.pk])["eta_seconds"] is None
    TimeBucket.objects.create(batch=batch, starts_at=timezone.now(), succeeded=600)
    shown = snapshot(batch, throughputs([batch])[batch.pk])
    assert (
        shown["eta_seconds"] == 60
        and shown["text"]["timing"] == "1 minute left"
        and shown["text"]["rate"] == "10 jobs/s"
    )
    assert batch.throughput == 10.0 and 55 < (batch.eta - timezone.now()).total_seconds() <= 60
    batch.is_paused = True
    assert snapshot(batch, throughputs([batch])[batch.pk])["eta_seconds"] is None and batch.eta is None
    assert (
        not Throughput(3, 2.0).is_significant
        and Throughput(3, 6.0).is_significant
        and Throughput(20, 1.0).is_significant
    )


def test_states_that_are_not_a_status():
    assert state(batch_of(created=1, is_paused=True)) == "paused"
    assert state(batch_of(running=1, cancelled_at=timezone.now())) == "cancelling"
    assert state(batch_of(succeeded=1, is_paused=True)) == "succeeded"


@pytest.mark.parametrize(
    ("seconds", "text", "rough"),
    [
        (0.04, "0.0 s", "less than a minute"), (7.26, "7.3 s", "less than a minute"),
        (42, "42 s", "less than a minute"),
        (180, "3 min", "3 minutes"), (200, "3 min 20 s", "3 minutes"), (7_500, "2 h 5 min", "2 hours"),
        (273_600, "3 d 4 h", "3 days"), (-5, "0.0 s", "less than a minute"),
    ],
)  # fmt: skip
def test_durations_as_text(seconds, text, rough):
    assert formatting.duration(timedelta(seconds=seconds)) == text
    assert formatting.duration(timedelta(seconds=seconds), rough=True) == rough


@pytest.mark.parametrize(
    ("rate", "text"), [(1234.5, "1,234 jobs/s"), (2.26, "2.3 jobs/s"), (0.5, "30 jobs/min"), (0.01, "36 jobs/h")]
)
def test_rates_as_text(rate, text):
    assert formatting.rate_text(rate) == text.replace("1,234", formatting.number(1234.5))


def test_the_bar_is_translated_into_german():
    batch = batch_of("Bilder", succeeded=3, failed=1, created=4)
    with translation.override("de"):
        html = render(batch)
        assert "läuft" in html and "50 %: 3 erfolgreich, 1 fehlgeschlagen, 4 ausstehend" in html
        assert formatting.number(1234567) == "1.234.567"
