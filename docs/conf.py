"""Sphinx settings: MyST pages, API reference from the docstrings, furo."""

import rdkernels

project = "rdkernels"
copyright = "the rdkernels authors, Apache-2.0"
version = release = rdkernels.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "measured"]
html_theme = "furo"
html_title = f"rdkernels {version}"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
default_role = "literal"
nitpicky = False
