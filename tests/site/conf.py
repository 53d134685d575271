# Copyright (c) 2026 the kvmsched authors
# GNU General Public License v3.0-or-later (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How Sphinx makes the site: the guides as they lie in docs/, and the modules' pages by antsibull-docs."""

project = "kvmsched.kvm"
author = "the kvmsched authors"
copyright = "2026 the kvmsched authors"
extensions = ["myst_parser", "sphinx_antsibull_ext"]
html_theme = "furo"
html_title = "kvmsched.kvm"
# Names of modules are long: at the theme's own size they break in the middle.
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sourcelink = html_copy_source = False
myst_heading_anchors = 4
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
