"""Root finders with implicit derivatives: bisection for numbers, damped Newton for policies."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


def increasing_root(function: Callable[[Array], Array], low: Array, high: Array) -> Array:
    """The last sign change from <= 0 to > 0 of an elementwise function on [low, high], by bisection.

    Args:
      function: maps [...] to [...]; entry i depends on entry i alone. It may close over traced numbers, and
        the root is differentiable in them, to any order, by the implicit function theorem.
      low, high: [...] finite ends. Without a sign change, the end that bisection runs into is returned.

    Returns:
      [...] the root, to rounding.
    """

    def solve(inner: Callable[[Array], Array], start: Array) -> Array:
        def halve(_, ends):
            left, right = ends
            middle = 0.5 * (left + right)
            above = inner(middle) > 0
            return jnp.where(above, left, middle), jnp.where(above, middle, right)

        left, right = jax.lax.fori_loop(0, jnp.finfo(start.dtype).nmant + 12, halve, (low, high))
        return 0.5 * (left + right)

    def divide(slope: Callable[[Array], Array], value: Array) -> Array:
        return value / slope(jnp.ones_like(value))

    return jax.lax.custom_root(function, high, solve, divide)


class Flow(NamedTuple):
    """How a relaxation ended: the largest entry of the field at the last point, and the steps taken."""

    residual: Array
    steps: Array


def relax(field: Callable[[Array], Array], start: Array, *, max_steps: int) -> tuple[Array, Flow]:
    """Follow ``dx/dt = field(x)``, x >= 0, to rest: implicit Euler whose step grows as the field shrinks.

    Solves ``(1/h - J) d = field(x)`` and grows h as the residual falls (pseudo-transient continuation).
    It starts below the field's own time scale: far from a rest point it follows the flow from the start,
    near one it is Newton's method. An entry shrinks at most 20-fold in a step, so that positive entries
    stay positive. A step that shrinks one so although the field raises it, or that raises the residual by
    half, is taken back and h cut.

    Args:
      field: maps [K] to [K]; may close over traced numbers, in which the rest point is differentiable to any
        order.
      start: [K], nonnegative.
      max_steps: iterations before giving up.

    Returns:
      (rest point [K], Flow). The residual says whether it is one.
    """
    small = 8 * jnp.finfo(start.dtype).eps

    def solve(inner: Callable[[Array], Array], first: Array) -> tuple[Array, Flow]:
        def unfinished(state):
            _, _, error, moved, step = state
            return ((error > small) | (moved > small**0.5)) & (step < max_steps)

        def advance(state):
            x, h, error, _, step = state
            system = jnp.eye(x.size, dtype=x.dtype) / h - jax.jacfwd(inner)(x)
            value = inner(x)
            move = jnp.nan_to_num(jnp.linalg.solve(system, value))
            trial = jnp.maximum(x + move, 0.05 * x)
            now = jnp.max(abs(inner(trial)))
            against = jnp.any((x + move < 0.05 * x) & (value > 0))
            accept = (now <= 1.5 * error) & ~against
            faster = jnp.where(
                now <= error, jnp.clip(2 * error / jnp.maximum(now, 1e-3 * small), 2.0, 10.0), 1.0
            )
            growth = jnp.where(accept, faster, 0.2)
            h = jnp.minimum(h * growth, 1 / small)
            moved = jnp.where(accept, jnp.max(abs(move)), jnp.inf)
            return jnp.where(accept, trial, x), h, jnp.where(accept, now, error), moved, step + 1

        far = jnp.full((), jnp.inf, first.dtype)
        h = 0.5 / jnp.maximum(0.5, jnp.max(abs(jax.jacfwd(inner)(first)).sum(-1)))
        state = (first, h, jnp.max(abs(inner(first))), far, jnp.zeros((), int))
        x, _, error, _, steps = jax.lax.while_loop(unfinished, advance, state)
        return x, Flow(error, steps.astype(x.dtype))

    def solve_linear(linear: Callable[[Array], Array], value: Array) -> Array:
        return jnp.linalg.solve(jax.jacfwd(linear)(jnp.zeros_like(value)), value)

    return jax.lax.custom_root(field, start, solve, solve_linear, has_aux=True)
