"""What a sweep varies: traced leaves by path (``axes``) and structure (``variants``), a labelled grid."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from grpo_jax.bounds import check_precision, may_be_number
from grpo_jax.config import Config
from grpo_jax.part import (
    Swept,
    field_at,
    leaf_paths,
    nearest,
    put,
    put_all,
    static_paths,
    takes_none,
)

ALIASES = {
    "clip_low": "method.gain.low",
    "clip_high": "method.gain.high",
    "kl_coef": "method.penalty.coef",
    "reward_scale": "task.scale",
    "group_size": "loop.group_size",
    "inner_steps": "loop.inner_steps",
}
"""Short spellings of paths; besides these any unambiguous tail of a path is understood."""

RESERVED = ("seed", "iteration")


@dataclasses.dataclass(frozen=True)
class Axis:
    """One labelled dimension of a sweep: n settings of one path, or of several zipped together."""

    name: str
    paths: tuple[str, ...]
    values: tuple[Any, ...]
    """Per path: an array [n, ...] for traced leaves, a tuple of n objects for structure."""
    labels: dict[str, np.ndarray]
    """Coordinate name -> [n]."""

    @property
    def size(self) -> int:
        """n."""
        return len(self.values[0])


def resolve(config: Config, name: str, *, static: bool) -> str:
    """The full path that a name means; ValueError says what is traced, what structure, and what is near."""
    if not isinstance(name, str):
        raise TypeError(f"an axis is named by its path, a string; {name!r} is a {type(name).__name__}")
    if name in RESERVED:
        raise ValueError(f"{name!r} is a dimension of every sweep; give seeds= or iterations=")
    traced, structure = leaf_paths(config), static_paths(config)
    known = structure if static else traced
    path = ALIASES.get(name, name)
    tails = [p for p in known if p == path or p.endswith(f".{path}")]
    if path in known or len(tails) == 1:
        return path if path in known else tails[0]
    if len(tails) > 1:
        raise ValueError(f"{name!r} could be {' or '.join(tails)}")
    if not static and any(p == path or p.endswith(f".{path}") for p in structure):
        below = [p for p in traced if f".{path}." in f".{p}."] or list(traced)
        raise ValueError(
            f"{name!r} is structure, not a traced number: give it in variants= (--variants), which compiles "
            f"once for each value. Traced: {', '.join(below)}"
        )
    if static and any(p == path or p.endswith(f".{path}") for p in traced):
        raise ValueError(
            f"{name!r} is a traced number: give it in axes= (--sweep), which compiles once for all values"
        )
    if name in ALIASES:
        raise ValueError(f"{name!r} means {path}, which this configuration does not have")
    short = [alias for alias, meant in ALIASES.items() if meant in known]
    raise ValueError(f"unknown path {name!r}; {nearest(path, [*known, *short])}")


def _display(name: str) -> str:
    return "algorithm" if name == "method" else name


def parse_axes(config: Config, axes: Mapping[Any, Any]) -> list[Axis]:
    """Traced axes: {path: values} is a dimension, {(path, path): [(value, value), ...]} a zipped one.

    A mapping {label: value} in the place of values names the settings; labels that are all numbers stay
    numbers. Raises TypeError or ValueError for
    what is no number, for a number without meaning where it belongs, and for settings that repeat.
    """
    _require_mapping("axes", axes)
    found = [_traced_axis(config, key, given) for key, given in axes.items()]
    _require_different(found)
    return found


def _require_mapping(what: str, given: Any) -> None:
    if not isinstance(given, Mapping):
        raise TypeError(f"{what} is a {type(given).__name__}; it must be a mapping {{path: values}}")


def _traced_axis(config: Config, key: Any, given: Any) -> Axis:
    names = key if isinstance(key, tuple) else (key,)
    if not names:
        raise ValueError("a zipped axis names no path")
    paths = tuple(resolve(config, n, static=False) for n in names)
    name = "+".join(names)
    settings, labels = _settings(name, given)
    columns = _columns(key, settings) if isinstance(key, tuple) else [settings]
    values = tuple(_numbers(config, p, column) for p, column in zip(paths, columns, strict=True))
    _check_meaning(config, dict(zip(paths, values, strict=True)))
    coordinates = {n: v if v.ndim == 1 else np.arange(len(v)) for n, v in zip(names, values, strict=True)}
    if labels is not None:
        coordinates |= {name: labels}
    elif all(v.ndim == 1 for v in values):
        _require_distinct(name, np.stack(values, 1))
    return Axis(name, paths, values, coordinates)


def _settings(name: str, given: Any) -> tuple[Any, np.ndarray | None]:
    """Settings in order, and their labels where a mapping gives them."""
    labels = None
    if isinstance(given, Mapping):
        plain = all(isinstance(k, (int, float, np.number)) and not isinstance(k, bool) for k in given)
        labels = np.asarray([key if plain else str(key) for key in given])
        kinds, counts = np.unique(labels, return_counts=True)
        if (counts > 1).any():
            raise ValueError(f"the sweep over {name!r} has the label '{kinds[counts.argmax()]}' twice")
        given = list(given.values())
    elif isinstance(given, (np.ndarray, jax.Array)):
        given = np.atleast_1d(np.asarray(given))
    elif isinstance(given, Iterable) and not isinstance(given, (str, bytes)):
        given = list(given)
    else:
        given = [given]
    if not len(given):
        raise ValueError(f"the sweep over {name!r} is empty")
    return given, labels


def _columns(key: Any, settings: Any) -> list[Any]:
    if any(not isinstance(s, (tuple, list, np.ndarray)) or len(s) != len(key) for s in settings):
        raise ValueError(f"the zipped sweep over {key} is ragged: every setting must give {len(key)} values")
    return [[s[i] for s in settings] for i in range(len(key))]


def _numbers(config: Config, path: str, settings: Any) -> np.ndarray:
    """[n, ...] the settings of a number or a table."""
    if not isinstance(settings, np.ndarray):
        wrong = [s for s in settings if s is None or isinstance(s, (str, bytes, bool, np.bool_))]
        if wrong:
            raise TypeError(f"{path} is a traced number; {wrong[0]!r} is not one")
        try:
            plain = {type(s) for s in settings} <= {int, float}
            shapes = set() if plain else {np.shape(s) for s in settings}
        except ValueError as error:
            raise ValueError(f"the sweep over {path!r} is ragged") from error
        if len(shapes) > 1:
            raise ValueError(f"the sweep over {path!r} is ragged: shapes {sorted(shapes)}")
    array = np.asarray(settings)
    if not may_be_number(array, array.ndim - 1):
        raise TypeError(f"{path} is a traced number; {settings[0]!r} is not one")
    expected = np.shape(leaf_paths(config)[path])
    if array.shape[1:] != expected:
        raise ValueError(f"each value of {path!r} must have shape {expected}, not {array.shape[1:]}")
    return array.astype(float)


def _check_meaning(config: Config, columns: Mapping[str, np.ndarray]) -> None:
    """Raise for a number that its part refuses, or that the precision in use does not hold.

    All settings at once, as runs; one by one only where a part from outside has a check of its own.
    """
    owners: dict[str, dict[str, np.ndarray]] = {}
    for path, values in columns.items():
        if np.isnan(values).any():
            raise ValueError(f"{path} is NaN")
        check_precision(path, values, values.ndim - 1)
        if field_at(config, path)[1] is None:
            raise ValueError(f"{path} is no field of a part, so it cannot be swept")
        above, _, name = path.rpartition(".")
        owners.setdefault(above, {})[name] = values
    for above, given in owners.items():
        owner = field_at(config, f"{above}.{next(iter(given))}".lstrip("."))[0]
        if type(owner).__module__.startswith("grpo_jax.") or not hasattr(owner, "check"):
            dataclasses.replace(owner, **{name: np.moveaxis(v, 0, -1) for name, v in given.items()})
            continue
        for i in range(len(next(iter(given.values())))):
            one = {name: v[i] if v.ndim > 1 else float(v[i]) for name, v in given.items()}
            dataclasses.replace(owner, **one)


def _require_distinct(name: str, rows: np.ndarray) -> None:
    """ValueError where two rows [n, paths] of numbers are equal in the precision in use."""
    cast = rows.astype(jax.dtypes.canonicalize_dtype(float))
    order = np.lexsort(cast.T)
    same = (cast[order][1:] == cast[order][:-1]).all(1)
    if same.any():
        first, second = (tuple(rows[order[i]].tolist()) for i in (same.argmax(), same.argmax() + 1))
        one, other = (row if len(row) > 1 else row[0] for row in (first, second))
        where = "" if first == second else f" in {cast.dtype.name}"
        raise ValueError(
            f"the sweep over {name!r} repeats a setting: {one!r} and {other!r} are equal{where}, and equal "
            "settings give equal runs; a mapping {label: value} keeps both"
        )


def parse_variants(config: Config, variants: Mapping[str, Any]) -> list[Axis]:
    """Axes of structure: every value compiles its own program."""
    _require_mapping("variants", variants)
    found = [_static_axis(config, name, given) for name, given in variants.items()]
    _require_different(found)
    return found


def _static_axis(config: Config, name: str, given: Any) -> Axis:
    path = resolve(config, name, static=True)
    settings, labels = _settings(name, given)
    settings = settings.tolist() if isinstance(settings, np.ndarray) else settings
    current, field = static_paths(config)[path], field_at(config, path)[1]
    for setting in settings:
        if setting is None and (current is None or (field is not None and takes_none(field))):
            continue
        if dataclasses.is_dataclass(current) and not dataclasses.is_dataclass(setting):
            below = [p for p in leaf_paths(config) if p.startswith(f"{path}.")]
            raise TypeError(
                f"{path} holds a part; give parts of its kind{_by_name(path)}, or sweep its traced "
                f"{', '.join(below)}"
            )
        put(config, path, setting)
    return Axis(
        _display(name), (path,), (tuple(settings),), {_display(name): _labels(name, settings, labels)}
    )


def _labels(name: str, settings: list[Any], labels: np.ndarray | None) -> np.ndarray:
    """A label for each setting: given, or the settings themselves where they are words or numbers."""
    if labels is not None:
        return labels
    words = all(isinstance(s, (str, bool, int, float, type(None))) for s in settings)
    keys = [repr(s) if words else id(s) for s in settings]
    if len(set(keys)) < len(keys):
        place = next(i for i, key in enumerate(keys) if keys.count(key) > 1)
        twice = repr(settings[place]) if words else f"one {type(settings[place]).__name__}"
        raise ValueError(f"the sweep over {name!r} has {twice} twice: equal settings give equal runs")
    if not words:
        return np.arange(len(settings))
    return np.asarray([str(s) for s in settings] if None in settings else settings)


def _by_name(path: str) -> str:
    return " (methods.get(name) finds one by name)" if path == "method" else ""


def _require_different(axes: list[Axis]) -> None:
    paths = [p for axis in axes for p in axis.paths]
    for path in paths:
        if paths.count(path) > 1:
            raise ValueError(f"{path!r} is swept twice; zip it with the other path instead")


def check_alike(variants: Sequence[Axis], axes: Sequence[Sequence[Axis]]) -> None:
    """ValueError where a swept name means another number in another variant; ``axes`` are each one's own."""
    for place, own in zip(np.ndindex(*(v.size for v in variants)), axes, strict=True):
        for axis, first in zip(own, axes[0], strict=True):
            if axis.paths != first.paths:
                here, there = (
                    ", ".join(str(v.labels[v.name][i]) for v, i in zip(variants, at, strict=True))
                    for at in (np.zeros(len(variants), int), place)
                )
                raise ValueError(
                    f"{axis.name!r} means {', '.join(first.paths)} in {here} and {', '.join(axis.paths)} in "
                    f"{there}; sweep them apart, or give variants that share the path"
                )


def swept_numbers(axes: Sequence[Axis]) -> Swept:
    """Of each traced axis, path -> its values [n, ...]: what checks that depend on numbers look at."""
    return [dict(zip(axis.paths, axis.values, strict=True)) for axis in axes]


def size(axes: Sequence[Axis]) -> int:
    """The number of settings in the product of the axes."""
    return math.prod(axis.size for axis in axes)


def settings(config: Config, variants: Sequence[Axis]) -> list[Config]:
    """The configuration of every combination of variants, in row-major order."""
    shape = tuple(axis.size for axis in variants)
    made = []
    for place in np.ndindex(*shape):
        changes = {a.paths[0]: a.values[0][i] for a, i in zip(variants, place, strict=True)}
        made.append(put_all(config, changes))
    return made
