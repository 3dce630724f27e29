"""What is drawn over curves, theory and measured points, and the legend of them all."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.legend_handler import HandlerBase
from matplotlib.lines import Line2D

from grpo_jax.plotting.arrays import as_floats
from grpo_jax.plotting.colors import COLORS, checked_color
from grpo_jax.plotting.style import INK, checked, styled
from grpo_jax.plotting.words import room, wrapped

INSIDE = 5
"""Entries of a legend that stands inside the axes."""


def next_color(axes: Axes) -> str:
    """The first of ``COLORS`` that no line of the axes has; the first of all where each is taken."""
    used = {line.get_color() for line in axes.lines}
    return next((color for color in COLORS if color not in used), COLORS[0])


class Heading(Line2D):
    """A line of the legend without a line: the name of what the next ones tell apart."""


class Flush(HandlerBase):
    """Puts a heading where the handles of the other entries begin."""

    def legend_artist(self, legend: Any, orig_handle: Any, fontsize: Any, handlebox: Any) -> Any:
        """Draw no handle, and take back the space that it and its pad have."""
        handlebox.width = -legend.handletextpad * fontsize


def heading(axes: Axes, text: str) -> None:
    """Start a part of the legend, once."""
    if not any(isinstance(line, Heading) and line.get_label() == text for line in axes.lines):
        axes.add_line(Heading([], [], linestyle="none", label=text))


def legend(axes: Axes) -> None:
    """The legend of everything that is labelled so far; a heading that comes first is its title.

    A long one, and one in two parts, stands beside the axes: inside it would hide what is drawn.
    """
    handles, words = axes.get_legend_handles_labels()
    title = words.pop(0) if handles and isinstance(handles[0], Heading) else None
    if not words:
        return
    long = len(words) > INSIDE or any(isinstance(handle, Heading) for handle in handles[1:])
    beside = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.02)} if long else {}
    look: dict[str, Any] = {"alignment": "left", "handler_map": {Heading: Flush()}} | beside
    size = 0.42 * room(axes, "x")
    words = [wrapped(word, size, 7.5) for word in words]
    axes.legend(handles[title is not None :], words, title=title and wrapped(title, size, 7.5), **look)


@styled
def theory(axes: Axes, x: Any, y: Any, label: str | None = "theory", **style: Any) -> Axes:
    """A thin line over the data, black unless ``style`` says otherwise.

    Args:
      axes: where to draw.
      x: [n] numbers.
      y: [n] numbers, or one number for a level line; NaN is a gap.
      label: its text in the legend; None gives none.
      style: ``color``, ``linestyle``, ``linewidth`` and whatever else ``Axes.plot`` takes.

    Returns: the axes.

    Raises ValueError where lengths differ, or Matplotlib does not know a style.
    """
    checked(axes)
    at, height = as_floats(x, "x").ravel(), as_floats(y, "y").ravel()
    if len(height) not in (1, len(at)):
        raise ValueError(f"x has {len(at)} places and y {len(height)}; they must be equal")
    checked_color(style.get("color", INK))
    look: dict[str, Any] = {"color": "black", "linewidth": 0.9, "zorder": 5} | style
    try:
        axes.plot(at, np.broadcast_to(height, at.shape), label=label or "_nolegend_", **look)
    except AttributeError as error:
        raise ValueError(f"the theory's line cannot have {', '.join(style)}: {error}") from error
    legend(axes)
    return axes


@styled
def points(
    axes: Axes,
    x: Any,
    y: Any,
    low: Any = None,
    high: Any = None,
    *,
    label: str | None = None,
    color: Any = None,
    marker: str = "o",
) -> Axes:
    """Measured points as markers, with bars from ``low`` to ``high`` (an interval of 99.9 %, say).

    Args:
      axes: where to draw.
      x: [n] numbers.
      y: [n] numbers; NaN is left out.
      low: [n] lower ends of the bars, given together with ``high``; NaN draws no bar.
      high: [n] upper ends.
      label: text in the legend; None gives none.
      color: None takes the next of ``COLORS``.
      marker: a marker that Matplotlib knows.

    Returns: the axes.

    Raises ValueError where lengths differ, one end is missing, a value lies outside its bar, or a marker or
    colour is unknown.
    """
    checked(axes)
    at, middle = as_floats(x, "x").ravel(), as_floats(y, "y").ravel()
    if (low is None) != (high is None):
        raise ValueError("a bar needs both its ends: give low and high together")
    if marker not in Line2D.markers:
        raise ValueError(f"marker is {marker!r}; it must be one that Matplotlib knows, such as 'o' or 's'")
    bars = None
    ends = [] if low is None else [as_floats(low, "low").ravel(), as_floats(high, "high").ravel()]
    for name, given in zip(("y", "low", "high"), (middle, *ends), strict=False):
        if given.shape != at.shape:
            raise ValueError(f"x has {len(at)} places and {name} {len(given)}; they must be equal")
    if ends:
        if (ends[0] > middle).any() or (middle > ends[1]).any():
            raise ValueError("y lies outside its bar: low <= y <= high must hold (low and high are ends)")
        bars = np.stack([middle - ends[0], ends[1] - middle])
    hue = next_color(axes) if color is None else checked_color(color)
    look: dict[str, Any] = {"fmt": marker, "color": hue, "markersize": 3.5, "elinewidth": 1.0, "zorder": 4}
    axes.errorbar(at, middle, bars, label=label or "_nolegend_", **look)
    legend(axes)
    return axes
