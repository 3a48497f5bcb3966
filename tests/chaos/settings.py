"""The test settings, with the namespace of a round."""

from tests.settings import *

DJANGO_BATCHES = {"CACHE": "batches", "NAMESPACE": "chaos", "OPEN_TIMEOUT": 10}
