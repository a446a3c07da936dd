"""`make docs` builds the pages and the API reference without a warning; what is wrong in them makes it fail."""

import re
import shutil

import pytest
from commands import make
from lines import DOCUMENTS, ROOT

from test_repository import repository_files

pytestmark = pytest.mark.slow

ENTRIES = {
    "chat": ["visualchat.chat.session.ChatSession.ask"],
    "attention": ["visualchat.attention.multimodal_attention", "visualchat.attention.AttentionKind"],
    "model": ["visualchat.model.processing_prompts.ProcessingPrompts.__call__", "visualchat.model.light.load_light"],
}
"""Some names that the reference has, by page."""


@pytest.fixture
def checkout(tmp_path):
    """The files that git knows."""
    for path in repository_files():
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    return tmp_path


def test_the_site_is_built_without_a_warning(checkout):
    done = make(checkout, "docs").ok()
    assert not re.search("warning", done.out + done.err, re.IGNORECASE), done
    site = checkout / "build" / "docs"
    for path in DOCUMENTS:
        assert (site / path.relative_to(ROOT)).with_suffix(".html").is_file(), path.name
    for page, names in ENTRIES.items():
        text = (site / "docs" / "api" / f"{page}.html").read_text(encoding="utf-8")
        for name in names:
            assert f'id="{name}"' in text, f"{name} is not in {page}.html"
    fetched = r'<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)="(?:https?:)?//[^"]*'
    for page in site.rglob("*.html"):
        assert not re.findall(fetched, page.read_text(encoding="utf-8")), f"{page.name} loads from elsewhere"
    assert 'url=README.html"' in (site / "index.html").read_text()


def test_what_a_page_names_wrongly_is_an_error(tmp_path):
    """On pages of their own, because those of the repository take longer."""
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "conf.py", tmp_path / "docs")
    (tmp_path / "docs" / "README.md").write_text("# Index\n\n| page |\n|---|\n| [one](one.md) |\n")
    (tmp_path / "docs" / "one.md").write_text("# One\n\n[a](two.md) [b](README.md#nowhere)\n\n![c](images/none.png)\n")
    (tmp_path / "docs" / "left-out.md").write_text("# Not in the index\n")
    (tmp_path / "README.md").write_text("# Front\n")
    shutil.copy(ROOT / "Makefile", tmp_path)
    done = make(tmp_path, "docs")
    assert done.code == 2
    for wrong in ("two.md", "nowhere", "none.png", "left-out.md"):
        assert re.search(rf"WARNING.*{wrong}|{wrong}.*WARNING", done.err), (wrong, done)
    (tmp_path / "docs" / "name.rst").write_text(".. automodule:: visualchat.nothing\n")
    assert "visualchat.nothing" in make(tmp_path, "docs").err
