"""Apps for a project's INSTALLED_APPS that add to other apps."""
