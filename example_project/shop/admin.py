from typing import ClassVar

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest

from .models import Product, ProductImage
from .uploading import make_images_in_batch


class ImageInline(admin.TabularInline):
    model = ProductImage
    extra = 0
    fields: ClassVar = ["source", "small", "medium", "large"]
    readonly_fields = fields
    can_delete = False

    def has_add_permission(self, request: HttpRequest, obj: Product | None = None) -> bool:
        return False


@admin.register(Product)
class ProductAdmin(admin.ModelAdmin):
    list_display: ClassVar = ["name", "is_visible", "image_batch"]
    list_select_related: ClassVar = ["image_batch"]
    readonly_fields: ClassVar = ["image_batch"]
    inlines: ClassVar = [ImageInline]
    actions: ClassVar = ["make_images"]

    @admin.action(description="Make the images of the selected products")
    def make_images(self, request: HttpRequest, queryset: QuerySet[Product]) -> None:
        for product in queryset:
            make_images_in_batch(product)
        messages.success(request, "The images are being made: see the batches of the products.")
