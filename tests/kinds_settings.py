"""The settings of a worker whose Redis is of another kind: CACHES comes from the test."""

import json
import os

from .settings import *

CACHES = json.loads(os.environ["TEST_CACHES"])
