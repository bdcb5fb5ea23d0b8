"""The soak: faults under load, ours beside what one would use otherwise.

``python -m tox run -e soak`` prints the table; ``-- --short`` is done in 3 minutes.
"""
