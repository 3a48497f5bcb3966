from django.urls import include, path

from example_project.urls import urlpatterns as example

urlpatterns = [*example, path("django-rq/", include("django_rq.urls"))]
