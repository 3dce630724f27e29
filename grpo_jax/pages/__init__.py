"""Pages: what a sweep found, as one HTML file that needs nothing else; templates that other pages extend.

Whatever comes from data is escaped (Jinja's autoescape); pictures are inlined; light and dark follow the
reader's settings.
"""

from grpo_jax.pages.render import picture, render
from grpo_jax.pages.sweep import sweep_page

__all__ = ["picture", "render", "sweep_page"]
