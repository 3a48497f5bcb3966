"""The example's trees of batches with real workers: the merge sort of 1,000 numbers, and the stages of the import."""

import random

import pytest

from example_project.importing.importing import begin_import
from example_project.importing.models import City, Country
from example_project.sorting.merge_sort import figures_of, sort_in_batch, sorted_values
from example_project.trees import tree_of

SECONDS = 900
"""For about 4,000 runs on two cores that other tests keep busy."""


@pytest.mark.parametrize("count", [200, pytest.param(1_000, marks=pytest.mark.postgresql)])
@pytest.mark.slow
def test_numbers_are_sorted_though_one_call_in_three_fails(start_worker, count):
    values = random.sample(range(10 * count), count)
    start_worker("--workers", 2)
    batch = sort_in_batch(values)
    assert batch.wait(SECONDS)
    assert sorted_values(batch) == sorted(values)
    figures = figures_of(batch)
    assert figures.batches == figures.succeeded_batches == count
    assert figures.jobs == figures.succeeded_jobs == 3 * count - 2
    assert figures.runs == figures.jobs + sum(figures.failed_runs.values())
    assert figures.repeated_runs == 0
    # Half as many failures as calls on average; for 199 calls the standard deviation is 12, for 999 it is 27.
    assert all(0.2 * count < failed < 0.8 * count for failed in figures.failed_runs.values())


@pytest.mark.slow
def test_waiting_for_the_first_stage_waits_for_the_last(start_worker):
    Country.objects.create(pk="VA", name="Vatican", continent="EU", area=0.44, population=921)
    start_worker("--workers", 2)
    started = begin_import()
    assert started.cities_batch.wait(120)
    started.refresh_from_db()
    assert [batch.status for batch in tree_of(started.cities_batch)] == ["succeeded", "succeeded"]
    assert started.report["cities"] == City.objects.count() >= 20_000
    assert started.report["countries"] == started.countries_batch.total
    # The callback that opened the second stage ends when that stage ends.
    callback = started.cities_batch.callbacks.get()
    assert callback.finished_at >= started.countries_batch.finished_at
