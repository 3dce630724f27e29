"""Where a method's weights push lengths before any training: exactly, from omega by hand, at the old policy.

The task of ``length_task``, whose tails are uniform at the start and do not depend on the first token.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from experiments.grid import grid
from experiments.problems.lengths import GROUP, OPEN, PROMPTS, RATES, RIGHT, SPACE, policy
from grpo_jax.diagnostics import log_support

SHIFTED = ("grpo_v32", "dr_grpo", "gpg", OPEN)
"""A = r - mean; the others divide by the spread."""
TOKENS, MASK = SPACE.support
LENGTHS = MASK.sum(1).astype(int)


def tails() -> np.ndarray:
    """[S] probability of each output given its first token."""
    start = policy(np.array([0.5]))
    return np.exp(np.asarray(log_support(start, jnp.asarray(start.logits), PROMPTS)))[0, :, 0] / 0.5


def batch_share() -> np.ndarray:
    """[S] E[1/sum len] for a group with that output: the other lengths are drawn alike, right or wrong."""
    one = np.bincount(LENGTHS[RIGHT], weights=tails()[RIGHT])
    rest = np.ones(1)
    for _ in range(GROUP - 1):
        rest = np.convolve(rest, one)
    return (rest / np.maximum(LENGTHS[:, None] + np.arange(len(rest)), 1)).sum(1)


def conflict(right: np.ndarray) -> np.ndarray:
    """[S, T, G] GTPO's expected lambda, with k = 0..G-1 right outputs among the others.

    A token that an output of the other sign shares at its position counts twice in winners, not at all in
    losers. First tokens of right and wrong outputs differ.
    """
    seen = np.zeros(TOKENS.shape)
    for t in range(1, SPACE.horizon):
        here = [((TOKENS[:, t] == y) * MASK[:, t] * tails())[RIGHT].sum() for y in range(SPACE.vocab)]
        seen[:, t] = np.array(here)[TOKENS[:, t]]
    k = np.arange(GROUP)
    others = np.where(right[:, None], GROUP - 1 - k, k)
    shared = 1 - (1 - seen[:, :, None]) ** others[:, None]
    return np.where(right[:, None, None], 1 + shared, 1 - shared)


def heat(rate: float) -> np.ndarray:
    """[S] mean entropy of an output's nodes: the first token's, then ln V."""
    first = stats.bernoulli.entropy(rate)
    return (first + (LENGTHS - 1) * np.log(SPACE.vocab)) / LENGTHS


def expected_weight(name: str, rate: float) -> np.ndarray:
    """[S, T] E[omega_it A_i | output], over the other G - 1 outputs of the group, at the old policy.

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
    weight = weight * conflict(RIGHT) if name == OPEN else weight
    return (weight * stats.binom.pmf(k, GROUP - 1, rate)).sum(2) * MASK


def forecast(names: Sequence[str]) -> np.ndarray:
    """[method, 2, rate] change of E[len | right] and E[len | wrong] by a unit of plain gradient ascent."""
    index, rate = grid(np.arange(len(names)), RATES)
    weight = np.stack([expected_weight(names[i], p) for i, p in zip(index, rate, strict=True)], -1)
    start = policy(rate)
    logits = jnp.asarray(start.logits)
    chance = np.exp(np.asarray(log_support(start, logits, PROMPTS)))[0]

    def ascended(params: jax.Array) -> jax.Array:
        return GROUP * jnp.sum(chance[:, None] * weight * start.score_support(params, PROMPTS).logp[0])

    def expected(params: jax.Array, inside: np.ndarray) -> jax.Array:
        probability = jnp.exp(log_support(start, params, PROMPTS))[0] * inside[:, None]
        return jnp.sum((probability * LENGTHS[:, None]).sum(0) / probability.sum(0))

    push = jax.grad(ascended)(logits)
    found = [(jax.grad(expected)(logits, inside) * push).sum((0, 1, 2)) for inside in (RIGHT, ~RIGHT)]
    return np.moveaxis(np.stack(found).reshape(2, len(names), len(RATES)), 1, 0)
