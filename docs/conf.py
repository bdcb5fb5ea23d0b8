"""The configuration of Sphinx, which builds the documentation from this folder."""

import sys
from pathlib import Path

import django
from django.conf import settings

ROOT = Path(__file__).resolve().parents[1]
# tox and Read the Docs install the package; any other build finds it here.
sys.path.append(str(ROOT))

from django_entra_redis import __version__  # noqa: E402 - the path is set above

# autodoc imports the package, and some of its modules read Django's settings. The app
# is not installed: its thread would import modules while autodoc looks at them.
settings.configure()
django.setup()

project = "django-entra-redis"
author = "the django-entra-redis authors"
copyright = author
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
nitpicky = True
# Commands have double hyphens and straight quotes.
smartquotes = False

# Links to headings are written as GitHub writes them, so that pages work there, too.
myst_heading_anchors = 4
myst_enable_extensions = ["attrs_inline", "deflist"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_numpy_docstring = False
# There is no inventory of other projects here, since a build asks no network.
nitpick_ignore_regex = [(r"py:.*", r".*")]

html_theme = "furo"
html_title = "django-entra-redis"
html_static_path = ["_static"]
html_js_files = ["search.js"]
# A prompt and an answer are shown; the command alone is copied.
copybutton_prompt_text = "$ "
