"""The admin, the status view, and user pages with progress bars."""

from django.contrib import admin
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.template import engines
from django.urls import include, path

from django_batches.models import Batch

PAGE = """{% load batches %}<!doctype html><html lang="en"><meta name="viewport" content="width=device-width">
<title>My upload</title><body>{% batch_progress batch %}</body></html>"""


MANY = """{% load batches %}<!doctype html><html lang="en"><title>My uploads</title><body>
{% for batch in batches %}{% batch_progress batch assets=forloop.first %}{% endfor %}</body></html>"""


def may_see(request, batch):
    return request.user.is_authenticated and batch.metadata.get("user") == request.user.pk


def upload(request, key):
    batch = get_object_or_404(Batch, pk=key)
    return HttpResponse(engines["django"].from_string(PAGE).render({"batch": batch}, request))


def uploads(request):
    batches = Batch.objects.order_by("pk")
    return HttpResponse(engines["django"].from_string(MANY).render({"batches": batches}, request))


urlpatterns = [
    path("admin/", admin.site.urls),
    path("batches/", include("django_batches.urls")),
    path("upload/<uuid:key>/", upload, name="upload"),
    path("uploads/", uploads, name="uploads"),
]
