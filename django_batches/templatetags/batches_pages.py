"""For our own templates alone, so that `{% load batches %}` brings no filter named like one of yours."""

import re
from datetime import datetime, timedelta
from typing import Any

from django import template
from django.utils.html import format_html_join
from django.utils.safestring import SafeString

from ..models import Batch
from ..monitoring.formatting import duration
from ..monitoring.formatting import moment as _moment
from ..monitoring.formatting import number as _number
from ..monitoring.progress import summary

register = template.Library()


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
