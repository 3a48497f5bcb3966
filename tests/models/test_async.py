"""The asynchronous twins, from asynchronous views and jobs."""

import asyncio

import pytest
from asgiref.sync import async_to_sync
from django.http import JsonResponse
from django.test import AsyncClient
from django.urls import path

from django_batches import Batch, acurrent_batch, acurrent_job
from django_batches.exceptions import BatchError
from django_batches.models import BatchJob
from django_batches.models.adding import AddingVerbs
from django_batches.models.verbs import BatchVerbs
from django_batches.testing import drain

from .. import tasks

pytestmark = pytest.mark.django_db


async def numbers(count):
    for number in range(count):
        await asyncio.sleep(0)
        yield number


async def make(request):
    async with Batch.open("made by a view") as batch:
        batch.on_success(tasks.ok_callback)
        await batch.aenqueue(tasks.ok, "one")
        many = await batch.amap(tasks.ok, numbers(1_001))
        pairs = await batch.using(queue="pairs").astarmap(tasks.keywords, [()], colour="red")
    return JsonResponse({"batch": str(batch.pk), "many": many, "pairs": pairs})


urlpatterns = [path("make/", make)]


@pytest.mark.urls(__name__)
def test_a_batch_is_made_by_an_asynchronous_view():
    made = async_to_sync(AsyncClient().get)("/make/").json()
    batch = Batch.objects.get(pk=made["batch"])
    assert (made["many"], made["pairs"], batch.total, batch.status) == (1_001, 1, 1_003, "running")
    assert drain() == 1_004
    assert async_to_sync(collect)(batch)[:3] == ["one", 0, 1]


async def collect(batch):
    return [result async for result in batch.aresults()]


def test_an_exception_in_the_block_leaves_nothing():
    async def work():
        async with Batch.open() as batch:
            await batch.aenqueue(tasks.ok)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        async_to_sync(work)()
    assert not Batch.objects.exists()


def test_the_twins_do_what_the_verbs_do():
    async def work():
        async with Batch.open() as batch:
            await batch.amap(tasks.boom, ["x"])
        assert await batch.apause() and await batch.aresume() and not await batch.aseal()
        job = await batch.jobs.aget()
        assert await job.acancel() and (await batch.areload()) is None
        assert (batch.status, await job.aretry(), await batch.acancel()) == ("failed", True, 1)
        return batch

    batch = async_to_sync(work)()
    batch.refresh_from_db()
    assert batch.status == "cancelled"
    assert async_to_sync(batch.aretry_failed)(include_cancelled=True) == 1
    drain(raise_failures=False)
    assert async_to_sync(batch.jobs.all().aretry)() == 1


def test_the_context_inside_an_asynchronous_job():
    with Batch.open() as batch:
        job = batch.enqueue(asynchronous_job)
    drain()
    children = Batch.objects.filter(parent=job.pk)
    assert BatchJob.objects.get(pk=job.pk).result == [str(batch.pk), str(job.pk), 1]
    assert [child.status for child in children] == ["succeeded"]


async def asynchronous_job():
    async with Batch.open("child") as child:
        await child.aenqueue(tasks.ok, 7)
    batch, job = await acurrent_batch(), await acurrent_job()
    return [str(batch.pk), str(job.pk), child.total]


def test_outside_of_jobs_there_is_no_context():
    assert async_to_sync(acurrent_batch)() is None and async_to_sync(acurrent_job)() is None


@pytest.mark.django_db(transaction=True)
def test_awaiting_the_end_of_a_batch():
    with Batch.open() as batch:
        pass

    async def work():
        return await batch.await_(5)

    assert async_to_sync(work)()
    with Batch.open() as other:
        other.enqueue(tasks.ok)
    assert not async_to_sync(other.await_)(0.05)


def test_awaiting_inside_a_transaction_is_refused():
    with Batch.open() as batch:
        pass
    with pytest.raises(BatchError, match=r"transaction.atomic"):
        async_to_sync(batch.await_)(1)


def test_every_verb_that_touches_the_database_has_its_twin():
    without = {"on_success", "on_failure", "on_finish", "on_attempted", "open", "block", "using", "job_options"}
    fields = {name for name in vars(BatchJob) if not callable(getattr(BatchJob, name, None))}
    theirs = {"save", "delete", "DoesNotExist", "MultipleObjectsReturned", "NotUpdated"}
    for owner in (AddingVerbs, BatchVerbs, BatchJob):
        names = {name for name in vars(owner) if not name.startswith(("_", "get_"))} - without
        names -= fields | theirs if owner is BatchJob else set()
        verbs = {name for name in names if not asyncio.iscoroutinefunction(getattr(owner, name))}
        twins = {"await_" if name == "wait" else f"a{name}" for name in verbs}
        assert twins == names - verbs, owner
        for name in names:
            assert getattr(getattr(owner, name), "alters_data", False), name
