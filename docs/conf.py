"""How `make docs` builds its site: Sphinx reads the pages where they lie, so their links are the repository's own."""

import re
from pathlib import Path

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

project = "VisualChat"
root_doc = "README"
include_patterns = ["*.md", "docs/**.md", "docs/**.rst", "src/visualchat/tiny/backbones/README.md"]
exclude_patterns = [".*", "build", "outputs", "multirun", "wandb"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4
default_role = "code"  # docstrings put code between single backquotes
autodoc_default_options = {"members": True, "special-members": "__call__"}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
maximum_signature_line_length = 100
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]  # a list in the description, not entries of their own

html_theme = "furo"  # loads nothing from elsewhere
html_title = project
html_copy_source = False

MENU = """
```{toctree}
:hidden:
:caption: %s
%s
```
"""


def add_menus(app: Sphinx, name: str, source: list[str]) -> None:
    """Give the front page the menus of the site; documents come in the order of their index."""
    if name == root_doc:
        index = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
        listed = [f"docs/{page}" for page in re.findall(r"^\| \[.*?\]\((.+?)\.md\)", index, re.MULTILINE)]
        source[0] += MENU % ("Documents", "\n".join(["docs/README", *listed, "CONTRIBUTING"]))
        source[0] += MENU % ("Reference", "docs/api/index\nsrc/visualchat/tiny/backbones/README")


def open_front_page(app: Sphinx, failed: Exception | None) -> None:
    """Lead those who open the folder to the front page."""
    if failed is None:
        (Path(app.outdir) / "index.html").write_text(f'<meta http-equiv="refresh" content="0; url={root_doc}.html">\n')


def setup(app: Sphinx) -> None:
    """Add what settings cannot say."""
    app.add_lexer("csv", TextLexer)
    app.connect("source-read", add_menus)
    app.connect("build-finished", open_front_page)
