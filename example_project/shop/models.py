"""A shop's products and their images, each in three sizes."""

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from django.db import models
from django.db.transaction import atomic

from django_batches.models import Batch


class Product(models.Model):
    """A product. Customers see it once all of its images exist."""

    name = models.CharField(max_length=100)
    is_visible = models.BooleanField("visible", default=False)
    image_batch = models.ForeignKey(Batch, models.SET_NULL, null=True, blank=True, editable=False, related_name="+")
    """The batch that makes or made its images."""

    class Meta:
        ordering: ClassVar = ["pk"]

    def __str__(self) -> str:
        return self.name

    @classmethod
    def with_photographs(cls, name: str, photographs: Iterable[Path]) -> "Product":
        """Creates a product that is not visible yet, with one image per photograph."""
        with atomic():
            product = cls.objects.create(name=name)
            ProductImage.objects.bulk_create(ProductImage(product=product, source=str(path)) for path in photographs)
        return product

    def show(self) -> None:
        """Makes the product visible to customers."""
        self.is_visible = True
        self.save(update_fields=["is_visible"])


class ProductImage(models.Model):
    """One photograph of a product, and its three sizes."""

    product = models.ForeignKey(Product, models.CASCADE, related_name="images")
    source = models.TextField(help_text="Path of the photograph as it came from the camera.")
    small = models.FileField(max_length=200, blank=True)
    medium = models.FileField(max_length=200, blank=True)
    large = models.FileField(max_length=200, blank=True)

    class Meta:
        ordering: ClassVar = ["pk"]

    def __str__(self) -> str:
        return Path(self.source).name
