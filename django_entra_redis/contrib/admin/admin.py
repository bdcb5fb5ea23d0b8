"""The page in Django's admin, which finds this module by its name.

An ``AdminSite`` of a project's own takes it with ``register([Status], StatusAdmin)``.
"""

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models.options import Options
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.urls import URLPattern, path

from ..._fork import no_fork
from .apps import EntraRedisAdminConfig

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Any]
else:
    _ModelAdmin = admin.ModelAdmin  # which takes no types where it runs


class Status:
    """Stands where the admin has a model: its index lists nothing else."""

    class Meta:
        """What the admin shows of it. A table's name is asked of no database."""

        verbose_name = "status"
        verbose_name_plural = "Tokens and caches"
        db_table = "none"
        managed = False

    _meta: "Options[Any]"


_options: "Options[Any]" = Options(Status.Meta, EntraRedisAdminConfig.label)
_options.contribute_to_class(Status, "_meta")  # type: ignore[arg-type]  # as a model's


class StatusAdmin(_ModelAdmin):
    """One page in place of a model's: read-only, for whoever may enter the admin.

    A subclass may narrow that down with ``has_view_permission()``.
    """

    def check(self, **kwargs: Any) -> list[Any]:
        """Return no messages: Django's checks of a model don't fit."""
        return []

    def get_urls(self) -> list[URLPattern]:
        """Return the page's address, by the name that the index looks for."""
        name = "_".join([self.opts.app_label, str(self.opts.model_name), "changelist"])
        view = self.admin_site.admin_view(self.changelist_view)
        return [path("", view, name=name)]

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> TemplateResponse:
        """Show the page; a POST has the caches checked, and shows the steps."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        # As redis-py comes with it: for the time that it takes to start.
        with no_fork():
            from .page import content

        context = {
            **self.admin_site.each_context(request),
            "title": self.opts.verbose_name_plural,
            "opts": self.opts,
            **content(check=request.method == "POST"),
            **(extra_context or {}),
        }
        return TemplateResponse(request, "admin/entra_redis/status.html", context)

    def has_module_permission(self, request: HttpRequest) -> bool:
        """Return whether the index lists the page."""
        return self.has_view_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return whether somebody may see the page."""
        return self.admin_site.has_permission(request)

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Return that there is nothing to add."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return that there is nothing to change."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return that there is nothing to delete."""
        return False


_register: Any = admin.site.register
_register([Status], StatusAdmin)
