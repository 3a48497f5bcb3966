from typing import ClassVar

from django.contrib import admin

from .models import City, Country, Import


@admin.register(Country)
class CountryAdmin(admin.ModelAdmin):
    list_display: ClassVar = ["name", "continent", "area", "population", "cities", "largest_city", "density"]
    search_fields: ClassVar = ["name", "code"]


@admin.register(City)
class CityAdmin(admin.ModelAdmin):
    list_display: ClassVar = ["name", "country_code", "population"]
    search_fields: ClassVar = ["name"]


@admin.register(Import)
class ImportAdmin(admin.ModelAdmin):
    list_display: ClassVar = ["pk", "started_at", "cities_batch", "countries_batch"]
    list_select_related: ClassVar = ["cities_batch", "countries_batch"]
    readonly_fields: ClassVar = ["started_at", "cities_batch", "countries_batch", "report"]

    def has_add_permission(self, request):
        return False
