"""Visit a site under ASGI while tokens run out; say as JSON what was made of it."""

import asyncio
import json
import os
import sys
from typing import Any

import django
from django.conf import settings
from django.core.management import call_command
from django.test import AsyncClient

from django_entra_redis.credentials import get_credential_provider
from tests.integrations.workers import EXPIRIES, RATIO

VISITORS = 4
#: Seconds between two visits of one of them.
REST = 0.1


def configure(engine: str, database: str) -> None:
    """Make the settings of a site with a kind of sessions."""
    settings.configure(
        SECRET_KEY="for tests only",
        USE_TZ=True,
        ALLOWED_HOSTS=["testserver"],
        ROOT_URLCONF="tests.integrations.pages",
        INSTALLED_APPS=["django_entra_redis", "django.contrib.sessions"],
        MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"],
        SESSION_ENGINE=f"django.contrib.sessions.backends.{engine}",
        TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates"}],
        DATABASES={
            "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": database}
        },
        CACHES={
            "default": {
                "BACKEND": "django_entra_redis.cache.EntraRedisCache",
                "LOCATION": os.environ["REDIS_URL"],
                "OPTIONS": {"ssl_ca_certs": os.environ["REDIS_CA_CERTS"]},
            }
        },
        ENTRA_REDIS={"default": {"INSTANCE_DISCOVERY": False, "REFRESH_RATIO": RATIO}},
    )
    django.setup()
    call_command("migrate", verbosity=0)


async def get(client: AsyncClient, path: str) -> str:
    """Return a page."""
    response = await client.get(path)
    assert response.status_code == 200
    return response.content.decode()


async def visit() -> int:
    """Visit all pages again and again; return how often."""
    client, visits = AsyncClient(), 0
    while get_credential_provider().status().renewals <= EXPIRIES + 1:
        visits += 1
        assert await get(client, "/acount") == str(2 * visits - 1)
        assert await get(client, "/count") == str(2 * visits)
        assert await get(client, "/page") == "page"
        assert await get(client, "/fragment") == "fragment"
        await asyncio.sleep(REST)
    return visits


async def main() -> dict[str, Any]:
    """Have all pages made, let all visitors come at once; return what came of it."""
    client = AsyncClient()
    await get(client, "/page")
    await get(client, "/fragment")
    visits = await asyncio.gather(*(visit() for _ in range(VISITORS)))
    return {"visits": visits, "made": json.loads(await get(client, "/made"))}


configure(*sys.argv[1:])
json.dump(asyncio.run(main()), sys.stdout)
