"""The admin in Chromium, with a live server, a real Redis and a real batchworker."""

import re

import pytest
from django.db.models import Sum
from django.urls import reverse
from django.utils import timezone
from playwright.sync_api import expect

from django_batches import Batch, database
from django_batches.models import FailureGroup
from django_batches.views import LIMIT

from .. import tasks
from ..admin.test_pages import PAYLOADS
from ..admin_data import batch_of, child_of, new_callback, user_with
from ..processes import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

LIST = "/admin/django_batches/batch/"


def page_of(batch, path="change/"):
    return f"{LIST}{batch.pk}/{path}"


def bar_of(page, batch):
    return page.locator(f'[data-batch-bar][data-batch="{batch.pk}"]').first


def badge_of(page, batch):
    return page.locator(f'[data-batch-badge][data-batch="{batch.pk}"]').first


LIVE = re.compile("/(live|status)/")
"""The URLs that bars poll."""


def requests_of(page):
    """Records the polls of a page from now on."""
    polls = []
    page.on("request", lambda request: polls.append(request) if LIVE.search(request.url) else None)
    return polls


def advance_a_minute(page):
    """By the clock of the page. All requests have been sent when this returns."""
    page.clock.run_for(60_000)
    page.evaluate("fetch('/admin/')")


def bars_follow(page, batches, gate, steps=4):
    """Lets the jobs end in steps. After each step, the bars of the page must show the counters."""
    jobs = Batch.objects.filter(pk__in=[batch.pk for batch in batches])
    total = jobs.aggregate(n=Sum("total"))["n"]
    for step in range(1, steps + 1):
        gate.let_through(total // steps)
        wait_until(lambda ended=total // steps * step: jobs.aggregate(n=Sum("succeeded"))["n"] == ended)
        for batch in jobs:
            percent = str(100 * batch.succeeded // batch.total)
            expect(bar_of(page, batch)).to_have_attribute("aria-valuenow", percent)


def open_batch(description, gate, count=24, **options):
    with Batch.open(description, **options) as batch:
        batch.map(tasks.pass_gate, [gate.path] * count)
    return batch


def test_one_request_at_a_time_updates_all_bars_of_the_changelist(browse, root, batchworker, gate):
    batches = [open_batch("first", gate), open_batch("second", gate)]
    page = browse(root)
    polls = requests_of(page)
    page.goto(LIST)
    page.evaluate("window.isTheSame = true")
    with batchworker():
        bars_follow(page, batches, gate)
        expect(badge_of(page, batches[1])).to_contain_text("succeeded")
    assert page.evaluate("window.isTheSame") and page.get_by_text("24 / 24").count() == 2
    assert all(str(batch.pk) in polls[0].url for batch in batches)
    assert "succeeded" in page.locator("[data-batch-announcer]").text_content()


def test_polling_stops_when_all_batches_have_ended_or_the_page_is_hidden(browse, root):
    batch = batch_of("ended", succeeded=3)
    page = browse(root)
    page.clock.install()
    polls = requests_of(page)
    page.goto(LIST)
    advance_a_minute(page)
    assert polls == []
    batch = batch_of("running", created=3)
    page.add_init_script("Object.defineProperty(document, 'hidden', { get: () => window.isHidden === true })")
    with page.expect_response(LIVE):
        page.goto(LIST)
    assert str(batch.pk) in polls[0].url
    page.evaluate("window.isHidden = true; document.dispatchEvent(new Event('visibilitychange'))")
    polls.clear()
    advance_a_minute(page)
    assert polls == []
    with page.expect_request(LIVE):
        page.evaluate("window.isHidden = false; document.dispatchEvent(new Event('visibilitychange'))")


@pytest.mark.slow
def test_polling_slows_down_while_nothing_changes(browse, root):
    batch_of("stands still", created=3)
    page = browse(root)
    polls = requests_of(page)
    with page.expect_request_finished(lambda request: request in polls[3:]):
        page.goto(LIST)
    times = [request.timing["startTime"] for request in polls]
    # In milliseconds, compared with 2,000 at first. A slow machine only makes them longer.
    assert times[2] - times[1] > 2_900 and times[3] - times[2] > 4_400, times


def test_failed_jobs_are_retried_from_the_batch_page_and_the_batch_succeeds(browse, root, batchworker, tmp_path):
    with Batch.open("flaky") as batch:
        batch.map(tasks.ok, range(3))
        batch.enqueue(tasks.flaky, str(tmp_path / "runs"), 1)
        batch.on_finish(tasks.told, str(tmp_path / "told"))
    page = browse(root)
    with batchworker():
        page.goto(page_of(batch))
        expect(badge_of(page, batch)).to_contain_text("failed")
        page.reload()
        page.get_by_role("link", name="Retry failed (1)").click()
        expect(page.locator("body")).to_contain_text("Run the failed jobs again?")
        page.get_by_role("button", name="Retry failed · 1 job").click()
        expect(page.locator(".messagelist")).to_contain_text("1 job re-queued, 0 skipped.")
        expect(badge_of(page, batch)).to_contain_text("succeeded")
        expect(page.locator("[data-batch-panel=callbacks]")).to_contain_text("round 1")
    batch.refresh_from_db()
    assert (batch.status, batch.succeeded, batch.round) == ("succeeded", 4, 1)


def test_a_failure_group_is_retried_alone(browse, root, batchworker, tmp_path):
    with Batch.open("two kinds") as batch:
        batch.map(tasks.boom, ["a", "b"])
        batch.enqueue(tasks.flaky, str(tmp_path / "runs"), 1)
    page = browse(root)
    with batchworker():
        page.goto(page_of(batch))
        expect(badge_of(page, batch)).to_contain_text("failed")
        page.reload()
        assert page.locator(".batch-group").count() == 2
        page.locator(".batch-group", has_text="run 1").get_by_role("link", name="Retry (1)").click()
        page.get_by_role("button", name="Retry these · 1 job").click()
        expect(page.locator(".messagelist")).to_contain_text("1 job re-queued")
        expect(page.locator(".batch-counter--succeeded")).to_contain_text("1")
        expect(badge_of(page, batch)).to_contain_text("failed")
    batch.refresh_from_db()
    assert (batch.succeeded, batch.failed) == (1, 2)
    assert set(batch.jobs.filter(status="failed").values_list("dispatch", flat=True)) == {1}


def test_a_failure_group_links_to_its_jobs_and_their_tracebacks(browse, root):
    batch = batch_of(failed=3, succeeded=2)
    page = browse(root)
    page.goto(page_of(batch))
    page.get_by_role("link", name="shop.errors.TooLarge").click()
    expect(page.get_by_text("3 jobs failed with shop.errors.TooLarge in the same place.")).to_be_visible()
    assert page.locator(".batch-job").count() == 3
    page.locator("summary").first.press("Enter")
    expect(page.get_by_text("Traceback (most recent call last)").first).to_be_visible()
    page.get_by_role("link", name="#3", exact=True).click()
    expect(page.get_by_text("Traceback (most recent call last)")).to_be_visible()


def test_cancel_from_the_batch_page(browse, root):
    batch = batch_of("wrong file", created=5)
    page = browse(root)
    page.goto(page_of(batch))
    page.get_by_role("link", name="Cancel", exact=True).click()
    page.get_by_label("Reason").fill("wrong file")
    page.get_by_role("button", name="Cancel · 5 jobs").dblclick()
    expect(page.locator(".messagelist")).to_contain_text("5 jobs cancelled.")
    expect(badge_of(page, batch)).to_contain_text("cancelled")
    batch.refresh_from_db()
    assert batch.reason == "Cancelled by root. wrong file"


def test_pause_and_resume_from_the_changelist(browse, root):
    batch = batch_of("long", created=5)
    page = browse(root)
    page.goto(LIST)
    for label, word in (("Pause selected batches", "paused"), ("Resume selected batches", "running")):
        page.locator("input.action-select").check()
        page.locator("select[name=action]").select_option(label=label)
        page.locator(".actions button[type=submit]").click()  # "Go"; "Run" since Django 6.1
        page.locator(".batch-submit").click()
        expect(page.locator(".messagelist")).to_be_visible()
        expect(badge_of(page, batch)).to_contain_text(word)


def test_a_user_without_permissions_sees_no_buttons_and_gets_403(browse, site):
    batch = batch_of("not yours", failed=2, created=2)
    page = browse(user_with("view_batch"))
    for path in (page_of(batch), page_of(batch, "jobs/")):
        page.goto(path)
        assert page.locator("a[href*='/do/']").count() == 0
        expect(page.get_by_text("Retry")).to_have_count(0)
    page.goto(LIST)
    assert page.locator("select[name=action]").count() == 0
    for act in ("retry", "cancel", "pause", "delete"):
        assert page.goto(page_of(batch, f"do/{act}/")).status == 403


def test_live_updates_do_not_replace_a_panel_that_is_being_read(browse, root):
    batch = batch_of("live", failed=1, running=2, created=5)
    callback = new_callback(batch, status="failed", error="Down: no", attempts=1)
    page = browse(root)
    page.goto(page_of(batch))
    panel = page.locator("[data-batch-panel=callbacks]")
    panel.locator("summary").click()
    database.jobs().filter(pk=callback.pk).update(error="Other: no")
    database.batches().filter(pk=batch.pk).update(is_paused=True)
    expect(page.locator("[data-batch-panel=why]")).to_contain_text("It is paused.")
    expect(badge_of(page, batch)).to_contain_text("paused")
    expect(panel).to_contain_text("Down: no")
    panel.locator("summary").click()
    page.locator("h1").first.click()
    page.evaluate("document.activeElement.blur()")
    expect(panel).to_contain_text("Other: no")


def test_child_batches_appear_and_progress_on_the_page_of_their_parent(browse, root, batchworker, gate):
    with Batch.open("in chunks") as batch:
        batch.enqueue(tasks.in_chunks, 2, gate.path, 12)
        batch.enqueue(tasks.boom)
    page = browse(root)
    page.goto(page_of(batch))
    page.evaluate("window.isTheSame = true")
    tree = page.locator("[data-batch-panel=children]")
    assert tree.locator(".batch-node").count() == 0
    with batchworker():
        expect(tree.locator(".batch-node")).to_have_count(2)
        children = Batch.objects.filter(description__startswith="chunk").order_by("description")
        child = children[1]
        expect(page.locator("[data-batch-panel=why]")).to_contain_text("waits for its child batch “chunk 1”")
        expect(page.locator(".batch-counter--waiting")).to_contain_text("1 waiting for child batches")
        handle = bar_of(page, child).element_handle()
        bars_follow(page, children, gate)
        expect(badge_of(page, batch)).to_contain_text("failed")
    assert page.evaluate("window.isTheSame")
    # The bar was updated in place, not replaced.
    assert handle.evaluate("bar => bar.isConnected && bar.ariaValueNow") == "100"
    expect(badge_of(page, child)).to_contain_text("succeeded")
    assert page.locator("[data-batch-announcer]").text_content().startswith("in chunks: failed.")


def test_links_lead_from_a_failed_job_to_the_failed_child_batch_and_back(browse, root, batchworker):
    with Batch.open("top") as batch:
        batch.enqueue(tasks.two_children)
    page = browse(root)
    with batchworker():
        page.goto(page_of(batch))
        expect(badge_of(page, batch)).to_contain_text("failed")
    page.get_by_role("link", name="1 failed").first.click()
    expect(page.locator(".batch-job__children")).to_contain_text("failed because of its child batch bad")
    page.get_by_role("link", name="bad", exact=True).click()
    expect(page.get_by_role("heading", name="bad")).to_be_visible()
    trail = page.get_by_role("navigation", name="Parent batches")
    expect(trail).to_contain_text("Opened by top job #0")
    trail.get_by_role("link", name="top").click()
    expect(page.get_by_role("heading", name="top")).to_be_visible()
    page.locator(".batch-tree__totals").get_by_role("link", name="1 failed").click()
    expect(page.locator("#result_list tbody tr")).to_have_count(1)
    expect(page.locator("#result_list")).to_contain_text("job #0 of “top”")


def test_the_progress_bar_on_a_users_own_page_is_updated(browse, site, batchworker, gate):
    user = user_with(name="ada")
    batch = open_batch("My upload", gate, metadata={"user": user.pk})
    page = browse(user)
    page.goto(reverse("upload", args=[batch.pk]))
    with batchworker():
        bars_follow(page, [batch], gate)
    expect(badge_of(page, batch)).to_contain_text("succeeded")


def test_more_bars_than_the_limit_are_polled_in_turns(browse, site):
    user = user_with(name="ada")
    batches = [batch_of(created=1, metadata={"user": user.pk}) for _ in range(LIMIT + 5)]
    page = browse(user)
    sizes = []
    page.on("request", lambda request: sizes.append(request.url.count("id=")) if LIVE.search(request.url) else None)
    with page.expect_response(LIVE):
        page.goto(reverse("uploads"))
    database.batches().filter(pk=batches[-1].pk).update(is_paused=True)
    expect(badge_of(page, batches[-1])).to_contain_text("paused")
    assert page.locator("[data-batch-live]").count() == len(batches)
    assert sizes[:2] == [LIMIT, 5]


def test_a_forbidden_bar_stops_polling_without_an_error(browse, site):
    batch = batch_of("Somebody else's", created=3, metadata={"user": 0})
    page = browse(user_with(name="ada"))
    statuses = []
    page.on("response", lambda response: statuses.append(response.status) if "/status/" in response.url else None)
    page.clock.install()
    with page.expect_response(LIVE):
        page.goto(reverse("upload", args=[batch.pk]))
    advance_a_minute(page)
    assert statuses == [403]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_no_page_is_wider_than_the_screen(browse, root, width, scheme):
    batch = batch_of("A_description_without_a_space_" * 4, succeeded=3, failed=2, cancelled=1, created=4)
    new_callback(batch, func="a.very.long.path." * 8)
    long = "Another_one_without_a_space_" * 6
    child = child_of(batch.jobs.get(position=9), long, created=1, parent_dispatch=0, deadline_at=timezone.now())
    child_of(child.jobs.get(), long, created=1, parent_dispatch=0)
    page = browse(root, viewport={"width": width, "height": 800}, color_scheme=scheme)
    for path in (page_of(batch), page_of(batch, "jobs/"), page_of(batch, "do/retry/"), page_of(batch, "do/cancel/"),
                 page_of(child), f"{LIST}?level=all"):  # fmt: skip
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
    page.goto(page_of(batch))
    background = page.locator(".batch-panel").first.evaluate("element => getComputedStyle(element).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) > 380) == (scheme == "light"), background


@pytest.mark.slow
def test_script_payloads_in_any_field_never_run(browse, root, settings):
    # The policy would hide missing escapes.
    settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if "strict_policy" not in name]
    page = browse(root)
    ran = []
    page.on("dialog", lambda dialog: (ran.append(dialog.message), dialog.dismiss()))
    for payload in PAYLOADS:
        batch = batch_of(payload, failed=1, running=1, queue=payload[:100], metadata={payload: payload})
        FailureGroup.objects.filter(batch=batch).update(error_type=payload, sample=payload, fingerprint=payload[:16])
        texts = {"func": payload, "error": payload, "error_type": payload, "traceback": payload, "worker": payload}
        database.jobs().filter(batch=batch).update(
            **texts,
            arguments=f'[["{payload}"],{{}}]',
            result_text=payload,
            fingerprint=payload[:16],
            queue=payload[:100],
        )
        new_callback(batch, status="failed", **texts)
        for path in ("change/", "jobs/", "do/retry/"):
            page.goto(page_of(batch, path))
            elements = page.locator(".batch-page, .batch-jobs, .batch-confirm").first
            strange = "script, iframe, object, embed, base, img, form form, [onclick], [onload], [onerror]"
            assert elements.locator(strange).count() == 0, (payload, path)
    with page.expect_response(LIVE):
        page.goto(LIST)
    assert page.locator("#result_list tbody tr").count() == len(PAYLOADS)
    with page.expect_response(LIVE):
        page.goto(page_of(batch))
    page.evaluate("fetch('/admin/')")  # by now, a payload would have run
    assert ran == []
