"""Products of many small matrices, written out so that they vectorise over the axis behind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from grpo_jax.kernels import WRITTEN_OUT, materialize
from grpo_jax.types import Array


@jax.custom_jvp
def _pulled_whole(x: Array) -> Array:
    """x; what is pulled back through it is stored."""
    return x


@_pulled_whole.defjvp
def _pulled_whole_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    return primals[0], materialize(tangents[0])


def beside(parts: Sequence[Array], axis: int) -> Array:
    """Arrays one behind the other along an axis; each stored first, since what is fused into that is slow.

    Any shape.
    """
    return materialize(jnp.concatenate([materialize(part) for part in parts], axis))


def apart(x: Array, count: int, axis: int) -> list[Array]:
    """x in equal parts along an axis; the derivative puts them ``beside`` each other. Any shape."""
    return [_pulled_whole(part) for part in jnp.split(_pulled_whole(x), count, axis)]


def pairs(a: Array, b: Array, axis: int) -> Array:
    """Σ_c a_{g,i,c,m} b_{g,j,c,m}, [G, I, J, M], where ``axis``, 1 or 2, of both [G, ·, ·, M] is c.

    A batched product is a call for each of thousands of tiny matrices on a CPU; written out over c they are
    one loop over m. Other backends, and long sums, take the batched product. There are derivatives of any
    order, and each is such a product again: nothing is ever transposed.
    """
    return _pairs.bind(a, b, over=(axis, axis))


def _free(over: int) -> int:
    return 3 - over


def _written_out(a: Array, b: Array, *, over: tuple[int, int]) -> Array:
    length, kind = a.shape[over[0]], a.dtype
    if jax.default_backend() != "cpu" or length > WRITTEN_OUT:
        left, right = ("gicm" if o == 2 else "gcim" for o in over)
        return jnp.einsum(f"{left},{right.replace('i', 'j')}->gijm", a, b)
    wide = jnp.promote_types(kind, jnp.float32)
    a, b = (materialize(x.astype(wide)) for x in (a, b))

    def row(x: Array, c: int, o: int, other: int) -> Array:
        return jnp.expand_dims(jax.lax.index_in_dim(x, c, o, keepdims=False), other)

    terms = [row(a, c, over[0], 2) * row(b, c, over[1], 1) for c in range(length)]
    while len(terms) > 1:
        halves = [x + y for x, y in zip(terms[::2], terms[1::2], strict=False)]
        terms = halves + terms[len(terms) - len(terms) % 2 :]
    return materialize(terms[0]).astype(kind)


def _shape(a: Any, b: Any, *, over: tuple[int, int]) -> Any:
    if a.shape[::3] != b.shape[::3] or a.shape[over[0]] != b.shape[over[1]] or a.dtype != b.dtype:
        raise TypeError(f"pairs over {over} of {a.dtype} {a.shape} and {b.dtype} {b.shape}")
    rows = (a.shape[_free(over[0])], b.shape[_free(over[1])])
    return jax.core.ShapedArray((a.shape[0], *rows, a.shape[3]), a.dtype)


def _pull_first(ct: Array, _: Any, b: Array, *, over: tuple[int, int]) -> Array:
    """Σ_j ct_ij b_jc, as [I, C] or [C, I]."""
    first, second = (ct, 2), (b, _free(over[1]))
    return _ordered(first, second, first_leads=over[0] == 2)


def _pull_second(ct: Array, a: Array, _: Any, *, over: tuple[int, int]) -> Array:
    """Σ_i ct_ij a_ic, as [J, C] or [C, J]."""
    first, second = (ct, 1), (a, _free(over[0]))
    return _ordered(first, second, first_leads=over[1] == 2)


def _ordered(first: tuple[Array, int], second: tuple[Array, int], *, first_leads: bool) -> Array:
    (a, i), (b, j) = (first, second) if first_leads else (second, first)
    return _pairs.bind(a, b, over=(i, j))


def _batch(given: Any, axes: Any, *, over: tuple[int, int]) -> Any:
    """Runs join the groups."""
    size = next(x.shape[axis] for x, axis in zip(given, axes, strict=True) if axis is not None)

    def joined(x: Array, axis: int | None) -> Array:
        x = jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        return x.reshape(-1, *x.shape[2:])

    out = _pairs.bind(*(joined(x, axis) for x, axis in zip(given, axes, strict=True)), over=over)
    return out.reshape(size, -1, *out.shape[1:]), 0


_pairs = Primitive("pairs")
_pairs.def_impl(jax.jit(_pairs.bind, static_argnames="over"))
_pairs.def_abstract_eval(_shape)
ad.defbilinear(_pairs, _pull_first, _pull_second)
batching.primitive_batchers[_pairs] = _batch
mlir.register_lowering(_pairs, mlir.lower_fun(_written_out, multiple_results=False))
