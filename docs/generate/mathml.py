"""Formulas in LaTeX become MathML when the site is built: browsers draw it without a script."""

from __future__ import annotations

from typing import Any

from latex2mathml.converter import convert


def fence(source: str, language: str, css_class: str, options: Any, md: Any, **_: Any) -> str:
    """What stands between fences of the language ``formula``, as `pymdownx.superfences` calls for it."""
    drawn = "".join(f"<div>{convert(line, display='block')}</div>" for line in source.splitlines())
    return f'<div class="{css_class}">{drawn}</div>'
