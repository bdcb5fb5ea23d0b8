"""Django's own tests of cache backends and sessions, run on ``EntraRedisCache``.

``python -m tests.django_suite`` fetches the source of the installed Django, whose wheel
has no tests, and runs its tests on Django's ``RedisCache`` over a plain Redis, which is
the control, and on ``EntraRedisCache`` over TLS with an Entra identity: synchronously,
and twice through its asynchronous methods, with a loop per call and a loop per test.
"""
