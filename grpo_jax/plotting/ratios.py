"""The distribution of importance ratios against the clip."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from grpo_jax.plotting.arrays import as_floats
from grpo_jax.plotting.colors import COLORS
from grpo_jax.plotting.style import checked, styled
from grpo_jax.plotting.words import label_axis, number

BINS = 48


@styled
def ratio_histogram(
    axes: Axes, ratios: Any, *, low: float | None = None, high: float | None = None, weights: Any = None
) -> Axes:
    """A histogram of importance ratios on a logarithmic axis, and the share of them outside the clip.

    Ratios of 0 and infinity are counted in the outermost bins.

    Args:
      axes: where to draw.
      ratios: an ``xr.DataArray`` or array of any shape, such as ``data.step_ratio``; NaN (where no token is)
        is left out.
      low: the clip's lower number as a method writes it: ratios below 1 − low are outside; None marks none.
      high: the clip's upper number: ratios above 1 + high are outside.
      weights: one for each ratio, broadcast to their shape (by dimension if both are labelled), not negative;
        without them each counts once. ``data.step_weight`` of the same run makes them shares of tokens, also
        where groups are counted (``Counts``), so that one ratio stands for every draw of an output.

    Returns: the axes.

    Raises ValueError for a negative ratio or weight, a clip out of range, and shapes that do not match.
    """
    checked(axes)
    values, share = _values(ratios, weights)
    below = None if low is None else 1 - _distance(low, "low", 1.0)
    above = None if high is None else 1 + _distance(high, "high", np.inf)
    if values.size:
        edges = _edges(values, [b for b in (below, above) if b is not None and 0 < b < np.inf])
        # Half a bin inside the ends, where a rounded logarithm cannot put a value out of every bin.
        ends = np.sqrt(edges[:2].prod()), np.sqrt(edges[-2:].prod())
        heights, _ = np.histogram(np.clip(values, *ends), edges, weights=share)
        axes.stairs(heights, edges, fill=True, color=COLORS[0], alpha=0.75)
        axes.set_xlim(edges[0], edges[-1])
        axes.axvline(1.0, color="black", linewidth=0.6, zorder=1)
        if below is not None and below > 0:
            text = f"below {number(below)}: {_percent(share[values < below].sum())}"
            axes.axvspan(edges[0], below, color=COLORS[1], alpha=0.16, linewidth=0, zorder=0, label=text)
        if above is not None and np.isfinite(above):
            text = f"above {number(above)}: {_percent(share[values > above].sum())}"
            axes.axvspan(above, edges[-1], color=COLORS[4], alpha=0.2, linewidth=0, zorder=0, label=text)
        _log_axis(axes, edges[-1] / edges[0])
    else:
        axes.text(0.5, 0.5, "no ratios", transform=axes.transAxes, ha="center", va="center")
    label_axis(axes, "x", "importance ratio")
    label_axis(axes, "y", "share of tokens")
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    return axes


def _values(ratios: Any, weights: Any) -> tuple[np.ndarray, np.ndarray]:
    """[n] the ratios that are there and their shares, which sum to one."""
    if isinstance(ratios, xr.Dataset):
        raise ValueError("ratios is a Dataset; draw one of its variables, such as data.step_ratio")
    if isinstance(ratios, xr.DataArray) and isinstance(weights, xr.DataArray):
        strange = [str(dim) for dim in weights.dims if dim not in ratios.dims]
        if strange:
            raise ValueError(f"weights has the dimension {', '.join(strange)}, which ratios does not have")
        weights = weights.broadcast_like(ratios).transpose(*ratios.dims)
    values = as_floats(ratios, "ratios")
    try:
        weight = np.broadcast_to(1.0 if weights is None else as_floats(weights, "weights"), values.shape)
    except ValueError as error:
        raise ValueError(
            f"weights of shape {np.shape(weights)} do not fit ratios of {values.shape}"
        ) from error
    there = ~np.isnan(values) & ~np.isnan(weight)
    values, weight = values[there], weight[there]
    if (values < 0).any() or (weight < 0).any():
        raise ValueError(f"{'ratios' if (values < 0).any() else 'weights'} holds a negative number")
    values, weight = values[weight > 0], weight[weight > 0]
    return values, weight / weight.sum() if weight.size else weight


def _distance(given: Any, what: str, most: float) -> float:
    value = as_floats(given, what)
    if value.ndim or not 0 <= value <= most:
        span = "in [0, 1]" if most == 1 else "not negative"
        raise ValueError(f"{what} is {given!r}; it must be {span}: the clip's distance from 1, such as 0.2")
    return float(value)


def _edges(values: np.ndarray, bounds: list[float]) -> np.ndarray:
    """Ends of bins of equal width in the logarithm, around the finite ratios, 1 and the clip."""
    seen = np.concatenate([values[(values > 0) & np.isfinite(values)], bounds, [1.0]])
    low, high = np.log(seen.min()), np.log(seen.max())
    room = max(0.08 * (high - low), 0.02)
    return np.exp(np.linspace(low - room, high + room, BINS + 1))


def _percent(share: float) -> str:
    return f"{number(100 * share, 2)} %"


def _log_axis(axes: Axes, factor: float) -> None:
    """A logarithmic axis that has labels on any range, also where it holds no power of ten."""
    axes.set_xscale("log")
    axis = axes.xaxis
    axis.set_major_locator(
        MaxNLocator(5)
        if factor < 6
        else LogLocator(subs=(1, 2, 5) if factor < 60 else (1, 3) if factor < 1e4 else (1,))
    )
    axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
