"""`path("batches/", include("django_batches.urls"))`: the status view that `{% batch_progress %}` asks, the metrics."""

from django.urls import path

from . import views

app_name = "django_batches"
urlpatterns = [path("status/", views.status, name="status"), path("metrics/", views.metrics, name="metrics")]
