"""Settings of a batchworker next to the tests: the same settings, on the test database."""

from tests.settings import *

DATABASES["default"]["NAME"] = os.environ["TEST_DATABASE"]
