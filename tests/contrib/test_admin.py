"""The page in Django's admin: who sees it, what it shows, and that it has no secret."""

import html
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
import requests
from django.template import Context, Engine
from django.test import override_settings

from django_entra_redis.contrib import admin as admin_app
from django_entra_redis.contrib.admin.page import content
from django_entra_redis.diagnostics.advice import ADVICE
from emulator import Emulator
from testproject.siteprocess import SiteProcess
from tests.support.demo_site import running_site, visiting
from tests.support.sites import BACKEND, Site

PAGE = "admin/entra_redis/status/"
STEPS = ["settings", "dns", "tcp", "tls", "token", "auth", "ping", "round_trip"]
ADD_CLERK = (
    "from django.contrib.auth import get_user_model as model;"
    "model().objects.create_user('clerk', password='for tests only')"
)
#: Registers the page with a site of its own, for nobody; then asks for it.
FOR_NOBODY = """
from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied
from django.test import RequestFactory
from django_entra_redis.contrib.admin.admin import Status, StatusAdmin
class ForNobody(StatusAdmin):
    has_view_permission = lambda *arguments, **named: False
site = AdminSite("other")
site.register([Status], ForNobody)
page = site._registry[Status]
try:
    page.changelist_view(RequestFactory().get("/"))
except PermissionDenied:
    print("listed:", page.has_module_permission(None))
"""


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Emulator, SiteProcess]]:
    """Serve the demo site, with a user besides that is no staff."""
    with (
        Emulator(token_lifetime=3600.0) as emulator,
        running_site(emulator, tmp_path_factory.mktemp("site")) as site,
    ):
        status, output = site.manage("shell", "-c", ADD_CLERK)
        assert status == 0, output
        yield emulator, site


def get(session: requests.Session, site: SiteProcess, path: str = PAGE) -> str:
    """Return a page of the site."""
    answer = session.get(urljoin(site.url, path), timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.text


def check(session: requests.Session, site: SiteProcess) -> str:
    """Press the button; return the page that comes of it."""
    token = re.search(r'csrfmiddlewaretoken" value="(\w+)"', get(session, site))
    assert token is not None
    answer = session.post(
        urljoin(site.url, PAGE), {"csrfmiddlewaretoken": token[1]}, timeout=30
    )
    assert answer.status_code == 200, answer.text
    return answer.text


def test_strangers_are_sent_to_the_login(
    shared: tuple[Emulator, SiteProcess],
) -> None:
    """The page is there for staff alone; so is the check."""
    _, site = shared
    url = urljoin(site.url, PAGE)
    with visiting(site, "clerk", "for tests only") as clerk:
        token = clerk.session.cookies["csrftoken"]
        answers = [
            requests.get(url, timeout=30, allow_redirects=False),
            clerk.session.get(url, timeout=30, allow_redirects=False),
            clerk.session.post(
                url,
                headers={"X-CSRFToken": token},
                timeout=30,
                allow_redirects=False,
            ),
        ]
    for answer in answers:
        assert answer.status_code == 302
        assert answer.headers["Location"] == f"/admin/login/?next=/{PAGE}"


def test_index_and_sidebar_lead_to_it(shared: tuple[Emulator, SiteProcess]) -> None:
    """It is listed as a model would be, with nothing to add; the app has a page."""
    _, site = shared
    with visiting(site) as staff:
        for path in ("admin/", "admin/entra_redis/"):
            text = get(staff.session, site, path)
            assert f'href="/{PAGE}"' in text
            assert "Redis with Entra ID" in text
            assert f"/{PAGE}add/" not in text
        sidebar = get(staff.session, site).partition('id="nav-sidebar"')[2]
        assert f'href="/{PAGE}" aria-current="page"' in sidebar


def test_it_shows_identity_and_cache(shared: tuple[Emulator, SiteProcess]) -> None:
    """The token's state, the principal, the round trip and the connections."""
    emulator, site = shared
    with visiting(site) as staff:
        text = get(staff.session, site)
    identity = text.partition('id="identity-default"')[2].partition("</section>")[0]
    assert 'data-state="fresh"' in identity
    assert "<meter " in identity
    assert emulator.application.object_id in identity
    cache = text.partition('id="cache-default"')[2].partition("</section>")[0]
    assert re.search(r"answers</span> in \d", cache)
    assert re.search(r"\d+ idle, \d+ in use", cache)
    assert "none now" in cache
    assert emulator.redis_url in cache
    assert "Check of" not in text


def test_the_button_takes_the_steps(shared: tuple[Emulator, SiteProcess]) -> None:
    """A POST runs entra_redis_check; without a CSRF token it runs nothing."""
    _, site = shared
    with visiting(site) as staff:
        text = check(staff.session, site)
        assert re.findall(r'data-step="(\w+)"', text) == STEPS
        assert 'id="check-default" data-ok="true"' in text
        url = urljoin(site.url, PAGE)
        refused = staff.session.post(url, timeout=30, headers={"Referer": url})
        assert refused.status_code == 403


def test_nothing_secret_and_nothing_inline(
    shared: tuple[Emulator, SiteProcess],
) -> None:
    """No token and no secret; no script or style that a CSP would have to allow."""
    emulator, site = shared
    with visiting(site) as staff:
        text = get(staff.session, site) + check(staff.session, site)
    assert emulator.application.secret not in text
    assert "eyJ" not in text  # what every JWT begins with
    own = text.partition('id="content-main"')[2].partition("</main>")[0]
    assert not re.search(r"<script|<style|\sstyle=|\son\w+=", own)


def rendered(**context: Any) -> str:
    """Return the page's own part of what the template makes."""
    folder = Path(admin_app.__file__).parent / "templates"
    base = "{% block content %}{% endblock %}"
    engine = Engine(
        loaders=[
            ("django.template.loaders.locmem.Loader", {"admin/base_site.html": base}),
            ("django.template.loaders.filesystem.Loader", [folder]),
        ],
        libraries={"static": "django.templatetags.static"},
    )
    template = engine.get_template("admin/entra_redis/status.html")
    return template.render(Context(context))


def section(text: str, name: str) -> str:
    """Return one section of the page, without its tags."""
    part = text.partition(f'id="{name}"')[2].partition("</section>")[0]
    return " ".join(re.sub(r"<[^>]*>", " ", part).split())


def test_a_failure_is_explained(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check that fails says at which step, why, and what to do; the cache's section
    names the kind of error."""
    site = Site(emulator, monkeypatch)
    emulator.set_access(emulator.application.object_id, None)
    with site.settings():
        text = rendered(**content(check=True))
    found = section(text, "check-default")
    assert "failed" in found
    assert "auth_refused" in found
    assert ADVICE["auth_refused"].cause in html.unescape(found)
    assert "fails" in section(text, "cache-default")
    assert emulator.application.secret not in text


def test_an_identity_that_can_not_be() -> None:
    """It is on the page with what is wrong; its cache fails, and has no figures."""
    caches = {"default": {"BACKEND": BACKEND, "LOCATION": "rediss://localhost:1"}}
    identities = {"default": {"KIND": "nonsense"}}
    with override_settings(CACHES=caches, ENTRA_REDIS=identities):
        text = rendered(**content(check=True))
    assert "broken" in section(text, "identity-default")
    assert "nonsense" in section(text, "identity-default")
    assert "ConfigurationError" in section(text, "cache-default")
    assert "settings_invalid" in section(text, "check-default")


#: A name that would be a script if the page did not escape it.
NAME = "<script>alert('x')</script>"
#: No cache of this can answer, nor be asked for anything.
DOWN = {
    "BACKEND": BACKEND,
    "LOCATION": "redis://user:the-password@127.0.0.1:1",
    "OPTIONS": {"identity": None},
}
PRINCIPAL = {
    "KIND": "service_principal",
    "TENANT_ID": "11111111-1111-1111-1111-111111111111",
    "CLIENT_ID": "11111111-1111-1111-1111-111111111111",
    "CLIENT_SECRET": "the-password",
    "AUTHORITY_HOST": "https://127.0.0.1:1",
}


@pytest.mark.parametrize(
    ("cache", "identity"),
    [
        (DOWN, {}),
        ({**DOWN, "OPTIONS": {"identity": NAME}}, {"KIND": NAME}),
        ({**DOWN, "OPTIONS": {"identity": NAME}}, {**PRINCIPAL, "USERNAME": NAME}),
        ({**DOWN, "OPTIONS": {"identity": None, NAME: "the-password"}}, {}),
        ({**DOWN, "LOCATION": f"redis://:the-password@{NAME}:1"}, {}),
        ({**DOWN, "LOCATION": None}, {}),
        ({**DOWN, "BACKEND": f"{BACKEND[:-5]}ClusterCache"}, {}),
    ],
)
def test_names_are_escaped_and_no_failure_fails_the_page(
    cache: dict[str, Any], identity: dict[str, Any]
) -> None:
    """Whatever is wrong is told on it, without a password and without a script."""
    with override_settings(
        CACHES={"default": DOWN, NAME: cache}, ENTRA_REDIS={NAME: identity}
    ):
        text = rendered(**content(check=True))
    assert "fails" in section(text, "cache-default")
    assert "failed" in section(text, f"check-{html.escape(NAME)}")
    assert "<script" not in text
    assert "the-password" not in text


def test_no_cache_to_check() -> None:
    """Where no cache is one of this package's, the page says so."""
    text = rendered(**content(check=True))
    assert "No cache in CACHES" in text
    assert "No cache uses an identity" in text


def test_a_site_of_its_own_and_fewer_people(
    shared: tuple[Emulator, SiteProcess],
) -> None:
    """A subclass may narrow down who sees it, on another site of the admin's, too."""
    _, site = shared
    status, output = site.manage("shell", "-c", FOR_NOBODY)
    assert (status, "listed: False" in output) == (0, True), output


def test_no_migration_and_no_model(shared: tuple[Emulator, SiteProcess]) -> None:
    """Django finds nothing to migrate, and nothing to complain of."""
    _, site = shared
    status, output = site.manage("makemigrations", "--check", "--dry-run")
    assert (status, "No changes" in output) == (0, True), output
    status, output = site.manage("check", "--fail-level", "WARNING")
    assert status == 0, output
    script = (
        "import django; django.setup();"
        "from django.apps import apps;"
        "print(list(apps.get_app_config('entra_redis').get_models()))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script],
        env={**site.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert printed.stdout.strip() == "[]"
