"""The jobs and callbacks of an import in two stages: cities in chunks, then one job per country, then a report.

Each function may run twice, because it writes the same rows again.
"""

from statistics import median
from typing import Any

from django.db.models import Count, Sum
from django.utils import timezone

from django_batches import Batch

from . import source
from .models import City, Country, Import


def import_countries() -> int:
    """Adds missing countries, and leaves the others unchanged, because they may have been corrected."""
    countries = [
        Country(
            code=row["iso"], name=row["name"], continent=row["continentcode"],
            area=row["areakm2"], population=row["population"],
        )
        for row in source.countries()
    ]  # fmt: skip
    Country.objects.bulk_create(countries, ignore_conflicts=True)
    return len(countries)


def import_cities(start: int, end: int) -> int:
    """Writes the cities of one chunk, replacing existing ones."""
    now = timezone.now()
    cities = [
        City(
            geoname=row["geonameid"], name=row["name"], country_code=row["countrycode"], population=row["population"],
            latitude=row["latitude"], longitude=row["longitude"], timezone=row["timezone"], imported_at=now,
        )
        for row in source.cities()[start:end]
    ]  # fmt: skip
    own = [field.name for field in City._meta.fields if not field.primary_key]
    City.objects.bulk_create(cities, update_conflicts=True, unique_fields=["geoname"], update_fields=own)
    return len(cities)


def count_countries(batch: Batch, import_pk: int) -> Batch:
    """Callback that opens the next stage: one job per country with cities."""
    codes = City.objects.order_by("country_code").values_list("country_code", flat=True).distinct()
    with Batch.open("Count the cities of each country") as stage:
        stage.on_success(write_report, import_pk)
        stage.map(count_country, codes)
    Import.objects.filter(pk=import_pk).update(countries_batch=stage)
    return stage


def count_country(code: str) -> None:
    country = Country.objects.get(pk=code)
    cities = City.objects.filter(country_code=code)
    country.cities = cities.count()
    country.largest_city = cities.order_by("-population", "geoname")[0].name
    country.density = country.population / country.area
    country.counted_at = timezone.now()
    country.save(update_fields=["cities", "largest_city", "density", "counted_at"])


def write_report(batch: Batch, import_pk: int) -> dict[str, Any]:
    """Callback that writes the report when all countries are counted."""
    counted = Country.objects.exclude(cities=None)
    by_continent = counted.order_by("continent").values("continent").annotate(n=Count("pk"), found=Sum("cities"))
    report = {
        "cities": City.objects.count(),
        "countries": counted.count(),
        "continents": [[row["continent"], row["n"], row["found"]] for row in by_continent],
        "most_cities": [[c.name, c.cities, c.largest_city] for c in counted.order_by("-cities", "name")[:5]],
        "median_density": median(counted.values_list("density", flat=True)),
    }
    Import.objects.filter(pk=import_pk).update(report=report)
    return report
