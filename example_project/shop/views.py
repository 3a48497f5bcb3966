"""What the customers see: the products, and how far the images of each are."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from .models import Product


@require_safe
def products(request: HttpRequest) -> HttpResponse:
    """All products, with a bar that moves while the images of one are made."""
    found = Product.objects.select_related("image_batch").prefetch_related("images")
    return render(request, "shop/products.html", {"products": found})
