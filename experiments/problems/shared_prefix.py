"""Groups whose outputs share a prefix: what pushes it, by autodiff and by hand.

Used by the claims of [B] on shared prefixes and on the methods of Table 1.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.formulas.compiled import light
from experiments.formulas.token_weights import TokenWeights, token_weights
from grpo_jax import methods
from grpo_jax.biases import aggregate_weight, token_gradients
from grpo_jax.policies import TreePolicy
from grpo_jax.tasks import trees
from grpo_jax.types import Policy, Rollout, Scores

SPACE = trees.free_length(vocab=3, horizon=6, prefix=2)
PREFIX, GROUP = 2, 8
START = 1.5
"""Spread of the logits: low entropies occur, as GTPO's filter wants them."""
DRIFTS = {"at the old policy": 0.0, "drifted": 0.25}
PENALISED = ("grpo", "grpo_v32", "gtpo", "cppo")
"""Methods of Table 1 with a term R that is on."""


def jittered(rng: np.random.Generator, params, size: float):
    """Parameters moved by Gaussian noise."""
    return jax.tree.map(lambda leaf: leaf + size * rng.normal(size=leaf.shape), params)


def scored(policy: Policy, params, prompts: Any, tokens: jax.Array, mask: jax.Array) -> Scores:
    """Scores [P, N, T, R], runs last, whether or not the policy takes them so."""
    if policy.trailing:
        return policy.score(params, prompts, tokens, mask)
    return jax.vmap(lambda p, t, m: policy.score(p, prompts, t, m), in_axes=-1, out_axes=-1)(
        params, tokens, mask
    )


def groups(rng: np.random.Generator, policy: Policy, old, ref, runs: int) -> Rollout:
    """Two groups; in each all share their first PREFIX tokens, then go on at random with graded rewards."""
    tokens = rng.integers(0, SPACE.vocab, (2, GROUP, SPACE.horizon, runs))
    tokens[:, :, :PREFIX] = rng.integers(0, SPACE.branching, (2, 1, PREFIX, runs))
    mask = SPACE.mask(jnp.asarray(tokens))
    prompts: Any = np.zeros(2, int)
    score = light(functools.partial(scored, policy))
    scores = score(old, prompts, jnp.asarray(tokens), mask)
    return Rollout(
        prompts=prompts,
        tokens=jnp.asarray(tokens),
        mask=mask,
        rewards=jnp.asarray(rng.choice([0.0, 0.3, 1.0], (2, GROUP, 1, runs))),
        multiplicity=jnp.ones((2, GROUP, runs)),
        sampling_logp=scores.logp,
        old_logp=scores.logp,
        ref_logp=score(ref, prompts, jnp.asarray(tokens), mask).logp,
        entropy=scores.entropy,
    )


def weights_by_hand(name: str, rollout: Rollout, logp: jax.Array) -> TokenWeights:
    """[P, N, T, R] omega, A and live of a method's closed form, run by run."""
    axes = jax.tree.map(lambda leaf: -1 if jnp.ndim(leaf) > 1 else None, rollout)
    return jax.vmap(lambda r, x: token_weights(name, r, x), in_axes=(axes, -1), out_axes=-1)(rollout, logp)


def penalty_by_hand(name: str, rollout: Rollout, logp: jax.Array, out: TokenWeights) -> tuple:
    """beta R of the row, token by token, and its derivative in log pi_theta, [P, N, T(, R)]; 0 without one.

    k3 = e^x - x - 1 with x = log(pi_ref / pi_theta) has the derivative 1 - e^x, and I k3 has
    I (k3 + 1 - e^x).
    """
    mask, length = rollout.mask, jnp.sum(rollout.mask, 2, keepdims=True)
    x, ratio = rollout.ref_logp - logp, jnp.exp(jnp.where(mask > 0, logp - rollout.old_logp, 0))
    share = 0.04 * mask / (mask.shape[0] * mask.shape[1] * length)
    k3, slope = share * (jnp.exp(x) - x - 1), share * (1 - jnp.exp(x))
    entropy = jnp.zeros(()) if rollout.entropy is None else rollout.entropy
    heat = 0.1 * out.weight * jnp.sum(jnp.where(mask > 0, entropy, 0), 2, keepdims=True) / length
    found = {
        "grpo": (k3, slope),
        "cppo": (k3, slope),
        "dr_grpo": (length * k3, length * slope),
        "grpo_v32": (ratio * k3, ratio * (k3 + slope)),
        "gtpo": (heat, heat),
    }
    return found.get(name, (0 * mask, 0 * mask))


def push(gradients: jax.Array) -> np.ndarray:
    """[R] |W_agg| over what would be without cancellation, mean over the prefix: 0 cancels, 1 all one way."""
    net = jnp.abs(aggregate_weight(gradients, prefix=PREFIX)).sum((0, 1))
    whole = jnp.abs(gradients[:, :, :PREFIX]).sum((0, 1, 2))
    return np.asarray(jnp.where(whole > 0, net / jnp.where(whole > 0, whole, 1), 0))


def pushes(rng: np.random.Generator, runs: int, names: Iterable[str]) -> np.ndarray:
    """[method, drift, R] share of the push on a shared prefix that does not cancel."""
    policy = TreePolicy.uniform(SPACE)
    start = jittered(rng, jnp.zeros((*np.shape(policy.logits), runs)), START)
    rollout = groups(rng, policy, start, start, runs)
    found = []
    for drift in DRIFTS.values():
        params = jittered(rng, start, drift)
        logp = policy.score(params, rollout.prompts, rollout.tokens, rollout.mask).logp
        found.append([push(token_gradients(methods.get(name), rollout, logp)) for name in names])
    return np.stack(found, 1)
