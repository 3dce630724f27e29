"""Training on expected updates: the library's optimizers, fed with a policy's own derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import grpo_jax as gj
from experiments.transfer.enumeration import ascent, returns
from experiments.transfer.policies import World
from grpo_jax import optimizers

Rule = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(log π_old, log π) -> weights of the update, all [R, C, S, T]."""
SGD = gj.SGD(learning_rate=1.0)
ADAMW = gj.AdamW(learning_rate=1.0)
OPTIMIZERS = {"SGD": SGD, "AdamW": ADAMW}
"""At rate 1: an update is proportional to its rate, which each run has of its own."""
GAIN = 0.01
"""By how much the first step of training is to raise J, to first order: what makes rates comparable."""


class Trained(NamedTuple):
    """The policy along training."""

    params: np.ndarray
    """[R, D] at the end."""
    logp: np.ndarray
    """[K + 1, R, C, S, T] at the start and after every batch."""
    state: Any
    """The optimizer's."""

    def returns(self, values: np.ndarray) -> np.ndarray:
        """[K + 1, R] J."""
        return np.stack([returns(logp, values) for logp in self.logp])


@jax.jit
def _stepped(optimizer: Any, gradient: Any, state: Any, params: Any, rate: Any) -> tuple[Any, Any]:
    """Parameters after a step that ascends, and the optimizer's state; parameters [R, D], rates [R]."""
    move, state = optimizers.update(optimizer, -gradient, state, params, runs=False)
    return params + rate[:, None] * move, state


def began(optimizer: Any, params: np.ndarray) -> Any:
    """The optimizer's first state."""
    return optimizers.init(optimizer, jnp.asarray(params), runs=False)


def train(
    world: World,
    rule: Rule,
    optimizer: Any,
    rate: np.ndarray,
    iterations: int,
    *,
    inner: int = 1,
    lag: int = 0,
    frozen: bool = False,
    start: np.ndarray | None = None,
    state: Any = None,
) -> Trained:
    """Batches of `inner` steps each on the expected update.

    Args:
      world: the policy.
      rule: what an update is.
      optimizer: one of `grpo_jax.optimizers`, at rate 1.
      rate: of each run, [R].
      iterations: batches.
      inner: steps on a batch.
      lag: how many batches old the policy is that samples.
      frozen: whether all steps on a batch take the gradient of the first.
      start: parameters to go on from, [R, D].
      state: the optimizer's, to go on from.
    """
    params = world.start if start is None else start
    state = began(optimizer, params) if state is None else state
    seen = [world.listed(params)]
    for _ in range(iterations):
        old = seen[max(0, len(seen) - 1 - lag)]
        now = seen[-1]
        for step in range(inner):
            if step == 0 or not frozen:
                now = now if step == 0 else world.listed(params)
                gradient = world.pull(params, rule(old, now))
            moved, state = _stepped(optimizer, gradient, state, params, rate)
            params = np.asarray(moved)
        seen.append(world.listed(params))
    return Trained(params, np.stack(seen), state)


def pace(world: World, rule: Rule, optimizer: Any, rewards: np.ndarray, gain: float = GAIN) -> np.ndarray:
    """[R] the rate at which the first step raises J by `gain`, to first order: one speed for all policies."""
    logp = world.listed(world.start)
    up = world.pull(world.start, ascent(logp, rewards))
    gradient = world.pull(world.start, rule(logp, logp))
    state = began(optimizer, world.start)
    moved, _ = _stepped(optimizer, gradient, state, world.start, np.ones(len(up)))
    return gain / np.sum((np.asarray(moved) - world.start) * up, 1)


def reached(path: np.ndarray, level: float) -> np.ndarray:
    """int [R] the first batch at which a path [K + 1, R] is at the level; the last one where it never is."""
    there = path >= level
    return np.where(there.any(0), there.argmax(0), len(path) - 1)


def at(logp: np.ndarray, when: np.ndarray) -> np.ndarray:
    """[R, C, S, T] each run at a batch of its own, from [K + 1, R, C, S, T]."""
    return logp[when, np.arange(logp.shape[1])]
