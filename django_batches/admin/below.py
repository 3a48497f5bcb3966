"""What a confirmation page says of the batches below, with counts as far as they are cheap."""

from django.db.models import Q
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from .. import database
from ..models import Batch
from ..monitoring import tree
from ..monitoring.formatting import number
from . import actions
from .actions import Act, Target
from .job_rows import FAILED_BY_CHILD

MOST = 1_000
"""Batches below that are counted."""


def note(act: Act, target: Target) -> str:
    """What the act does to child batches; empty where there are none."""
    if act.below is None:
        return ""
    if act.permission == "retry":
        counted = _retried(target)
    elif act is actions.DELETE:
        counted = _below(target.batch, Q())
    else:
        counted = _below(target.batch, Q(finished_at=None))
    found = [str(act.below), counted] if counted else []
    if act.permission == "retry" and target.batch.parent_id and not target.batch.is_awaited:
        found.append(_("It is a child batch: the jobs above that failed by it wait for it again."))
    return " ".join(found)


def _retried(target: Target) -> str:
    """The jobs concerned that failed by their child batches, by the groups of failures."""
    if target.job:
        return _("This concerns this job.") if target.job.error_type == FAILED_BY_CHILD else ""
    groups = target.batch.failure_groups.filter(error_type=FAILED_BY_CHILD)
    if target.group:
        groups = groups.filter(pk=target.group.pk)
    count = sum(groups.values_list("count", flat=True))
    return _of(count, ngettext("This concerns %(count)s job.", "This concerns %(count)s jobs.", count))


def _below(batch: Batch, chosen: Q) -> str:
    """How many batches below it that concerns."""
    found = database.batches().filter(chosen).order_by().only("pk")
    count = sum(len(level) for level in tree.levels(batch.pk, found, MOST + 1))
    if count > MOST:
        return _of(MOST, _("This concerns more than %(count)s batches below it."))
    text = ngettext("This concerns %(count)s batch below it.", "This concerns %(count)s batches below it.", count)
    return _of(count, text)


def _of(count: int, text: str) -> str:
    return text % {"count": number(count)} if count else ""
