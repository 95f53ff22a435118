"""Settings of the documentation's site: `make docs` builds it into build/docs."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "docs" / "_ext")]

import cohortgmm  # noqa: E402

project = "cohortgmm"
author = "The cohortgmm developers"
release = cohortgmm.__version__
copyright = author

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "mathml",
]
exclude_patterns = ["_ext"]

# Markdown: dollar signs for equations, links to headings, comments that begin with %.
myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "attrs_inline"]
myst_heading_anchors = 3

# Docstrings: numpydoc's sections; the signatures carry no types, as the descriptions say shapes and units.
napoleon_google_docstring = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"

# A link to a public name of this package that does not exist is an error. Modules within it are not on the site, and other
# packages have sites of their own.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!cohortgmm\b).*"),
    ("py:.*", r"cohortgmm\.(mixture|cohort|config|pipeline|plots|storage)\b.*"),
]

html_theme = "furo"
html_title = f"cohortgmm {release}"
html_static_path = ["_static"]
html_css_files = ["cohortgmm.css"]
html_copy_source = False
html_show_sourcelink = False
pygments_style = "friendly"
html_theme_options = {"sidebar_hide_name": False}
copybutton_exclude = ".linenos, .gp, .go"
