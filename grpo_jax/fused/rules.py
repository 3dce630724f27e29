"""What becomes of each operation of a trace on lane arrays, where it is not one operation per element."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.fused.arrays import QUESTIONS, RUNS, NoLanesError, asked, asks, held

Rule = Callable[..., list[np.ndarray]]
"""(equation, lane arrays) -> lane arrays."""


def _same(eqn: Any, *arrays: np.ndarray) -> list[np.ndarray]:
    return list(arrays)


def _broadcast(eqn: Any, x: np.ndarray) -> list[np.ndarray]:
    shape, places = held(eqn.params["shape"]), eqn.params["broadcast_dimensions"]
    spread = [1] * len(shape)
    for extent, place in zip(x.shape, places, strict=True):
        spread[place] = extent
    return [np.broadcast_to(x.reshape(spread), shape)]


def _reshape(eqn: Any, x: np.ndarray) -> list[np.ndarray]:
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    if _behind_runs(before) != _behind_runs(after):
        raise NoLanesError(f"a reshape from {before} to {after} moves runs among other axes")
    if _behind_questions(before) != _behind_questions(after):
        raise NoLanesError(f"a reshape from {before} to {after} moves questions among other axes")
    return [x.reshape(held(after))]


def _behind_runs(shape: tuple[int, ...]) -> list[int]:
    """How many numbers stand behind each axis of runs."""
    return [int(np.prod(shape[i + 1 :])) for i, extent in enumerate(shape) if extent == RUNS]


def _behind_questions(shape: tuple[int, ...]) -> int | None:
    """How many numbers of a marked shape stand behind the questions; None where there are none."""
    axis = asked(shape)
    return None if axis is None else int(np.prod(shape[axis:])) // QUESTIONS


def _transpose(eqn: Any, x: np.ndarray) -> list[np.ndarray]:
    return [x.transpose(eqn.params["permutation"])]


def _slice(eqn: Any, x: np.ndarray) -> list[np.ndarray]:
    start, limit = eqn.params["start_indices"], eqn.params["limit_indices"]
    steps = eqn.params["strides"] or (1,) * x.ndim
    cut = []
    for extent, first, last, step in zip(eqn.invars[0].aval.shape, start, limit, steps, strict=True):
        whole = (first, last, step) == (0, extent, 1)
        if extent == RUNS and not whole:
            raise NoLanesError("a slice takes some of the runs")
        if asks(extent) and not whole:
            raise NoLanesError("a slice takes some of the questions")
        cut.append(slice(None) if whole else slice(first, last, step))
    return [x[tuple(cut)]]


def _dynamic_slice(eqn: Any, x: np.ndarray, *starts: np.ndarray) -> list[np.ndarray]:
    if not all(isinstance(start.item(), (int, np.integer)) for start in starts):
        raise NoLanesError("a slice starts at a place that is not known while tracing")
    sizes = eqn.params["slice_sizes"]
    apart(eqn, [i for i, extent in enumerate(eqn.invars[0].aval.shape) if sizes[i] != extent])
    cut = []
    for extent, start, size in zip(x.shape, starts, held(sizes), strict=True):
        first = min(max(int(start.item()), 0), extent - size)
        cut.append(slice(first, first + size))
    return [x[tuple(cut)]]


def _concatenate(eqn: Any, *parts: np.ndarray) -> list[np.ndarray]:
    apart(eqn, [eqn.params["dimension"]])
    return [np.concatenate(parts, eqn.params["dimension"])]


def _split(eqn: Any, x: np.ndarray) -> list[np.ndarray]:
    apart(eqn, [eqn.params["axis"]])
    ends = np.cumsum(eqn.params["sizes"])[:-1]
    return np.split(x, ends, eqn.params["axis"])


def _stack(eqn: Any, *parts: np.ndarray) -> list[np.ndarray]:
    return [np.stack(parts, eqn.params["axis"])]


def apart_from_runs(eqn: Any, axes: Iterable[int]) -> None:
    """NoLanesError where one of these axes of an operand of the equation is that of runs."""
    if any(var.aval.shape[axis] == RUNS for var in eqn.invars for axis in axes if var.aval.ndim):
        raise NoLanesError(f"{eqn.primitive.name} over runs")


def apart(eqn: Any, axes: Iterable[int]) -> None:
    """NoLanesError where one of these axes of an operand of the equation is that of runs or of questions."""
    axes = list(axes)
    apart_from_runs(eqn, axes)
    if any(asks(var.aval.shape[axis]) for var in eqn.invars for axis in axes if var.aval.ndim):
        raise NoLanesError(f"{eqn.primitive.name} over questions")


def _rev(eqn: Any, x: np.ndarray) -> list[np.ndarray]:
    apart(eqn, eqn.params["dimensions"])
    return [np.flip(x, eqn.params["dimensions"])]


def _pad(eqn: Any, x: np.ndarray, value: np.ndarray) -> list[np.ndarray]:
    config = eqn.params["padding_config"]
    if any(low < 0 or high < 0 or between for low, high, between in config):
        raise NoLanesError("a padding that cuts, or that parts what it pads")
    apart(eqn, [i for i, ends in enumerate(config) if any(ends)])
    made = np.empty([low + n + high for n, (low, high, _) in zip(x.shape, config, strict=True)], object)
    made[...] = value
    made[tuple(slice(low, low + n) for n, (low, _, _) in zip(x.shape, config, strict=True))] = x
    return [made]


MOVED: dict[str, Rule] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "copy": _same,
    "copy_p": _same,
    "dynamic_slice": _dynamic_slice,
    "expand_dims": _reshape,
    "optimization_barrier": _same,
    "pad": _pad,
    "reshape": _reshape,
    "rev": _rev,
    "slice": _slice,
    "split": _split,
    "squeeze": _reshape,
    "stop_gradient": _same,
    "stack": _stack,
    "transpose": _transpose,
}
"""Operations that rearrange elements and compute nothing."""

FOLDED_BY: dict[str, Any] = {
    "reduce_and": jax.lax.and_p,
    "reduce_max": jax.lax.max_p,
    "reduce_min": jax.lax.min_p,
    "reduce_or": jax.lax.or_p,
    "reduce_prod": jax.lax.mul_p,
    "reduce_sum": jax.lax.add_p,
}
"""Reduction -> the operation of two numbers that it is a chain of."""

ACROSS: dict[str, tuple[Callable[..., jax.Array], Callable[[Any], Any]]] = {
    "add": (jnp.sum, lambda kind: 0),
    "and": (jnp.min, lambda kind: 1),
    "max": (jnp.max, lambda kind: _extreme(kind, -1)),
    "min": (jnp.min, lambda kind: _extreme(kind, 1)),
    "or": (jnp.max, lambda kind: 0),
}
"""Operation of two numbers -> its reduction across lanes, and what changes nothing there, of a type."""


def _extreme(kind: Any, sign: int) -> Any:
    """The greatest number of a type, or the least."""
    if kind.kind == "f":
        return sign * np.inf
    return np.iinfo(kind).max if sign > 0 else np.iinfo(kind).min


ELEMENTWISE = {
    "abs", "add", "add_any", "and", "atan2", "cbrt", "ceil", "clamp", "convert_element_type", "cos",
    "cosh", "div", "eq", "erf_inv", "exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow",
    "is_finite", "le", "log", "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg", "not", "or",
    "pow", "rem", "rsqrt", "select_n", "shift_left", "shift_right_arithmetic", "shift_right_logical",
    "sign", "sin", "sinh", "sqrt", "square", "sub", "tan", "tanh", "xor",
}  # fmt: skip
"""Operations of one number each that a GPU's lowering of Pallas has, too."""


def _selected(which: Any, *cases: Any) -> Any:
    return np.choose(np.asarray(which, int), cases)


NUMBERS: dict[str, Any] = {
    "add": np.add,
    "and": np.bitwise_and,
    "eq": np.equal,
    "ge": np.greater_equal,
    "gt": np.greater,
    "le": np.less_equal,
    "lt": np.less,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "ne": np.not_equal,
    "neg": np.negative,
    "not": np.invert,
    "or": np.bitwise_or,
    "select_n": _selected,
    "shift_left": np.left_shift,
    "shift_right_logical": np.right_shift,
    "square": np.square,
    "sub": np.subtract,
    "xor": np.bitwise_xor,
}
"""What is computed while tracing where all operands are known: indices and masks, exact in any precision."""
