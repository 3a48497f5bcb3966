"""Who keeps the books: a row, judged by the database's clock.

The row is touched first in each of the holder's transactions. A coordinator that was frozen for minutes finds another
token there, and its transaction ends before it has written anything.
"""

import logging
from datetime import datetime, timedelta

from django.db import IntegrityError
from django.utils import timezone

from .. import database
from ..conf import settings

logger = logging.getLogger("django_batches")

NAME = "coordinator"
SECONDS = 15
"""How long a lease lasts without a touch: how late a standby may notice that the holder has died."""

_IDLE = "set_config('idle_in_transaction_session_timeout', %s, true)"
"""PostgreSQL ends this transaction where its client falls silent. The session of a lost host would hold the row of the
lease, and nobody could take over, until the server misses the client: by default after two hours."""


SAME_NAMESPACE = 'Set DJANGO_BATCHES["NAMESPACE"] to the same text in all of them.'


def other_namespace(holders: str) -> str:
    """What is wrong where the holder of the lease has another setting NAMESPACE than this process; else nothing."""
    here = settings().NAMESPACE
    if not holders or holders == here:
        return ""
    return (
        f"The books are kept with the namespace {holders}, and this process has {here}: they do not meet in Redis. By "
        "default it is made of the database's address, which their settings spell differently."
    )


class LeaseLost(Exception):
    """Another coordinator keeps the books now."""


class Lease:
    """The right to keep the books, called as a fence inside a transaction: gives the time, or raises `LeaseLost`."""

    def __init__(self, holder: str) -> None:
        self.holder = holder
        self.token = 0
        """The number of this tenure; 0 while another holds the lease."""
        self._met = ""
        """The namespace of the one that holds it."""

    def acquire(self, newest_token: int = 0) -> bool:
        """Takes the lease where it is free or has run out, with a token above `newest_token`."""
        with database.atomic():
            if database.connection().vendor == "postgresql":
                database.execute(f"SELECT {_IDLE}", [str(SECONDS * 1000)])
            now = database_time()
            leases = database.related("Lease")
            row = leases.select_for_update().filter(pk=NAME).first()
            if row is None:
                try:
                    row = leases.model(name=NAME, holder="", token=0, expires_at=now)
                    leases.bulk_create([row])
                except IntegrityError:  # another one came first
                    return False
            elif row.expires_at > now and row.holder != self.holder:
                if row.namespace != self._met:
                    self._met = row.namespace
                    if text := other_namespace(row.namespace):
                        logger.error("%s stands by. %s %s", self.holder, text, SAME_NAMESPACE)
                return False
            token = max(row.token, newest_token) + 1
            leases.filter(pk=NAME).update(
                holder=self.holder,
                token=token,
                expires_at=now + timedelta(seconds=SECONDS),
                namespace=settings().NAMESPACE,
            )
        self.token = token
        return True

    def __call__(self) -> datetime:
        """Proves the lease and prolongs it; the database's time."""
        if database.connection().vendor == "postgresql":
            touched = database.execute(
                "UPDATE django_batches_lease SET expires_at = clock_timestamp() + %s WHERE name = %s AND token = %s"
                f" RETURNING clock_timestamp(), {_IDLE}",
                [timedelta(seconds=SECONDS), NAME, self.token, str(SECONDS * 1000)],
            )
            if touched:
                return touched[0][0]  # type: ignore[no-any-return]
        else:
            now = timezone.now()
            held = database.related("Lease").filter(pk=NAME, token=self.token)
            if held.update(expires_at=now + timedelta(seconds=SECONDS)):
                return now
        self.token = 0
        raise LeaseLost(f"{self.holder} does not keep the books any more.")

    def release(self) -> None:
        """Gives the lease back, so that a standby need not wait for its end."""
        if self.token:
            # By the database's clock: with that of a host that is ahead nobody could take over for so long.
            database.related("Lease").filter(pk=NAME, token=self.token).update(expires_at=database_time())
            self.token = 0


def database_time() -> datetime:
    """The time by the database's clock; on SQLite that of the host, which is the same."""
    if database.connection().vendor == "postgresql":
        return database.execute("SELECT clock_timestamp()", [])[0][0]  # type: ignore[no-any-return]
    return timezone.now()
