"""Tests of the import: only the failed job runs again after a correction, and a second import leaves no duplicates."""

from django.test import TestCase, override_settings

from django_batches.exceptions import BatchExists
from django_batches.testing import drain

from ..trees import tree_of
from . import source
from .importing import begin_import
from .models import City, Country, Import
from .tasks import count_country, import_cities, import_countries


class StagesTests(TestCase):
    def test_a_stage_that_fails_is_retried_alone_and_then_the_report_is_complete(self):
        started = begin_import()
        drain(raise_failures=False)
        started.refresh_from_db()
        first, second = tree_of(started.cities_batch)
        self.assertEqual(second, started.countries_batch)
        self.assertEqual((first.status, second.status, started.report), ("succeeded", "failed", None))
        failed = second.jobs.get(status="failed")
        self.assertEqual((failed.args, failed.error_type), (["VA"], "ZeroDivisionError"))
        imported = dict(City.objects.values_list("pk", "imported_at"))

        Country.objects.filter(pk="VA").update(area=0.44)
        first.retry_failed()
        self.assertEqual(drain(), 2)  # the Vatican, and the report
        started.refresh_from_db()
        self.assertEqual([batch.status for batch in tree_of(first)], ["succeeded", "succeeded"])
        self.assertEqual(started.report["cities"], len(source.cities()))
        self.assertEqual(started.report["countries"], second.total)
        self.assertEqual(dict(City.objects.values_list("pk", "imported_at")), imported)

    def test_the_import_is_as_large_as_is_said(self):
        self.assertGreaterEqual(len(source.cities()), 20_000)
        chunks = source.chunks()
        self.assertEqual(sum(end - start for start, end in chunks), len(source.cities()))

    def test_a_second_import_is_refused_while_one_is_under_way(self):
        begin_import()
        with self.assertRaises(BatchExists):
            begin_import()
        self.assertEqual(Import.objects.count(), 1)


class TwiceTests(TestCase):
    def test_a_chunk_that_is_imported_twice_is_there_once_as_it_came_last(self):
        import_cities(0, 500)
        before = City.objects.first()
        City.objects.update(population=1)
        import_cities(0, 500)
        self.assertEqual(City.objects.count(), 500)
        self.assertEqual(City.objects.get(pk=before.pk).population, before.population)

    def test_countries_that_were_corrected_stay_so(self):
        import_countries()
        Country.objects.filter(pk="VA").update(area=0.44)
        import_countries()
        self.assertEqual(Country.objects.get(pk="VA").area, 0.44)

    def test_a_country_is_counted_from_its_cities(self):
        import_countries()
        import_cities(0, len(source.cities()))
        count_country("AD")
        andorra = Country.objects.get(pk="AD")
        self.assertEqual((andorra.cities, andorra.largest_city), (2, "Andorra la Vella"))
        self.assertEqual((andorra.population, andorra.area, round(andorra.density)), (77_006, 468, 165))


@override_settings(DJANGO_BATCHES={"CACHE": "batches", "STATUS_PERMISSION": "example_project.views.may_see"})
class PageTests(TestCase):
    def test_the_page_shows_a_bar_for_each_stage_and_then_the_report(self):
        self.assertContains(self.client.get("/cities/"), "Nothing has been imported yet.")
        started = begin_import()
        page = self.client.get("/cities/")
        self.assertContains(page, f'data-batch="{started.cities_batch.pk}"')
        self.assertContains(page, "The report appears when")
        Country.objects.create(pk="VA", name="Vatican", continent="EU", area=0.44, population=921)
        drain()
        page = self.client.get("/cities/")
        self.assertContains(page, 'class="batch-progress"', count=2)
        self.assertContains(page, f"{len(source.cities())} cities in 244 countries.")
        started.refresh_from_db()
        for batch in (started.cities_batch, started.countries_batch):
            self.assertEqual(self.client.get("/batches/status/", {"id": str(batch.pk)}).status_code, 200)
