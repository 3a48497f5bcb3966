"""Filters for the templates of this package only, so that `{% load batches %}` does not shadow filters of yours."""

import re

from django import template
from django.utils.html import format_html_join
from django.utils.safestring import SafeString

from ..monitoring import formatting, progress

register = template.Library()
register.filter("batch_summary", progress.summary)
register.filter("duration", formatting.duration)
register.filter("moment", formatting.moment)
register.filter("number", formatting.number)


@register.filter
def breakable(value: str) -> SafeString:
    return format_html_join("", "{}<wbr>", ((part,) for part in re.findall(r"[^.]*\.?", value) if part))


@register.filter
def share(value: int, whole: int) -> str:
    """The value as a percentage of the whole, at least 1, for an HTML attribute."""
    return str(max(1, round(100 * value / max(whole, 1))))


@register.filter
def admin_page(site: str, name: str) -> str:
    """The URL name of a page of the batch admin, on the given admin site."""
    return f"{site}:django_batches_batch_{name}"
