"""Lane arrays: what becomes of an array [..., R] when every axis but that of runs is unrolled.

A lane array is a NumPy array of objects. One element is a NumPy scalar where the number is known while
tracing, an array of shape () where all runs share it, and an array [lanes], a number for each run, else. The
axis of runs has length one in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

RUNS = 8191
"""The extent of the axis of runs while a step is traced: a prime that no other axis has."""


class NoLanesError(Exception):
    """The step does something that has no form on single lanes; the message says what."""


def held(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of the lane array of a traced shape; NoLanesError where runs are mixed with another axis."""
    if any(n != RUNS and n > 0 and n % RUNS == 0 for n in shape):
        raise NoLanesError(f"an array of shape {tuple(shape)} mixes runs with another axis")
    return tuple(1 if n == RUNS else n for n in shape)


def filled(shape: Sequence[int], elements: Iterable[Any]) -> np.ndarray:
    """The lane array of this shape with these elements, in order."""
    elements = list(elements)
    made = np.empty(len(elements), object)
    for i, element in enumerate(elements):  # one by one: NumPy would look into an element that is an array
        made[i] = element
    return made.reshape(tuple(shape))


def known(value: Any) -> np.ndarray:
    """The lane array of what is known while tracing. Any shape."""
    value = np.asarray(value)
    return filled(value.shape, (value[place] for place in np.ndindex(*value.shape)))


def rows(x: np.ndarray) -> list[np.ndarray]:
    """The lane arrays along the first axis; NumPy's own iteration would give elements of a plain list."""
    return [x[i : i + 1].reshape(x.shape[1:]) for i in range(len(x))]


def is_known(element: Any) -> bool:
    """Whether the element's number is known while tracing."""
    return isinstance(element, np.generic)


def uniform(aval: Any, lanes: int) -> tuple[int, ...]:
    """The shape that an element of this traced array has where loops and branches need one for all."""
    return (lanes,) if RUNS in aval.shape else ()


def stored(x: np.ndarray, aval: Any, lanes: int) -> list[jax.Array]:
    """The elements in order, each an array of the type of ``aval`` and of the shape ``uniform``."""
    shape = uniform(aval, lanes)
    return [jnp.broadcast_to(jnp.asarray(element, aval.dtype), shape) for element in x.flat]
