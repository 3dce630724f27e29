"""Whether a value is a number, a whole one, inside its bound, and one in the precision in use."""

from __future__ import annotations

import dataclasses
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_concrete(value: Any) -> bool:
    """Whether it is a number or an array whose values are at hand."""
    return isinstance(value, (numbers.Number, np.ndarray)) or (
        isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer)
    )


def may_be_number(value: Any, rank: int) -> bool:
    """False for what is no number, truth values among it; a table may hold those. A schedule is a number."""
    if isinstance(value, (np.ndarray, jax.Array)):
        kinds = (np.integer, np.floating, np.bool_) if rank else (np.integer, np.floating)
        return any(jnp.issubdtype(value.dtype, kind) for kind in kinds)
    if isinstance(value, (numbers.Number, np.generic)):
        return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    shaped = hasattr(value, "shape") and hasattr(value, "dtype")
    return shaped or (dataclasses.is_dataclass(value) and not isinstance(value, type))


def whole(name: str, value: Any, low: int = 1) -> int:
    """``value`` as an int; TypeError where it is no whole number, ValueError where it is below ``low``.

    >>> whole("seeds", 3)
    3
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} is {value!r}; it must be a whole number")
    if value < low:
        raise ValueError(f"{name} is {value}; it must be at least {low}")
    return int(value)


def check_length(iterations: Any, record_every: Any) -> None:
    """Raise unless ``iterations`` is a multiple of ``record_every``, both whole, positive and below 2^31."""
    for name, value in (("iterations", iterations), ("record_every", record_every)):
        whole(name, value, low=-(2**63))
    if iterations < 1 or record_every < 1 or iterations % record_every:
        raise ValueError(
            f"iterations ({iterations}) must be a positive multiple of record_every ({record_every})"
        )
    if iterations >= 2**31:
        raise ValueError(f"iterations is {iterations}; it must be below 2^31")


def check_bound(
    name: str,
    value: Any,
    *,
    low: float,
    high: float,
    open_low: bool = False,
    open_high: bool = False,
    nonfinite: bool = False,
    integer: bool = False,
) -> None:
    """Raise ValueError unless every entry of ``value`` is a number inside the bound, whole if ``integer``."""
    if not integer and isinstance(value, (int, float)) and -1e300 < value < 1e300 and low < value < high:
        return
    try:
        array = np.asarray(value, dtype=float)
    except OverflowError:
        raise ValueError(f"{name} is an integer beyond every floating-point number") from None
    if np.isnan(array).any():
        raise ValueError(f"{name} is NaN")
    if not nonfinite and not np.isfinite(array).all():
        raise ValueError(f"{name} is {value}; it must be finite")
    bad = (array < low) | (array > high) | (open_low & (array == low)) | (open_high & (array == high))
    if bad.any():
        left, right = "(" if open_low else "[", ")" if open_high else "]"
        raise ValueError(f"{name} is {array[bad].flat[0]:g}; allowed is {left}{low:g}, {high:g}{right}")
    broken = array != np.round(array)
    if integer and broken.any():
        raise ValueError(f"{name} is {array[broken].flat[0]:g}; it must be a whole number")


def check_precision(name: str, value: Any, rank: int = 0) -> None:
    """Raise ValueError where a number is lost in the precision in use.

    Anything finite that is infinite there, and a number (``rank`` 0) that is not 0 but would be taken for 0;
    entries of tables may be that small.
    """
    dtype = jax.dtypes.canonicalize_dtype(float)
    bounds, array = jnp.finfo(dtype), np.asarray(value, float)
    size = np.abs(array)
    lost = np.isfinite(array) & (size > float(bounds.max))
    if not rank:
        lost |= (size > 0) & (size < float(bounds.tiny))
    if lost.any():
        becomes = "infinite" if (size[lost] > 1).any() else "0"
        raise ValueError(
            f"{name} is {array[lost].flat[0]:g}, which is {becomes} in {dtype.name}; scale it, or compute in "
            "double precision: jax.config.update('jax_enable_x64', True)"
        )
