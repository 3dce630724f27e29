"""Which stationary points of a pair of answers, groups of two, maximise the surrogate frozen at them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from grpo_jax.theory import frozen_surrogate, stationary_pair, surrogate_curvature

MAXIMUM, LOCAL, MINIMUM = 0, 1, 2
"""A maximiser of its own surrogate; only a local one; not even that."""
GAIN = 1e-9
"""By which another policy must be better than the point itself."""


def rank(reference: ArrayLike, strength: ArrayLike, *, points: int = 400) -> np.ndarray:
    """0 where the stationary point of (14) maximises its own surrogate, 1 where only locally, 2 where not.

    Args:
      reference: pi_ref(a), any shape.
      strength: beta / gamma, of the same shape.
      points: other policies that are compared, evenly spaced in log odds from -14 to 14.
    """
    curvature, gain = _optimality(np.ravel(reference), np.ravel(strength), points=points)
    found = np.where(np.asarray(curvature) > 0, MINIMUM, np.where(np.asarray(gain) > GAIN, LOCAL, MAXIMUM))
    return found.reshape(np.shape(reference))


@functools.partial(jax.jit, static_argnames="points")
def _optimality(reference: jax.Array, strength: jax.Array, *, points: int) -> tuple[jax.Array, jax.Array]:
    """Curvature of each point's own surrogate there, and how much more it offers elsewhere, each [S]."""

    def one(r: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
        anchor, pi = jnp.stack([r, 1 - r]), stationary_pair(r, b)
        policy = jnp.stack([pi, 1 - pi])
        preference = jnp.stack([1 - pi, -pi])
        y = jax.nn.sigmoid(jnp.linspace(-14.0, 14.0, points))
        elsewhere = frozen_surrogate(jnp.stack([y, 1 - y], 1), policy, preference, anchor, b)
        here = frozen_surrogate(policy, policy, preference, anchor, b)
        return surrogate_curvature(policy, anchor), jnp.max(elsewhere) - here

    return jax.vmap(one)(reference, strength)
