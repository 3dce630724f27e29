"""Closed forms and fixed points: what GRPO's trained policies should be, without training any.

Imports nothing else of the package. Works in the precision of its arguments; float64 gives residuals
below 1e-10.
"""

from grpo_jax.theory.binary import (
    jumps,
    lower_bound,
    phi,
    preference_gap,
    stationary_binary,
    stationary_large_group,
    stationary_pair,
)
from grpo_jax.theory.convention import (
    LIBRARIES,
    convention_gap,
    effective_beta,
    effective_penalty_binary,
    stationary_binary_convention,
)
from grpo_jax.theory.direct import (
    Bifurcations,
    Roots,
    bifurcations,
    critical_point,
    direct_roots,
    drive,
    odds_velocity,
    stationary_pair_direct,
)
from grpo_jax.theory.pooling import (
    effective_penalty,
    nlhf,
    pooled_point,
    reward_spread,
    rlhf,
    shift_only_direct,
)
from grpo_jax.theory.preferences import (
    PAPER,
    Convention,
    Rewards,
    group_preference,
    large_group_preference,
    pairwise_payoffs,
    reward_table,
    table_preference,
)
from grpo_jax.theory.stationary import (
    FixedPoint,
    fixed_point,
    frozen_surrogate,
    stationary,
    stationary_ranked,
    stationary_residual,
    surrogate_curvature,
    training_spectrum,
)

__all__ = [
    "LIBRARIES",
    "PAPER",
    "Bifurcations",
    "Convention",
    "FixedPoint",
    "Rewards",
    "Roots",
    "bifurcations",
    "convention_gap",
    "critical_point",
    "direct_roots",
    "drive",
    "effective_beta",
    "effective_penalty",
    "effective_penalty_binary",
    "fixed_point",
    "frozen_surrogate",
    "group_preference",
    "jumps",
    "large_group_preference",
    "lower_bound",
    "nlhf",
    "odds_velocity",
    "pairwise_payoffs",
    "phi",
    "pooled_point",
    "preference_gap",
    "reward_spread",
    "reward_table",
    "rlhf",
    "shift_only_direct",
    "stationary",
    "stationary_binary",
    "stationary_binary_convention",
    "stationary_large_group",
    "stationary_pair",
    "stationary_pair_direct",
    "stationary_ranked",
    "stationary_residual",
    "surrogate_curvature",
    "table_preference",
    "training_spectrum",
]
