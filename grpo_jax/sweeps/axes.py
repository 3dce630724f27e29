"""What a sweep varies: traced leaves by path (``axes``) and structure (``variants``), a labelled grid."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from grpo_jax.config import Config
from grpo_jax.part import leaf_paths, nearest, put, put_all, static_paths

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
    raise ValueError(f"unknown path {name!r}; {nearest(path, known)}")


def _display(name: str) -> str:
    return "algorithm" if name == "method" else name


def _values(name: str, values: Any) -> tuple[list[Any], np.ndarray]:
    """Settings and their labels; a mapping gives its own labels."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        values = [values]
    settings = list(values.values()) if isinstance(values, Mapping) else list(values)
    if not settings:
        raise ValueError(f"the sweep over {name!r} is empty")
    if isinstance(values, Mapping):
        return settings, np.asarray([str(key) for key in values])
    own = all(isinstance(s, (int, float, np.number)) for s in settings) or all(
        isinstance(s, str) for s in settings
    )
    return settings, np.asarray(settings if own else range(len(settings)))


def _traced(config: Config, path: str, settings: list[Any]) -> np.ndarray:
    shapes = {np.shape(s) for s in settings}
    if len(shapes) > 1:
        raise ValueError(f"the sweep over {path!r} is ragged: shapes {sorted(shapes)}")
    try:
        array = np.asarray(settings, float)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{path} is a traced number; {settings[0]!r} is not one") from error
    expected = np.shape(leaf_paths(config)[path])
    if array.shape[1:] != expected:
        raise ValueError(f"each value of {path!r} must have shape {expected}, not {array.shape[1:]}")
    for setting in array:
        put(config, path, setting if setting.ndim else float(setting))
    return array


def parse_axes(config: Config, axes: Mapping[Any, Any]) -> list[Axis]:
    """Traced axes: {path: values} is a dimension, {(path, path): [(value, value), ...]} a zipped one."""
    found = []
    for key, given in axes.items():
        names = key if isinstance(key, tuple) else (key,)
        settings, labels = _values(str(key), given)
        columns = [settings] if len(names) == 1 else _columns(key, settings)
        paths = tuple(resolve(config, name, static=False) for name in names)
        values = tuple(_traced(config, p, column) for p, column in zip(paths, columns, strict=True))
        coordinates = {"+".join(names): labels}
        if len(names) > 1:
            coordinates = {
                n: v if v.ndim == 1 else np.arange(len(v)) for n, v in zip(names, values, strict=True)
            }
        found.append(Axis("+".join(names), paths, values, coordinates))
    _check_names(found)
    return found


def _columns(key: Any, settings: list[Any]) -> list[list[Any]]:
    if any(not isinstance(s, (tuple, list)) or len(s) != len(key) for s in settings):
        raise ValueError(f"the zipped sweep over {key} is ragged: every setting must give {len(key)} values")
    return [[s[i] for s in settings] for i in range(len(key))]


def parse_variants(config: Config, variants: Mapping[str, Any]) -> list[Axis]:
    """Axes of structure: every value compiles its own program."""
    found = []
    for name, given in variants.items():
        settings, labels = _values(name, given)
        path = resolve(config, name, static=True)
        current = static_paths(config)[path]
        if dataclasses.is_dataclass(current) and not all(dataclasses.is_dataclass(s) for s in settings):
            below = [p for p in leaf_paths(config) if p.startswith(f"{path}.")]
            raise TypeError(
                f"{path} holds a part; give parts of its kind{_by_name(path)}, or sweep its traced "
                f"{', '.join(below)}"
            )
        for setting in settings:
            put(config, path, setting)
        found.append(Axis(_display(name), (path,), (tuple(settings),), {_display(name): labels}))
    _check_names(found)
    return found


def _by_name(path: str) -> str:
    return " (methods.get(name) finds one by name)" if path == "method" else ""


def _check_names(axes: list[Axis]) -> None:
    paths = [p for axis in axes for p in axis.paths]
    for path in paths:
        if paths.count(path) > 1:
            raise ValueError(f"{path!r} is swept twice; zip it with the other path instead")


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
