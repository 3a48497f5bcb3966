"""The lease of the active coordinator: one row, judged by the database's clock.

Each transaction of the active coordinator touches the row first. A coordinator that was frozen for minutes finds
another token there, and its transaction ends before it has written anything.
"""

import logging
from datetime import datetime, timedelta

from .. import database
from ..conf import settings

logger = logging.getLogger("django_batches")

NAME = "coordinator"
SECONDS = 15
"""How long a lease lasts without a touch: how late a standby may notice that the active coordinator has died."""

SAME_NAMESPACE = 'Set DJANGO_BATCHES["NAMESPACE"] to the same text in all of them.'


def other_namespace(active: str) -> str:
    """The error if the active coordinator has another NAMESPACE than this process; otherwise an empty text."""
    here = settings().NAMESPACE
    if not active or active == here:
        return ""
    return (
        f"The active coordinator uses the namespace {active} and this process uses {here}, so they use different keys "
        "in Redis. The default is derived from the database's address, which their settings spell differently."
    )


class LeaseLost(Exception):
    """Another coordinator is active now."""


class Lease:
    """The right to be the active coordinator.

    Call it as a fence at the start of a transaction: it returns the time, or raises `LeaseLost`.
    """

    def __init__(self, holder: str) -> None:
        self.holder = holder
        self.token = 0
        """Grows with each change of the holder; 0 while another coordinator has the lease."""
        self._other_namespace = ""
        """The last one of another holder, so that each is logged once."""

    def acquire(self, newest_token: int = 0) -> bool:
        """Takes the lease if it is free or has expired, with a token above `newest_token`."""
        with database.atomic():
            database.dialect().limit_idle_time(SECONDS)
            now = database.dialect().now()
            leases = database.related("Lease")
            row, _ = leases.select_for_update().get_or_create(pk=NAME, defaults={"holder": "", "expires_at": now})
            if row.expires_at > now and row.holder != self.holder:
                if row.namespace != self._other_namespace and (text := other_namespace(row.namespace)):
                    logger.error("%s stands by. %s %s", self.holder, text, SAME_NAMESPACE)
                self._other_namespace = row.namespace
                return False
            token = max(row.token, newest_token) + 1
            values = {"holder": self.holder, "token": token, "namespace": settings().NAMESPACE}
            leases.filter(pk=NAME).update(**values, expires_at=now + timedelta(seconds=SECONDS))
        self.token = token
        return True

    def __call__(self) -> datetime:
        """Checks and extends the lease; returns the database's time."""
        if now := database.dialect().touch_lease(NAME, self.token, SECONDS):
            return now
        self.token = 0
        raise LeaseLost(f"{self.holder} is not the active coordinator any more.")

    def release(self) -> None:
        """Gives the lease up, so that a standby does not wait until it expires."""
        if self.token:
            # By the database's clock: a host whose clock is ahead would block all others for the difference.
            now = database.dialect().now()
            database.related("Lease").filter(pk=NAME, token=self.token).update(expires_at=now)
            self.token = 0
