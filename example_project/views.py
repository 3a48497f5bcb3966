"""Decides who may see the progress of a batch on the example's pages."""

from django.db.models import Q
from django.http import HttpRequest

from django_batches.models import Batch

from .importing.models import Import
from .shop.models import Product


def may_see(request: HttpRequest, batch: Batch) -> bool:
    """STATUS_PERMISSION of the example: everyone may see the batches of products and of imports, but no others."""
    imports = Import.objects.filter(Q(cities_batch=batch) | Q(countries_batch=batch))
    return Product.objects.filter(image_batch=batch).exists() or imports.exists()
