"""Views that open a batch, and the URLs of them."""

from django.http import HttpResponse
from django.urls import path

from django_batches import Batch

from . import tasks


def succeed(request):
    with Batch.open() as batch:
        batch.map(tasks.ok, range(3))
    return HttpResponse(batch.pk)


def fail(request):
    succeed(request)
    raise RuntimeError("after the batch was written")


urlpatterns = [path("succeed/", succeed), path("fail/", fail)]
