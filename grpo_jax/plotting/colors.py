"""Colours that people with any colour blindness tell apart."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import is_color_like, to_hex

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6E6E6E")
"""Six of Okabe and Ito's colours, which people with any colour blindness tell apart, and a grey."""

SEQUENTIAL = "viridis"
DIVERGING = "PuOr_r"
"""Blue-violet below and orange above: a pair that red-green blindness leaves apart."""


def palette(count: int) -> list[str]:
    """Colours for ``count`` things: ``COLORS`` for as many as there are, else steps of the sequential map."""
    if count <= len(COLORS):
        return list(COLORS[:count])
    return list(shades(range(count)).values())


def shades(values: Iterable[Any]) -> dict[Any, str]:
    """A step of the sequential map for every value, in order: {value: colour}."""
    found = list(values)
    steps = mpl.colormaps[SEQUENTIAL](np.linspace(0, 0.92, len(found)))
    return dict(zip(found, map(to_hex, steps), strict=True))


def checked_color(color: Any) -> Any:
    """The colour; ValueError where Matplotlib knows none like it."""
    if not is_color_like(color):
        raise ValueError(f"{color!r} is no colour; give a name such as 'black', a hex code or an RGB tuple")
    return color
