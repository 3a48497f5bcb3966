from typing import ClassVar

from django.contrib import admin

from .models import Run


@admin.register(Run)
class RunAdmin(admin.ModelAdmin):
    list_display: ClassVar = ["func", "has_succeeded", "job"]
    list_filter: ClassVar = ["func", "has_succeeded"]
