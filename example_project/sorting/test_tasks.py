"""Tests of the merge sort, as a project would write them: `drain()` runs all jobs without a worker."""

import random
from pathlib import Path

from django.test import TestCase, override_settings

from django_batches.testing import drain

from . import tasks
from .merge_sort import MAX_ATTEMPTS, figures_of, sort_in_batch, sorted_values
from .service import NoAnswerError


class MergeSortTests(TestCase):
    def setUp(self):
        random.seed(2013)
        self.values = random.sample(range(1000), 60)

    def test_numbers_are_sorted_though_one_call_in_three_fails(self):
        batch = sort_in_batch(self.values)
        drain()
        self.assertEqual(sorted_values(batch), sorted(self.values))
        figures = figures_of(batch)
        self.assertEqual((figures.batches, figures.succeeded_batches), (60, 60))
        self.assertEqual((figures.jobs, figures.succeeded_jobs), (178, 178))
        self.assertGreater(min(figures.failed_runs.values()), 0)
        self.assertEqual(figures.runs, 178 + sum(figures.failed_runs.values()))
        self.assertEqual(figures.repeated_runs, 0)

    @override_settings(FLAKY_RATE=0)
    def test_every_function_runs_once_if_nothing_fails(self):
        batch = sort_in_batch([3, 1, 2, 3])
        self.assertEqual(drain(), 10)
        self.assertEqual(sorted_values(batch), [1, 2, 3, 3])
        self.assertEqual(figures_of(batch).runs, 10)

    @override_settings(FLAKY_RATE=1)
    def test_a_service_that_never_answers_fails_the_batch_after_the_last_attempt(self):
        batch = sort_in_batch(self.values)
        with self.assertLogs("django_batches.jobs"), self.assertRaisesMessage(NoAnswerError, "split did not answer"):
            drain()
        batch.refresh_from_db()
        self.assertEqual((batch.status, batch.jobs.get().attempts), ("failed", MAX_ATTEMPTS))
        self.assertEqual(figures_of(batch).failed_runs, {"sort": MAX_ATTEMPTS, "merge": 0})

    def test_lists_of_one_number_and_of_none_are_sorted(self):
        for values in ([7], []):
            batch = sort_in_batch(values)
            self.assertEqual(drain(), 1)
            self.assertEqual(sorted_values(batch), values)

    def test_it_takes_fewer_than_25_lines(self):
        lines = Path(tasks.__file__).read_text().splitlines()
        self.assertLess(len([line for line in lines if line.strip()]), 25)
