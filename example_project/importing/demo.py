"""The third part of the demo: an import in stages. One stage fails, is corrected and retried alone."""

import time
from datetime import datetime

from django.core.management.base import CommandError
from django.utils import timezone

from django_batches.exceptions import BatchExists
from django_batches.models import BatchJob

from ..processes import Process
from ..showing import Show
from . import source
from .importing import begin_import
from .models import City, Country, Import

VATICAN = "VA"
VATICAN_AREA = 0.44
"""km². Areas in the data are whole numbers, so this one is 0."""


def show_import(show: Show) -> None:
    """Imports all cities, then counts those of each country, then writes the report."""
    Country.objects.filter(pk=VATICAN).delete()  # an earlier demo has corrected it
    show.say(f"{len(source.cities()):,} cities of GeoNames in chunks of {source.CHUNK}, then a job per country ...")
    with show.worker("import") as worker:
        begun = time.monotonic()
        try:
            started = begin_import()
        except BatchExists as error:
            raise CommandError(str(error)) from error
        show.watch_tree(started.cities_batch, worker)
        print_stages(show, started)
        retry(show, started, worker)
        seconds = time.monotonic() - begun
    print_report(show, started, seconds)


def print_stages(show: Show, started: Import) -> None:
    """Prints how the stages ended. Waiting for the first batch waits for both stages."""
    started.refresh_from_db()
    if not started.countries_batch:
        raise CommandError("There is no second stage, because the first one failed.")
    for stage in (started.cities_batch, started.countries_batch):
        show.say(f"  “{stage}” {stage.status}: {stage.succeeded} of {stage.total} jobs succeeded.")
    for job in started.countries_batch.jobs.filter(status="failed"):
        country = Country.objects.get(pk=job.args[0])
        show.say(f"  {country}: {job.error}. It has {country.area:g} km² in the data.")


def retry(show: Show, started: Import, worker: Process) -> None:
    """Corrects the country, and retries the first batch, which finds the failed job below it."""
    show.say(f"  Corrected to {VATICAN_AREA} km². retry_failed() on the first batch ...")
    corrected = timezone.now()
    Country.objects.filter(pk=VATICAN).update(area=VATICAN_AREA)
    started.cities_batch.retry_failed()
    show.watch_tree(started.cities_batch, worker)
    print_repeated(show, started, corrected)


def print_repeated(show: Show, started: Import, since: datetime) -> None:
    """Prints which jobs ran again; raises `CommandError` if one of them had not failed."""
    stages = [started.cities_batch_id, started.countries_batch_id]
    jobs = BatchJob.objects.filter(batch__in=stages, started_at__gte=since).count()
    cities = City.objects.filter(imported_at__gte=since).count()
    countries = Country.objects.filter(counted_at__gte=since).count()
    show.say(f"  Run again: {jobs} job. {cities} cities were imported again, {countries} country was counted again.")
    if (jobs, cities, countries) != (1, 0, 1):
        raise CommandError("Jobs ran again that had not failed.")


def print_report(show: Show, started: Import, seconds: float) -> None:
    started.refresh_from_db()
    if not (report := started.report):
        raise CommandError("There is no report.")
    show.say(f"  {report['cities']:,} cities in {report['countries']} countries. The most: ", end="")
    show.say(", ".join(f"{name} {cities:,}" for name, cities, _ in report["most_cities"]) + ".")
    show.say(f"Imported and counted, the report complete, in {seconds:.1f} s.", style="bold")
