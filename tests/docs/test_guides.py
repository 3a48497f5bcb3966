"""The code blocks of the guides run: they open real batches, which end as the guide says.

Stand-ins replace the functions, products and requests of the reader's project.
"""

import csv

import pytest
from asgiref.sync import async_to_sync

from django_batches import Batch
from django_batches.testing import drain

from .pages import DOCS, blocks
from .stand_ins import Value, job, running

pytestmark = pytest.mark.django_db(transaction=True)

GUIDES = DOCS / "guides"
BEFORE = ("celery", "queue.enqueue", "django_rq", "batch.wait()\nlist")
"""Code before a migration, and code that waits for a worker."""
OF_THE_PROJECT = ("class Product", "TestCase", "# settings.py", "# urls.py", "DJANGO_BATCHES =", "def test_", "@task")
"""Settings, models, Tasks and tests, which other tests check."""
BLOCKS = [
    block
    for page in sorted([*GUIDES.glob("*.md"), *(DOCS / "migrating").glob("*.md")])
    for block in blocks(page, "python")
    if not any(words in block.text for words in (*OF_THE_PROJECT, *BEFORE)) and "resize.enqueue" not in block.text
]


def block_with(page, words):
    (block,) = [block for block in blocks(GUIDES / page, "python") if words in block.text]
    return block


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_a_block_runs_and_its_batches_are_sealed(block):
    with Batch.open("as above") as batch:
        batch.enqueue(job)
        batch.block.flush()
        with running(block, batch=batch, batch_id=batch.pk, Batch=Batch):
            pass
    assert not Batch.objects.filter(status="open").exists()


def test_the_jobs_of_the_blocks_run():
    ran = 0
    for block in BLOCKS:
        if "with Batch.open" in block.text and "async" not in block.text:
            with running(block, Batch=Batch):
                ran += drain()
    assert ran >= 20
    assert set(Batch.objects.values_list("status", flat=True)) == {"succeeded"}


def test_the_merge_sort_sorts():
    with running(block_with("children.md", "def sort"), split=lambda values: [values[:1], values[1:]]) as names:
        with Batch.open() as batch:
            batch.enqueue(names["sort"], [3, 1, 2])
        drain()
    assert list(batch.results()) == [[1, 2, 3]]


def test_the_nightly_batch_ends_when_those_of_its_tenants_end():
    with running(block_with("children.md", "def nightly()")) as names:
        names["nightly"]()
        assert drain() == 3 + 9
    assert Batch.objects.filter(status="succeeded").count() == 4


def test_the_second_stage_follows_the_first():
    with running(block_with("stages.md", "def begin"), country_codes=lambda: ["NL", "IS"]) as names:
        batch = names["begin"](7, [(0, 500), (500, 1000)])
        drain()
    stage = Batch.objects.get(description="Count the cities of each country")
    batch.reload()
    assert (batch.status, stage.status, stage.total, stage.parent.callback_of) == ("succeeded", "succeeded", 2, batch)
    assert batch.result == 2  # the number of arguments of the report: its batch and the upload


def test_an_import_is_in_chunks(tmp_path):
    path = tmp_path / "prices.csv"
    with path.open("w") as file:
        csv.writer(file).writerows([["name", "price"], *[[f"product {n}", n] for n in range(1_200)]])
    with running(block_with("imports.md", "def import_prices")) as names:
        batch = names["import_prices"](path)
        drain()
    batch.reload()
    assert (batch.status, batch.succeeded) == ("succeeded", 3)


def test_a_second_import_with_the_key_is_refused():
    with running(block_with("keys.md", "BatchExists")) as names:
        assert names["import_prices"](Value()).total == 3
        assert names["import_prices"](Value()) is None


def test_a_job_adds_siblings():
    found = {"/": ["/a", "/b"]}
    with running(block_with("growing.md", "def crawl"), new_links=lambda url: found.get(url, [])) as names:
        with Batch.open() as batch:
            batch.enqueue(names["crawl"], "/")
        assert drain() == 3
    batch.reload()
    assert batch.succeeded == 3


def test_a_long_job_notices_the_cancellation_of_its_batch():
    written = []

    def write_row(row_id):
        written.append(row_id)
        Batch.objects.get().cancel()

    with running(block_with("steering.md", "def export"), write_row=write_row) as names:
        with Batch.open() as batch:
            batch.enqueue(names["export"], [1, 2, 3])
        drain()
    batch.reload()
    assert (written, batch.status, batch.cancelled) == ([1], "cancelled", 1)


def test_an_asynchronous_view_opens_a_batch():
    with running(block_with("async.md", "async def upload")) as names:
        assert async_to_sync(names["upload"])(Value()).status_code == 200
        drain()
    assert (Batch.objects.get().status, Batch.objects.get().total) == ("succeeded", 4)


def test_a_returned_retry_runs_the_job_again():
    answer = Value()
    answer.status, answer.text, answer.headers = 429, "a chair", {"Retry-After": "0"}

    def ask_service(picture_pk):
        answer.calls = getattr(answer, "calls", 0) or 0
        answer.calls += 1
        answer.status = 429 if answer.calls < 3 else 200
        return answer

    with running(block_with("retries.md", "Retry-After"), ask_service=ask_service) as names:
        with Batch.open() as batch:
            batch.enqueue(names["describe"], 7)
        drain()
    assert list(batch.results()) == ["a chair"] and answer.calls == 3
