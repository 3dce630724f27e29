"""The training loop: ``init``, ``step``, ``run``. Pure functions of (configuration, state), for many runs."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax import diagnostics, optimizers, recording
from grpo_jax.collectors import choose
from grpo_jax.config import (
    Batch,
    Config,
    TrainState,
    check_length,
    check_root,
    check_runs,
    prompt_count,
    validate,
)
from grpo_jax.kernels import materialize
from grpo_jax.part import aligned
from grpo_jax.random import Stream, uniforms
from grpo_jax.recording import DIAGNOSTICS, Inner, View
from grpo_jax.runtime import compiler_options, staged
from grpo_jax.types import Array, Params, evaluated_at_old

Info = dict[str, Array]
"""Diagnostic name -> its value, runs last."""
UNROLLED = 4
"""The most optimizer steps of an iteration that are compiled one after the other instead of as a loop."""


def init(config: Config, seed: Any = 0, *, root: int = 0) -> TrainState:
    """The state before the first iteration.

    Args:
      config: the configuration; it is validated.
      seed: the seed coordinate, an integer or [R] integers, one per run: runs are everything's last axis.
      root: the seed root, shared by an experiment.
    """
    validate(config)
    root, seed = check_root(root), _coordinate(seed)
    check_runs(config, seed)
    runs = bool(seed.ndim)
    if runs and not config.policy.trailing:
        raise ValueError(
            f"{type(config.policy).__name__} takes one run at a time; vmap over runs, or use sweep"
        )
    key = jax.random.key(root) if runs else jax.random.fold_in(jax.random.key(root), seed)

    def spread_out(leaf: Array, like: Array) -> Array:
        leaf = jnp.asarray(leaf, like.dtype)
        if not runs:
            return leaf
        leaf = leaf if _has_runs(config, leaf) else leaf[..., None]
        return jnp.broadcast_to(leaf, (*leaf.shape[:-1], seed.shape[0]))

    start = config.policy.init(key)
    params = jax.tree.map(lambda leaf: spread_out(leaf, leaf), start)
    ref = params if config.reference is None else jax.tree.map(spread_out, config.reference, start)
    return TrainState(
        params=params,
        old_params=params,
        ref_params=ref,
        opt_state=optimizers.init(config.optimizer, params, runs=runs),
        step=jnp.uint32(0),
        root=jnp.asarray(root, jnp.uint32),
        seed=seed,
    )


def _coordinate(seed: Any) -> Array:
    if not isinstance(seed, jax.Array):
        given = np.asarray(seed)
        whole = given.dtype.kind in "iu" and given.ndim < 2 and given.size > 0
        if not whole or given.min() < 0 or given.max() >= 2**32:
            raise ValueError(f"seed is {seed!r}; it must be a whole number in [0, 2^32), or [R] of them")
    return jnp.asarray(seed, jnp.uint32)


def _has_runs(config: Config, leaf: Array) -> bool:
    return leaf.ndim > config.policy.rank


def _minibatches(config: Config, state: TrainState) -> Array | None:
    """[μ·minibatches, P/minibatches(, R)] prompt rows of every optimizer step; None for whole batches."""
    parts = config.loop.minibatches
    if parts == 1:
        return None
    count, passes = prompt_count(config), config.loop.inner_steps
    order = uniforms(state.root, state.seed, state.step, Stream.SHUFFLE, (passes, count))
    rows = jnp.argsort(order, axis=1)
    return rows.reshape((passes * parts, count // parts) + rows.shape[2:])


def _take(batch: Batch, rows: Array) -> Batch:
    """The groups at prompt rows [p(, R)]."""

    def pick(leaf: Any) -> Array:
        leaf = jnp.asarray(leaf)
        if rows.ndim == 1 or leaf.ndim == 1:
            return leaf[rows]
        leaf = jnp.broadcast_to(leaf, (*leaf.shape[:-1], rows.shape[1]))
        index = rows.reshape((rows.shape[0],) + (1,) * (leaf.ndim - 2) + (rows.shape[1],))
        return jnp.take_along_axis(leaf, index, axis=0)

    return jax.tree.map(pick, batch)


def step(
    config: Config, state: TrainState, *, record: Iterable[str] | None = None
) -> tuple[TrainState, Info]:
    """One iteration: collect groups with θ_old, then μ passes of optimizer steps on the surrogate.

    Returns the next state and the diagnostics that ``run`` records; under ``jit`` unread ones are free.
    """
    config = choose(aligned(config) if state.seed.ndim else config)
    assert config.expectation is not None
    batch = config.expectation.collect(config, state)
    (params, opt_state), inner = _optimize(config, state, batch)
    done = state.step + 1
    refresh = done % config.loop.refresh_every == 0
    after = state._replace(
        params=params,
        old_params=jax.tree.map(lambda new, old: jnp.where(refresh, new, old), params, state.old_params),
        opt_state=opt_state,
        step=done,
    )
    view = View(config, after, batch, inner)
    measured = {
        name: materialize(DIAGNOSTICS[name].measure(view)) for name in recording.names(record, config)
    }
    return after, {name: _every_run(value, state.seed) for name, value in measured.items()}


def _every_run(value: Array, seed: Array) -> Array:
    """[..., R]: what all runs share is recorded for each of them."""
    return jnp.broadcast_to(value, (*value.shape[:-1], *seed.shape)) if seed.ndim else value


def _optimize(config: Config, state: TrainState, batch: Batch) -> tuple[tuple[Params, Any], Inner]:
    runs = bool(state.seed.ndim)
    expectation = config.expectation
    assert expectation is not None
    at_old = evaluated_at_old(config.method.ratio)

    def body(carry: tuple[Params, Any], rows: Array | None) -> tuple[tuple[Params, Any], Inner]:
        params, opt_state = carry
        part = batch if rows is None else _take(batch, rows)

        def negated(point: Params) -> tuple[Array, tuple[Array, Array]]:
            value, logp = expectation.objective(config, part, point)
            return -jnp.sum(value), (value, logp)

        grads, (value, logp) = jax.grad(negated, has_aux=True)(state.old_params if at_old else params)
        updates, opt_state = optimizers.update(config.optimizer, grads, opt_state, params, runs=runs)
        high, low = recording.clip_fractions(config, part, logp)
        seen = Inner(
            surrogate=value,
            grad_norm=diagnostics.norm(grads, runs=runs),
            update_norm=diagnostics.norm(updates, runs=runs),
            clip_high=high,
            clip_low=low,
        )
        return (jax.tree.map(jnp.add, params, updates), opt_state), jax.tree.map(materialize, seen)

    steps = config.loop.inner_steps * config.loop.minibatches
    carry, seen = jax.lax.scan(
        body,
        (state.params, state.opt_state),
        _minibatches(config, state),
        length=steps,
        unroll=steps if steps <= UNROLLED else 1,
    )
    return carry, jax.tree.map(lambda x: jnp.mean(x, 0), seen)


def _run(
    config: Config, state: TrainState, iterations: int, record_every: int, record: tuple[str, ...]
) -> tuple[TrainState, Info]:
    def stretch(state: TrainState, _: None) -> tuple[TrainState, Info]:
        state, _ = jax.lax.scan(
            lambda s, _: (step(config, s, record=())[0], None), state, length=record_every - 1
        )
        return step(config, state, record=record)

    return jax.lax.scan(stretch, state, length=iterations // record_every)


@functools.cache
def _compiled(inner: bool) -> Any:
    """``_run`` under ``jit``; only an outermost program may choose how it is compiled."""
    options = None if inner else compiler_options()
    static = ("iterations", "record_every", "record")
    return jax.jit(_run, static_argnames=static, compiler_options=options)


def run(
    config: Config,
    state: TrainState,
    *,
    iterations: int,
    record_every: int = 1,
    record: Iterable[str] | None = None,
) -> tuple[TrainState, Info]:
    """``iterations`` steps in one compiled scan, recording every ``record_every``-th.

    Two short runs equal one long run bit for bit. A run that turns non-finite says so in ``finite`` and
    leaves its neighbours alone.

    Args:
      config: one compile per tree structure; numbers are traced.
      state: from ``init`` or an earlier ``run``.
      iterations: a multiple of ``record_every``.
      record: diagnostic names (``recording.DIAGNOSTICS``); None is ``recording.DEFAULT``.

    Returns:
      The state, and name -> [iterations / record_every, ...(, R)].
    """
    validate(config)
    check_runs(config, state.seed)
    check_length(iterations, record_every)
    names = recording.names(record, config)
    program = _compiled(staged(config, state))
    return program(choose(config), state, iterations, record_every, names)
