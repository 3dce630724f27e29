"""Instruments for the hidden biases of group-based methods ([B], arXiv:2601.05002), usable in any run.

What an inner loop does to the ratios (`inner_path`), how far momentum alone carries the policy (`coasted`),
the weight with which a shared prefix is pushed (`token_gradients`, `aggregate_weight`), and what that does to
lengths (`length_moments`). Everything works on one run or on runs as the last axis, for any policy.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.collectors import choose
from grpo_jax.config import Batch, Config, TrainState
from grpo_jax.diagnostics import log_support
from grpo_jax.kernels import trailing
from grpo_jax.measures import StepView
from grpo_jax.part import aligned
from grpo_jax.statistics import divide
from grpo_jax.steps import optimizer_steps
from grpo_jax.surrogate import Method, advantages, objective_terms
from grpo_jax.types import Array, Params, Policy, Rollout, require_support


class InnerPath(NamedTuple):
    """Optimizer steps on one batch, stacked; everything is measured where the step's gradient was taken."""

    params: Params
    grads: Params
    """Gradient of the loss."""
    updates: Params
    """What the optimizer added to the parameters."""
    log_ratio: Array
    """[steps, P, N, T(, R)] the method's log ratio."""
    clipped: Array
    """[steps, P, N, T(, R)] 1 where the clip holds the token's gradient at zero."""


@functools.partial(jax.jit, static_argnames="steps")
def inner_path(config: Config, state: TrainState, *, steps: int) -> tuple[Batch, InnerPath]:
    """Collect one batch with the old policy and watch every optimizer step of ``steps`` passes over it.

    An iteration of ``train.run`` with ``inner_steps`` = steps: a pass is one step, or as many as
    ``loop.minibatches`` says.

    Returns:
      The batch, and the path; leaves of the path have the step as first axis. ValueError for ``Exact()``,
      which draws no batch.
    """
    config = choose(aligned(config) if state.seed.ndim else config)
    if config.behavior is not None:
        config.behavior.require_queue(state.queue)
    assert config.expectation is not None
    batch = config.expectation.collect(config, state)

    def watch(view: StepView) -> InnerPath:
        mask, log_ratio = view.clip_mask, view.log_ratio
        clipped = (mask.high | mask.low).astype(log_ratio.dtype)
        return InnerPath(view.params, view.grads, view.updates, log_ratio, clipped)

    return batch, optimizer_steps(config, state, batch, watch, passes=steps)[1]


def live_steps(path: InnerPath, *, runs: bool) -> Array:
    """Number of steps up to the last one with a gradient other than exactly zero: a scalar, or [R]."""

    def any_of(leaf: Array) -> Array:
        return jnp.any(leaf != 0, tuple(range(1, leaf.ndim - runs)))

    live = functools.reduce(jnp.logical_or, [any_of(leaf) for leaf in jax.tree.leaves(path.grads)])
    count = trailing(jnp.arange(1, live.shape[0] + 1), 1 + runs)
    return jnp.max(jnp.where(live, count, 0), 0)


def coasted(path: InnerPath, *, runs: bool) -> tuple[Params, Params]:
    """Displacement by the optimizer alone, after the last live gradient; and the last live update.

    Returns:
      Two trees shaped like the parameters: Σ of the updates on zero gradient, and the update before them.
    """
    last = live_steps(path, runs=runs)

    def total(leaf: Array, *, after: bool) -> Array:
        step = trailing(jnp.arange(1, leaf.shape[0] + 1), leaf.ndim)
        return jnp.sum(jnp.where(step > last if after else step == last, leaf, 0), 0)

    after = jax.tree.map(functools.partial(total, after=True), path.updates)
    return after, jax.tree.map(functools.partial(total, after=False), path.updates)


def token_gradients(method: Method, rollout: Rollout, logp: Array) -> Array:
    """[P, N, T] derivatives of the objective in each log-probability, the penalty apart.

    ∂J/∂log π(y_{i,t}|·) = ω_{i,t} A_i live_{i,t} ([B] Proposition 1), for any policy.
    """
    free = dataclasses.replace(method, penalty=None)
    value = advantages(method, rollout)
    return jax.grad(lambda x: jnp.sum(objective_terms(free, rollout, value, x)))(logp)


def penalty_gradients(method: Method, rollout: Rollout, logp: Array) -> Array:
    """[P, N, T] what the penalty adds to ``token_gradients``; 0 without one."""
    value = advantages(method, rollout)
    whole = jax.grad(lambda x: jnp.sum(objective_terms(method, rollout, value, x)))(logp)
    return whole - token_gradients(method, rollout, logp)


def aggregate_weight(gradients: Array, *, prefix: int) -> Array:
    """[P, prefix] W_agg: the push on each position of a prefix that every entry of the group shares.

    The gradient in the prefix's parameters is Σ_t ∇log π(y_t|y_<t)·W_agg,t. Under uniform weights and while
    no member is clipped it cancels; under weights 1/len it is the group's covariance of advantage and 1/len.
    """
    return jnp.sum(gradients[:, :, :prefix], 1)


def split_gradient(gradients: Array, *, prefix: int) -> tuple[Array, Array]:
    """Shares of the token gradients' absolute sum: the prefix's net push, and the suffixes.

    Gradients [P, N, T(, R)]; two scalars, or [R].
    """
    net = jnp.sum(jnp.abs(aggregate_weight(gradients, prefix=prefix)), (0, 1))
    rest = jnp.sum(jnp.abs(gradients[:, :, prefix:]), (0, 1, 2))
    return divide(net, net + rest), divide(rest, net + rest)


def length_moments(policy: Policy, params: Params, prompts: Any, group: np.ndarray) -> Array:
    """[groups(, R)] expected length of outputs in each of some groups (correct, wrong), by enumeration.

    Args:
      group: int [S] the group of every output of the support, 0, 1, ...
    """
    support = require_support(policy, prompts, instead="record the sampled length instead")
    probability = jnp.exp(log_support(policy, params, prompts))
    lengths = trailing(jnp.asarray(support.mask).sum(2), probability.ndim)
    moments = []
    for value in range(int(group.max()) + 1):
        inside = jnp.where(trailing(group[None] == value, probability.ndim), probability, 0)
        moments.append(divide(jnp.sum(inside * lengths, (0, 1)), jnp.sum(inside, (0, 1))))
    return jnp.stack(moments)
