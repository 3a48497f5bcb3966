"""The status of batches as JSON, for bars on a user's own pages; the metrics for Prometheus."""

import hmac
import logging
from typing import cast
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
"""Batches that one request may ask for."""


@login_not_required  # STATUS_PERMISSION says who may see what
@never_cache
@require_GET
def status(request: HttpRequest) -> JsonResponse:
    """`?id=…&id=…`: those of the batches that the setting STATUS_PERMISSION lets the user see; 403 where it is none."""
    batches = [batch for batch in asked_for(request) if may_see(request, batch)]
    if not batches:
        raise PermissionDenied
    return JsonResponse({"batches": snapshots(batches)})


def asked_for(request: HttpRequest) -> list[Batch]:
    return list(Batch.objects.filter(pk__in=ids_of(request)))


def ids_of(request: HttpRequest) -> list[UUID]:
    """The keys that a request asks for; what is no key is passed over."""
    found = []
    for text in request.GET.getlist("id")[:LIMIT]:
        try:
            found.append(UUID(text))
        except ValueError:
            continue
    return found


def may_see(request: HttpRequest, batch: Batch) -> bool:
    """What the function of the setting says; False without one, and where it cannot be found."""
    path = settings().STATUS_PERMISSION
    if not path:
        return False
    try:
        permission = resolve(path)
    except (FunctionNotAllowed, ImportError) as error:
        logger.error('%s["STATUS_PERMISSION"]: %s', SETTING, error)
        return False
    # Truthy is not enough: a forgotten call (`return request.user.has_perm`) would let everybody in.
    return cast(object, permission(request, batch)) is True


@login_not_required  # a scraper has a token and no session
@never_cache
@require_GET
def metrics(request: HttpRequest) -> HttpResponse:
    """The metrics, for who sends the setting METRICS_TOKEN as a bearer, and for staff who may view batches."""
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
    user = getattr(request, "user", None)
    if user is None or not user.is_active or not getattr(user, "is_staff", False):
        return False
    return bool(user.has_perm(f"{APP}.view_batch"))
