"""What the tests of processes run: a site, and scripts that fork and exit."""
