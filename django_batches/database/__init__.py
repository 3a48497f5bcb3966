"""The tables and the statements on them. All that differs between databases is in this wing."""

from .statements import as_uuid as as_uuid
from .statements import atomic_with_lock_timeout as atomic_with_lock_timeout
from .statements import dialect as dialect
from .statements import lock_batches as lock_batches
from .statements import parameter as parameter
from .statements import unsupported as unsupported
from .statements import values as values
from .tables import APP as APP
from .tables import BATCH as BATCH
from .tables import BUCKET as BUCKET
from .tables import CHUNK as CHUNK
from .tables import FAILURE_GROUP as FAILURE_GROUP
from .tables import JOB as JOB
from .tables import LARGE_JOB_FIELDS as LARGE_JOB_FIELDS
from .tables import TIME_BUDGET as TIME_BUDGET
from .tables import USER_FIELDS as USER_FIELDS
from .tables import alias as alias
from .tables import atomic as atomic
from .tables import batches as batches
from .tables import connection as connection
from .tables import execute as execute
from .tables import jobs as jobs
from .tables import register_models as register_models
from .tables import related as related
from .tables import single_statement as single_statement
