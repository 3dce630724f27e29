"""Stationary policies of GRPO with the k3 penalty: the fixed point (11) of [A], for any preference.

On-policy the expected gradient in logits is ``F(o) = pi(o) P_G(o | pi) + beta (pi_ref(o) - pi(o))``, so a
stationary policy solves

    [1 - (P_G(o | pi) - E_pi P_G) / beta] pi(o) = pi_ref(o)                                   (11)

with E_pi P_G = 0. Where pi_ref(o) = 0 this leaves a choice, pi(o) = 0 or P_G(o | pi) = beta, see ``support``.

Where pi_ref > 0 the solution is unique for pairs (any table: KL(pi* || pi) decreases along d pi/dt = F), for
two reward levels and any G (phi_G is concave), and in the limit of large groups (there
pi(o) = pi_ref(o) t / (c - r(o)) with t = beta sigma, and sigma / t decreases in t). In between we have no
proof; ``start`` lets one look for more.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from grpo_jax.theory.binary import stationary_pair
from grpo_jax.theory.checks import as_floats, check_distribution, check_group_size, check_positive, concrete
from grpo_jax.theory.counts import MAX_HISTOGRAMS
from grpo_jax.theory.preferences import PAPER, Convention, Preference, Rewards, preference_of
from grpo_jax.theory.roots import Flow, relax

ZERO_BETA = (
    "at beta = 0 every policy that preferences do not move is stationary; take a small beta for the limit"
)


class FixedPoint(NamedTuple):
    """A solved fixed point.

    policy: [K]; NaN where not converged, so that no unconverged answer passes for one.
    residual: the largest violation of the equation.
    converged: residual within tolerance: 1e-10 in float64, 1e-5 in float32.
    steps: iterations taken.
    """

    policy: Array
    residual: Array
    converged: Array
    steps: Array


def tolerance(dtype) -> float:
    """What counts as converged: 1e-10 in float64, 1e-5 in float32."""
    return 1e-10 if jnp.finfo(dtype).bits == 64 else 1e-5


def stationary_residual(policy: ArrayLike, preference: Array, reference: ArrayLike, beta: ArrayLike) -> Array:
    """Largest violation of (11) times min(1, beta): ``max_o |pi P + beta (pi_ref - pi)| / max(1, beta)``.

    Args:
      policy, preference, reference: [K] pi, P_G(.|pi) and pi_ref.
      beta: penalty in [0, inf].

    Returns:
      A scalar: below beta = 1 the expected gradient in logits, above it (11) as printed.
    """
    policy, preference, reference, beta = as_floats(policy, preference, reference, beta)
    centred = preference - policy @ preference / policy.sum()
    push, pull = 1 / jnp.maximum(1.0, beta), jnp.minimum(1.0, beta)
    return jnp.max(abs(push * policy * centred + pull * (reference - policy)))


def fixed_point(
    preference: Preference,
    reference: ArrayLike,
    beta: ArrayLike,
    *,
    start: ArrayLike | None = None,
    support: str = "limit",
    max_steps: int = 500,
) -> FixedPoint:
    """Solve (11) for any preference.

    Args:
      preference: maps a policy [K] to P_G(.|pi) [K] with E_pi P_G = 0; may close over traced numbers.
      reference: [K] pi_ref.
      beta: penalty in (0, inf]; inf gives pi_ref. 0 is a ValueError: the limit depends on the preference.
      start: [K] positive policy to follow the flow from; (pi_ref + uniform) / 2 by default.
      support: where pi_ref(o) = 0, "limit" reads it as the limit from above: the branch on which
        P_G(o | pi) <= beta for those o too, continued from a full support. "reference" keeps pi(o) = 0: the
        branch that sampled training from pi_ref stays on.
      max_steps: iterations before giving up.

    Returns:
      `FixedPoint`; policy differentiable (to any order, both modes) in reference, beta and whatever the
      preference closes over. Can be jitted and vmapped.
    """
    check_distribution("reference", reference)
    check_positive("beta", beta, ZERO_BETA)
    if support not in ("limit", "reference"):
        raise ValueError(f"support must be 'limit' or 'reference', got {support!r}")
    reference, beta = as_floats(reference, beta)
    alive = (reference > 0) | (support == "limit")
    push, pull = 1 / jnp.maximum(1.0, beta), jnp.minimum(1.0, beta)

    def field(policy: Array) -> Array:
        return jnp.where(alive, push * policy * preference(policy) + pull * (reference - policy), -policy)

    first = 0.5 * (reference + 1 / reference.size) if start is None else as_floats(start, reference)[0]
    first = jax.lax.stop_gradient(jnp.where(alive, first, 0.0))
    policy, flow = relax(field, first, max_steps=max_steps)
    policy = jnp.where((reference > 0) | (policy > 1e-14), policy, 0.0)
    policy = policy / policy.sum()
    error = stationary_residual(policy, preference(policy), reference, beta)
    return conclude(policy, Flow(error, flow.steps))


def conclude(policy: Array, flow: Flow) -> FixedPoint:
    """A `FixedPoint` whose policy is NaN unless the residual is within `tolerance`. Policy [K]."""
    converged = flow.residual <= tolerance(policy.dtype)
    return FixedPoint(jnp.where(converged, policy, jnp.nan), flow.residual, converged, flow.steps.astype(int))


def stationary(
    reference: ArrayLike,
    rewards: Rewards,
    beta: ArrayLike,
    *,
    group_size: float,
    convention: Convention = PAPER,
    start: ArrayLike | None = None,
    support: str = "limit",
    max_steps: int = 500,
    max_histograms: int = MAX_HISTOGRAMS,
) -> FixedPoint:
    """Solve (11) for groups of any size, any reward table, any convention.

    Args:
      reference: [K] pi_ref.
      rewards: `Rewards`, deterministic or stochastic.
      beta: penalty in (0, inf].
      group_size: G >= 2 or ``math.inf``.
      convention: the divisor of the advantage.
      start, support, max_steps: see `fixed_point`.
      max_histograms: see `group_preference`.

    Returns:
      `FixedPoint`, differentiable in reference, beta, the rewards' levels and probabilities.

    >>> from grpo_jax.theory import reward_table
    >>> table = reward_table([1.0, 0.0])
    >>> [round(float(p), 6) for p in stationary([0.25, 0.75], table, 1.0, group_size=2).policy]
    [0.5, 0.5]
    """
    check_distribution("reference", reference)
    check_positive("beta", beta, ZERO_BETA)
    check_group_size(group_size)
    options = {
        "group_size": group_size,
        "support": support,
        "max_steps": max_steps,
        "max_histograms": max_histograms,
    }
    reference, beta = as_floats(reference, beta)
    start = None if start is None else as_floats(start)[0]
    return _stationary(reference, rewards, beta, convention, start, **options)


@functools.partial(jax.jit, static_argnames=("group_size", "support", "max_steps", "max_histograms"))
def _stationary(
    reference, rewards, beta, convention, start, *, group_size, support, max_steps, max_histograms
):
    options = {"group_size": group_size, "convention": convention, "max_histograms": max_histograms}
    preference = preference_of(rewards, **options)
    return fixed_point(preference, reference, beta, start=start, support=support, max_steps=max_steps)


def stationary_ranked(reference: ArrayLike, rewards: ArrayLike, beta: ArrayLike) -> Array:
    """Groups of two, any number of deterministic rewards: (11) in closed form.

    With S(v) the probability of a reward above v, summing (11) over those outputs leaves (14) for each
    threshold: ``beta (S - S_ref) = S (1 - S)``. Within a level outputs keep their shares of pi_ref.

    Args:
      reference: [K] pi_ref > 0.
      rewards: [K] concrete rewards; ties allowed. Traced rewards are a ValueError: only their order matters.
      beta: penalty in [0, inf].

    Returns:
      [K] the one stationary policy.
    """
    if not concrete(rewards):
        raise ValueError("only the order of rewards matters here, and it must be known before tracing")
    (reference,) = as_floats(reference)
    value = np.asarray(rewards)
    above = jnp.asarray(value[None, :] > value[:, None], reference.dtype) @ reference
    level = jnp.asarray(value[None, :] == value[:, None], reference.dtype) @ reference
    better = jnp.where(above > 0, stationary_pair(jnp.clip(above, 0.0, 1.0), beta), 0.0)
    mass = stationary_pair(jnp.clip(above + level, 0.0, 1.0), beta) - better
    return reference * mass / jnp.where(level > 0, level, 1.0)


def frozen_surrogate(
    candidate: ArrayLike, policy: ArrayLike, preference: ArrayLike, reference: ArrayLike, beta: ArrayLike
) -> Array:
    """The objective of inner steps while pi_old = pi: ``sum_o y P - beta E_{o~pi}[r/y - log(r/y) - 1]``.

    y is the candidate and r = pi_ref. Where it is larger than at y = pi, a stationary pi is no maximiser of
    its own surrogate.

    Args:
      candidate: [..., K] y > 0.
      policy, preference, reference: [K] pi, P_G(.|pi), pi_ref > 0.
      beta: finite penalty.

    Returns:
      [...].
    """
    candidate, policy, preference, reference, beta = as_floats(candidate, policy, preference, reference, beta)
    odds = reference / candidate
    return candidate @ preference - beta * ((odds - jnp.log(odds) - 1) @ policy)


def surrogate_curvature(policy: ArrayLike, reference: ArrayLike) -> Array:
    """The largest curvature at pi of the surrogate frozen at pi_old = pi, over beta.

    The surrogate is linear in pi but for its k3 penalty, whose Hessian is ``diag(1/pi - 2 pi_ref / pi^2)``,
    taken on directions that sum to zero. Positive: the stationary point is no local maximiser of its own
    surrogate, and many inner steps per batch leave it ([A] takes stationarity for optimality here).

    Args:
      policy, reference: [K] with policy > 0.

    Returns:
      A scalar; negative at local maximisers.
    """
    policy, reference = as_floats(policy, reference)
    size = policy.size
    basis = jnp.asarray(np.linalg.svd(np.ones((1, size)))[2][1:].T, policy.dtype)
    hessian = basis.T @ ((1 / policy - 2 * reference / policy**2)[:, None] * basis)
    return jnp.linalg.eigvalsh(hessian)[-1]


def training_spectrum(preference: Preference, policy: Array, reference: Array, beta: ArrayLike) -> Array:
    """Eigenvalues of the on-policy training flow ``d logits / dt = pi P_G + beta (pi_ref - pi)`` at a policy.

    Args:
      preference: maps a policy [K] to P_G [K].
      policy, reference: [K].
      beta: finite penalty.

    Returns:
      complex [K], in no order. One is 0 (logits plus a constant); the point attracts if all others have
      negative real parts. Runs on the CPU only, like every non-symmetric eigenvalue problem in jax.
    """

    def flow(logits: Array) -> Array:
        pi = jax.nn.softmax(logits)
        return pi * preference(pi) + beta * (reference - pi)

    return jnp.linalg.eigvals(jax.jacfwd(flow)(jnp.log(policy)))
