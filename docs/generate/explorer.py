"""Explorers: formulas at every point of a grid, computed when the site is built.

A reader chooses a point of the grid by sliders; nothing between two points is ever shown. All that a page
prints is formatted here, so that a browser only looks up.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import xarray as xr


@dataclass(frozen=True)
class Grid:
    """The values that one slider stops at: an argument of every function of its explorer."""

    name: str
    label: str
    values: tuple[float, ...]
    start: float

    def __post_init__(self) -> None:
        if self.start not in self.values or list(self.values) != sorted(set(self.values)):
            raise ValueError(f"{self.name} must rise and hold {self.start}: {self.values}")

    @property
    def shown(self) -> list[str]:
        """As they stand on the page and in its address."""
        return [f"{value:.6g}" for value in self.values]


@dataclass(frozen=True)
class Curve:
    """A function of all grids by their names, that of the x axis as an array; drawn, or only told."""

    name: str
    label: str
    function: Callable[..., Any]
    form: str = ".3g"
    drawn: bool = True


@dataclass(frozen=True)
class Explorer:
    """What one page lets a reader set, what it draws over ``grids[0]``, and the sentence that it fills in.

    ``says`` and ``again`` hold names of grids and curves in braces. ``again`` is code whose last line, an
    expression, is the first curve there.
    """

    name: str
    title: str
    about: str
    grids: tuple[Grid, ...]
    curves: tuple[Curve, ...]
    y: str
    says: str
    again: str
    claims: tuple[str, ...]
    log_x: bool = False
    log_y: bool = False
    span: tuple[float, float] | None = None
    """Ends of the y axis; without them they follow what is drawn."""

    def dataset(self) -> xr.Dataset:
        """Every curve in float64 at every point of the grid, with the grids' names as dimensions."""
        axis, *others = self.grids
        shape = [len(grid.values) for grid in self.grids]
        found = {curve.name: np.empty(shape) for curve in self.curves}
        with jax.enable_x64(True):
            for place in itertools.product(*(range(len(grid.values)) for grid in others)):
                chosen = {grid.name: grid.values[k] for grid, k in zip(others, place, strict=True)}
                where: tuple[slice | int, ...] = (slice(None), *place)
                for curve in self.curves:
                    values = curve.function(**{axis.name: np.asarray(axis.values)}, **chosen)
                    found[curve.name][where] = values
        dims = [grid.name for grid in self.grids]
        coords = {grid.name: list(grid.values) for grid in self.grids}
        return xr.Dataset({name: (dims, values) for name, values in found.items()}, coords)

    def shown(self, data: xr.Dataset) -> dict[str, np.ndarray]:
        """The dataset as it is printed, curve by curve."""
        return {
            curve.name: np.vectorize(lambda value, form=curve.form: printed(value, form), otypes=[object])(
                data[curve.name].values
            )
            for curve in self.curves
        }


def printed(value: float, form: str) -> str:
    """A number in its form; infinity and what is nowhere as words.

    >>> printed(0.25, ".0%"), printed(math.inf, ".3g")
    ('25%', 'infinitely many')
    """
    if math.isnan(value):
        return "nothing"
    return "infinitely many" if math.isinf(value) else f"{value:{form}}"


def fill(template: str, values: Mapping[str, str]) -> str:
    """What stands in braces by its name, and nothing else of a format: the page's script does the same."""
    for name, value in values.items():
        template = template.replace(f"{{{name}}}", value)
    return template
