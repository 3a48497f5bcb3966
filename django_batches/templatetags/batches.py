"""`{% load batches %}{% batch_progress batch %}`: a bar that moves by itself, for a user's own page.

It asks the status view (`include("django_batches.urls")`), and for that the setting STATUS_PERMISSION must let the user
see the batch. Where the view is not included, the bar stands still.
"""

import re
from datetime import datetime, timedelta
from typing import Any

from django import template
from django.template import Context
from django.urls import NoReverseMatch, reverse
from django.utils.html import format_html_join
from django.utils.safestring import SafeString

from ..models import Batch
from ..progress import snapshots, summary
from ..wording import duration
from ..wording import moment as _moment
from ..wording import number as _number

register = template.Library()


@register.inclusion_tag("django_batches/progress.html", takes_context=True)
def batch_progress(context: Context, batch: Batch, assets: bool = True) -> dict[str, Any]:
    """The bar of a batch. `assets=False` where the page links the style sheet and the script itself."""
    try:
        live = reverse("django_batches:status")
    except NoReverseMatch:
        live = ""
    shown = snapshots([batch])[str(batch.pk)]
    return {"batch": batch, "shown": shown, "live": live, "assets": assets, "csp_nonce": context.get("csp_nonce")}


@register.simple_tag
def batch_summary(batch: Batch) -> str:
    """One sentence with the counts of a batch."""
    return summary(batch)


@register.filter
def number(value: int) -> str:
    """With separators of thousands."""
    return _number(value)


@register.filter
def breakable(value: str) -> SafeString:
    """A dotted path that a narrow column may break after a dot."""
    return format_html_join("", "{}<wbr>", ((part,) for part in re.findall(r"[^.]*\.?", value) if part))


@register.filter
def plain(value: Any) -> str:
    """A number for a machine: without separators."""
    return str(value)


@register.filter
def plus(value: int, more: int) -> str:
    """The sum, for a machine."""
    return str(value + more)


@register.filter
def share(value: int, whole: int) -> str:
    """Percents of the whole, at least 1, for a machine."""
    return str(max(1, round(100 * value / max(whole, 1))))


@register.filter
def moment(value: datetime) -> str:
    """Date and time to the second."""
    return _moment(value)


@register.filter
def length_of_time(value: timedelta) -> str:
    return duration(value)


@register.filter
def admin_page(site: str, name: str) -> str:
    """The name of one of our pages on an admin site."""
    return f"{site}:django_batches_batch_{name}"
