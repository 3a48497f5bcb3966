"""The status of batches as JSON, for progress bars on your own pages, and the metrics for Prometheus."""

import hmac
import logging
from contextlib import suppress
from typing import Any, cast
from uuid import UUID

from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET

from .calls.functions import resolve
from .conf import SETTING, settings
from .database import APP
from .exceptions import FunctionNotAllowed
from .models import Batch
from .monitoring import metrics as _metrics
from .monitoring.progress import snapshots

__all__ = ["metrics", "status"]

logger = logging.getLogger("django_batches")

LIMIT = 100
"""The most batches that one request can name."""


@login_not_required  # the STATUS_PERMISSION function decides
@never_cache
@require_GET
def status(request: HttpRequest) -> JsonResponse:
    """Returns the batches of `?id=…&id=…` that STATUS_PERMISSION lets the user see; status 403 if there are none."""
    batches = [batch for batch in Batch.objects.filter(pk__in=ids_of(request)) if may_see(request, batch)]
    if not batches:
        raise PermissionDenied
    return JsonResponse({"batches": snapshots(batches)})


def ids_of(request: HttpRequest) -> list[UUID]:
    """Returns the ids in the query string, without invalid ones."""
    ids = []
    for text in request.GET.getlist("id")[:LIMIT]:
        with suppress(ValueError):
            ids.append(UUID(text))
    return ids


def may_see(request: HttpRequest, batch: Batch) -> bool:
    """Calls the STATUS_PERMISSION function; returns False if none is set or it cannot be imported."""
    path = settings().STATUS_PERMISSION
    if not path:
        return False
    try:
        permission = resolve(path)
    except (FunctionNotAllowed, ImportError) as error:
        logger.error('%s["STATUS_PERMISSION"]: %s', SETTING, error)
        return False
    # Only True counts: a function that forgets a call (`return request.user.has_perm`) would let everyone in.
    return cast(object, permission(request, batch)) is True


@login_not_required  # Prometheus sends a token and has no session
@never_cache
@require_GET
def metrics(request: HttpRequest) -> HttpResponse:
    """Returns the metrics to requests with METRICS_TOKEN as bearer token, and to staff who may view batches."""
    if not may_read_metrics(request):
        return HttpResponse("Send the METRICS_TOKEN.\n", "text/plain", 401, headers={"WWW-Authenticate": "Bearer"})
    if not _metrics.is_available:
        return HttpResponse(f"{_metrics.MISSING}\n", "text/plain", 501)
    return HttpResponse(_metrics.text(), _metrics.CONTENT_TYPE)


def may_read_metrics(request: HttpRequest) -> bool:
    token = settings().METRICS_TOKEN
    kind, _, sent = request.headers.get("Authorization", "").partition(" ")
    if token and kind.lower() == "bearer" and hmac.compare_digest(sent.strip().encode(), token.encode()):
        return True
    user: Any = getattr(request, "user", None)
    is_staff = user is not None and user.is_active and getattr(user, "is_staff", False)
    return bool(is_staff and user.has_perm(f"{APP}.view_batch"))
