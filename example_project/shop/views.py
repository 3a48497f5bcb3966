"""The page of the customers: the products, and the progress of their images."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from .models import Product


@require_safe
def products(request: HttpRequest) -> HttpResponse:
    """Lists all products, with a progress bar while the images of a product are made."""
    found = Product.objects.select_related("image_batch").prefetch_related("images")
    return render(request, "shop/products.html", {"products": found})
