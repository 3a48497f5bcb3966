"""Makes the images of a product in two ways: one after the other, or in a batch."""

from django_batches import Batch

from .models import Product
from .tasks import resize_image, show_product


def make_images_serially(product: Product) -> None:
    """Makes the images one after the other; the caller waits for all of them."""
    for image in product.images.all():
        resize_image(image.pk)
    product.show()


def make_images_in_batch(product: Product) -> Batch:
    """Makes each image in its own job, and shows the product once all images exist; returns at once."""
    image_pks = product.images.values_list("pk", flat=True)
    with Batch.open(f"Images of {product}", queue="images") as batch:
        batch.on_success(show_product, product.pk)
        batch.map(resize_image, image_pks)
    product.image_batch = batch
    product.save(update_fields=["image_batch"])
    return batch
