"""Starts an import."""

from django.db.transaction import atomic

from django_batches import Batch

from . import source
from .models import Import
from .tasks import count_countries, import_cities, import_countries


def begin_import() -> Import:
    """Starts to import all countries and cities; returns at once.

    Raises `BatchExists` while another import is running.
    """
    with atomic():
        begun = Import.objects.create()
        with Batch.open("Import the cities", queue="import", key="import of the cities") as batch:
            batch.on_success(count_countries, begun.pk)
            batch.enqueue(import_countries)
            batch.starmap(import_cities, source.chunks())
        begun.cities_batch = batch
        begun.save(update_fields=["cities_batch"])
    return begun
