"""The settings of the tests, for processes that work on the database of a round."""

from tests.settings import *

DJANGO_BATCHES = {"CACHE": "batches", "NAMESPACE": "chaos", "OPEN_TIMEOUT": 10}
