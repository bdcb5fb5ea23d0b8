"""The application of the worker of soak.ecosystem's row of Celery."""

from soak.ecosystem import configure
from soak.packages import ROWS, make_celery

configure(next(row for row in ROWS if row.name == "celery"))
app = make_celery()
