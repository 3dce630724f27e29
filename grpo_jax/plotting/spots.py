"""Where a name fits into a region of a map."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from scipy import ndimage

from grpo_jax.plotting.words import CHARACTER, room

FINE = 4
"""Parts of a cell along each side, so that a few large cells place a name well, too."""


def folded(name: str, lines: int) -> str:
    """The name in about so many lines."""
    return textwrap.fill(name, max(12, math.ceil(len(name) / lines) + 2))


def names_inside(
    axes: Axes, places: np.ndarray, names: Sequence[str], share: float
) -> dict[str, tuple[float, float, str]]:
    """Name -> row, column and lines, for those that fit into the region of their place, folded if need be.

    Args:
      axes: where the map is drawn.
      places: [rows, columns] place in ``names``, or NaN.
      names: what the places are called.
      share: of the axes' width that the map will have.
    """
    found = {}
    for place, name in enumerate(names):
        for words in (name, folded(name, 2), folded(name, 3)):
            spot = _spot(places == place, words, room(axes, "y"), share * room(axes, "x"))
            if spot is not None:
                found[name] = (*spot, words)
                break
    return found


def _spot(inside: np.ndarray, words: str, height: float, width: float) -> tuple[float, float] | None:
    """Row and column around which the words fit, as deep inside as can be; None for nowhere.

    Depths are measured in the words' height and width: a long name wants a wide place.
    """
    lines = words.splitlines() or [""]
    cell = height / inside.shape[0] / FINE, width / inside.shape[1] / FINE
    text = 9.0 * len(lines) + 2, 7.5 * CHARACTER * max(map(len, lines)) + 3
    box = [math.ceil(size / part) for size, part in zip(text, cell, strict=True)]
    region = inside.repeat(FINE, 0).repeat(FINE, 1)
    fits = ndimage.minimum_filter(region, box, mode="constant", cval=False)
    if not fits.any():
        return None
    sampling = [part / size for size, part in zip(text, cell, strict=True)]
    depth = ndimage.distance_transform_edt(np.pad(region, 1), sampling=sampling)[1:-1, 1:-1]
    row, column = np.unravel_index(np.argmax(np.where(fits, depth, -1)), depth.shape)
    return (float(row) + 0.5) / FINE - 0.5, (float(column) + 0.5) / FINE - 0.5
