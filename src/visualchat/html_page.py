"""A page of HTML that needs no other file: its style and its images are inside."""

from __future__ import annotations

import base64
import html
import io

from PIL import Image

SIDE = 512
"""Pixels of an image's longer side on a page, at most."""

_STYLE = "body{font:15px/1.5 system-ui,sans-serif;max-width:54rem;margin:2rem auto;padding:0 1rem;color:#222}"


def page(title: str, body: str, style: str) -> str:
    """The page.

    Args:
        title: Its heading, as text.
        body: What follows the heading, as HTML.
        style: Rules of CSS beside those that all pages share.
    """
    name = html.escape(title)
    head = f"<!doctype html><meta charset=utf-8><title>{name}</title><style>{_STYLE}\n{style}</style>"
    return f"{head}<h1>{name}</h1>{body}"


def image_source(image: Image.Image) -> str:
    """The `src` of an image that is inside the page; the image itself is left as it is."""
    image = image.copy()
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
