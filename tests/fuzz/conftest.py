"""The profile of a long run of the fuzzers."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "fuzz",
    deadline=None,
    max_examples=2_000,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
