"""The site's addresses."""

from django.contrib import admin
from django.contrib.auth.views import LoginView, LogoutView
from django.contrib.staticfiles.views import serve
from django.urls import path

from testproject import views

urlpatterns = [
    path("", views.home, name="home"),
    path("clock/", views.clock, name="clock"),
    path("status/", views.status, name="status"),
    path("status.json", views.status_json, name="status-json"),
    path("admin/", admin.site.urls),
    path("login/", LoginView.as_view(redirect_authenticated_user=True), name="login"),
    path("logout/", LogoutView.as_view(), name="logout"),
    # Two small files: served under every server, with no collectstatic to run first.
    path("static/<path:path>", serve, {"insecure": True}),
]

handler500 = "testproject.views.server_error"
