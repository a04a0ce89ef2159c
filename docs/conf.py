"""Sphinx: the pages of this project, and the API from its docstrings. Built by ``make docs``.

The folder it reads is that of the project, so README, ARCHITECTURE, the manual and the notebooks
are pages as they are, and links between them hold here as they do anywhere else.
"""

from pathlib import Path
from typing import Any

import bokeh

import at_once_dask

project = "at_once_dask"
author = "The at_once_dask authors"
version = release = at_once_dask.__version__

extensions = ["myst_nb", "numpydoc", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
root_doc = "docs/index"
include_patterns = [
    "*.md",
    "benchmarks/results/*.md",
    "docs/*.md",
    "docs/*.rst",
    "docs/internals/*.md",
    "docs/manual/*.md",
    "notebooks/*",
]
exclude_patterns = [".*", "build", "dist", "docs/_build", "**/.ipynb_checkpoints"]
nitpicky = True

autodoc_typehints = "none"  # numpydoc's sections name the types, in words
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

nb_execution_mode = "off"  # the notebooks are stored with what they showed
nb_merge_streams = True
myst_heading_anchors = 3

# All that the pages need is in the folder: nothing is fetched, when they are built or looked at.
html_theme = "pydata_sphinx_theme"
html_title = "at_once_dask"
html_theme_options = {
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "show_prev_next": False,
    "footer_start": [],
    "footer_end": [],
}
html_sidebars = {"**": []}  # the room is for code
html_context = {"default_mode": "light"}
html_static_path = ["_static", f"{Path(bokeh.__file__).parent}/server/static/js/bokeh.min.js"]
html_css_files = ["pages.css"]
html_show_sourcelink = False
html_copy_source = False
html_additional_pages = {"index": "to_index.html"}  # the start page, where one looks for it
templates_path = ["_templates"]


def setup(app: Any) -> None:
    app.connect("html-page-context", add_bokeh)


def add_bokeh(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Its script is a megabyte: only pages with a figure load it."""
    if "Bokeh.embed" in context.get("body", ""):
        app.add_js_file("bokeh.min.js")
