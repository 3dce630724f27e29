"""Optimizer steps on one batch: μ passes, whole or in minibatches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from grpo_jax import optimizers, prepared
from grpo_jax.config import Batch, Config, HasObjectiveAtOld, TrainState, prompt_count
from grpo_jax.kernels import materialize, take_rows
from grpo_jax.measures import StepView
from grpo_jax.part import put
from grpo_jax.prepared import plain
from grpo_jax.random import Stream, uniforms
from grpo_jax.types import Array, Params, evaluated_at_old

UNROLLED = 4
"""The most optimizer steps of an iteration that are compiled one after the other instead of as a loop."""


def _minibatches(config: Config, state: TrainState) -> Array | None:
    """[μ·minibatches, P/minibatches(, R)] prompt rows of every optimizer step; None for whole batches."""
    parts = config.loop.minibatches
    if parts == 1:
        return None
    count, passes = prompt_count(config), config.loop.inner_steps
    order = uniforms(state.root, state.seed, state.step, Stream.SHUFFLE, (passes, count))
    rows = jnp.argsort(order, axis=1)
    return rows.reshape((passes * parts, count // parts) + rows.shape[2:])


def optimizer_steps(
    config: Config,
    state: TrainState,
    batch: Batch,
    watch: Callable[[StepView], Any],
    *,
    passes: int | None = None,
    fresh: bool = False,
) -> tuple[TrainState, Any]:
    """μ passes of optimizer steps on one batch, ``watch`` looking at each.

    Args:
      config: with its expectation chosen, and aligned where runs are present.
      state: where the steps start; θ_old stays.
      batch: of the configuration's expectation.
      watch: a function of a ``StepView``; its results are stacked along a first axis of steps.
      passes: μ; None is the loop's.
      fresh: there is one step, from θ_old = θ: the batch is then scored once (``train.starts_fresh``).

    Returns:
      The state with new parameters and optimizer state, and what was watched.
    """
    runs = bool(state.seed.ndim)
    expectation = config.expectation
    assert expectation is not None
    at_old = evaluated_at_old(config.method.ratio)
    if passes is not None:
        config = put(config, "loop.inner_steps", passes)
    steps = config.loop.inner_steps * config.loop.minibatches
    objective = expectation.objective
    if fresh and isinstance(expectation, HasObjectiveAtOld):
        objective = expectation.objective_at_old

    def body(carry: tuple[Params, Any], rows: Array | None) -> tuple[tuple[Params, Any], Any]:
        params, opt_state = carry
        part = batch if rows is None else take_rows(batch, rows)
        point = state.old_params if at_old else params

        def negated(at: Params) -> tuple[Array, tuple[Array, Array]]:
            value, logp = objective(config, part, prepared.at(point, at))
            return -jnp.sum(value), (value, logp)

        grads, (value, logp) = jax.grad(negated, has_aux=True)(plain(point))
        own = plain(params)
        after, opt_state, updates = optimizers.step(config.optimizer, grads, opt_state, own, runs=runs)
        view = StepView(
            config=config, batch=part, params=plain(point), logp=logp, surrogate=value, grads=grads,
            updates=updates, runs=runs,
        )  # fmt: skip
        after = prepared.like(params, config.policy, after)
        return (after, opt_state), jax.tree.map(materialize, watch(view))

    (params, opt_state), watched = jax.lax.scan(
        body,
        (state.params, state.opt_state),
        _minibatches(config, state),
        length=steps,
        unroll=steps if steps <= UNROLLED else 1,
    )
    return state._replace(params=params, opt_state=opt_state), watched
