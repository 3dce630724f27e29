"""What the experiments on [A] share: problems of one question, exact ascent, and time averages of sampling.

Arrays have runs last. Training is on-policy (one step a batch) and unclipped, the setting of [A].
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from experiments.grid import grid
from experiments.verdict import Number, extrapolate, mean
from grpo_jax import train
from grpo_jax.collectors import choose
from grpo_jax.config import Config, Loop, validate
from grpo_jax.exact import Exact
from grpo_jax.methods import grpo
from grpo_jax.optimizers import SGD, Optimizer
from grpo_jax.parts.gains import Linear
from grpo_jax.parts.penalties import K3, Penalty, RatioWeight
from grpo_jax.policies import ActionPolicy
from grpo_jax.surrogate import Method
from grpo_jax.tasks import Questions

BURN = 0.25
"""Share of a sampled run that its time average leaves out."""


def method(beta: Any, *, direct: bool = False) -> Method:
    """GRPO of [A]: no clip, k3 penalty; `direct` multiplies the penalty by the ratio (Section 5)."""
    weight = RatioWeight() if direct else None
    return dataclasses.replace(
        grpo, gain=Linear(), penalty=Penalty(divergence=K3(), weight=weight, coef=beta)
    )


def problem(
    reference: np.ndarray, rewards: Any, beta: Any, *, group_size: int, start=None, **changes
) -> Config:
    """One question with K answers.

    Args:
      reference: [K(, R)] pi_ref.
      rewards: [K(, R)] rewards, or success probabilities if `noise` is Bernoulli; or a task.
      beta: the penalty's coefficient, a number or [R].
      group_size: G.
      start: [K(, R)] policy to start from; the reference by default.
      changes: `noise`, `direct`, or fields of `Config`, of which `expectation` is exact by default.
    """
    made, noise = method(beta, direct=changes.pop("direct", False)), changes.pop("noise", None)
    task = rewards if hasattr(rewards, "rewards") else Questions(table=np.asarray(rewards)[None], noise=noise)
    with np.errstate(divide="ignore"):
        logits, anchor = (
            np.log(np.asarray(p))[None] for p in (reference if start is None else start, reference)
        )
    base = {"method": made, "loop": Loop(group_size=group_size), "expectation": Exact(), "reference": anchor}
    return Config(policy=ActionPolicy(logits=logits), task=task, **(base | changes))


def binary(p: ArrayLike) -> np.ndarray:
    """[2, ...] the policy that gives p to the first answer."""
    return np.stack([np.asarray(p, float), 1 - np.asarray(p, float)])


def light(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`jax.jit` for what runs once and briefly: on a CPU the compiler is told not to optimise.

    That halves the time to compile; results differ by rounding at most.
    """

    @functools.cache
    def made() -> Callable[..., Any]:
        level = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        return jax.jit(function, compiler_options=level, **options)

    return functools.wraps(function)(lambda *args, **kwargs: made()(*args, **kwargs))


def follow(config: Config, seeds: np.ndarray, *, root: int = 0, iterations: int, every: int) -> np.ndarray:
    """[iterations / every, K, R] policies in training, from the state before its first step."""
    if iterations % every:
        raise ValueError(f"{iterations} iterations are not a multiple of {every}")
    validate(config)
    rows = _follow(choose(config), np.asarray(seeds, np.uint32), root, rows=iterations // every, every=every)
    return np.asarray(rows)


@functools.partial(jax.jit, static_argnames=("rows", "every"))
def _follow(config: Config, seeds: jax.Array, root: int, *, rows: int, every: int) -> jax.Array:
    """One program for the start and all steps, which holds `train.step` once: compiling is what costs."""

    def stretch(state: train.TrainState, _: None) -> tuple[train.TrainState, jax.Array]:
        state, _ = jax.lax.scan(lambda s, _: (train.step(config, s, record=())[0], None), state, length=every)
        return state, jax.nn.softmax(state.params[0], axis=0)

    return jax.lax.scan(stretch, train.init(config, seeds, root=root), length=rows)[1]


def ascend(config: Config, runs: int, *, iterations: int) -> np.ndarray:
    """[K, R] policy after so many steps; deterministic under the exact expectation."""
    return follow(config, np.zeros(runs, int), iterations=iterations, every=iterations)[0]


def steady_rate(beta: ArrayLike) -> SGD:
    """SGD with a rate, one a run, at which exact ascent is stable for every group size: 3 / (1 + beta)."""
    return SGD(learning_rate=jnp.asarray(3 / (1 + np.asarray(beta, float))))


def time_average(config: Config, seeds: np.ndarray, *, root: int, iterations: int) -> np.ndarray:
    """[K, R] mean policy over a sampled run but for its burn-in."""
    policies = follow(config, seeds, root=root, iterations=iterations, every=5)
    return policies[int(BURN * len(policies)) :].mean(0)


def sampled_binary(
    optimizer: Callable[..., Optimizer],
    rates: np.ndarray,
    settings: Mapping[str, np.ndarray],
    size: tuple[int, int],
    *,
    root: int,
    group_size: int,
    **changes,
) -> np.ndarray:
    """[rate, setting, seed] time averages of pi of the better of two answers, rewards 1 and 0.

    Args:
      optimizer: made from a learning rate, one a run.
      rates: [L].
      settings: values of pi_ref and of beta, whose product is run.
      size: seeds and iterations.
      root: of the draws.
      group_size: G.
      changes: as in `problem`.
    """
    rate, reference, beta, seed = grid(rates, *settings.values(), np.arange(size[0]))
    options = {"optimizer": optimizer(learning_rate=jnp.asarray(rate)), "expectation": None} | changes
    config = problem(binary(reference), np.array([1.0, 0.0]), beta, group_size=group_size, **options)
    average = time_average(config, seed.astype(int), root=root, iterations=size[1])[0]
    return average.reshape(len(rates), -1, size[0])


def furthest(samples: np.ndarray, expected: ArrayLike, *, tolerance: float) -> Number:
    """Of many settings [S, R] the mean, less what is expected [S], whose interval reaches furthest from 0.

    It lies within the margin only if every setting's does; a setting that lies outside comes first, lest a
    wider interval that decides nothing hide it.

    >>> outside, wide = [0.2, 0.2, 0.21], [-1.0, 1.0, 0.0]
    >>> furthest(np.array([outside, wide]), [0.0, 0.0], tolerance=0.01).holds
    False
    """
    gaps = np.asarray(samples) - np.asarray(expected, float)[:, None]
    found = [mean(gap, expected=0.0, tolerance=tolerance) for gap in gaps]
    return max(found, key=lambda n: (n.holds is False, max(-float(n.low or 0), float(n.high or 0))))


def intercepts(rates: ArrayLike, averages: np.ndarray, *, degree: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Time averages [L, S, R] at L learning rates -> values at rate zero and slopes there, each [S, R]."""
    averages = np.asarray(averages)
    fits = extrapolate(rates, averages.reshape(len(averages), -1), degree=degree)
    return fits[0].reshape(averages.shape[1:]), fits[1].reshape(averages.shape[1:])
