"""The site: `make docs` builds it into docs/_build/html, and nothing is fetched, neither to build nor to view it."""

import sys
from pathlib import Path

import lab

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

project = "lab"
author = "the authors of lab"
copyright = author
release = version = lab.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx_gallery.gen_gallery",
    "mathml",
    "settings_pages",
    "plain_docstrings",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = [
    "_build",
    "generated/card_*.md",
    "generated/choices.md",
    "sg_execution_times.rst",
    "**/sg_execution_times.rst",
]
highlight_language = "none"
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r".*")]
"""Types in signatures are named as the code names them; links of pages are held to exist."""

myst_enable_extensions = ["dollarmath", "colon_fence", "attrs_block"]
myst_heading_anchors = 3

html_theme = "pydata_sphinx_theme"
html_title = "lab"
html_static_path = ["_static"]
html_css_files = ["lab.css"]
html_math_renderer = "mathml"
html_show_sourcelink = False
html_copy_source = False
ALONE = ("index", "start", "own_model", "sweeps", "experiments", "architecture", "contributing", "changelog")
html_sidebars: dict[str, list[str]] = {page: [] for page in (*ALONE, "generated/settings")}
html_theme_options = {
    "show_prev_next": False,
    "header_links_before_dropdown": 8,
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_toc_level": 2,
}

autodoc_member_order = "bysource"
autodoc_typehints = "none"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

sphinx_gallery_conf = {
    "examples_dirs": str(HERE.parent / "examples"),
    "gallery_dirs": "examples",
    "filename_pattern": r"[\\/]\w+\.py$",
    "abort_on_example_error": True,
    "image_scrapers": ("matplotlib", "shown_figures"),
    "ignore_repr_types": r"matplotlib",
    "download_all_examples": False,
    "write_computation_times": False,
    "min_reported_time": 1e9,
    "within_subsection_order": "examples_order.Taught",
    "remove_config_comments": True,
    "show_signature": False,
    "reset_modules": ("matplotlib",),
}
