"""A small group on which parts from outside are tried: do they keep runs apart and heed multiplicities?"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.part import subparts
from grpo_jax.surrogate import Method, advantages, objective
from grpo_jax.types import Array, Rollout

SAMPLES = np.array([0, 1, 1, 2, 2, 2])
"""Outputs of six samples; ``COUNTS`` is their histogram over four outputs."""
COUNTS = np.array([1.0, 2.0, 3.0, 0.0])
NUMBERS = {
    "rewards": (0.3, 1.0, -0.5, 2.0),
    "sampling_logp": (-1.1, -0.8, -1.3, -2.0),
    "old_logp": (-1.1, -0.8, -1.3, -2.0),
    "ref_logp": (-1.0, -1.2, -1.1, -1.9),
    "entropy": (1.2, 1.1, 0.9, 1.0),
}
LOGP = (-1.05, -0.87, -1.26, -2.1)


def foreign_parts(method: Method) -> list[str]:
    """Names of the method's parts that come from outside this package."""
    outside = (type(p) for p in subparts(method) if not type(p).__module__.startswith("grpo_jax."))
    return list(dict.fromkeys(kind.__name__ for kind in outside))


def known(method: Method) -> bool:
    """Whether every number of the method is one number, and at hand."""
    leaves = jax.tree.leaves(method)
    return not any(isinstance(leaf, jax.core.Tracer) or np.ndim(leaf) for leaf in leaves)


def _table(numbers: tuple[float, ...], entries: np.ndarray, run: int | None) -> Array:
    """[1, N, 1], or [1, N, 1, 2] for both runs, which differ."""
    pair = np.array(numbers)[entries][None, :, None, None] * np.array([1.0, 0.8])
    return jnp.asarray(pair if run is None else pair[..., run])


@jax.jit
def _objective(method: Method, rollout: Rollout, logp: Array) -> Array:
    return objective(method, rollout, advantages(method, rollout), logp)


def value(method: Method, *, entries: np.ndarray, multiplicity: np.ndarray, run: int | None) -> Any:
    """J of one of the trial's two runs, or [2] of both at once; at hand even while something is traced."""
    runs = () if run is not None else (1,)
    shape = (1, len(entries))
    with jax.ensure_compile_time_eval():
        rollout = Rollout(
            prompts=jnp.zeros(1, int),
            tokens=jnp.asarray(entries.reshape(*shape, 1, *runs)),
            mask=jnp.ones((*shape, 1, *runs)),
            multiplicity=jnp.asarray(multiplicity.reshape(*shape, *runs)),
            baseline=jnp.zeros((*shape, *runs)),
            **{name: _table(numbers, entries, run) for name, numbers in NUMBERS.items()},
        )
        return np.asarray(_objective(method, rollout, _table(LOGP, entries, run)))


def _alike(a: Any, b: Any) -> bool:
    return bool(np.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True))


def respects_multiplicity(method: Method) -> bool:
    """Whether a histogram has the objective of the samples that it counts."""
    sampled = value(method, entries=SAMPLES, multiplicity=np.ones(len(SAMPLES)), run=0)
    return _alike(sampled, value(method, entries=np.arange(len(COUNTS)), multiplicity=COUNTS, run=0))


def keeps_runs_apart(method: Method) -> bool:
    """Whether two runs at once have the objectives that each has alone."""
    group: Any = {"entries": SAMPLES, "multiplicity": np.ones(len(SAMPLES))}
    alone = [value(method, run=run, **group) for run in (0, 1)]
    return _alike(value(method, run=None, **group), alone)


def check(method: Method) -> None:
    """Raise ValueError for a part from outside that mixes runs; numbers that are not at hand pass unseen."""
    outside = foreign_parts(method)
    if outside and known(method) and not keeps_runs_apart(method):
        raise ValueError(
            f"{', '.join(outside)} mixes runs: axes 0, 1, 2 are prompts, entries, tokens, and what follows "
            "are runs; reduce over axis 1 for a group, never over the last"
        )
