"""Where tasks note that they run: past the gateway, apart from the queues."""

#: Number of the database.
NOTES = 9
#: Key of the runs by task.
RUNS = "runs"
