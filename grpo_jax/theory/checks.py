"""Argument checks: refused before anything compiles, skipped for traced values."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike


def as_floats(*values: ArrayLike) -> tuple[Array, ...]:
    """The values as arrays of their common floating type. Shapes stay."""
    values = tuple(np.asarray(value) if isinstance(value, (list, tuple)) else value for value in values)
    dtype = jnp.result_type(float, *values)
    return tuple(jnp.asarray(value, dtype) for value in values)


def concrete(value: ArrayLike) -> bool:
    """Whether the value is a number now, rather than a tracer. Any shape."""
    return not isinstance(value, jax.core.Tracer)


def check_probability(name: str, value: ArrayLike) -> None:
    """Raise ValueError unless every entry of a concrete value lies in [0, 1]. Any shape."""
    if concrete(value):
        number = np.asarray(value)
        if np.any(~((number >= 0) & (number <= 1))):
            raise ValueError(f"{name} must lie in [0, 1], got {value}")


def check_distribution(name: str, value: ArrayLike) -> None:
    """Raise ValueError unless a concrete value's last axis is a probability distribution. [..., K]."""
    check_probability(name, value)
    if concrete(value):
        total = np.asarray(value, np.float64).sum(-1)
        if np.any(abs(total - 1) > 1e-5):
            raise ValueError(f"{name} must sum to 1 along its last axis, got sums {total}")


def check_nonnegative(name: str, value: ArrayLike) -> None:
    """Raise ValueError unless every entry of a concrete value is >= 0 (inf allowed, NaN not). Any shape."""
    if concrete(value) and np.any(~(np.asarray(value) >= 0)):
        raise ValueError(f"{name} must be >= 0, got {value}")


def check_positive(name: str, value: ArrayLike, why: str) -> None:
    """Raise ValueError unless every entry of a concrete value is > 0 (inf allowed, NaN not). Any shape."""
    if concrete(value) and np.any(~(np.asarray(value) > 0)):
        raise ValueError(f"{name} must be > 0, got {value}: {why}")


def check_group_size(group_size: float) -> None:
    """Raise ValueError unless the group size is an integer >= 2 or infinite."""
    if not (math.isinf(group_size) and group_size > 0) and (group_size != int(group_size) or group_size < 2):
        raise ValueError(f"a group has an integer size of at least 2, or math.inf; got {group_size}")


def check_antisymmetric(payoffs: ArrayLike) -> None:
    """Raise ValueError unless a concrete table has ``M[o, o'] = -M[o', o]``."""
    if concrete(payoffs) and np.any(abs(np.asarray(payoffs) + np.asarray(payoffs).T) > 1e-6):
        raise ValueError("payoffs must be antisymmetric: M[o, o'] = -M[o', o]")
