"""`path("batches/", include("django_batches.urls"))`: the view that `{% batch_progress %}` polls, and the metrics."""

from django.urls import path

from . import views

__all__ = ["app_name", "urlpatterns"]

app_name = "django_batches"
urlpatterns = [path("status/", views.status, name="status"), path("metrics/", views.metrics, name="metrics")]
