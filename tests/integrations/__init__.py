"""Other packages that speak Redis, each with its own workers, through expiries."""
