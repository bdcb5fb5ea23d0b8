"""Code as users write it, for mypy and pyright to check; test_types.py runs it."""
