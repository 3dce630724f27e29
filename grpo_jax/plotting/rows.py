"""Numbers with intervals, one a row, against what is expected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from grpo_jax.part import nearest
from grpo_jax.plotting.arrays import as_floats, colors_for, labels_for
from grpo_jax.plotting.colors import COLORS
from grpo_jax.plotting.style import checked, styled
from grpo_jax.plotting.words import room, wrapped

GREY = "0.88"


@styled
def intervals(
    axes: Axes,
    rows: Mapping[str, Any],
    *,
    expected: float | Mapping[str, float] | None = None,
    margin: float | Mapping[str, float] | None = None,
    labels: Any = None,
    colors: Any = None,
) -> Axes:
    """Values as dots with their intervals, one a row from above, the expected value as a line.

    Args:
      axes: where to draw.
      rows: label -> object with ``value``, ``low`` and ``high``: floats, or None or NaN for what there is not
        (a row without a value stays empty).
      expected: one number for all rows, or a mapping from some rows' labels to theirs.
      margin: half width of the grey band around ``expected``, given the same way and not negative.
      labels: texts at the rows, a mapping from labels or one for each; None writes the labels.
      colors: a colour for all, a mapping from labels or one for each.

    Returns: the axes.

    Raises ValueError for no rows, a row without these attributes, an unknown label, ends out of order, and a
    margin that is negative or has nothing to surround.
    """
    checked(axes)
    if not isinstance(rows, Mapping) or not rows:
        raise ValueError(
            "rows must be a mapping with at least one row: label -> object with value, low, high"
        )
    names = list(rows)
    middle, low, high = np.array([_three(name, row) for name, row in rows.items()]).T
    texts = labels_for(labels, names)
    one = colors is None or isinstance(colors, str)
    hues = colors_for([colors or COLORS[0]] * len(names) if one else colors, names)
    _expected(axes, names, expected, margin)
    for at, hue in enumerate(hues):
        if np.isfinite([low[at], high[at]]).all():
            axes.plot(
                [low[at], high[at]], [at, at], color=hue, linewidth=1.6, solid_capstyle="butt", zorder=3
            )
        axes.plot([middle[at]], [at], "o", color=hue, markersize=4.5, zorder=4)
    axes.set_ylim(len(names) - 0.4, -0.6)
    most = 0.45 * room(axes, "x")
    axes.set_yticks(range(len(names)), [wrapped(text, most, 7.5) for text in texts])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return axes


def _three(name: Any, row: Any) -> list[float]:
    missing = [part for part in ("value", "low", "high") if not hasattr(row, part)]
    if missing:
        raise ValueError(f"the row {name!r} has no {', '.join(missing)}; it needs value, low and high")
    given = [np.nan if v is None else v for v in (row.value, row.low, row.high)]
    value, low, high = (float(as_floats(v, f"the row {name!r}")) for v in given)
    if low > high:
        raise ValueError(f"the row {name!r} has low {low:g} above high {high:g}")
    return [value, low, high]


def _by_row(names: list[Any], given: Any, what: str) -> dict[Any, float]:
    if given is None:
        return {}
    if isinstance(given, Mapping):
        for name in given:
            if name not in names:
                raise ValueError(f"{what} names the row {name!r}; {nearest(str(name), map(str, names))}")
        return {name: float(as_floats(value, what)) for name, value in given.items()}
    if np.ndim(given):
        raise ValueError(f"{what} must be one number, or a mapping from the rows' labels to numbers")
    return dict.fromkeys(names, float(as_floats(given, what)))


def _expected(axes: Axes, names: list[Any], expected: Any, margin: Any) -> None:
    lines, bands = _by_row(names, expected, "expected"), _by_row(names, margin, "margin")
    if any(not width >= 0 for width in bands.values()):
        raise ValueError(f"margin is {margin!r}; it must not be negative")
    homeless = [name for name in bands if name not in lines]
    if homeless:
        raise ValueError(f"margin has no expected value to surround at {', '.join(map(repr, homeless))}")
    together = lines and not isinstance(expected, Mapping)
    if together and len(set(bands.values())) == 1 and len(bands) == len(names):
        value, width = lines[names[0]], bands[names[0]]
        axes.axvspan(value - width, value + width, color=GREY, linewidth=0, zorder=0)
        bands = {}
    for name, width in bands.items():
        corner = (lines[name] - width, names.index(name) - 0.4)
        axes.add_patch(Rectangle(corner, 2 * width, 0.8, color=GREY, linewidth=0, zorder=0))
    if together:
        axes.axvline(lines[names[0]], color="black", linewidth=0.9, zorder=1)
    else:
        for name, value in lines.items():
            at = names.index(name)
            axes.vlines(value, at - 0.4, at + 0.4, color="black", linewidth=0.9, zorder=1)
