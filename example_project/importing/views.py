"""The progress of the newest import, and its report."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from .models import Import


@require_safe
def cities(request: HttpRequest) -> HttpResponse:
    """Shows a bar for each stage of the newest import, and its report once both are done."""
    newest = Import.objects.select_related("cities_batch", "countries_batch").first()
    return render(request, "importing/cities.html", {"newest": newest})
