"""Maps over two swept dimensions: of a number, and of a phase with a name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import CenteredNorm, ListedColormap, LogNorm, Normalize, to_hex, to_rgb
from matplotlib.patches import Patch

from grpo_jax.plotting.arrays import Names, dimension, labelled, over_of, require_used, values_of
from grpo_jax.plotting.colors import COLORS, DIVERGING, SEQUENTIAL, palette
from grpo_jax.plotting.spots import folded, names_inside
from grpo_jax.plotting.style import checked, styled
from grpo_jax.plotting.words import (
    described,
    index_ticks,
    label_axis,
    number,
    room,
    titled,
    wrapped,
)

BLANK = "#DDDDDD"
"""Cells without a number."""

BESIDE = 0.6
"""Share of the width that a legend beside a map leaves to it."""


@styled
def heatmap(
    axes: Axes,
    array: xr.DataArray,
    *,
    x: str,
    y: str,
    over: Names = None,
    center: float | None = None,
    colorbar: bool = True,
    log: bool = False,
    annotate: bool = False,
    limits: tuple[float, float] | None = None,
) -> Axes:
    """A number over two dimensions, a cell for each pair of their values in the order of the array.

    Cells are of equal size whatever the values, which stand as tick labels; a cell without a finite number
    (for a logarithmic colour also one that is not positive) is grey.

    Args:
      axes: where to draw.
      array: a variable of a sweep, whose dimensions are named below or have size 1.
      x: dimension, or coordinate of one, from left to right.
      y: the same from below upwards.
      over: dimensions that are averaged over, without what is NaN.
      center: value of the neutral colour of a diverging map; None takes a sequential map.
      colorbar: whether a colour bar, named by the variable's metadata, stands beside.
      log: whether colours are logarithmic in the number.
      annotate: whether each cell says its number, in two digits.
      limits: least and greatest number of the colours; None takes the data's. Not with ``center``.

    Returns: the axes.

    Raises ValueError for dimensions that are left over, used twice or unknown, and for a logarithm without
    positive numbers or together with ``center``.
    """
    checked(axes), labelled(array)
    if center is not None and (log or limits is not None):
        raise ValueError("center is for a linear diverging map: leave log and limits out")
    if limits is not None and (len(limits) != 2 or not limits[0] < limits[1]):
        raise ValueError(f"limits is {limits!r}; it must be two numbers, the lower first")
    cells = _cells(array, x, y, over_of(array, over))
    cells = np.where(np.isfinite(cells) & ((cells > 0) | (not log)), cells, np.nan)
    image = axes.imshow(
        np.ma.masked_invalid(cells),
        origin="lower",
        aspect="auto",
        interpolation="none",
        cmap=colormaps[SEQUENTIAL if center is None else DIVERGING].with_extremes(bad=BLANK),
        norm=_norm(cells, center, log, limits),
    )
    _frame(axes, array, x, y, 0.8 if colorbar else 1.0)
    if annotate:
        _annotate(axes, cells, image, log)
    if colorbar:
        bar = axes.figure.colorbar(image, ax=axes)
        bar.outline.set_visible(False)  # type: ignore[operator]
        bar.set_label(wrapped(described(array), 1.15 * room(axes, "y")))
    return axes


def _cells(array: xr.DataArray, x: str, y: str, over: Sequence[str]) -> np.ndarray:
    """[y, x] the numbers, averaged ``over``."""
    across, up = dimension(array, x, "x"), dimension(array, y, "y")
    array = require_used(array, (*over, across, up), "average it with over, or select with .sel()")
    found = array.transpose(up, across, *over).values.astype(float)
    found = found.reshape(*found.shape[:2], -1)
    held = np.isnan(found)
    with np.errstate(all="ignore"):
        return np.where(held, 0, found).sum(-1) / (~held).sum(-1)


def _norm(
    cells: np.ndarray, center: float | None, log: bool, limits: tuple[float, float] | None
) -> Normalize:
    there = cells[~np.isnan(cells)]
    if center is not None:
        return CenteredNorm(center, (np.abs(there - center).max() if there.size else 0.0) or 1.0)
    if log and (not there.size or (limits is not None and limits[0] <= 0)):
        raise ValueError("log=True needs positive numbers, and the array or limits has none")
    low, high = limits or ((there.min(), there.max()) if there.size else (0.0, 1.0))
    if low == high:  # one colour, in the middle
        low, high = (low / 2, high * 2) if log else (low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2)
    return LogNorm(low, high) if log else Normalize(low, high)


def _frame(axes: Axes, array: xr.DataArray, x: str, y: str, share: float) -> None:
    """Ticks and names; ``share`` of the width is left beside what else there is."""
    for along, name in (("x", x), ("y", y)):
        index_ticks(axes, along, values_of(array, name), share if along == "x" else 1.0)
        label_axis(axes, along, titled(array, name))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _annotate(axes: Axes, cells: np.ndarray, image: Any, log: bool) -> None:
    most = np.nanmax(np.abs(cells), initial=0.0)
    decimals = max(0, 1 - math.floor(math.log10(most / 2))) if most > 0 else 0
    for (row, column), value in np.ndenumerate(cells):
        if not np.isnan(value):
            light = np.dot(to_rgb(image.cmap(image.norm(value))), [0.299, 0.587, 0.114]) > 0.55
            text: dict[str, Any] = {
                "ha": "center",
                "va": "center",
                "fontsize": 7,
                "color": "black" if light else "white",
            }
            said = number(value, 2) if log else f"{value:.{decimals}f}".replace("-", "−")
            axes.text(column, row, said, **text)


@styled
def phases(
    axes: Axes, array: xr.DataArray, *, x: str, y: str, names: Mapping[int, str] | Sequence[str]
) -> Axes:
    """A map of phases: a pale fill for each number, its name in the largest region of it.

    A name that has no room in its region stands in a legend beside the map.

    Args:
      axes: where to draw.
      array: whole numbers over two dimensions (others have size 1); NaN is left white.
      x: dimension, or coordinate of one, from left to right.
      y: the same from below upwards.
      names: number -> name, or the names of 0, 1, ...; a number keeps its colour wherever it is drawn.

    Returns: the axes.

    Raises ValueError for dimensions that are left over or unknown, and for numbers without a name.
    """
    checked(axes), labelled(array)
    cells = _cells(array, x, y, ())
    known = dict(names) if isinstance(names, Mapping) else dict(enumerate(names))
    nameless = sorted({float(v) for v in cells[~np.isnan(cells)]} - {float(key) for key in known})
    if nameless:
        allowed = ", ".join(map(str, known))
        raise ValueError(f"no name is given for {', '.join(map(number, nameless))}; names has {allowed}")
    fills = _pale(len(known))
    places = np.full(cells.shape, np.nan)
    for place, key in enumerate(known):
        places[cells == key] = place
    axes.imshow(
        np.ma.masked_invalid(places),
        origin="lower",
        aspect="auto",
        interpolation="none",
        cmap=ListedColormap(fills).with_extremes(bad="white"),
        norm=Normalize(-0.5, len(fills) - 0.5),
    )
    _borders(axes, places)
    here = [name for place, name in enumerate(known.values()) if (places == place).any()]
    found = names_inside(axes, places, list(known.values()), 1.0)
    if len(found) < len(here):
        found = names_inside(axes, places, list(known.values()), BESIDE)
    for row, column, words in found.values():
        axes.text(column, row, words, ha="center", va="center", fontsize=7.5)
    looks = [(name, fill) for name, fill in zip(known.values(), fills, strict=True) if name in here]
    outside = [
        Patch(facecolor=fill, edgecolor="0.4", linewidth=0.5, label=folded(name, 2))
        for name, fill in looks
        if name not in found
    ]
    _frame(axes, array, x, y, BESIDE if outside else 1.0)
    if outside:
        axes.legend(handles=outside, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return axes


def _pale(count: int) -> list[str]:
    colors = palette(count) if count > len(COLORS) else COLORS[:count]
    mixed: Any = [0.42 * np.array(to_rgb(color)) + 0.58 for color in colors]  # with white
    return [to_hex(color) for color in mixed]


def _borders(axes: Axes, places: np.ndarray) -> None:
    """Thin lines where neighbours differ: pale fills alone are hard to tell apart."""
    filled = np.where(np.isnan(places), -1, places)
    rows, columns = np.nonzero(filled[:, 1:] != filled[:, :-1])
    upright = [[(c + 0.5, r - 0.5), (c + 0.5, r + 0.5)] for r, c in zip(rows, columns, strict=True)]
    rows, columns = np.nonzero(filled[1:] != filled[:-1])
    level = [[(c - 0.5, r + 0.5), (c + 0.5, r + 0.5)] for r, c in zip(rows, columns, strict=True)]
    lines = LineCollection(upright + level, colors="0.35", linewidths=0.6, capstyle="projecting")
    axes.add_collection(lines, autolim=False)
