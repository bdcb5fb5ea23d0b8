"""What the package costs and what it survives, measured against the alternatives."""
