"""From what the parts recorded to one labelled ``xarray.Dataset``."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import xarray as xr

from grpo_jax import train
from grpo_jax.config import Config
from grpo_jax.measures import STEP, TOKENS, Measure
from grpo_jax.records import Recording
from grpo_jax.sweeps.axes import Axis
from grpo_jax.types import OverSequences, support_of

UNITS = ("nats", "bits", "tokens", "steps", "seconds")
"""What a description may give as a unit between its commas."""

TRIAL_RUNS = 97
"""Runs that shapes are tried with: as many as no other axis has, so that a sum over the wrong axis shows."""


@functools.partial(jax.jit, static_argnames="plan")
def _recorded(config: Config, seed: Any, plan: Recording) -> Any:
    """What an iteration records; under ``jit``, so that an equal sweep does not trace it again."""
    return train.shapes(config, train.start(config, seed, 0), plan)


def own_shapes(config: Config, plan: Recording) -> dict[str, tuple[int, ...]]:
    """Name -> shape of a measure's own axes, before anything compiles; ValueError for a wrong shape."""
    if all(m.dims == () and not m.stacked for _, m in plan.measures):
        return {name: () for name, _ in plan.measures}
    seed = np.zeros(TRIAL_RUNS if config.policy.trailing else (), np.uint32)
    found = _recorded.eval_shape(config, seed, plan)
    return {name: value.shape[: value.ndim - seed.ndim] for name, value in found.items()}


def own_dims(name: str, measure: Measure, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Names of a measure's own axes in the dataset."""
    if measure.dims is None:
        rank = len(shape) - measure.stacked
        given: tuple[str, ...] = tuple(f"{name}_{i}" for i in range(rank))
    else:
        given = measure.dims
    return ((STEP,) if measure.stacked else ()) + given


def own_labels(
    configs: Sequence[Config], plan: Recording, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Dimension -> labels of its places, for the measures' own axes, which all variants share.

    Each [size of the dimension].

    Labels come from the measures; outputs are labelled by their tokens if these are the same in every
    variant, everything else by its number. Prompts that are no contexts in order, as they are drawn or
    shuffled into minibatches, have no label. ValueError where two measures disagree about an axis.
    """
    sizes: dict[str, tuple[int, str]] = {}
    labels: dict[str, np.ndarray] = {}
    by_step = any(m.per == "step" and TOKENS[0] in (m.dims or ()) for _, m in plan.measures)
    mixed = any(c.loop.prompts is not None or (by_step and c.loop.minibatches > 1) for c in configs)
    for name, measure in plan.measures:
        given = dict(measure.labels)
        for dim, size in zip(own_dims(name, measure, shapes[name]), shapes[name], strict=True):
            held, by = sizes.setdefault(dim, (size, name))
            if held != size:
                raise ValueError(
                    f"the axis {dim!r} has {size} places in {name!r} and {held} in {by!r}; rename one"
                )
            if dim in given:
                mine = np.asarray(given[dim])
                if len(mine) != size:
                    raise ValueError(f"{name!r} has {size} places along {dim!r}, and {len(mine)} labels")
                if dim in labels and not np.array_equal(labels[dim], mine):
                    raise ValueError(f"the labels that {name!r} and {by!r} give the axis {dim!r} differ")
                labels[dim] = mine
    for dim, (size, _) in sizes.items():
        if dim not in labels and not (mixed and dim == TOKENS[0]):
            labels[dim] = _shared_outputs(configs, size) if dim == "output" else np.arange(size)
    return labels


def _shared_outputs(configs: Sequence[Config], size: int) -> np.ndarray:
    """The outputs' labels where all variants agree about them, else their numbers."""
    first, *others = (outputs(config, size) for config in configs)
    return first if all(np.array_equal(first, other) for other in others) else np.arange(size)


def outputs(config: Config, size: int) -> np.ndarray:
    """A label for every output of the support: an action's number, or a sequence's tokens ("0 1 <eos>").

    [S].
    """
    policy = config.policy
    support = support_of(policy, np.arange(policy.contexts or 0)[:1])
    if support is None or not isinstance(policy, OverSequences) or support.tokens.shape[1] != size:
        return np.arange(size)
    eos = policy.space.eos
    words = []
    for tokens, mask in zip(np.asarray(support.tokens)[0], np.asarray(support.mask)[0], strict=True):
        words.append(" ".join("<eos>" if t == eos else str(t) for t in tokens[mask > 0]))
    return np.array(words)


def dataset(
    results: Sequence[Mapping[str, np.ndarray]],
    variants: Sequence[Axis],
    axes: Sequence[Axis],
    seeds: np.ndarray,
    plan: Recording,
    iterations: int,
    shapes: Mapping[str, tuple[int, ...]],
    own: Mapping[str, np.ndarray],
) -> xr.Dataset:
    """Dimensions (variants..., axes..., seed, iteration, own axes...), a variable for every measure.

    Args:
      results: for each variant, name -> [recorded, own axes..., runs] (without ``recorded`` under averages).
      own: dimension -> labels, of the measures' own axes.
    """
    grid = [*variants, *axes]
    kept = ["iteration"] if plan.average_from is None else []
    lead = [axis.name for axis in grid] + ["seed"]
    shape = [axis.size for axis in grid] + [len(seeds)]
    split = len(variants)
    variables = {}
    for name, measure in plan.measures:
        value = results[0][name][None] if len(results) == 1 else np.stack([r[name] for r in results])
        inner = value.shape[1:-1]  # recorded, own axes
        value = value.reshape((*shape[:split], *inner, *shape[split:]))
        value = (
            np.moveaxis(value, range(split, split + len(inner)), range(-len(inner), 0)) if inner else value
        )
        dims = (*lead, *kept, *own_dims(name, measure, shapes[name]))
        variables[name] = (dims, value, attributes(measure.about))
    coordinates: dict[str, Any] = {"seed": seeds}
    if kept:
        coordinates["iteration"] = plan.iterations(iterations)
    for axis in grid:
        coordinates |= {label: (axis.name, values) for label, values in axis.labels.items()}
    return xr.Dataset(variables, coordinates | dict(own))


def attributes(about: str) -> dict[str, str]:
    """A variable's metadata: what it is, and name and unit as plotting libraries read them.

    >>> attributes("mean sampled length, tokens; NaN without any")["long_name"]
    'mean sampled length'
    >>> attributes("entropy of whole outputs, nats, exact")["units"]
    'nats'
    """
    clauses = about.split(";")[0].split(", ")
    units = [clause for clause in clauses if clause in UNITS]
    name = ", ".join(clause for clause in clauses if clause not in (*UNITS, "exact"))
    found = {"about": about, "long_name": name, "units": units[0] if units else ""}
    return {key: value for key, value in found.items() if value}


NAMED = 10
"""Settings, and seeds of each, that ``non_finite`` names at most."""


def non_finite(data: xr.Dataset) -> str | None:
    """How many runs turned non-finite, and which: settings and their seeds. None where none did.

    Args:
      data: a sweep's dataset; its ``finite`` is [settings..., seed(, iteration)].
    """
    finite = data["finite"].isel(iteration=-1, missing_dims="ignore").astype(bool)
    grid = [str(dim) for dim in finite.dims if dim != "seed"]
    bad = ~finite.transpose(*grid, "seed").values
    if not bad.any():
        return None
    places = np.argwhere(bad.any(-1))
    named = []
    for place in places[:NAMED].tolist():
        seeds = data["seed"].values[bad[tuple(place)]]
        told = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds[:NAMED]))}"
        told += " …" if len(seeds) > NAMED else ""
        setting = ", ".join(f"{dim} {label(data, dim, i)}" for dim, i in zip(grid, place, strict=True))
        named.append(f"{setting} ({told})" if grid else told)
    more = "; …" if len(places) > NAMED else ""
    return f"{bad.sum()} of {bad.size} runs turned non-finite: {'; '.join(named)}{more}"


def label(data: xr.Dataset | xr.DataArray, dim: str, place: int) -> str:
    """What a place of a dimension is called; of one that zips several numbers and has no labels, all of them.

    A place without any coordinate is its number.
    """
    along = [data[dim]] if dim in data.coords else [c for c in data.coords.values() if c.dims == (dim,)]
    values = [coordinate.values[place].item() for coordinate in along]
    return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values) or str(place)


def idle(data: xr.Dataset, names: Sequence[str]) -> list[str]:
    """The dimensions of several places along which all that was recorded is the same to the bit."""
    return [name for name in names if data.sizes[name] > 1 and _alike(data, name)]


def _alike(data: xr.Dataset, name: str) -> bool:
    for variable in data.data_vars.values():
        first, *others = np.moveaxis(variable.values, variable.get_axis_num(name), 0)
        if not all(_same(first, other) for other in others):
            return False
    return True


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether all numbers are equal, or both NaN."""
    apart = a != b
    return not apart.any() or bool(np.all((a != a) & (b != b) | ~apart))
