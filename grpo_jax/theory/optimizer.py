"""What the optimizer does to GRPO: momentum beyond the clip, and Adam's indifference to the reward's scale.

References: [B] Fontana et al., arXiv:2601.05002, Propositions 2, 3, 5, 6, 7 and Appendix C.3. (The main
text's (4)-(6) divide by zero at the first step and are not Adam.)
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from grpo_jax.theory.checks import as_floats, check_nonnegative, check_probability, concrete


def coasting(b1: ArrayLike, b2: ArrayLike, *, live: ArrayLike, k: ArrayLike) -> Array:
    """Adam's k-th update on zero gradient over its last update on a live one, C_{T,k} of [B] Proposition 7.

    ``C_{T,k} = b1^{k+1} (1 - b1^{T-1}) / (1 - b1^{T+k}) sqrt((1 - b2^{T+k}) / (b2^{k+1} (1 - b2^{T-1})))``

    with T - 1 = ``live`` live steps, so that T is Adam's 1-based count at the first step with gradient zero,
    and k = 0 is that step. Exact for any history of gradients, coordinate by coordinate, at eps = 0 and
    without weight decay.

    Args:
      b1, b2: [...] decay rates in [0, 1).
      live: [...] updates done when the gradient vanishes, at least 1.
      k: [...] updates on zero gradient before this one, at least 0.

    Returns:
      [...] the factor; ``coasting_rate(b1, b2)**(k + 1)`` for live -> inf.

    >>> float(coasting(0.9, 0.95, live=10_000, k=0))
    0.92338
    """
    _check_decay(b1, b2)
    if concrete(live) and np.any(np.asarray(live) < 1):
        raise ValueError(
            f"there is no update to compare with before the first; live must be at least 1, got {live}"
        )
    check_nonnegative("k", k)
    b1, b2, live, k = as_floats(b1, b2, live, k)
    gone, count = k + 1, live + k + 1
    first = b1**gone * (1 - b1**live) / (1 - b1**count)
    return first * jnp.sqrt((1 - b2**count) / (b2**gone * (1 - b2**live)))


def coasting_rate(b1: ArrayLike, b2: ArrayLike) -> Array:
    """``rho = b1 / sqrt(b2)``: the late factor from one update on zero gradient to the next. Elementwise.

    Above 1 (b1 > sqrt(b2)) Adam *accelerates* on zero gradient, until eps stops it.

    >>> float(coasting_rate(0.9, 0.999)), float(coasting_rate(0.99, 0.9))
    (0.90045, 1.04355)
    """
    _check_decay(b1, b2)
    b1, b2 = as_floats(b1, b2)
    return b1 / jnp.sqrt(b2)


def coasting_travel(b1: ArrayLike, b2: ArrayLike) -> Array:
    """``rho / (1 - rho)``, the late way on zero gradient in units of the last live update; inf for rho >= 1.

    Elementwise.

    >>> float(coasting_travel(0.9, 0.95)), float(coasting_travel(0.9, 0.999))
    (12.0515, 9.0452)
    """
    rate = coasting_rate(b1, b2)
    return jnp.where(rate < 1, rate / (1 - jnp.minimum(rate, 1 - jnp.finfo(rate.dtype).eps)), jnp.inf)


def heavy_ball_coasting(momentum: ArrayLike, *, k: ArrayLike) -> Array:
    """Heavy-ball's k-th update on zero gradient over its last live one: ``momentum^{k+1}``. Elementwise.

    SGD and RMSProp stop at once (0); Lion goes on at its full step (1) as long as its momentum is not exactly
    0.
    """
    check_probability("momentum", momentum)
    momentum, k = as_floats(momentum, k)
    return momentum ** (k + 1)


def scale_response(scale: ArrayLike, *, root_v: ArrayLike, eps: ArrayLike) -> Array:
    """Adam's step with rewards times ``scale`` over its step at eps = 0: ``1 / (1 + eps / (scale sqrt(v)))``.

    Rewards times phi scale A, g and m by phi and v by phi^2 (beta = 0), so only eps notices ([B] Proposition
    2 is the limit 1). Half-way at the corner phi = eps / sqrt(v).

    Args:
      scale: [...] phi > 0.
      root_v: [...] sqrt of the bias-corrected second moment at scale 1.
      eps: [...] Adam's eps >= 0.

    Returns:
      [...] in [0, 1]; 1 for eps = 0.

    >>> float(scale_response(1e-6, root_v=1e-2, eps=1e-8))
    0.5
    """
    check_nonnegative("scale", scale)
    check_nonnegative("eps", eps)
    scale, root_v, eps = as_floats(scale, root_v, eps)
    reach = scale * root_v
    return jnp.where(eps == 0, 1.0, reach / jnp.where(reach + eps == 0, 1.0, reach + eps))


def scale_corner(*, root_v: ArrayLike, eps: ArrayLike) -> Array:
    """``phi = eps / sqrt(v)``, the reward scale at which Adam's eps halves a coordinate's step.

    Elementwise.
    """
    check_nonnegative("eps", eps)
    root_v, eps = as_floats(root_v, eps)
    return eps / root_v


def _check_decay(b1: ArrayLike, b2: ArrayLike) -> None:
    for name, value in (("b1", b1), ("b2", b2)):
        check_probability(name, value)
        if concrete(value) and np.any(np.asarray(value) >= 1):
            raise ValueError(f"{name} must be below 1, got {value}: the moment would never forget")
