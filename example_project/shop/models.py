"""A shop's products and their images, each in three sizes."""

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from django.db import models
from django.db.transaction import atomic

from django_batches.models import Batch


class Product(models.Model):
    """Something to sell. Customers see it once all of its images are there."""

    name = models.CharField(max_length=100)
    is_visible = models.BooleanField("visible", default=False)
    image_batch = models.ForeignKey(Batch, models.SET_NULL, null=True, blank=True, editable=False, related_name="+")
    """The batch that makes its images, or made them."""

    class Meta:
        ordering: ClassVar = ["pk"]

    def __str__(self) -> str:
        return self.name

    @classmethod
    def with_photographs(cls, name: str, photographs: Iterable[Path]) -> "Product":
        """A new product, not visible yet, with an image to be made of each photograph."""
        with atomic():
            product = cls.objects.create(name=name)
            ProductImage.objects.bulk_create(ProductImage(product=product, source=str(path)) for path in photographs)
        return product

    def show(self) -> None:
        """Lets the customers see it."""
        self.is_visible = True
        self.save(update_fields=["is_visible"])


class ProductImage(models.Model):
    """One photograph of a product, and what the shop's pages show of it."""

    product = models.ForeignKey(Product, models.CASCADE, related_name="images")
    source = models.TextField(help_text="Path of the photograph as it came from the camera.")
    small = models.FileField(max_length=200, blank=True)
    medium = models.FileField(max_length=200, blank=True)
    large = models.FileField(max_length=200, blank=True)

    class Meta:
        ordering: ClassVar = ["pk"]

    def __str__(self) -> str:
        return Path(self.source).name
