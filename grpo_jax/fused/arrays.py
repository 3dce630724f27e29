"""Lane arrays: what becomes of an array [..., R] when every axis but those of runs and questions is unrolled.

A lane array is a NumPy array of objects. One element is known while tracing, a NumPy scalar or an array [W]
of a number for each question; or an array of shape () that all runs and questions share; or an array [runs,
W], a number for each run and question. The axis of runs has length one in it, and so has that of questions,
if these are lanes: W of them, the last ones filled up. A flat axis of questions with something else behind
them has that one's length.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

RUNS = 8191
"""The extent of the axis of runs while a step is traced: a prime that no other axis has."""
QUESTIONS = 2039
"""The extent of the axis of questions in the trace that marks it: a prime, too."""


class NoLanesError(Exception):
    """The step does something that has no form on single lanes; the message says what."""


def asks(extent: int) -> bool:
    """Whether an axis of a marked trace is that of questions, by itself or with another one behind it."""
    return extent > 0 and extent % QUESTIONS == 0


def asked(shape: Sequence[int]) -> int | None:
    """The axis of questions in a marked shape; NoLanesError where there are two."""
    found = [axis for axis, extent in enumerate(shape) if asks(extent)]
    if len(found) > 1 or any(extent % QUESTIONS**2 == 0 for extent in shape if extent):
        raise NoLanesError(f"an array of shape {tuple(shape)} has questions on two axes")
    return found[0] if found else None


def held(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of the lane array of a marked shape; NoLanesError where runs are mixed with another axis."""
    if any(n != RUNS and n > 0 and n % RUNS == 0 for n in shape):
        raise NoLanesError(f"an array of shape {tuple(shape)} mixes runs with another axis")
    asked(shape)
    return tuple(1 if n == RUNS else n // QUESTIONS if asks(n) else n for n in shape)


def filled(shape: Sequence[int], elements: Iterable[Any]) -> np.ndarray:
    """The lane array of this shape with these elements, in order."""
    elements = list(elements)
    made = np.empty(len(elements), object)
    for i, element in enumerate(elements):  # one by one: NumPy would look into an element that is an array
        made[i] = element
    return made.reshape(tuple(shape))


def known(value: Any) -> np.ndarray:
    """The lane array of what is known while tracing and the same for all questions. Any shape."""
    value = np.asarray(value)
    return filled(value.shape, (value[place] for place in np.ndindex(*value.shape)))


def known_apart(value: Any, shape: Sequence[int], width: int) -> np.ndarray:
    """The lane array of what is known while tracing, [..., Q...] where the marked ``shape`` has questions."""
    axis = asked(shape)
    if axis is None:
        return known(value)
    value = questions_last(np, np.asarray(value), shape, width)
    return filled(held(shape), (value[place] for place in np.ndindex(*value.shape[:-1])))


def questions_last(library: Any, x: Any, shape: Sequence[int], width: int) -> Any:
    """x with the axis of questions of a marked shape behind all others, filled up to ``width`` with the last.

    Args:
      library: NumPy, or JAX's.
      x: an array; where it has no questions, the axis behind has length one.
      shape: its marked shape.
      width: W.
    """
    axis = asked(shape)
    if axis is None:
        return x[..., None]
    inner = shape[axis] // QUESTIONS
    split = x.reshape((*x.shape[:axis], x.shape[axis] // inner, inner, *x.shape[axis + 1 :]))
    moved = library.moveaxis(split, axis, -1)
    filling = [(0, 0)] * (moved.ndim - 1) + [(0, width - moved.shape[-1])]
    return library.pad(moved, filling, "edge")


def rows(x: np.ndarray) -> list[np.ndarray]:
    """[n] lane arrays along the first axis of x [n, ...]; NumPy's own iteration would give plain elements."""
    return [x[i : i + 1].reshape(x.shape[1:]) for i in range(len(x))]


def is_known(element: Any) -> bool:
    """Whether the element is known while tracing."""
    return isinstance(element, (np.generic, np.ndarray))
