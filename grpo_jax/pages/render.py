"""Templates filled in, and pictures as text."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

TEMPLATES = Path(__file__).parent / "templates"
"""``base.html`` (style, light and dark, phone and screen) is what every page extends."""
KINDS = {".svg": "image/svg+xml", ".png": "image/png"}


def render(template: str, *, folders: Sequence[Path] = (), **values: Any) -> str:
    """A template's text with its values; every value is escaped, and one that is missing is an error.

    Args:
      template: its file's name, in one of ``folders`` or among this package's own.
      folders: of further templates.
      values: what the template names.
    """
    loader = jinja2.FileSystemLoader([*folders, TEMPLATES])
    pages = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return pages.get_template(template).render(**values)


def picture(path: Path) -> str:
    """A picture's file as a ``data:`` address; as an image, an SVG runs no script and shares no names."""
    kind = KINDS.get(path.suffix)
    if kind is None:
        raise ValueError(f"{path.name} is no picture that a page shows; it must end in {', '.join(KINDS)}")
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
