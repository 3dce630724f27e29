"""The door of a sweep: what is asked is what is done, or an error that says what is allowed, at once.

Everything here is cheap, counts before it makes an array, and comes before anything compiles.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from grpo_jax.bounds import whole
from grpo_jax.config import Config, validate
from grpo_jax.methods import effective
from grpo_jax.part import put_all
from grpo_jax.surrogate import Method
from grpo_jax.sweeps.axes import ALIASES, RESERVED, Axis, swept_numbers
from grpo_jax.sweeps.shares import Share

COORDINATES = 2**32
"""Seeds are whole numbers below this."""
COMPARED = ("gain", "penalty")
"""Slots whose numbers make a comparison of methods unfair where they differ unsaid."""


def optional_whole(name: str, value: Any, low: int = 1) -> int | None:
    """``value`` as an int, or None where it is None."""
    return None if value is None else whole(name, value, low)


def share_of(given: Any, folder: str | os.PathLike[str] | None, *, process: int, processes: int) -> Share:
    """The share that is asked for; without one, that of this process among those of ``jax.distributed``.

    Raises:
      TypeError, ValueError: it is no pair (index, count) with 0 <= index < count.
      ValueError: there are several, and no folder for them to meet.
    """
    if given is None:
        share = Share(process, processes, waits=processes > 1)
    else:
        if not isinstance(given, (tuple, list)) or len(given) != 2:
            raise TypeError(f"share is {given!r}; it must be a pair: (3, 16) is share 3 of 0 to 15")
        share = Share(whole("the index of share", given[0], 0), whole("the count of share", given[1]))
        if share.index >= share.count:
            raise ValueError(
                f"share is {share.index} of {share.count}; shares are counted from 0 to {share.count - 1}"
            )
    if folder is None and not share.alone:
        what = f"{share.count} {'processes' if share.waits else 'shares'}"
        raise ValueError(
            f"out is None; {what} need a folder that all of them see"
            + (" (share=(0, 1) runs this process by itself)" if share.waits else "")
        )
    return share


def seed_count(seeds: Any) -> int:
    """How many seeds are asked for; a count and a range are not listed.

    Raises:
      TypeError: for anything but a count or a list of whole numbers.
      ValueError: for none, for seeds outside [0, 2^32), or that repeat.
    """
    if _is_whole(seeds):
        count = int(seeds)
    elif isinstance(seeds, range):
        count = len(seeds)
        if count:
            _require_coordinates(*sorted((seeds[0], seeds[-1])))
    else:
        count = len(_listed(seeds))
    if not 1 <= count <= COORDINATES:
        raise ValueError(f"seeds is {seeds!r}; there must be between 1 and 2^32 of them")
    return count


def checked_seeds(seeds: Any) -> np.ndarray:
    """uint32 [S] seed coordinates: 0..n−1 for a count n, else those listed; raises as ``seed_count`` does."""
    count = seed_count(seeds)
    if _is_whole(seeds):
        return np.arange(count, dtype=np.uint32)
    if isinstance(seeds, range):
        return np.arange(seeds.start, seeds.stop, seeds.step).astype(np.uint32)
    return _listed(seeds).astype(np.uint32)


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _listed(seeds: Any) -> np.ndarray:
    """Integers [S] that differ and are seeds."""
    if not isinstance(seeds, (Sequence, np.ndarray, jax.Array)) or isinstance(seeds, (str, bytes)):
        raise TypeError(f"seeds is {seeds!r}; it must be a count or a list of whole numbers")
    wrong = [s for s in seeds if not _is_whole(s)] if isinstance(seeds, Sequence) else []
    values = np.asarray(seeds)
    if wrong or (values.size and values.dtype.kind not in "iu"):
        held = wrong[0] if wrong else values.flat[0]
        raise TypeError(f"seeds holds {held!r}; it must be a count or a list of whole numbers")
    if values.ndim != 1:
        raise ValueError(f"seeds has shape {values.shape}; it must be a count or a list of whole numbers")
    if values.size:
        _require_coordinates(values.min(), values.max())
        if len(np.unique(values)) < len(values):
            raise ValueError("seeds repeat: equal seeds give equal runs")
    return values


def _require_coordinates(low: Any, high: Any) -> None:
    if low < 0 or high >= COORDINATES:
        raise ValueError(f"seeds lie in [{low}, {high}]; they must lie in [0, 2^32)")


def check_count(settings: int, seeds: int, available: int | None) -> None:
    """MemoryError where the seeds and the runs of one part could not even be numbered."""
    needed = 8 * seeds
    if available is not None and needed > available:
        raise MemoryError(
            f"{settings * seeds:,} runs: {seeds:,} seeds alone take {needed / 2**30:.1f} GiB of memory and "
            f"{available / 2**30:.1f} GiB are free; take fewer seeds"
        )


def check_names(axes: Sequence[Axis], measures: Mapping[str, Sequence[str]]) -> None:
    """Raise ValueError where two things of the result would have one name, saying which and what to do.

    Args:
      axes: the dimensions of the grid, each with its coordinates.
      measures: name of what is recorded -> the names of its own axes.
    """
    taken = dict.fromkeys(RESERVED, "a dimension of every sweep")
    for measure, dims in measures.items():
        for dim in dims:
            what = taken[dim] if dim in RESERVED else "another of its axes"
            if dim in RESERVED or list(dims).count(dim) > 1:
                raise ValueError(
                    f"an axis of the measure {measure!r} has the name {dim!r} of {what}; rename it"
                )
    taken |= {dim: f"an axis of {measure!r}" for measure, dims in measures.items() for dim in dims}
    for measure in measures:
        if measure in taken:
            raise ValueError(f"the measure {measure!r} has the name of {taken[measure]}; rename it")
    taken |= dict.fromkeys(measures, "a measure that is recorded")
    for axis in axes:
        own = dict.fromkeys((axis.name, *axis.labels))
        for name in own:
            if name in taken:
                remedy = _other_name(axis, name)
                raise ValueError(f"the swept {name!r} has the name of {taken[name]}; {remedy}")
        taken |= dict.fromkeys(own, "another dimension or coordinate of this sweep")


def _other_name(axis: Axis, name: str) -> str:
    """What to write instead of ``name``."""
    means = [p for p in axis.paths if p == ALIASES.get(name) or p.endswith(f".{name}")]
    if means:
        return f"name it by its full path, {means[0]!r}"
    return "rename the measure, or leave it out of record="


def check_grid(config: Config, axes: Sequence[Axis], iterations: int) -> None:
    """``config.validate`` at the numbers that the sweep puts in instead of the configuration's own.

    ValueError, too, for a queue of past policies that the run is too short to fill.
    """
    validate(config, swept_numbers(axes))
    age = None if config.behavior is None else config.behavior.age
    if age is not None and age.depth >= iterations:
        raise ValueError(
            f"the queue is {age.depth} policies deep, but in a run of {iterations} iterations none is older "
            f"than {iterations - 1}; give a lower depth, or more iterations"
        )


def unlike(axis: Axis, swept: Sequence[Axis] = ()) -> str | None:
    """What differs between the methods of an axis besides their names: clips and penalties; None if nothing.

    Numbers that the sweep sets for all of them do not differ.

    >>> from grpo_jax import methods
    >>> pair = (methods.dapo, methods.bnpo)
    >>> print(unlike(Axis("algorithm", ("method",), (pair,), {"algorithm": np.array(["dapo", "bnpo"])})))
    gain: Clip(low=0.2, high=0.28) in dapo; Clip(low=0.2, high=0.2) in bnpo
    penalty: none in dapo; Penalty(divergence=K3, coef=0.04) in bnpo
    """
    methods = axis.values[0]
    if axis.paths != ("method",) or not all(isinstance(method, Method) for method in methods):
        return None
    given = {p.removeprefix("method."): v[0] for a in swept for p, v in zip(a.paths, a.values, strict=True)}
    own = {path: float(value) for path, value in given.items() if path.split(".")[0] in COMPARED}
    methods = tuple(put_all(method, own) for method in methods)
    lines = []
    for slot in COMPARED:
        users: dict[str, list[str]] = {}
        for label, method in zip(axis.labels[axis.name], methods, strict=True):
            users.setdefault(effective(method, slot, defaults=True), []).append(str(label))
        if len(users) > 1:
            said = (f"{text} in {', '.join(labels)}" for text, labels in users.items())
            lines.append(f"{slot}: {'; '.join(said)}")
    return "\n".join(lines) or None
