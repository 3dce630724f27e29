"""Sums and extremes over short leading axes, written out so that they vectorise over the runs behind them.

A compiler makes a reduction over a leading axis a loop of its own, often a scalar one; a written-out sum
fuses with what feeds it. Values agree with ``jnp.sum`` to rounding, and derivatives are those of a sum.
``whole`` leaves sums and extremes the single operations that they are. ``materialize`` says where an array is
stored instead of being fused into, and computed again by, all who read it.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.types import Array

ROUNDING = 4
"""A sum smaller than so many units of rounding of its terms is taken for 0: nothing else is left of it."""
WRITTEN_OUT = 64
"""The most copies that are written out one by one; more are made of ``BLOCK``."""
BLOCK = 32
READS = 8
"""Parts of an array that one sum reads. What makes the array is then computed within the sum: where a kernel
reads more than 15, XLA stores the array first."""
_whole = contextvars.ContextVar("whole", default=False)


@contextlib.contextmanager
def whole() -> Iterator[None]:
    """What is traced within takes every sum and extreme as one operation, which says over which axis it goes.

    A trace that JAX keeps (``jit``) is found again outside, too.
    """
    token = _whole.set(True)
    try:
        yield
    finally:
        _whole.reset(token)


def materialize(x: Array, *, everywhere: bool = False) -> Array:
    """x itself behind an optimization barrier: computed once and stored, fused into no kernel that reads it.

    Any shape.

    What several kernels read is otherwise fused into each of them and computed anew, which a CPU pays for. It
    holds there where programs are compiled with ``runtime.compiler_options``. Other backends do without,
    unless ``everywhere`` says that results depend on it, not their cost alone.
    """
    return jax.lax.optimization_barrier(x) if everywhere or jax.default_backend() == "cpu" else x


def _cut(x: Array, start: int, stop: int, axis: int) -> Array:
    return jax.lax.slice_in_dim(x, start, stop, axis=axis)


def _short(length: int) -> bool:
    return 0 < length <= BLOCK * BLOCK


def _written_out(length: int) -> bool:
    return _short(length) and not _whole.get()


def _fold(combine: Callable[[Array, Array], Array], x: Array, axis: int) -> Array:
    """``combine`` over a short axis: balanced trees of ``READS`` parts, until one is left."""
    rest: list[Array] = []
    while (length := x.shape[axis]) > 2 * READS - 1:
        rows = length // READS
        rest += [_cut(x, i, i + 1, axis) for i in range(READS * rows, length)]
        x = materialize(_tree(combine, [_cut(x, i * rows, (i + 1) * rows, axis) for i in range(READS)]))
    return _tree(combine, [_cut(x, i, i + 1, axis) for i in range(length)] + rest)


def _tree(combine: Callable[[Array, Array], Array], parts: list[Array]) -> Array:
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
    """Σ x over ``axes``, which stay as length one. Any shape."""
    reads = 1
    for axis in sorted(axes, reverse=True):
        if not _written_out(x.shape[axis]):
            x = jnp.sum(x, axis, keepdims=True)
            continue
        reads *= x.shape[axis]
        if reads > max(x.shape[axis], READS):
            x, reads = materialize(x), x.shape[axis]
        x = _sum(x, axis)
    return x


def _lesser(a: Array, b: Array) -> Array:
    return jnp.where((a < b) | (a != a), a, b)


def least(x: Array, axes: tuple[int, ...]) -> Array:
    """Minimum over ``axes``, which stay as length one; NaN if any is. Any shape."""
    for axis in sorted(axes, reverse=True):
        if _whole.get():
            unknown = jnp.any(x != x, axis, keepdims=True)
            x = jnp.where(unknown, jnp.nan, jnp.min(x, axis, keepdims=True))
        elif _short(x.shape[axis]):
            x = _fold(_lesser, x, axis)
        else:  # jnp.min may lose a NaN on a CPU
            lowest = jax.lax.reduce(x, np.asarray(np.inf, x.dtype), _lesser, (axis,))
            x = jnp.expand_dims(lowest, axis)
    return x


def greatest(x: Array, axes: tuple[int, ...]) -> Array:
    """Maximum over ``axes``, which stay as length one; NaN if any is. Any shape."""
    return -least(-x, axes)


def cumulative(x: Array, axis: int) -> Array:
    """Running sum along ``axis``. Any shape."""
    length = x.shape[axis]
    if not _written_out(length):
        return jnp.cumsum(x, axis)
    if length <= BLOCK:
        parts = [_cut(x, i, i + 1, axis) for i in range(length)]
        return jnp.concatenate(list(itertools.accumulate(parts)), axis)
    blocks = -(-length // BLOCK)
    ends = [(0, blocks * BLOCK - length if i == axis else 0) for i in range(x.ndim)]
    split = (*x.shape[:axis], blocks, BLOCK, *x.shape[axis + 1 :])
    within = materialize(cumulative(jnp.pad(x, ends).reshape(split), axis + 1))
    upto = _cut(within, BLOCK - 1, BLOCK, axis + 1)
    before = materialize(cumulative(upto, axis) - upto)
    whole = (within + before).reshape(*x.shape[:axis], blocks * BLOCK, *x.shape[axis + 1 :])
    return _cut(whole, 0, length, axis)


def count(length: int, condition: Callable[[Any], Array]) -> Array:
    """How many i < ``length`` fulfil ``condition(i)``, elementwise; the conditions are never stored.

    Whole numbers: a float stops growing by ones at 2^24 (float32).
    """

    def add(i: Any, found: Array) -> Array:
        return found + jnp.where(condition(i), 1, 0).astype(found.dtype)

    found = jnp.zeros(jax.eval_shape(condition, 0).shape, int)
    if not _short(length):
        return jax.lax.fori_loop(0, length, add, found)
    for i in range(length):
        found = add(i, found)
        found = materialize(found) if (i + 1) % BLOCK == 0 else found
    return materialize(found)


class LongSum(NamedTuple):
    """A sum of any number of terms in two numbers, right to the rounding of its result.

    In one number alone, n equal terms lose up to n·ε of themselves: in float32 (ε is 6e-8), a mean over 4e5
    has three digits left.
    """

    high: Array
    low: Array
    """What rounding took from ``high``, always less than a unit in its last place."""

    @classmethod
    def empty(cls, like: Array) -> LongSum:
        """0, shaped like this term."""
        return cls(*(jnp.zeros(like.shape, float) for _ in range(2)))

    def add(self, x: Array) -> LongSum:
        """The sum and one more term.

        What rounding takes from high + x is a number itself (Knuth's TwoSum); ``low`` joins it and is
        renormalised, so that it stays small and loses nothing itself.
        """
        near = self.high + x
        own = near - self.high
        lost = (self.high - (near - own)) + (x - own) + self.low
        high = near + lost
        fits = jnp.isfinite(high)
        return LongSum(jnp.where(fits, high, near), jnp.where(fits, lost - (high - near), 0))

    @property
    def value(self) -> Array:
        """The sum; infinite or NaN as a plain sum would be."""
        return self.high + self.low


def at(x: Array, i: Any, axis: int) -> Array:
    """Row ``i``, known or traced, of ``axis``, which stays as length one. Any shape."""
    return jax.lax.dynamic_slice_in_dim(x, i, 1, axis)


def rounding(x: Array) -> Array:
    """ROUNDING·ε·|x|, what may be wrong in a sum because x is one of its terms; ε the dtype's.

    Elementwise.
    """
    return ROUNDING * jnp.finfo(x.dtype).eps * jnp.abs(x)


def flush_to_zero(x: Array, noise: Array) -> Array:
    """x, and exactly 0 where |x| < ``noise``: where terms cancel and only their rounding is left.

    Elementwise; ``noise`` broadcasts.
    """
    return jnp.where(jnp.abs(x) < noise, 0, x)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def log_softmax(logits: Array, axis: int) -> Array:
    """log of the softmax over a leading axis; −inf stays −inf. dlogp = dθ − Σ p dθ. Any shape.

    Its gradient g_k = c_k − p_k Σ_j c_j is exactly 0 where it is below the rounding of its own terms (for
    cotangents c_j of both signs it often has to be 0: an output that was not drawn, advantages that sum to
    0). Otherwise an optimizer that asks for a gradient's sign or divides by its size would follow noise.
    """
    return softmax(logits, axis).logp


class Softmax(NamedTuple):
    """A softmax and its logarithm."""

    logp: Array
    p: Array


def softmax(logits: Array, axis: int) -> Softmax:
    """Both, along a leading axis. Any shape."""
    written = _written_out(logits.shape[axis])
    top = materialize(_fold(jnp.maximum, logits, axis) if written else jnp.max(logits, axis, keepdims=True))
    weight = materialize(jnp.exp(logits - top))
    mass = total(weight, (axis,))
    return Softmax(logits - materialize(top + jnp.log(mass)), weight * materialize(1 / mass))


@log_softmax.defjvp
def _log_softmax_jvp(axis: int, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (logits,), (tangent,) = primals, tangents
    known = softmax(logits, axis)
    return known.logp, _softmax_tangent(known.p, tangent, axis)


def _softmax_tangent(p: Array, tangent: Array, axis: int) -> Array:
    own, pulled = _both(materialize(tangent))
    pull = materialize(-jnp.sum(p * pulled, axis, keepdims=True))
    return materialize(own + _copies(pull, axis, p.shape[axis]))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def known_log_softmax(logits: Array, known: Softmax, axis: int) -> Array:
    """``log_softmax`` of logits whose softmax is known: nothing is exponentiated. Any shape.

    Its derivatives by the logits, of any order, are those of ``log_softmax``; by what is known it has none.
    """
    return known.logp


@known_log_softmax.defjvp
def _known_log_softmax_jvp(axis: int, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (logits, known), (tangent, _) = primals, tangents
    p = _known_softmax(logits, known, axis)
    return known_log_softmax(logits, known, axis), _softmax_tangent(p, tangent, axis)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _known_softmax(logits: Array, known: Softmax, axis: int) -> Array:
    return known.p


@_known_softmax.defjvp
def _known_softmax_jvp(axis: int, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (logits, known), (tangent, _) = primals, tangents
    p = _known_softmax(logits, known, axis)
    return p, p * _softmax_tangent(p, tangent, axis)


def _linear(apply: Callable[[Any], Any], transpose: Callable[[Any], Any], x: Any) -> Any:
    """apply(x), linear in x, with a transpose of its own: forward and reverse derivatives both exist.

    ``custom_linear_solve`` takes the two as the solution of a system and of its transpose, whatever the
    system is.
    """
    return jax.lax.custom_linear_solve(
        lambda x: x, x, solve=lambda _, b: apply(b), transpose_solve=lambda _, c: transpose(c)
    )


def _both(x: Array) -> tuple[Array, Array]:
    """x twice; the transpose is a flushed sum of two."""

    def add(pair: tuple[Array, Array]) -> tuple[Array, Array]:
        a, b = pair
        return flush_to_zero(a + b, rounding(a) + rounding(b)), jnp.zeros_like(a)

    return _linear(lambda pair: pair, add, (x, x))


def _copies(x: Array, axis: int, count: int) -> Array:
    """``count`` copies along an axis of length one; the transpose is a flushed sum."""
    rest = jnp.zeros((*x.shape[:axis], count - 1, *x.shape[axis + 1 :]), x.dtype)

    def add(c: Array) -> Array:
        mass = materialize(flush_to_zero(total(c, (axis,)), total(rounding(c), (axis,))))
        return jnp.concatenate([mass, rest], axis)

    padded = jnp.concatenate([x, rest], axis)
    return _linear(lambda x: _repeated(_cut(x, 0, 1, axis), axis, count), add, padded)


def _repeated(x: Array, axis: int, count: int) -> Array:
    """``count`` copies along an axis of length one."""
    if count <= WRITTEN_OUT:
        return jnp.concatenate([x] * count, axis)
    if count % BLOCK == 0 and _short(count):
        return jnp.concatenate([materialize(jnp.concatenate([x] * BLOCK, axis))] * (count // BLOCK), axis)
    return jnp.broadcast_to(x, (*x.shape[:axis], count, *x.shape[axis + 1 :]))


def clamp(x: Array, low: Any, high: Any) -> Array:
    """x clamped to [low, high]: gradient 1 inside and at the bounds, 0 outside; NaN stays NaN."""
    return jnp.where(x < low, low, jnp.where(x > high, high, x))


@jax.custom_jvp
def exponential(x: Array) -> Array:
    """e^x, constant where x passes log(largest number)/1.05: 84.5 (float32), 676 (float64); made once.

    Elementwise.
    """
    return materialize(jnp.exp(jnp.where(x > _limit(x), _limit(x), x)))


def _limit(x: Array) -> float:
    return float(np.log(jnp.finfo(x.dtype).max)) / 1.05


@exponential.defjvp
def _exponential_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    value = exponential(x)
    return value, jnp.where(x > _limit(x), 0, value) * tangent


def trailing(x: Any, ndim: int) -> Any:
    """x with axes of length one behind it, ``ndim`` axes in all: what all runs share, beside runs."""
    return x.reshape(x.shape + (1,) * (ndim - x.ndim))


def take_rows(tree: Any, rows: Array) -> Any:
    """The same tree of arrays [P, ...(, R)] at the prompt rows [p(, R)]."""

    def pick(leaf: Any) -> Array:
        leaf = jnp.asarray(leaf)
        if rows.ndim == 1 or leaf.ndim == 1:
            return leaf[rows]
        leaf = jnp.broadcast_to(leaf, (*leaf.shape[:-1], rows.shape[1]))
        index = per_prompt(rows, leaf.ndim)
        return jnp.take_along_axis(leaf, index, axis=0)

    return jax.tree.map(pick, tree)


def per_prompt(x: Array, ndim: int) -> Array:
    """[P(, R)] with axes of length one behind the first, so that it meets [P, ...(, R)] of ``ndim`` axes."""
    return x.reshape(x.shape[:1] + (1,) * (ndim - x.ndim) + x.shape[1:])
