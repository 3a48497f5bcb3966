"""A wrong call is a type error where a user writes it, and a right one none: the package is typed for its users."""

import pytest

from .type_checks import assert_only_marked_lines_are_errors

pytestmark = pytest.mark.once
CODE = """
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta

from django_batches import Batch, acurrent_batch, current_batch, current_job, exponential
from django_batches.exceptions import BatchError, BatchExists
from django_batches.models import BatchJob
from django_batches.testing import drain

def upload(image_pk: int, size: str = "small") -> int:
    return image_pk

async def send(mail_pk: int, *, urgent: bool = False) -> None: ...

def mark_visible(batch: Batch, product_pk: int) -> None: ...

def tell(batch: Batch) -> None: ...

def stage() -> Batch:
    with Batch.open("Stage", queue="images", timeout=timedelta(minutes=5), backoff=exponential(5)) as batch:
        job: BatchJob = batch.enqueue(upload, 1, size="large")
        batch.enqueue(send, 1, urgent=True)
        batch.enqueue("shop.tasks.upload", 1, anything="goes")
        count: int = batch.map(upload, range(3), size="large")
        batch.map(upload, (pk for pk in [1, 2]))
        batch.starmap(upload, [(1, "large"), (2, "small")])
        batch.using(queue="mail", max_attempts=3, no_retry=(ValueError,), run_after=60).enqueue(send, 1)
        batch.on_success(mark_visible, 7)
        batch.on_failure(tell)
        batch.using(queue="mail").on_finish(mark_visible, product_pk=7)
    return batch

def wrong() -> None:
    with Batch.open("Stage", timeout="long") as batch:  # error
        batch.enqueue(upload, "one")  # error
        batch.enqueue(upload)  # error
        batch.enqueue(upload, 1, "large", "more")  # error
        batch.enqueue(upload, 1, colour="red")  # error
        batch.enqueue(send, 1, urgent="yes")  # error
        batch.enqueue(7)  # error
        batch.map(upload, ["one", "two"])  # error
        batch.map(upload, 3)  # error
        batch.map(upload, [1], size=2)  # error
        batch.using(queue="mail").enqueue(send, "one")  # error
        batch.using(colour="red").enqueue(send, 1)  # error
        batch.on_success(mark_visible, "seven")  # error
        batch.on_success(mark_visible)  # error
        batch.on_failure(upload, 1)  # error
        batch.using(queue="mail").on_finish(mark_visible, colour="red")  # error
    batch.cancel(7)  # error
    batch.wait(timeout="long")  # error
    batch.retry_failed(include="cancelled")  # error

def act(batch: Batch) -> None:
    cancelled: int = batch.cancel("wrong file")
    retried: int = batch.retry_failed(include_cancelled=True)
    has_ended: bool = batch.wait(timeout=60) and batch.pause() and batch.resume() and batch.seal()
    of_a_test: int = drain(raise_failures=False)
    inside, job = current_batch(), current_job()
    if inside is not None and job is not None:
        inside.enqueue(upload, 1)
    inside.enqueue(upload, 1)  # error
    words: str = batch.cancel()  # error

async def items() -> AsyncIterator[int]:
    yield 1

async def fill() -> None:
    async with Batch.open("Mails") as batch:
        await batch.aenqueue(send, 1, urgent=True)
        await batch.amap(send, items())
        await batch.aenqueue(send, "one")  # error
        await batch.amap(upload, items(), size=2)  # error
    has_ended: bool = await batch.await_(timeout=60)
    inside = await acurrent_batch()
    if inside is not None:
        cancelled: int = await inside.acancel()
"""


@pytest.mark.parametrize("has_plugin", [True, False], ids=["with the plugin of django-stubs", "with plain mypy"])
def test_a_wrong_call_is_a_type_error_and_a_right_one_is_none(tmp_path, has_plugin):
    config = tmp_path / "mypy.ini"
    plugin = "plugins = mypy_django_plugin.main\n[mypy.plugins.django-stubs]\ndjango_settings_module = tests.settings"
    config.write_text("[mypy]\nfollow_imports = silent\n" + plugin * has_plugin)
    assert_only_marked_lines_are_errors(tmp_path / "shop.py", CODE, config)
