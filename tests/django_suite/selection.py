"""Which of Django's tests run."""

#: Django's test classes that exercise a cache backend, or what is built on one.
LABELS = (
    "cache.tests.RedisCacheTests",
    "cache.tests.CacheUtils",
    "cache.tests.PrefixedCacheUtils",
    "cache.tests.CacheHEADTest",
    "cache.tests.CacheI18nTest",
    "cache.tests.PrefixedCacheI18nTest",
    "cache.tests.CacheMiddlewareTest",
    "cache.tests.TestWithTemplateResponse",
    "cache.tests.CacheHandlerTest",
    "async.tests.CacheTest",
    "sessions_tests.tests.CacheSessionTests",
    "sessions_tests.tests.CacheDBSessionTests",
    "sessions_tests.tests.CacheDBSessionWithTimeZoneTests",
    "tests.django_suite.session_engine.EntraSessionTests",
    "tests.django_suite.session_engine.EntraSessionMiddlewareTests",
    "template_tests.syntax_tests.test_cache",
)

#: Tests that assert the built-in backend's private attributes, each with the attribute.
LEFT_OUT = {
    "test_cache_client_class": "asserts that _class and _cache are the built-in's",
    "test_get_connection_pool": "asserts the type of _cache's pools",
    "test_get_connection_pool_index": "asserts an index into _cache's pools",
    "test_incr_write_connection": "mocks RedisCacheClient.get_client",
    "test_redis_pool_options": "asserts the attributes of _cache's pool",
    "test_serializer_dumps": "asserts what _cache._serializer makes",
}

#: Tests that a busy machine makes fail, each with the reason: they are tried again.
TIMED = {
    "test_view_decorator": "sleeps for 2 s, and wants what lives for 3 s to be there",
    **dict.fromkeys(
        ("test_cache04", "test_cache07", "test_cache08"),
        "renders templates several times, of which a part lives for 2 s",
    ),
}

#: Tests that a server with one database can't pass, each with the reason.
DATABASE_LACKS = {
    "test_view_decorator": "has two caches, told apart by their databases",
    "test_cache_fragment_cache": "has two caches, told apart by their databases",
}

#: Tests that a cluster can't pass, each with the reason.
CLUSTER_LACKS = {
    "test_get_client": "asserts that the client is a redis.Redis",
    **DATABASE_LACKS,
}

#: Tests that fail on every backend where fakeredis stands in for a redis-server.
FAKE_LACKS = {
    "test_client_driver_info": "fakeredis has no CLIENT INFO (no redis-server here)",
}
