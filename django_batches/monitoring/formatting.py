"""Formats numbers, times, durations and rates in the active language."""

from datetime import datetime, timedelta
from typing import Any

from django.utils import timezone
from django.utils.formats import date_format, number_format, time_format
from django.utils.translation import gettext as _, ngettext, pgettext


def number(value: int | float, decimals: int = 0) -> str:
    # Round first, because `number_format` truncates.
    return number_format(round(value, decimals), decimals, use_l10n=True, force_grouping=True)


def moment(when: datetime) -> str:
    """Formats a date and time to the second, in the active time zone."""
    local = timezone.localtime(when) if timezone.is_aware(when) else when
    return f"{date_format(local, 'SHORT_DATE_FORMAT')} {time_format(local, 'H:i:s')}"


def duration(delta: timedelta, *, rough: bool = False) -> str:
    """Formats a duration: "0.2 s", "12 s", "3 min 20 s", "2 h 5 min", "3 d 4 h"; if `rough`, as words in one unit."""
    seconds = max(0.0, delta.total_seconds())
    if rough:
        return _rough(seconds)
    if seconds < 10:
        return pgettext("duration", "%s s") % number(seconds, 1)
    whole = int(seconds)
    units = [
        (whole // 86_400, pgettext("duration", "%d d")),
        (whole // 3_600 % 24, pgettext("duration", "%d h")),
        (whole // 60 % 60, pgettext("duration", "%d min")),
        (whole % 60, pgettext("duration", "%d s")),
    ]
    largest = next(index for index, (count, _unit) in enumerate(units) if count)
    return " ".join(unit % count for count, unit in units[largest : largest + 2] if count)


def rate_text(per_second: float) -> str:
    """Formats a rate as jobs per second, minute or hour: the first unit in which it is at least 1."""
    for factor, text in ((1, _("%s jobs/s")), (60, _("%s jobs/min"))):
        if (value := per_second * factor) >= 1:
            return text % number(value, 0 if value >= 10 else 1)
    return _("%s jobs/h") % number(per_second * 3_600, 0)


def pauses(backoff: Any) -> str:
    """Formats the pauses between attempts. `backoff` is seconds, a list of seconds, or the dict of an `exponential`."""
    if isinstance(backoff, dict):
        return _("%(first)s, × %(factor)s each time, at most %(limit)s") % {
            "first": duration(timedelta(seconds=backoff["first"])),
            "factor": f"{backoff['factor']:g}",
            "limit": duration(timedelta(seconds=backoff["limit"])),
        }
    given = backoff if isinstance(backoff, list) else [backoff]
    return ", ".join(duration(timedelta(seconds=pause)) for pause in given) if any(given) else ""


def _rough(seconds: float) -> str:
    if seconds < 60:
        return _("less than a minute")
    if (minutes := round(seconds / 60)) < 60:
        return ngettext("%d minute", "%d minutes", minutes) % minutes
    if (hours := round(seconds / 3_600)) < 48:
        return ngettext("%d hour", "%d hours", hours) % hours
    days = round(seconds / 86_400)
    return ngettext("%d day", "%d days", days) % days
