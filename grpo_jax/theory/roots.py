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


class _Step(NamedTuple):
    """The last point accepted, with the field and its Jacobian there, and the trial that comes next.

    One evaluation serves the test of a trial and the step from it, so that the field is compiled once. The
    first trial is the start, at step -1.
    """

    x: Array
    value: Array
    slope: Array
    h: Array
    error: Array
    moved: Array
    trial: Array
    reach: Array
    against: Array
    step: Array


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
            return ((state.error > small) | (state.moved > small**0.5)) & (state.step < max_steps)

        def advance(state: _Step) -> _Step:
            slope, value = jax.jacfwd(lambda x: (inner(x),) * 2, has_aux=True)(state.trial)
            now = jnp.max(abs(value))
            accept = (now <= 1.5 * state.error) & ~state.against
            faster = jnp.clip(2 * state.error / jnp.maximum(now, 1e-3 * small), 2.0, 10.0)
            growth = jnp.where(accept, jnp.where(now <= state.error, faster, 1.0), 0.2)
            begin = 0.5 / jnp.maximum(0.5, jnp.max(abs(slope).sum(-1)))
            h = jnp.where(state.step < 0, begin, jnp.minimum(state.h * growth, 1 / small))
            error = jnp.where(accept, now, state.error)
            x, value, slope = (
                jnp.where(accept, new, old)
                for new, old in zip((state.trial, value, slope), state[:3], strict=True)
            )
            moved = jnp.where(accept, state.reach, jnp.inf)
            move = jnp.nan_to_num(jnp.linalg.solve(jnp.eye(x.size, dtype=x.dtype) / h - slope, value))
            trial, against = jnp.maximum(x + move, 0.05 * x), jnp.any((x + move < 0.05 * x) & (value > 0))
            reach = jnp.max(abs(move))
            return _Step(x, value, slope, h, error, moved, trial, reach, against, state.step + 1)

        far, never = jnp.full((), jnp.inf, first.dtype), jnp.zeros((), bool)
        blank = jnp.zeros((first.size,) * 2, first.dtype)
        state = _Step(first, first, blank, far, far, far, first, far, never, jnp.full((), -1))
        state = jax.lax.while_loop(unfinished, advance, state)
        return state.x, Flow(state.error, state.step.astype(first.dtype))

    def solve_linear(linear: Callable[[Array], Array], value: Array) -> Array:
        return jnp.linalg.solve(jax.jacfwd(linear)(jnp.zeros_like(value)), value)

    return jax.lax.custom_root(field, start, solve, solve_linear, has_aux=True)
