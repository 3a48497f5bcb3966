"""`{% load batches %}{% batch_progress batch %}`: a bar that moves by itself, for a user's own page.

It asks the status view (`include("django_batches.urls")`), and for that the setting STATUS_PERMISSION must let the user
see the batch. Where the view is not included, the bar stands still.
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
    """The bar of a batch; nothing for None, which a field becomes when its batch is deleted.

    `assets=False` where the page links the style sheet and the script itself.
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
        # As text: Django's own and django-csp's are false until somebody has asked for their text.
        "csp_nonce": "" if nonce is None else str(nonce),
    }
