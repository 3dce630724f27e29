"""The simplex of three answers, with a flow, trajectories and points."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from grpo_jax.plotting.arrays import as_floats
from grpo_jax.plotting.colors import palette
from grpo_jax.plotting.style import INK, checked, styled
from grpo_jax.plotting.words import CHARACTER, room

CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(3) / 2]])
"""Where the three answers are certain: lower left, lower right, top."""


@styled
def simplex(
    axes: Axes,
    flow: Callable[[np.ndarray], Any] | None = None,
    paths: Mapping[str, Any] | Iterable[Any] = (),
    points: Mapping[str, Any] | Iterable[Any] = (),
    corners: Sequence[str] = ("a", "b", "c"),
    density: int = 12,
) -> Axes:
    """Policies over three answers as a triangle.

    Args:
      axes: where to draw; its frame is taken away.
      flow: probabilities [n, 3] -> change of them [n, 3], drawn as arrows on a lattice; arrows grow with the
        root of the speed, so that slow places show. NaN draws none.
      paths: trajectories [n, 3] of probabilities, one after the other, or label -> trajectory. A dot marks
        where each ends.
      points: probabilities [3], or label -> probabilities; labels stand beside the points.
      corners: names of the three answers: lower left, lower right, top.
      density: arrows along a side, at least 2.

    Returns: the axes.

    Raises ValueError for what are no probabilities of three answers, and for a flow of another shape.
    """
    checked(axes)
    if isinstance(corners, str) or len(corners) != 3:
        raise ValueError(f"corners is {corners!r}; it must name three answers")
    if isinstance(density, bool) or not isinstance(density, (int, np.integer)) or density < 2:
        raise ValueError(f"density is {density!r}; it must be a whole number of at least 2")
    axes.set_aspect("equal")
    axes.axis("off")
    axes.plot(*CORNERS[[0, 1, 2, 0]].T, color=INK, linewidth=0.8, solid_joinstyle="miter", zorder=2)
    for name, corner, (side, height) in zip(
        corners, CORNERS, (("center", "top"), ("center", "top"), ("center", "bottom")), strict=True
    ):
        away = 4 if height == "bottom" else -4
        axes.annotate(
            str(name),
            corner,
            (0, away),
            textcoords="offset points",
            ha=side,
            va=height,
            annotation_clip=False,
        )
    if flow is not None:
        _arrows(axes, flow, density)
    named = _named(paths, "paths", 2)
    for (label, path), color in zip(named, palette(max(len(named), 1)), strict=False):
        at = path @ CORNERS
        axes.plot(*at.T, color=color, label=label or "_nolegend_", zorder=3)
        last = at[~np.isnan(at).any(1)][-1:]
        axes.plot(*last.T, "o", color=color, markersize=3.5, zorder=3.5)
    marked = _named(points, "points", 1)
    lines = [CORNERS[[0, 1]], CORNERS[[1, 2]], CORNERS[[2, 0]], *(path @ CORNERS for _, path in named)]
    busy = np.concatenate([*map(_dense, lines), *(point[None] @ CORNERS for _, point in marked)])
    for label, point in marked:
        at = point @ CORNERS
        axes.plot(
            *at, "o", color="black", markeredgecolor="white", markeredgewidth=0.6, markersize=5, zorder=5
        )
        if label and not np.isnan(at).any():
            _beside(axes, label, at, busy)
    if any(label for label, _ in named):
        axes.legend(loc="upper left", bbox_to_anchor=(0.72, 1.0))
    axes.set_xlim(-0.06, 1.06)
    axes.set_ylim(-0.06, CORNERS[2, 1] + 0.06)
    return axes


def _dense(line: np.ndarray) -> np.ndarray:
    """[n, 2] points along a line, close to each other."""
    line = line[np.isfinite(line).all(1)]
    if len(line) < 2:
        return line
    walked = np.concatenate([[0], np.sqrt((np.diff(line, axis=0) ** 2).sum(1)).cumsum()])
    steps = np.linspace(0, walked[-1], max(2, math.ceil(walked[-1] / 0.02)))
    return np.stack([np.interp(steps, walked, side) for side in line.T], 1)


def _beside(axes: Axes, label: str, at: np.ndarray, busy: np.ndarray) -> None:
    """The label on that side of its point where least is drawn; ``busy`` [n, 2] is where something is."""
    half = 0.5 * 8 * CHARACTER * len(label) / room(axes, "x")
    sides = {(1, 0): half + 0.03, (-1, 0): half + 0.03, (0, 1): 0.06, (0, -1): 0.06}
    reach = np.array([half, 0.03])

    def crowd(side: tuple[int, int]) -> int:
        middle = at + np.array(side) * sides[side]
        return int((np.abs(busy - middle) < reach).all(1).sum())

    side = min(sides, key=crowd)
    axes.annotate(
        label,
        (at[0], at[1]),
        (5 * side[0], 5 * side[1]),
        textcoords="offset points",
        ha={1: "left", -1: "right", 0: "center"}[side[0]],
        va={1: "bottom", -1: "top", 0: "center"}[side[1]],
        zorder=6,
        bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
    )


def _named(given: Any, what: str, rank: int) -> list[tuple[str, np.ndarray]]:
    """(label, probabilities), the label empty where none is given."""
    if given is None or isinstance(given, str):
        raise ValueError(f"{what} is {given!r}; it must be a mapping from labels, or a sequence, of arrays")
    pairs = list(given.items()) if isinstance(given, Mapping) else [("", entry) for entry in given]
    found = []
    for label, entry in pairs:
        array = as_floats(entry, what)
        shape = "[n, 3]" if rank == 2 else "[3]"
        if array.ndim != rank or array.shape[-1] != 3:
            raise ValueError(f"{what} holds an array of shape {array.shape}; each must be {shape}")
        if (array < -1e-3).any() or (np.abs(array.sum(-1) - 1) > 1e-3).any():
            raise ValueError(
                f"{what} holds numbers that are no probabilities: each row sums to 1, none below 0"
            )
        found.append((str(label), array))
    return found


def _arrows(axes: Axes, flow: Callable[[np.ndarray], Any], density: int) -> None:
    # Points of the lattice lie a third of a step inside the sides, where probabilities are positive.
    counts = [(i, j, density - 1 - i - j) for i in range(density) for j in range(density - i)]
    lattice = (np.array(counts) + 1 / 3) / density
    change = as_floats(flow(lattice), "flow(p)")
    if change.shape != lattice.shape:
        raise ValueError(f"flow gives {change.shape} for probabilities {lattice.shape}; they must be equal")
    change = change - change.mean(-1, keepdims=True)
    move = change @ CORNERS
    speed = np.sqrt((move**2).sum(-1))
    there = np.isfinite(speed) & (speed > 0)
    if not there.any():
        return
    at, move, speed = (lattice @ CORNERS)[there], move[there], speed[there]
    length = 0.9 / density * np.sqrt(speed / speed.max())
    arrows = move / speed[:, None] * length[:, None]
    look: dict[str, Any] = {
        "angles": "xy",
        "scale_units": "xy",
        "scale": 1,
        "pivot": "mid",
        "color": "0.55",
        "zorder": 1,
    }
    axes.quiver(*at.T, *arrows.T, width=0.004, headwidth=4, headlength=4.5, headaxislength=4, **look)
