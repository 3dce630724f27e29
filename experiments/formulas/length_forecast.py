"""Where a method's weights push lengths before any training: exactly, from ω by hand, at the old policy.

The task of `problems.lengths`, whose tails are uniform at the start and do not depend on the first token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from scipy import stats

from experiments.problems.lengths import GROUP, LENGTHS, OPEN, RATES, RIGHT, SPACE, TAILS, logits, problem
from grpo_jax import methods
from grpo_jax.diagnostics import log_support
from grpo_jax.types import Array

SHIFTED = ("grpo_v32", "dr_grpo", "gpg", OPEN)
"""A = r - mean; the others divide by the spread."""
TOKENS, MASK = SPACE.support
COUNTS = LENGTHS.astype(int)
ANSWERS = {"right": RIGHT, "wrong": ~RIGHT}


def batch_share() -> np.ndarray:
    """[S] E[1/Σ len] for a group with that output: the other lengths are drawn alike, right or wrong."""
    one = np.bincount(COUNTS[RIGHT], weights=TAILS[RIGHT])
    rest = np.ones(1)
    for _ in range(GROUP - 1):
        rest = np.convolve(rest, one)
    return (rest / np.maximum(COUNTS[:, None] + np.arange(len(rest)), 1)).sum(1)


def conflict() -> np.ndarray:
    """[S, T, G] GTPO's expected λ, with k = 0..G-1 right outputs among the others.

    A token that an output of the other sign shares at its position counts twice in winners, not at all in
    losers. First tokens of right and wrong outputs differ.
    """
    seen = np.zeros(TOKENS.shape)
    for t in range(1, SPACE.horizon):
        here = [((TOKENS[:, t] == y) * MASK[:, t] * TAILS)[RIGHT].sum() for y in range(SPACE.vocab)]
        seen[:, t] = np.array(here)[TOKENS[:, t]]
    k = np.arange(GROUP)
    others = np.where(RIGHT[:, None], GROUP - 1 - k, k)
    shared = 1 - (1 - seen[:, :, None]) ** others[:, None]
    return np.where(RIGHT[:, None, None], 1 + shared, 1 - shared)


def heat(rate: float) -> np.ndarray:
    """[S] mean entropy of an output's nodes: the first token's, then ln V."""
    return (stats.bernoulli.entropy(rate) + (LENGTHS - 1) * np.log(SPACE.vocab)) / LENGTHS


def expected_weight(name: str, rate: float) -> np.ndarray:
    """[S, T] E[ω_it A_i | output], over the other G - 1 outputs of the group, at the old policy.

    GTPO's entropy term acts as an advantage of -0.1 <H>_i more; the KL terms have no gradient at the start.
    """
    k = np.arange(GROUP)
    wins = np.where(RIGHT[:, None], k + 1, k) / GROUP
    advantage = RIGHT[:, None] - wins
    if name not in SHIFTED:
        spread = np.sqrt(wins * (1 - wins))
        advantage = advantage / np.where(spread > 0, spread, 1)
    if name == OPEN:
        advantage = advantage - 0.1 * heat(rate)[:, None]
    if name == "cppo":
        advantage = advantage * (abs(advantage) > 0.5)
    by_length = 1 / (GROUP * LENGTHS)
    alpha = {
        "dr_grpo": np.full(len(LENGTHS), 1 / GROUP),
        "gcpo": LENGTHS / GROUP,
        "gtpo": 0 * by_length,  # mean entropies lie above its filter's ln 2
        **dict.fromkeys(("dapo", "cispo", "gpg"), batch_share()),
    }.get(name, by_length)
    weight = (alpha[:, None] * advantage)[:, None] * np.ones((1, SPACE.horizon, 1))
    weight = weight * conflict() if name == OPEN else weight
    return (weight * stats.binom.pmf(k, GROUP - 1, rate)).sum(2) * MASK


def forecast(names: Sequence[str]) -> xr.DataArray:
    """Change of E[len | right] and E[len | wrong] by a unit of plain gradient ascent, by method and rate."""
    policy: Any = problem(methods.grpo).policy
    prompts: Any = np.arange(1)

    def outputs(params: Array) -> Array:
        return jnp.exp(log_support(policy, params, prompts))[0]

    def expected(params: Array, inside: np.ndarray) -> Array:
        chance = outputs(params) * inside
        return jnp.sum(chance * LENGTHS) / jnp.sum(chance)

    @jax.jit
    def moved(start: Array, weight: Array) -> Array:
        chance = outputs(start)

        def ascended(params: Array) -> Array:
            return GROUP * jnp.sum(chance[:, None] * weight * policy.score_support(params, prompts).logp[0])

        push = jax.grad(ascended)(start)
        return jnp.stack([(jax.grad(expected)(start, inside) * push).sum() for inside in ANSWERS.values()])

    found = [[moved(logits(p), expected_weight(name, p)) for p in RATES] for name in names]
    labels = {"algorithm": list(names), "rate": list(RATES), "kind": list(ANSWERS)}
    return xr.DataArray(np.array(found), labels)
