"""The settings of the site: ``python -m sphinx -W docs docs/_build/html``."""

import normlib

project = "normlib"
author = "The normlib developers"
copyright = "The normlib developers"
release = normlib.__version__
version = release

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # no formula of the site needs the network
    "sphinx_gallery.gen_gallery",
]
# gallery/ is read by sphinx-gallery, which writes auto_gallery/.
exclude_patterns = ["_build", "gallery/**", "auto_gallery/*.ipynb", "auto_gallery/*.py*"]
templates_path = ["_templates"]

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

default_role = "py:obj"
autosummary_generate = True
autodoc_typehints = "none"  # numpydoc has the types
numpydoc_class_members_toctree = False
numpydoc_show_class_members = False

html_theme = "pydata_sphinx_theme"
html_title = "normlib"
html_theme_options = {
    "show_prev_next": False,
    "secondary_sidebar_items": {
        page: ["page-toc"]
        for page in ("start", "write_a_normalizer", "benchmarks", "api/**", "design/*")
    },
    "header_links_before_dropdown": 5,
    "navigation_with_keys": False,
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_sidebars = {
    page: []
    for page in ("index", "start", "write_a_normalizer", "benchmarks", "command_line", "changelog")
}
html_static_path = ["_static"]
html_css_files = ["normlib.css"]
html_show_sourcelink = False

# The experiments take minutes each: the pages show the figures saved in gallery/results, and say
# how to run them. The tests run every script, with tiny settings.
sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "filename_pattern": r"^$",
    "within_subsection_order": "FileNameSortKey",
    "ignore_pattern": r"/experiments/",
    "plot_gallery": False,
    "download_all_examples": False,
    "show_signature": False,
    "copyfile_regex": r"$^",
    "remove_config_comments": True,
}
