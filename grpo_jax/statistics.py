"""Statistics of entries that carry multiplicities.

An entry of multiplicity n stands for n equal samples; fractions are allowed and 0 means absent: an absent
entry may hold any number. ``axes`` are the leading axes that are reduced, and they stay as length one.
"""

from __future__ import annotations

import jax.numpy as jnp

from grpo_jax import kernels
from grpo_jax.types import Array, Number

GROUP_AXES = (1,)
BATCH_AXES = (0, 1)


def present(x: Array, weight: Array, fill: Number = 0.0) -> Array:
    """``x`` where the weight is positive, ``fill`` elsewhere. ``weight`` broadcasts against x."""
    return jnp.where(weight > 0, x, fill)


def total(x: Array, weight: Array, axes: tuple[int, ...]) -> Array:
    """Σ w x over present entries. ``axes`` stay as length one; weights broadcast against x."""
    return kernels.materialize(kernels.total(weight * present(x, weight), axes))


def divide(numerator: Array, denominator: Array) -> Array:
    """numerator / denominator, and 0 where the denominator is 0. Shapes broadcast."""
    safe = jnp.where(denominator == 0, 1, denominator)
    return jnp.where(denominator == 0, 0, numerator / safe)


def mean(x: Array, weight: Array, axes: tuple[int, ...]) -> Array:
    """Σ w x / Σ w; 0 for an empty set. ``axes`` stay as length one; weights broadcast against x."""
    return kernels.materialize(divide(total(x, weight, axes), kernels.total(weight, axes)))


def extent(x: Array, weight: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Least and greatest present value (+inf and -inf for an empty set).

    ``axes`` stay as length one; weights broadcast against x.
    """
    low = kernels.least(present(x, weight, jnp.inf), axes)
    high = kernels.greatest(present(x, weight, -jnp.inf), axes)
    return kernels.materialize(low), kernels.materialize(high)


def tied(x: Array, weight: Array, axes: tuple[int, ...]) -> Array:
    """True where all present values are equal, or none is present.

    ``axes`` stay as length one; weights broadcast against x.
    """
    low, high = extent(x, weight, axes)
    return ~((high > low) | jnp.isnan(high) | jnp.isnan(low))


def centred(x: Array, weight: Array, axes: tuple[int, ...]) -> Array:
    """x minus its mean, exactly 0 where all present values are equal.

    Of the shape of x; weights broadcast against it.

    0, too, at a value that equals the mean up to the rounding of the mean. What is left of Σ w (x − x̄) is of
    the order of the rounding of its own terms, however many values stand on one side: the mean is taken out
    twice.
    """
    low, high = extent(x, weight, axes)
    shifted = x - jnp.where(jnp.isfinite(low), low, 0)
    nearly = shifted - mean(shifted, weight, axes)
    deviation = kernels.flush_to_zero(nearly - mean(nearly, weight, axes), kernels.rounding(high - low))
    return jnp.where(tied(x, weight, axes), 0, deviation)


def spread(x: Array, weight: Array, axes: tuple[int, ...], *, ddof: Number = 0.0) -> Array:
    """Standard deviation √(Σ w (x − x̄)² / (Σ w − ddof)); exactly 0 where all present values are equal.

    ``axes`` stay as length one; weights broadcast against x.

    It is taken after division by the range, so values of 1e30 and 1e-30 are safe in float32. A set with
    Σ w ≤ ddof has spread 0.
    """
    low, high = extent(x, weight, axes)
    flat = tied(x, weight, axes)
    width = jnp.where(flat, 1, high - low)
    unit = jnp.where(flat, 0, (x - jnp.where(flat, 0, low)) / width)
    deviation = unit - mean(unit, weight, axes)
    count = kernels.total(weight, axes)
    variance = divide(total(deviation**2, weight, axes), jnp.maximum(count - ddof, 0))
    return kernels.materialize(jnp.where(flat, 0, width * jnp.sqrt(variance)))


def quantile(x: Array, weight: Array, probability: Number, axes: tuple[int, ...]) -> Array:
    """Quantile with linear interpolation between the sorted samples, an entry of weight n counting n times.

    ``axes`` stay as length one; weights broadcast against x.

    The position is probability·(Σ w − 1) among the sorted samples, as NumPy's default. Weights should be
    whole numbers; a fractional weight occupies a fraction of a position. 0 for an empty set.
    """
    lead = tuple(range(max(axes) + 1))
    if axes != lead:
        raise ValueError(f"quantile reduces leading axes from the first on, not {axes}")
    runs = jnp.broadcast_shapes(x.shape[len(lead) :], weight.shape[len(lead) :])
    shape = x.shape[: len(lead)]
    full = jnp.broadcast_to(present(x, weight, jnp.inf), shape + runs).reshape((-1,) + runs)
    mass = jnp.broadcast_to(weight, shape + runs).reshape((-1,) + runs)
    order = jnp.argsort(full, axis=0)
    value = jnp.take_along_axis(full, order, axis=0)
    upto = jnp.cumsum(jnp.take_along_axis(mass, order, axis=0), axis=0)
    count = upto[-1]
    position = jnp.clip(probability * (count - 1), 0, None)
    below = jnp.floor(position)

    def at(rank: Array) -> Array:
        index = jnp.sum(upto <= rank, axis=0, keepdims=True)
        index = jnp.minimum(index, full.shape[0] - 1)
        return jnp.take_along_axis(value, index, axis=0)[0]

    low, high = at(below), at(jnp.minimum(below + 1, jnp.maximum(count - 1, 0)))
    between = low + (position - below) * jnp.where(high > low, high - low, 0)
    return jnp.where(count > 0, between, 0).reshape((1,) * len(lead) + runs)
