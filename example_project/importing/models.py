"""Imported countries and cities, and the report on them."""

from typing import ClassVar

from django.db import models

from django_batches.models import Batch


class Country(models.Model):
    """A country, with figures that its own job computes."""

    code = models.CharField(max_length=2, primary_key=True)
    name = models.CharField(max_length=100)
    continent = models.CharField(max_length=2)
    area = models.FloatField(help_text="km²")
    population = models.PositiveBigIntegerField()

    cities = models.PositiveIntegerField(null=True, editable=False)
    largest_city = models.CharField(max_length=200, blank=True, editable=False)
    density = models.FloatField(null=True, editable=False, help_text="People per km².")
    counted_at = models.DateTimeField(null=True, editable=False)

    class Meta:
        ordering: ClassVar = ["name"]
        verbose_name_plural = "countries"

    def __str__(self) -> str:
        return self.name


class City(models.Model):
    geoname = models.PositiveIntegerField("GeoNames id", primary_key=True)
    name = models.CharField(max_length=200)
    country_code = models.CharField(max_length=2, db_index=True)
    population = models.PositiveIntegerField()
    latitude = models.FloatField()
    longitude = models.FloatField()
    timezone = models.CharField(max_length=50)
    imported_at = models.DateTimeField()

    class Meta:
        ordering: ClassVar = ["name"]
        verbose_name_plural = "cities"

    def __str__(self) -> str:
        return self.name


class Import(models.Model):
    """One import in two stages, and the report that follows both."""

    started_at = models.DateTimeField("started", auto_now_add=True)
    cities_batch = models.ForeignKey(Batch, models.SET_NULL, null=True, editable=False, related_name="+")
    countries_batch = models.ForeignKey(Batch, models.SET_NULL, null=True, editable=False, related_name="+")
    report = models.JSONField(null=True, editable=False)

    class Meta:
        ordering: ClassVar = ["-pk"]

    def __str__(self) -> str:
        return f"Import {self.pk}"
