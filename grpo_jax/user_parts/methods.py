"""Trials of methods from outside this package: do they keep runs apart, heed multiplicities, give numbers?

A small batch of two prompts is computed for several runs at once, whose numbers differ, and for each run
alone; and once as samples, once as the histogram of those samples. Methods of this package's parts alone are
not tried, which costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.part import Swept, aligned, at_hand, leaf_paths, outside, per_run, substituted
from grpo_jax.surrogate import Method, advantages, objective_terms
from grpo_jax.types import Array, Evaluation, Rollout

SAMPLES = np.array([[0, 1, 1, 2, 2, 2], [0, 0, 3, 3, 3, 2]])
"""[P, N] outputs of six samples at each prompt."""
OUTPUTS = np.array([[0, 1, 2, 3, 0, 0]] * 2)
COUNTS = np.array([[1.0, 2.0, 3.0, 0.0, 0.0, 0.0], [2.0, 0.0, 1.0, 3.0, 0.0, 0.0]])
"""[P, N] their histogram over the four outputs, and two entries that are absent."""
TOKENS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
MASK = np.array([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
REWARDS = np.array([0.3, 1.0, -0.5, 2.0])
TRUNCATED = np.array([0.0, 0.0, 1.0, 0.0])
NUMBERS = {
    "sampling_logp": [[-1.1, -0.7], [-0.8, 0.0], [-1.3, -0.4], [-2.0, -0.9]],
    "old_logp": [[-1.1, -0.7], [-0.8, 0.0], [-1.3, -0.4], [-2.0, -0.9]],
    "ref_logp": [[-1.0, -0.8], [-1.2, 0.0], [-1.1, -0.6], [-1.9, -0.7]],
    "entropy": [[1.2, 0.6], [1.1, 0.0], [0.9, 0.7], [1.0, 0.5]],
}
"""[S, T] for each output."""
LOGP = [[-1.05, -0.75], [-0.87, 0.0], [-1.26, -0.36], [-2.1, -0.8]]
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Compiler options for a program that runs once."""
POINTS = 64
"""The most settings of a sweep that are tried."""
HELD = 64
"""Trials whose compiled programs are kept: a process that makes ever new classes of parts does not grow."""


def points(swept: Swept, prefix: str) -> dict[str, np.ndarray]:
    """Settings to try, path below ``prefix`` -> [points, ...]: all of them, or ends, extremes and between."""
    found = [{p.removeprefix(prefix): v for p, v in d.items() if p.startswith(prefix)} for d in swept]
    dimensions = [columns for columns in found if columns]
    if not dimensions:
        return {}
    sizes = [len(next(iter(columns.values()))) for columns in dimensions]
    total = math.prod(sizes)
    tried = range(total) if total <= POINTS else _some(dimensions, sizes)
    flat = np.resize(np.fromiter(tried, np.int64), POINTS)
    index = np.unravel_index(flat, sizes)
    return {path: v[i] for columns, i in zip(dimensions, index, strict=True) for path, v in columns.items()}


def _some(dimensions: list[dict[str, np.ndarray]], sizes: list[int]) -> list[int]:
    """Places in the grid: each dimension's ends and extremes, the others at their first; then all over."""
    found = []
    for d, columns in enumerate(dimensions):
        ends = {0, sizes[d] - 1}
        for values in columns.values():
            if values.ndim == 1:
                ends |= {int(values.argmin()), int(values.argmax())}
        stride = math.prod(sizes[d + 1 :])
        found += [i * stride for i in sorted(ends)]
    between = [round(i) for i in np.linspace(0, math.prod(sizes) - 1, POINTS)]
    return list(dict.fromkeys(found + between))[:POINTS]


class Trial(NamedTuple):
    """What a trial showed, a truth value for each setting tried [R]."""

    apart: np.ndarray
    """The run has the terms that it has alone."""
    counted: np.ndarray
    """A histogram has the objective of the samples that it counts."""
    defined: np.ndarray
    """No term is NaN."""
    settings: dict[str, np.ndarray]
    """Path -> [R, ...] swept numbers."""


def _group(entries: Array, multiplicity: Array, factor: Array) -> tuple[Rollout, Array]:
    """A batch of those outputs and log π_θ; ``factor`` scales its numbers: a scalar, or [R], one per run."""
    runs = (1,) * factor.ndim

    def shaped(array: Any) -> Any:
        return array.reshape(array.shape + runs)

    def each(table: Any) -> Array:
        return shaped(jnp.asarray(table, float)[entries]) * factor

    second = np.arange(2.0)[:, None]
    rollout = Rollout(
        prompts=jnp.zeros(2, int),
        tokens=jnp.asarray(TOKENS)[entries].reshape(entries.shape + TOKENS.shape[1:] + runs),
        mask=shaped(jnp.asarray(MASK, float)[entries]),
        rewards=each(REWARDS)[:, :, None] * (1 + shaped(0.25 * second)[:, :, None]),
        multiplicity=shaped(multiplicity),
        baseline=shaped(0.2 + 0.1 * second + np.zeros(entries.shape)) * factor,
        truncated=shaped(jnp.asarray(TRUNCATED, float)[entries]),
        **{name: each(table) for name, table in NUMBERS.items()},
    )
    return rollout, each(LOGP)


def _terms(
    method: Method, picked: Mapping[str, Array], factors: Array, entries: Array, multiplicity: Array
) -> tuple[Array, Array]:
    """[P, N, T, R] terms of samples, all runs at once; [2, P, N, T, R] samples and counts, each run alone.

    ``entries`` and ``multiplicity`` [2, P, N] are both groups: arguments, as what is computed of constants at
    compile time is compiled operation by operation.
    """

    def terms(picked: Any, factor: Array, entries: Array, multiplicity: Array) -> Array:
        made = substituted(method, picked)
        made = aligned(made) if factor.ndim else made
        rollout, logp = _group(entries, multiplicity, factor)
        return objective_terms(made, rollout, advantages(made, rollout), logp)

    alone = jax.vmap(terms, in_axes=(-1, 0, None, None), out_axes=-1)
    both = jax.vmap(alone, in_axes=(None, None, 0, 0))
    samples = terms(picked, factors, entries[0], multiplicity[0])
    return samples, both(picked, factors, entries, multiplicity)


_program: Any = jax.jit(_terms, compiler_options=QUICK)
"""``_terms``, compiled once for methods that differ in numbers alone."""


def trial(method: Method, swept: Swept = ()) -> Trial | None:
    """Try a method at the numbers it will have; None where nothing can be said.

    That is: while its numbers are traced, and where a part calls Python or holds an array that fits no small
    batch.
    """
    if not at_hand(method):
        return None
    own = per_run(method)
    if len({len(value) for value in own.values()}) > 1:
        return None
    settings = points((*swept, {f"method.{path}": value for path, value in own.items()}), "method.")
    runs = POINTS if settings else 2
    factors = 1 - 0.4 * np.arange(runs) / runs
    picked = {path: np.moveaxis(value, 0, -1) for path, value in settings.items()}
    groups = np.stack([SAMPLES, OUTPUTS]), np.stack([np.ones(SAMPLES.shape), COUNTS])
    with jax.ensure_compile_time_eval():
        try:
            if _program._cache_size() >= HELD:
                _program.clear_cache()
            found = _program(method, picked, factors, *groups)
            together, (alone, counted) = map(np.asarray, found)
        except NotImplementedError:  # a call back to Python, which cannot be spread over runs
            return None
        except (TypeError, ValueError, IndexError):
            if any(np.ndim(leaf) for path, leaf in leaf_paths(method).items() if path not in own):
                return None
            raise
    size = np.nansum(np.abs(alone), (0, 1, 2))
    near = np.isclose(together, alone, rtol=1e-4, atol=1e-5 * size, equal_nan=True)
    gap = np.abs(alone.sum((0, 1, 2)) - counted.sum((0, 1, 2)))
    return Trial(
        apart=near.all((0, 1, 2)),
        counted=(gap <= 1e-4 * size) | np.isnan(gap),
        defined=~np.isnan(alone).any((0, 1, 2)),
        settings=settings,
    )


def respects_multiplicity(method: Method, swept: Swept = ()) -> bool | None:
    """Whether a histogram has the objective of the samples that it counts; None where none can tell."""
    found = trial(method, swept)
    return None if found is None else bool(found.counted.all())


def keeps_runs_apart(method: Method, swept: Swept = ()) -> bool:
    """Whether runs computed at once have the terms that each has alone, as far as can be seen."""
    found = trial(method, swept)
    return found is None or bool(found.apart.all())


def check_method(method: Method, swept: Swept = ()) -> None:
    """Raise ValueError for a part from outside that mixes runs or gives NaN at the numbers it will have."""
    names = ", ".join(outside(method))
    found = trial(method, swept) if names else None
    if found is None:
        return
    if not found.apart.all():
        raise ValueError(
            f"{names} mixes runs{_place(found, found.apart)}: axes 0, 1, 2 are prompts, entries, tokens, and "
            "what follows are runs; reduce over axis 1 for a group, never over the last"
        )
    if not found.defined.all():
        raise ValueError(
            f"{names} gives NaN on a small batch of ordinary numbers{_place(found, found.defined)}"
            f"{_slot(method, found)}: nothing could be learnt"
        )


def _place(found: Trial, good: np.ndarray) -> str:
    """The first setting that is not good, where settings are swept."""
    first = int(np.argmin(good))
    said = [f"{path} = {v[first]:g}" for path, v in found.settings.items() if v.ndim == 1]
    return f" at {', '.join(said)}" if said else ""


def _slot(method: Method, found: Trial) -> str:
    """Where in the method the first NaN of the first such setting arises."""
    first = int(np.argmin(found.defined))
    with jax.ensure_compile_time_eval():
        flags = _undefined(method, {path: v[first] for path, v in found.settings.items()})
    slot = next((name for name, wrong in flags.items() if wrong), "")
    return f" (in method.{slot})" if slot else ""


@jax.jit
def _undefined(method: Method, picked: Mapping[str, Array]) -> dict[str, Array]:
    """Slot -> whether what it gives for the samples holds NaN, in the order in which slots are read."""
    made = substituted(method, picked)
    rollout, logp = _group(jnp.asarray(SAMPLES), jnp.ones(SAMPLES.shape), jnp.ones(()))
    log_ratio = made.ratio(rollout, logp)
    at = Evaluation(rollout, logp, log_ratio, advantages(made, rollout))
    given = {"shaping": made.shaping(rollout), "advantage": at.advantages, "ratio": log_ratio}
    given |= {"gain": made.gain(at), "reduction": made.reduction(rollout)}
    given |= {f"corrections.{i}": correction(at) for i, correction in enumerate(made.corrections)}
    if made.penalty is not None:
        given["penalty"] = made.penalty(at)
    return {name: jnp.isnan(value).any() for name, value in given.items()}
