"""The fuzzers: hostile bytes for whatever reads bytes that somebody else has written.

Each is a test of hypothesis, with its few examples in every run of the tests, and with
as many as there is time for under ``python -m tests.fuzz --minutes N``. A new one is a
module ``test_*.py`` in this folder; it takes its number of examples from the profile,
so that its own ``@settings`` leave ``max_examples`` alone.
"""
