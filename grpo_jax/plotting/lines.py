"""Curves: means over runs in their bands."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from scipy.special import stdtrit

from grpo_jax.part import nearest
from grpo_jax.plotting.arrays import (
    Names,
    colors_for,
    dimension,
    labelled,
    labels_for,
    names_of,
    numeric,
    over_of,
    require_used,
    values_of,
)
from grpo_jax.plotting.marks import heading, legend, next_color
from grpo_jax.plotting.style import checked, styled
from grpo_jax.plotting.words import described, index_ticks, label_axis, texts, titled

STYLES = ("-", "--", ":", "-.")
MOST = 8
"""Entries of a legend for one dimension; of more numbers some are left out."""


@styled
def curves(
    axes: Axes,
    array: xr.DataArray,
    *,
    over: Names = "seed",
    x: str | None = None,
    by: Names = None,
    band: float = 0.999,
    colors: Any = None,
    labels: Any = None,
    style: str = "-",
    band_of: Literal["mean", "runs"] = "mean",
) -> Axes:
    """Means over runs as lines, each in a shaded band.

    A run that is NaN at a place is left out there, and a place without a finite mean is a gap; a band needs
    two runs. Called again on the same axes it adds to the drawing and to its legend.

    Args:
      axes: where to draw.
      array: a variable of a sweep, with any dimensions of which each is named below or has size 1.
      over: dimension or dimensions of independent runs that are averaged over; without any (None, or an array
        without ``seed``) plain lines are drawn.
      x: dimension, or coordinate of one, along the axis; None is ``iteration`` or else the only dimension
        left whose coordinate is numeric. One of words becomes places with
        tick labels, markers and bars.
      by: dimension or coordinate that colours tell apart, and a second one that line styles do.
      band: confidence, or share of the runs, in (0, 1).
      colors: for the first of ``by``, a mapping from its values or one for each; without ``by`` one colour.
      labels: texts of the legend, given like ``colors``; None writes the coordinate's values.
      style: line style, "-", "--", ":" or "-."; a second ``by`` takes its first line style from here.
      band_of: "mean" for Student's interval of the mean, "runs" for the central share ``band`` of the runs.

    Returns: the axes.

    Raises ValueError for dimensions that are left over, used twice or unknown, and for options out of range.
    """
    checked(axes), labelled(array)
    if isinstance(band, bool) or not isinstance(band, (int, float, np.number)) or not 0 < band < 1:
        raise ValueError(f"band is {band!r}; it must lie between 0 and 1, such as 0.999")
    if band_of not in ("mean", "runs"):
        raise ValueError(f"band_of is {band_of!r}; {nearest(str(band_of), ('mean', 'runs'))}")
    if style not in STYLES:
        raise ValueError(f"style is {style!r}; it must be one of {', '.join(STYLES)}")
    groups = names_of(by, "by")
    if len(groups) > 2:
        raise ValueError(f"by names {len(groups)} dimensions; colours and line styles tell two apart")
    runs = over_of(array, over)
    split = tuple(dimension(array, name, "by") for name in groups)
    along = _along(array, {*runs, *split}) if x is None else x
    place = dimension(array, along, "x")
    hint = f"name it in by (now {', '.join(groups) or 'none'}), average it with over, or select with .sel()"
    array = require_used(array, (*runs, *split, place), hint)
    at = values_of(array, along)
    apart = not numeric(at)
    if apart:
        index_ticks(axes, "x", at, 0.65 if len(groups) > 1 else 1.0)  # a legend of two parts stands beside
        axes.set_xlim(-0.5, len(at) - 0.5)
        at = np.arange(len(at))
    data = array.transpose(*split, place, *runs).values
    data = data.reshape(*data.shape[: len(split) + 1], -1).astype(float)
    order = np.argsort(at, kind="stable")  # a sweep's values come in any order
    at, data = at[order], data[..., order, :]
    first = values_of(array, groups[0]) if groups else np.array([""])
    hues = colors_for(colors, first) if groups or colors is not None else [next_color(axes)]
    words = labels_for(labels, first) if groups or labels is not None else ["_nolegend_"]
    shown = _shown(first)
    if groups:
        heading(axes, titled(array, groups[0]))
    second = values_of(array, groups[1]) if len(groups) > 1 else np.array([""])
    styles = _styles(style, second, groups)
    for i, (hue, word) in enumerate(zip(hues, words, strict=True)):
        for j, dash in enumerate(styles):
            lines = data[(i, j)[: len(groups)]] if groups else data
            look = {"color": hue} | _dashes(dash, apart)
            look["label"] = word if j == 0 and i in shown else "_nolegend_"
            places = at + _dodge(i * len(styles) + j, len(hues) * len(styles)) if apart else at
            _line(axes, places, lines, float(band) if runs else None, band_of, **look)
    if len(groups) > 1:
        heading(axes, titled(array, groups[1]))
        for dash, word in zip(styles, texts(second), strict=True):
            axes.plot([], [], color="0.35", label=word, **_dashes(dash, apart))
    label_axis(axes, "x", titled(array, along))
    label_axis(axes, "y", described(array))
    legend(axes)
    return axes


def _dashes(style: str, apart: bool) -> dict[str, Any]:
    """A line style; between words there is nothing that a line could pass, so a marker in its place."""
    if not apart:
        return {"linestyle": style}
    return {"linestyle": "none", "marker": "os^D"[STYLES.index(style)]}


def _dodge(index: int, count: int) -> float:
    """How far aside the markers of one of several groups stand, so that their bars do not overlap."""
    return (index - (count - 1) / 2) * min(0.12, 0.7 / count)


def _along(array: xr.DataArray, taken: set[str]) -> str:
    free = [str(dim) for dim in array.dims if dim not in taken]
    large = [dim for dim in free if array.sizes[dim] > 1 and numeric(values_of(array, dim))]
    if "iteration" in large or (not large and "iteration" in free):
        return "iteration"
    if len(large) == 1 or (not large and len(free) == 1):
        return (large or free)[0]
    if not free:
        raise ValueError("no dimension is left to be x: every one is in over or by")
    raise ValueError(f"x could be any of {', '.join(large or free)}: name one, and the others in by")


def _styles(style: str, values: np.ndarray, groups: tuple[str, ...]) -> list[str]:
    start = STYLES.index(style)
    if len(values) > len(STYLES):
        name = groups[1]
        raise ValueError(f"{len(STYLES)} line styles cannot tell {len(values)} values of {name!r} apart")
    return [STYLES[(start + i) % len(STYLES)] for i in range(len(values))]


def _shown(values: np.ndarray) -> set[int]:
    """Which of the values the legend lists."""
    if len(values) <= MOST or not numeric(values):
        return set(range(len(values)))
    return set(np.linspace(0, len(values) - 1, 6).round().astype(int).tolist())


def middle_and_band(runs: np.ndarray, band: float, band_of: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, lower and upper end over the last axis of [X, runs]; NaN where they cannot be had."""
    count = (~np.isnan(runs)).sum(-1)
    several, held = count > 1, np.isnan(runs)
    with np.errstate(all="ignore"):
        mean = np.where(held, 0, runs).sum(-1) / count
        if band_of == "runs":
            low, high = np.full(len(runs), np.nan), np.full(len(runs), np.nan)
            ends = [(1 - band) / 2, (1 + band) / 2]
            if several.any():
                low[several], high[several] = np.nanquantile(runs[several], ends, axis=-1)
        else:
            spread = np.where(held, 0, (runs - mean[..., None]) ** 2).sum(-1)
            reach = np.sqrt(spread / (count - 1) / count) * stdtrit(count - 1.0, 0.5 + band / 2)
            reach = np.where(several, reach, np.nan)
            low, high = mean - reach, mean + reach
    return mean, low, high


def _line(axes: Axes, at: np.ndarray, runs: np.ndarray, band: float | None, of: str, **look: Any) -> None:
    mean, low, high = middle_and_band(runs, 0.5 if band is None else band, of)
    there = np.isfinite(mean)
    beside = np.concatenate([[False], there, [False]])
    alone = there & ~beside[:-2] & ~beside[2:]  # a line through one place is invisible: a marker is not
    line: dict[str, Any] = {"marker": "o", "markevery": np.flatnonzero(alone).tolist()} if alone.any() else {}
    if "marker" in look:
        alone, line = there, {}
    axes.plot(at, np.where(there, mean, np.nan), **line, **look)
    drawn = np.isfinite(low) & np.isfinite(high)
    if band is not None and drawn.any():
        if not alone[drawn].all():
            axes.fill_between(at, low, high, where=drawn, color=look["color"], alpha=0.2, linewidth=0)
        if (alone & drawn).any():
            axes.vlines(at[alone], low[alone], high[alone], color=look["color"], linewidth=1.0)
