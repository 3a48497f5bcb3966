"""Settings of a batchworker beside the tests: the same, on the database that the tests made."""

from tests.settings import *

DATABASES["default"]["NAME"] = os.environ["TEST_DATABASE"]
