"""`{% load batches %}{% batch_progress batch %}`: a progress bar with live updates, for your own pages.

The bar polls the status view, so include `django_batches.urls` in your URLs, and let the setting STATUS_PERMISSION
allow the user to see the batch. Without the view, the bar is static.
"""

from typing import Any

from django import template
from django.template import Context
from django.urls import NoReverseMatch, reverse

from ..models import Batch
from ..monitoring.progress import snapshots

register = template.Library()


@register.inclusion_tag("django_batches/progress.html", takes_context=True)
def batch_progress(context: Context, batch: Batch | None, assets: bool = True) -> dict[str, Any]:
    """Renders the progress bar of a batch. Renders nothing for None, so a nullable foreign key needs no `{% if %}`.

    Pass `assets=False` if the page links the style sheet and the script itself.
    """
    if not batch:
        return {}
    try:
        live = reverse("django_batches:status")
    except NoReverseMatch:
        live = ""
    nonce = context.get("csp_nonce") if assets else None
    return {
        "batch": batch,
        "shown": snapshots([batch])[str(batch.pk)],
        "live": live,
        "assets": assets,
        # The lazy nonces of Django and django-csp are false until they have been converted to text.
        "csp_nonce": "" if nonce is None else str(nonce),
    }
