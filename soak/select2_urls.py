"""The URLs of soak.ecosystem's row of django-select2."""

from django.urls import include, path

urlpatterns = [path("select2/", include("django_select2.urls"))]
