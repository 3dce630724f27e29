"""Which dimension of a labelled array goes where, and errors that name what is left over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.colors import is_color_like

from grpo_jax.part import nearest
from grpo_jax.plotting.colors import checked_color, palette
from grpo_jax.plotting.words import texts

Names = str | Sequence[str] | None


def labelled(array: Any, what: str = "array") -> xr.DataArray:
    """The array; ValueError unless it is an ``xr.DataArray`` of numbers with something in it."""
    if isinstance(array, xr.Dataset):
        known = ", ".join(map(str, list(array.data_vars)[:4]))
        raise ValueError(f"{what} is a Dataset; draw one of its variables: {known}")
    if not isinstance(array, xr.DataArray):
        kind = type(array).__name__
        raise ValueError(f"{what} is a {kind}; it must be an xarray.DataArray, such as data.expected_reward")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{what} holds {array.dtype}; it must hold real numbers")
    empty = [str(dim) for dim, size in array.sizes.items() if not size]
    if empty:
        raise ValueError(f"{what} is empty along {', '.join(empty)}")
    return array


def dimension(array: xr.DataArray, name: Any, what: str) -> str:
    """The dimension that a name means: its own, or that of the coordinate so called."""
    if isinstance(name, str) and name in array.dims:
        return name
    if isinstance(name, str) and name in array.coords and array.coords[name].ndim == 1:
        return str(array.coords[name].dims[0])
    if isinstance(name, str) and name in array.coords and array.coords[name].ndim == 0:
        raise ValueError(f"{what} is {name!r}, of which the array holds a single value")
    known = [str(d) for d in array.dims] + [str(c) for c in array.coords if array.coords[c].ndim == 1]
    raise ValueError(f"{what} is {name!r}, no dimension of the array; {nearest(str(name), set(known))}")


def values_of(array: xr.DataArray, name: str) -> np.ndarray:
    """The coordinate's values, or the places' numbers where it has none. [size of the dimension]."""
    return array.coords[name].values if name in array.coords else np.arange(array.sizes[name])


def numeric(values: np.ndarray) -> bool:
    """Whether values can stand on an axis. Any shape."""
    return values.dtype.kind in "iuf"


def names_of(given: Names, what: str) -> tuple[str, ...]:
    """One name, several or none as a tuple."""
    if given is None or isinstance(given, str):
        return () if given is None else (given,)
    if not isinstance(given, Iterable) or not all(isinstance(name, str) for name in given):
        raise ValueError(f"{what} is {given!r}; it must be a dimension's name or several")
    return tuple(given)


def over_of(array: xr.DataArray, over: Names) -> tuple[str, ...]:
    """Dimensions that are averaged over; ``seed`` may be absent."""
    found = [dimension(array, n, "over") for n in names_of(over, "over") if n != "seed" or n in array.dims]
    return tuple(dict.fromkeys(found))


def require_used(array: xr.DataArray, used: Sequence[str], hint: str) -> xr.DataArray:
    """The array without dimensions of size 1 that are not ``used``; ValueError names larger ones.

    Also where a dimension is used twice.
    """
    twice = [dim for dim in dict.fromkeys(used) if list(used).count(dim) > 1]
    if twice:
        raise ValueError(f"the dimension {twice[0]!r} is used twice; every dimension has one place")
    left = [dim for dim in array.dims if dim not in used]
    large = [f"{dim} ({array.sizes[dim]})" for dim in left if array.sizes[dim] > 1]
    if large:
        raise ValueError(f"nothing says what to do with {', '.join(large)}: {hint}")
    return array.isel(dict.fromkeys(left, 0))


def as_floats(values: Any, what: str) -> np.ndarray:
    """An array of floats; ValueError for what is not made of numbers. Its shape stays."""
    try:
        return np.asarray(values, float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} must be numbers; got a {type(values).__name__} that is not") from error


def _same(key: Any, value: Any, text: str) -> bool:
    """Whether a key means a value: by itself, by its short text, or equal but for rounding."""
    if isinstance(key, (int, float, np.number)) and isinstance(value, (int, float, np.number)):
        return bool(np.isclose(float(key), float(value), rtol=1e-5, atol=0))
    return str(key) == text


def _picked(given: Any, values: Any, default: Sequence[Any], what: str) -> list[Any]:
    words = texts(values)
    if given is None:
        return list(default)
    if isinstance(given, Mapping):
        found = list(default)
        for key, entry in given.items():
            places = [i for i, (v, w) in enumerate(zip(values, words, strict=True)) if _same(key, v, w)]
            if not places:
                raise ValueError(f"{what} names {key!r}; {nearest(str(key), words)}")
            for i in places:
                found[i] = entry
        return found
    given = [given] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
    if len(given) != len(values):
        raise ValueError(f"{what} has {len(given)} entries for {len(values)} things to draw")
    return given


def labels_for(given: Any, values: Any) -> list[str]:
    """A legend text for every value: the user's (a mapping by value, or a sequence), else the value."""
    return [str(label) for label in _picked(given, values, texts(values), "labels")]


def colors_for(given: Any, values: Any) -> list[Any]:
    """A colour for every value: the user's (a mapping by value, or a sequence), else the palette's."""
    if len(values) == 1 and is_color_like(given):
        return [given]  # an RGB tuple, too, is one colour
    return [checked_color(color) for color in _picked(given, values, palette(len(values)), "colors")]
