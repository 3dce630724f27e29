"""Sums and extremes over short leading axes, written out so that they vectorise over the runs behind them.

A compiler makes a reduction over a leading axis a loop of its own, often a scalar one; a written-out sum
fuses with what feeds it. Values agree with ``jnp.sum`` to rounding, and derivatives are those of a sum. Use
them where few consumers read the result: what is fused is computed again for each of them.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from grpo_jax.types import Array

WRITTEN_OUT = 32
"""The longest axis that is written out."""


def _fold(combine: Callable[[Array, Array], Array], x: Array, axis: int) -> Array:
    parts = [jax.lax.index_in_dim(x, i, axis) for i in range(x.shape[axis])]
    while len(parts) > 1:
        pairs = [combine(a, b) for a, b in zip(parts[::2], parts[1::2], strict=False)]
        parts = pairs + parts[len(parts) - len(parts) % 2 :]
    return parts[0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _sum(x: Array, axis: int) -> Array:
    return _fold(jnp.add, x, axis)


@_sum.defjvp
def _sum_jvp(axis: int, primals: Any, tangents: Any) -> tuple[Array, Array]:
    return _sum(primals[0], axis), jnp.sum(tangents[0], axis, keepdims=True)


def total(x: Array, axes: tuple[int, ...]) -> Array:
    """Σ x over ``axes``, which stay as length one."""
    for axis in sorted(axes, reverse=True):
        short = 0 < x.shape[axis] <= WRITTEN_OUT
        x = _sum(x, axis) if short else jnp.sum(x, axis, keepdims=True)
    return x


def _lesser(a: Array, b: Array) -> Array:
    return jnp.where((a < b) | (a != a), a, b)


def least(x: Array, axes: tuple[int, ...]) -> Array:
    """Minimum over ``axes``, which stay as length one; NaN if any is."""
    for axis in sorted(axes, reverse=True):
        short = 0 < x.shape[axis] <= WRITTEN_OUT
        x = _fold(_lesser, x, axis) if short else jnp.min(x, axis, keepdims=True)
    return x


def greatest(x: Array, axes: tuple[int, ...]) -> Array:
    """Maximum over ``axes``, which stay as length one; NaN if any is."""
    return -least(-x, axes)


def cumulative(x: Array, axis: int) -> Array:
    """Running sum along ``axis``."""
    if not 0 < x.shape[axis] <= WRITTEN_OUT:
        return jnp.cumsum(x, axis)
    parts = [jax.lax.index_in_dim(x, i, axis) for i in range(x.shape[axis])]
    return jnp.concatenate(list(itertools.accumulate(parts)), axis)


def log_softmax(logits: Array, axis: int) -> Array:
    """log of the softmax over a leading axis; −inf stays −inf."""
    shifted = logits - jnp.max(jax.lax.stop_gradient(logits), axis, keepdims=True)
    normalizer = jnp.log(total(jnp.exp(shifted), (axis,)))
    return shifted - normalizer


def once(step: Array, compute: Callable[[], Any]) -> Any:
    """``compute()``, made once and stored.

    What several kernels read is otherwise fused into each of them and computed anew (a barrier does not keep
    the CPU's compiler from it). A branch that is taken at every ``step`` below 2^32 − 1 does.
    """
    never = jnp.asarray(step, jnp.uint32) == jnp.uint32(2**32 - 1)
    shapes = jax.eval_shape(compute)
    empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.cond(never, lambda: empty, compute)


def bounded(x: Array, low: Any, high: Any) -> Array:
    """x held within [low, high]: gradient 1 inside and at the bounds, 0 outside; NaN stays NaN."""
    return jnp.where(x < low, low, jnp.where(x > high, high, x))
