"""Database functions that Django does not have."""

from typing import Any

from django.db.models import Func, IntegerField


class OctetLength(Func):
    """The bytes of a text. PostgreSQL answers this without reading the text itself, unlike its `length()`."""

    function = "OCTET_LENGTH"
    output_field = IntegerField()

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        # octet_length() needs SQLite 3.43. Our texts are ASCII.
        return super().as_sql(compiler, connection, function="LENGTH", **context)
