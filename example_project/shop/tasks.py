"""The jobs and callbacks of the shop."""

from io import BytesIO

from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from PIL import Image, ImageOps

from django_batches.models import Batch

from .models import Product, ProductImage

SIDES = {"small": 320, "medium": 960, "large": 1920}
"""Length of the longer side, in pixels, for each size."""


def resize_image(image_pk: int, quality: int = 85) -> dict[str, str]:
    """Makes three sizes of a photograph as JPEG of this quality (1 to 95); returns their names in the storage.

    A job may run twice: a second run writes the same files and the same row again.
    """
    image = ProductImage.objects.get(pk=image_pk)
    with Image.open(image.source) as file:
        photograph = ImageOps.exif_transpose(file).convert("RGB")
    names = {}
    for size, side in SIDES.items():
        resized = ImageOps.contain(photograph, (side, side), Image.Resampling.LANCZOS)
        names[size] = store(f"products/{image.product_id}/{image.pk}-{size}.jpg", resized, quality)
    ProductImage.objects.filter(pk=image_pk).update(**names)
    return names


def show_product(batch: Batch, product_pk: int) -> None:
    """Callback that shows the product to customers, because all its images exist."""
    Product.objects.get(pk=product_pk).show()


def store(name: str, picture: Image.Image, quality: int) -> str:
    """Writes a picture to the default storage, replacing the file of that name; returns the name in the storage."""
    file = BytesIO()
    picture.save(file, "JPEG", quality=quality)
    # Without the delete, a second run would use another name, and the first file would remain for ever.
    default_storage.delete(name)
    return default_storage.save(name, ContentFile(file.getvalue()))
