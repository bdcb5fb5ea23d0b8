"""A site whose one page says what its process is, under WSGI and ASGI."""

import asyncio

from asgiref.sync import sync_to_async
from django.core.cache import cache
from django.http import HttpRequest, JsonResponse
from django.urls import path

from tests.processes.account import give_account


def show(request: HttpRequest) -> JsonResponse:
    """Show it."""
    return JsonResponse(give_account())


async def ashow(request: HttpRequest) -> JsonResponse:
    """Use the cache as an asynchronous view does, and show it."""
    key = f"asynchronous-{id(request)}"
    await asyncio.gather(*(cache.aset(f"{key}-{n}", n) for n in range(3)))
    found = await cache.aget_many([f"{key}-{n}" for n in range(3)])
    account = await sync_to_async(give_account)()
    return JsonResponse({**account, "found": sorted(found.values())})


urlpatterns = [path("", show), path("async", ashow)]
