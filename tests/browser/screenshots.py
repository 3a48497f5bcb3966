"""Screenshots of the admin for the docs: list, page, jobs and confirmation; light, dark and narrow.

python -m example_project.servers -- python manage.py test --settings tests.settings tests.browser.screenshots
"""

import os
from datetime import timedelta
from pathlib import Path

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.staticfiles.testing import StaticLiveServerTestCase
from django.test import Client, override_settings
from django.urls import reverse
from django.utils import timezone
from PIL import Image

from django_batches import database
from django_batches.models import Batch, FailureGroup, TimeBucket
from django_batches.transport.client import Keys, client
from django_batches.transport.outcomes import fingerprint
from tests.admin_data import batch_of, batchworker_is_there, child_of, new_callback
from tests.browser.chromium import browser

FOLDER = Path(os.environ.get("SCREENSHOTS", "docs/images"))
LOOKS = {
    "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 860}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 860}},
    "narrow": {"color_scheme": "light", "viewport": {"width": 390, "height": 844}},
}
ERRORS = (
    ("shop.errors.TooLarge", "TooLarge: 21.4 MB, at most 20 MB are taken", 31, "shop/tasks.py", 41),
    ("requests.exceptions.ConnectTimeout", "ConnectTimeout: no answer from the CDN within 10 s", 12, "shop/cdn.py", 88),
    ("PIL.UnidentifiedImageError", "UnidentifiedImageError: cannot identify 'IMG_2214.HEIC'", 4, "PIL/Image.py", 3536),
)  # fmt: skip
MIDDLEWARE = ["tests.browser.csp.strict_policy", *settings.MIDDLEWARE]


@override_settings(ROOT_URLCONF="tests.browser.urls", MIDDLEWARE=MIDDLEWARE)
class Screenshots(StaticLiveServerTestCase):
    def runTest(self):
        FOLDER.mkdir(parents=True, exist_ok=True)
        main, top = fill(), fill_tree()
        middle = Batch.objects.get(description="Cities of Europe")
        user = get_user_model().objects.create_superuser("ada", password="ada")
        pages = {
            "list": reverse("admin:django_batches_batch_changelist"),
            "batch": reverse("admin:django_batches_batch_change", args=[main.pk]),
            "jobs": reverse("admin:django_batches_batch_jobs", args=[main.pk], query={"status": "failed"}),
            "tree": reverse("admin:django_batches_batch_change", args=[top.pk]),
            "child": reverse("admin:django_batches_batch_change", args=[middle.pk]),
            "confirm": reverse("admin:django_batches_batch_act", args=[main.pk, "retry"]),
        }
        visitor = Client()
        visitor.force_login(user)
        cookie = {"name": "sessionid", "value": visitor.cookies["sessionid"].value, "url": self.live_server_url}
        with browser() as chromium:
            for look, options in LOOKS.items():
                context = chromium.new_context(**options, reduced_motion="reduce", device_scale_factor=1.5)
                context.add_cookies([cookie])
                page = context.new_page()
                page.on("console", lambda message: print("console:", message.text, message.location["url"]))
                for name, address in pages.items():
                    page.goto(f"{self.live_server_url}{address}")
                    if name == "jobs":
                        page.locator("details").first.evaluate("details => details.open = true")
                    page.wait_for_timeout(300)
                    picture = FOLDER / f"{name}-{look}.png"
                    page.screenshot(path=picture, full_page=name != "jobs")
                    shrink(picture)
                context.close()


def shrink(picture):
    """Reduces a picture to 256 colours, a third of the bytes: all versions stay in the history of the repository."""
    with Image.open(picture) as full:
        full.convert("RGB").quantize(256).save(picture, optimize=True)


def fill():
    """Creates the batches of a day in a shop. Returns the one whose page is shown."""
    batchworker_is_there(3600)
    worker = Keys().worker("web-1:batch.1")
    client().hset(worker, "birth", "now")
    client().sadd(Keys().workers_of("images"), worker)
    now = timezone.now()
    batch_of("Nightly export of orders", succeeded=1240, queue="exports", created_at=now - timedelta(hours=9),
             started_at=now - timedelta(hours=9), finished_at=now - timedelta(hours=8, minutes=42))  # fmt: skip
    batch_of("Newsletter: autumn", succeeded=18204, failed=3, queue="mail", created_at=now - timedelta(hours=5),
             started_at=now - timedelta(hours=5), finished_at=now - timedelta(hours=4, minutes=50))  # fmt: skip
    batch_of("Import of suppliers.csv", succeeded=310, cancelled=690, status="cancelled",
             cancelled_at=now - timedelta(hours=2), reason="Wrong file", started_at=now - timedelta(hours=2, minutes=5),
             finished_at=now - timedelta(hours=2))  # fmt: skip
    batch_of("Reindex of the search", succeeded=5200, created=7800, is_paused=True, queue="search",
             created_at=now - timedelta(minutes=50), started_at=now - timedelta(minutes=49))  # fmt: skip
    batch_of("Thumbnails of teapots", succeeded=96, created_at=now - timedelta(minutes=31),
             started_at=now - timedelta(minutes=31), finished_at=now - timedelta(minutes=30, seconds=12))  # fmt: skip
    batch_of("Prices from the ERP", created=240, sealed_at=None, status="open", started_at=None, queue="imports",
             created_at=now - timedelta(minutes=12), grown_at=now - timedelta(minutes=12))  # fmt: skip
    main = batch_of("Images of the autumn catalogue", succeeded=2671, failed=47, running=4, queued=28, created=1210,
                    queue="images", max_attempts=3, created_at=now - timedelta(minutes=7),
                    sealed_at=now - timedelta(minutes=7), started_at=now - timedelta(minutes=6, seconds=57),
                    metadata={"catalogue": "autumn 2026", "started_by": "ada", "products": 1320})  # fmt: skip
    add_failures(main, now)
    add_timeline(main, now)
    new_callback(main, "failure", "shop.tasks.tell_the_photographer", status="succeeded", attempts=1,
                 worker="web-1:batch.2", started_at=now - timedelta(minutes=5), finished_at=now - timedelta(minutes=5),
                 result_text="null")  # fmt: skip
    database.batches().filter(pk=main.pk).update(
        first_failure=main.jobs.filter(status="failed").values_list("pk", flat=True)[0]
    )
    main.refresh_from_db()
    return main


def fill_tree():
    """Creates an overdue import with a tree of batches. Returns the topmost batch."""
    now = timezone.now()
    ago = {"created_at": now - timedelta(minutes=34), "sealed_at": now - timedelta(minutes=34),
           "started_at": now - timedelta(minutes=33)}  # fmt: skip
    deadline = {"deadline": 1800, "deadline_at": now - timedelta(minutes=4), "overdue_at": now - timedelta(minutes=4)}
    top = batch_of(
        "Import of all cities", succeeded=2, failed=1, waiting=7, created=2, queue="imports", **ago, **deadline
    )
    names = ["Cities of Europe", "Cities of Africa", "Cities of Asia"]
    waiting = list(top.jobs.filter(status="waiting"))
    for index, job in enumerate(waiting):
        name = names[index] if index < len(names) else f"Cities of region {index}"
        job_counts = {"succeeded": 310 + 7 * index, "created": 12 * index, "waiting": 2 if index in (0, 2) else 0}
        child = child_of(job, name, queue="imports", **job_counts, **ago)
        for place, inner in enumerate(child.jobs.filter(status="waiting")):
            counts = {"created": 40, "is_paused": True} if place else {"succeeded": 61, "running": 3}
            deeper = child_of(inner, f"Chunk {place + 1} of {name}", queue="imports", **counts, **ago)
            if not place:
                database.jobs().filter(batch=deeper, position=62).update(status="waiting", waited_at=now)
                child_of(deeper.jobs.get(position=62), "Lookup of time zones", queue="imports", running=1, **ago)
    failed = top.jobs.get(status="failed")
    database.jobs().filter(batch=top).update(func="shop.tasks.import_region")
    database.jobs().filter(pk=failed.pk).update(error_type="django_batches.child_failed", traceback="", dispatch=1,
        error="Its child batch “Cities of Oceania” failed.")  # fmt: skip
    failed.refresh_from_db()
    child_of(failed, "Cities of Oceania", succeeded=118, failed=2, queue="imports", **ago)
    FailureGroup.objects.filter(batch=top).update(error_type="django_batches.child_failed",
        sample="Its child batch “Cities of Oceania” failed.")  # fmt: skip
    return top


def add_failures(batch, now):
    FailureGroup.objects.filter(batch=batch).delete()
    failed = list(batch.jobs.filter(status="failed").order_by("position").values_list("pk", flat=True))
    for error_type, text, count, file, line in ERRORS:
        keys, failed = failed[:count], failed[count:]
        mark = fingerprint(error_type, file)
        FailureGroup.objects.create(batch=batch, fingerprint=mark, error_type=error_type, sample=text, count=count)
        traceback = (
            "Traceback (most recent call last):\n"
            f'  File "/srv/shop/{file}", line {line}, in upload_image\n    image = prepare(photograph, size)\n'
            f"            ^^^^^^^^^^^^^^^^^^^^^^^^^\n{error_type}: {text.partition(': ')[2]}"
        )
        database.jobs().filter(pk__in=keys).update(
            func="shop.tasks.upload_image", arguments='[[4117],{"size":"large"}]', attempts=3, max_attempts=3,
            error_type=error_type, error=text, traceback=traceback, fingerprint=mark,
            started_at=now - timedelta(minutes=4, seconds=2), finished_at=now - timedelta(minutes=4),
            worker="web-1:batch.1",
        )  # fmt: skip


def add_timeline(batch, now):
    TimeBucket.objects.filter(batch=batch).delete()
    start = now.replace(second=now.second - now.second % 10, microsecond=0) - timedelta(minutes=6, seconds=50)
    for index in range(42):
        failed = 14 if index in (11, 12) else 3 if index in (13, 14, 27) else int(index % 9 == 4)
        TimeBucket.objects.create(
            batch=batch, starts_at=start + index * timedelta(seconds=10), failed=failed,
            succeeded=max(4, 58 + 14 * ((index * 7) % 5) - (40 if index in (11, 12) else 0) - max(0, 6 - index) * 9),
        )  # fmt: skip
