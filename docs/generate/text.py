"""Text of records on a Markdown page: nothing in it is markup, unless it stands between backticks."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jinja2

TEMPLATES = Path(__file__).parent / "templates"
MARKUP = {ord(sign): f"&#{ord(sign)};" for sign in "\\`*_{}[]<>&#+-!|$~^=\"'"}


def plain(text: str) -> str:
    """A text whose every character shows as itself.

    >>> plain("1/|o| * 2")
    '1/&#124;o&#124; &#42; 2'
    """
    return text.translate(MARKUP)


def prose(text: str) -> str:
    """The same, with what stands between backticks as code.

    >>> prose("`theory` * 2")
    '`theory` &#42; 2'
    """
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return plain(text)
    return "".join(f"`{part}`" if place % 2 else plain(part) for place, part in enumerate(parts))


def underscores(text: str) -> str:
    """Markdown whose underscores outside code show as themselves.

    >>> underscores("`o_i`: r_i - r_j")
    '`o_i`: r&#95;i - r&#95;j'
    """
    parts = text.split("`")
    return "`".join(part if place % 2 else part.replace("_", plain("_")) for place, part in enumerate(parts))


@cache
def _pages() -> jinja2.Environment:
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=False,  # Markdown: whatever comes from a record goes through plain or prose
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    pages.filters |= {"plain": plain, "prose": prose, "underscores": underscores}
    return pages


def page(template: str, **values: Any) -> str:
    """A template of this folder with its values; one that is missing is an error."""
    return _pages().get_template(template).render(**values)
