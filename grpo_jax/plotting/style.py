"""The style sheet, and figures, panels and files made with it; the user's own settings stay as they are."""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import LogFormatterSciNotation

from grpo_jax.part import nearest
from grpo_jax.plotting.colors import COLORS, SEQUENTIAL
from grpo_jax.plotting.words import PlainLog

P = ParamSpec("P")
T = TypeVar("T")

WIDTHS = {"column": 3.4, "page": 7.0}
"""Inches."""

INK = "#222222"
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 8.0,
    "axes.labelsize": 8.0,
    "axes.titlesize": 8.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "legend.title_fontsize": 7.5,
    "figure.titlesize": 9.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "auto",
    "axes.grid": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3.0,
    "ytick.major.size": 3.0,
    "xtick.minor.size": 1.8,
    "ytick.minor.size": 1.8,
    "xtick.minor.width": 0.5,
    "ytick.minor.width": 0.5,
    "xtick.major.pad": 3.5,
    "ytick.major.pad": 3.5,
    "xtick.minor.pad": 4.7,  # labels of short ticks stand level with those of long ones
    "ytick.minor.pad": 4.7,
    "axes.prop_cycle": cycler(color=COLORS),
    "lines.linewidth": 1.3,
    "lines.markersize": 4.0,
    "legend.frameon": True,  # no frame is seen: a veil over what lies behind the words
    "legend.edgecolor": "none",
    "legend.facecolor": "white",
    "legend.framealpha": 0.75,
    "legend.fancybox": False,
    "legend.borderpad": 0.2,
    "legend.handlelength": 1.6,
    "legend.labelspacing": 0.3,
    "image.cmap": SEQUENTIAL,
    "figure.dpi": 100.0,
    "savefig.dpi": 200.0,
    "svg.fonttype": "none",  # text stays text: it can be searched and edited
    "svg.hashsalt": "grpo_jax",  # without one the names inside a file are random
}
"""Matplotlib settings of everything drawn here."""

SUFFIXES = (".png", ".svg", ".pdf")
PANEL_OPTIONS = ("sharex", "sharey", "width_ratios", "height_ratios", "subplot_kw", "gridspec_kw")


def styled(function: Callable[P, T]) -> Callable[P, T]:
    """The function run under the style sheet; the user's settings are back when it returns."""

    @functools.wraps(function)
    def under(*args: P.args, **kwargs: P.kwargs) -> T:
        with mpl.rc_context(STYLE):
            return function(*args, **kwargs)

    return under


class Drawing(Figure):
    """A figure that a notebook shows when a cell ends in it, and that is saved under the style sheet."""

    @styled
    def draw(self, renderer: Any) -> None:
        """Draw, with labels on logarithmic axes as large as those on others."""
        for axes in self.axes:
            for axis in (axes.xaxis, axes.yaxis):
                if type(axis.get_major_formatter()) is LogFormatterSciNotation:
                    axis.set_major_formatter(PlainLog())
                    axis.set_minor_formatter(PlainLog())
        super().draw(renderer)

    @styled
    def savefig(self, fname: Any, **options: Any) -> None:  # type: ignore[override]
        """Matplotlib's ``savefig`` under the style sheet."""
        super().savefig(fname, **options)

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """Twice the points that are shown, so that text is sharp on screens of high resolution."""
        buffer, dpi = io.BytesIO(), 100
        self.savefig(buffer, format="png", dpi=2 * dpi)
        width, height = (round(dpi * inches) for inches in self.get_size_inches())
        return buffer.getvalue(), {"width": width, "height": height}


@styled
def figure(width: Literal["page", "column"] = "page", height: float | None = None) -> Figure:
    """An empty figure whose panels are laid out so that nothing overlaps.

    Args:
      width: "page" (7.0 inches) or "column" (3.4 inches).
      height: in inches; None is 3.6 for a page and 2.5 for a column.

    Raises ValueError for another width, and for a height that is not a positive number.
    """
    if width not in WIDTHS:
        raise ValueError(f"width is {width!r}; {nearest(str(width), WIDTHS)}")
    tall = {"column": 2.5, "page": 3.6}[width] if height is None else height
    if isinstance(tall, bool) or not isinstance(tall, (int, float, np.number)) or not 0 < tall < np.inf:
        raise ValueError(f"height is {height!r}; it must be a positive number of inches")
    made = Drawing(figsize=(WIDTHS[width], float(tall)), layout="constrained")
    made.get_layout_engine().set(w_pad=0.05, h_pad=0.05)  # type: ignore[union-attr, call-arg]
    return made


@styled
def panels(figure: FigureBase | None = None, rows: int = 1, columns: int = 1, **options: Any) -> Any:
    """Axes in a grid: one ``Axes`` for a single panel, else a flat tuple of them, row by row.

    Args:
      figure: where they go; None makes one, as wide as a column for one panel abreast and as a page for more.
      rows: number of rows, at least 1.
      columns: panels in a row, at least 1.
      options: ``sharex``, ``sharey``, ``width_ratios``, ``height_ratios``, ``subplot_kw`` and
        ``gridspec_kw`` of ``Figure.subplots``; where a figure is made also its ``width`` and ``height``.

    Raises ValueError for a count that is not whole or below 1, an unknown option, or what is no figure.
    """
    for name, count in (("rows", rows), ("columns", columns)):
        if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
            raise ValueError(f"{name} is {count!r}; it must be a whole number of at least 1")
    allowed = PANEL_OPTIONS + (("width", "height") if figure is None else ())
    for name in options:
        if name not in allowed:
            raise ValueError(f"panels has no option {name!r}; {nearest(name, allowed)}")
    if figure is None:
        width = options.pop("width", "column" if columns == 1 else "page")
        height = options.pop("height", None)
        figure = _figure(width, 2.4 * rows + 0.1 if height is None else height)
    elif not isinstance(figure, FigureBase):
        raise ValueError(
            f"figure is a {type(figure).__name__}; it must be a Figure (plotting.figure()) or None"
        )
    found = figure.subplots(rows, columns, squeeze=False, **options).ravel()
    for axes in found:
        _keep_ticks(axes)
    return found[0] if len(found) == 1 else tuple(found)


_figure = figure  # an argument of panels has its name


def _keep_ticks(axes: Axes) -> None:
    """Matplotlib makes ticks when it draws them, by then under the user's settings: tell the axes now."""
    for axis in ("x", "y"):
        for which in ("major", "minor"):
            axes.tick_params(
                axis=axis,  # type: ignore[arg-type]
                which=which,  # type: ignore[arg-type]
                labelsize=STYLE[f"{axis}tick.labelsize"],
                labelfontfamily="sans-serif",
                size=STYLE[f"{axis}tick.{which}.size"],
                pad=STYLE[f"{axis}tick.{which}.pad"],
                width=STYLE[f"{axis}tick.{which}.width"],
                color=INK,
                labelcolor=INK,
            )


def checked(axes: Any) -> Axes:
    """The axes; ValueError says how to get some."""
    if isinstance(axes, Axes):
        return axes
    several = " (one of the tuple)" if isinstance(axes, (tuple, list, np.ndarray)) else ""
    raise ValueError(f"axes is a {type(axes).__name__}; it must be an Axes from plotting.panels(){several}")


@styled
def save(thing: Any, path: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Write a figure as PNG (200 dots an inch) and SVG, or as the one format that the path names.

    The same figure gives the same bytes. Folders that are missing are made.

    Args:
      thing: a ``Figure``, an ``Axes`` (its figure is written) or the tuple of them that ``panels`` gives.
      path: where to; without a suffix both ``path.png`` and ``path.svg`` are written.

    Returns: the paths written.

    Raises ValueError for another suffix than .png, .svg and .pdf, and for what is no figure.
    """
    if isinstance(thing, (tuple, list)) and thing:
        thing = thing[0]
    if not isinstance(thing, Figure) and not (isinstance(thing, Axes) and thing.figure is not None):
        raise ValueError(f"thing is a {type(thing).__name__}; it must be a Figure or an Axes")
    # An Axes may sit in a figure within a figure; its canvas belongs to the outermost.
    whole = thing if isinstance(thing, Figure) else thing.figure.canvas.figure
    target = Path(path)
    if target.suffix and target.suffix not in SUFFIXES:
        raise ValueError(f"the suffix {target.suffix!r} of {path} is none of {', '.join(SUFFIXES)}")
    if not target.name:
        raise ValueError(f"path is {str(path)!r}; it must name a file")
    target.parent.mkdir(parents=True, exist_ok=True)
    written = (target,) if target.suffix else tuple(target.with_suffix(s) for s in (".png", ".svg"))
    for file in written:
        undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(file.suffix)
        whole.savefig(file, dpi=STYLE["savefig.dpi"], metadata=undated)
    return written
