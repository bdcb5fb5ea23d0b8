"""The app of the page in Django's admin; its label is not that of Django's own app."""

from django.apps import AppConfig


class EntraRedisAdminConfig(AppConfig):
    """Adds the page; there are no models and no migrations."""

    name = "django_entra_redis.contrib.admin"
    label = "entra_redis"
    verbose_name = "Redis with Entra ID"
