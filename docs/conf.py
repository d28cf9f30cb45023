"""Sphinx configuration; `make docs` builds it."""

from __future__ import annotations

import os
import shutil
from importlib.metadata import metadata
from pathlib import Path

from sphinx.application import Sphinx

info = metadata("stage-sc")
project = "stage_sc"
author = "stage_sc developers"
copyright = f"2026, {author}"
version = release = info["Version"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
]
# Links into the pages of other packages need the network, which the published build has.
if os.environ.get("READTHEDOCS"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
        "matplotlib": ("https://matplotlib.org/stable/", None),
        "numpy": ("https://numpy.org/doc/stable/", None),
        "pandas": ("https://pandas.pydata.org/docs/", None),
        "python": ("https://docs.python.org/3/", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable/", None),
    }

exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]

autosummary_generate = True
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_rtype = False
always_use_bars_union = True
typehints_defaults = "braces"
# Names that are imported for type checkers alone cannot be looked up while the pages are built.
suppress_warnings = ["sphinx_autodoc_typehints.forward_reference", "sphinx_autodoc_typehints.guarded_import"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
# Notebooks, which links between pages must find below this folder.
root = Path(__file__).parents[1]
shutil.copytree(root / "tutorials", root / "docs" / "tutorials", dirs_exist_ok=True)
# Tutorials are executed where the real sections are at hand; elsewhere pages have their stored outputs.
sections = root.parent / "shared" / "data"
if sections.is_dir():
    os.environ.setdefault("STAGE_SC_DATA", str(sections))
nb_execution_mode = "force" if os.environ.get("STAGE_SC_DATA") else "off"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_output_stderr = "remove"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "sphinx_book_theme"
html_title = "stage_sc"
html_static_path = ["_static"]
html_theme_options = {"show_navbar_depth": 1, "use_download_button": False, "use_fullscreen_button": False}


def setup(app: Sphinx) -> None:
    """Connect what differs from the defaults."""
    app.connect("autodoc-process-docstring", keep_colons, priority=400)


def keep_colons(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Napoleon, which comes next, would read the text before a colon in an attribute's first line as its type."""
    if what == "attribute":
        lines[:0] = ["..", ""]  # an empty comment
