"""Pure measurements of policies, batches and steps. Each returns a scalar, or [R], one per run."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.decoding import impossible
from grpo_jax.kernels import exponential, materialize, total
from grpo_jax.parts.gains import clip_mask
from grpo_jax.random import Stream, uniforms
from grpo_jax.statistics import GROUP_AXES, quantile, tied
from grpo_jax.surrogate import Method, sanitized
from grpo_jax.types import (
    Array,
    HasHeldOut,
    Listable,
    Params,
    Policy,
    Rollout,
    Task,
    require_means,
    require_support,
)

SAMPLE = "record sampled diagnostics (reward, length) instead"
QUANTILES = (0.01, 0.05, 0.5, 0.95, 0.99)
"""Probabilities at which the ratio's quantiles are taken."""


def log_support(policy: Policy, params: Params, prompts: Array) -> Array:
    """[P, S] log-probability of every output of the support."""
    require_support(policy, prompts, instead=SAMPLE)
    assert isinstance(policy, Listable)
    return jnp.sum(policy.score_support(params, prompts).logp, 2)


def _shared(array: Any, like: Array) -> Any:
    """``array`` with a trailing axis of one where ``like`` carries runs."""
    return array if like.ndim == 2 else jnp.asarray(array)[..., None]


def support_means(policy: Policy, task: Task, prompts: Array, like: Array) -> Array:
    """[P, S] expected reward of every output; ``like`` [P, S] says whether runs are present."""
    support = require_support(policy, prompts, instead=SAMPLE)
    return require_means(task, instead=SAMPLE).means(
        prompts, _shared(support.tokens, like), _shared(support.mask, like)
    )


def expected_reward(policy: Policy, task: Task, params: Params, prompts: Array) -> Array:
    """J(θ) = mean over prompts of Σ_o π_θ(o|q) E[r|o], by enumeration."""
    logp = log_support(policy, params, prompts)
    means = support_means(policy, task, prompts, logp)
    return _over_prompts(jnp.exp(logp) * means)


def prompt_reward(policy: Policy, task: Task, params: Params, prompts: Array) -> Array:
    """[P(, R)] Σ_o π_θ(o|q) E[r|o] of every prompt, by enumeration."""
    logp = log_support(policy, params, prompts)
    means = support_means(policy, task, prompts, logp)
    return total(jnp.exp(logp) * means, (1,))[:, 0]


def entropy(policy: Policy, params: Params, prompts: Array) -> Array:
    """Entropy in nats of the distribution over whole outputs, mean over prompts; NaN where one is.

    A scalar, or [R].
    """
    logp = log_support(policy, params, prompts)
    return -_over_prompts(_times(jnp.exp(logp), logp))


def kl(policy: Policy, params: Params, other: Params, prompts: Array) -> Array:
    """KL(π_params‖π_other) in nats over whole outputs, mean over prompts; NaN where one is. A scalar, or [R].

    Infinite where π_other gives probability 0 to what π_params may give.
    """
    logp, reference = log_support(policy, params, prompts), log_support(policy, other, prompts)
    reference = jnp.where(impossible(reference), -jnp.inf, reference)
    return _over_prompts(_times(jnp.exp(logp), logp - reference))


def _over_prompts(terms: Array) -> Array:
    """Mean over prompts of sums over outputs [P, S]."""
    return total(terms, (0, 1))[0, 0] / terms.shape[0]


def _times(probability: Array, value: Array) -> Array:
    """p·v with 0·anything := 0; a NaN probability is no 0."""
    return jnp.where(probability == 0, 0, probability * jnp.where(probability == 0, 0, value))


def tied_share(rollout: Rollout) -> Array:
    """Share of groups whose rewards are all equal, so that every advantage is 0. A scalar, or [R].

    An entry's reward is the plain sum of its rewards, whatever the method's shaping makes of them. For one
    prompt the share's expectation is Σ_r P(reward = r)^G: p^G + (1 − p)^G for binary rewards with P(1) = p.
    """
    same = tied(jnp.sum(rollout.rewards, 2), rollout.multiplicity, GROUP_AXES)
    return jnp.mean(same.astype(rollout.rewards.dtype), (0, 1))


def batch_reward(rollout: Rollout) -> Array:
    """Mean sampled reward of the batch. A scalar, or [R]."""
    weight = rollout.multiplicity
    rewards = jnp.where(weight > 0, jnp.sum(rollout.rewards, 2), 0)
    return jnp.sum(weight * rewards, (0, 1)) / jnp.sum(weight, (0, 1))


def batch_length(rollout: Rollout) -> Array:
    """Mean number of tokens of the batch's outputs. A scalar, or [R]."""
    weight = rollout.multiplicity
    return jnp.sum(weight * jnp.sum(rollout.mask, 2), (0, 1)) / jnp.sum(weight, (0, 1))


def length_where(rollout: Rollout, *, right: bool) -> Array:
    """Mean number of tokens of the batch's outputs whose total reward is positive (right), or is not.

    A scalar, or [R].

    NaN where the batch has none.
    """
    positive = jnp.sum(rollout.rewards, 2) > 0
    weight = jnp.where(positive == right, rollout.multiplicity, 0)
    count = jnp.sum(weight, (0, 1))
    tokens = jnp.sum(weight * jnp.sum(rollout.mask, 2), (0, 1))
    return jnp.where(count > 0, tokens / jnp.where(count > 0, count, 1), jnp.nan)


def token_weight(rollout: Rollout) -> Array:
    """[P, N, T] how many tokens of the batch an entry's token stands for: 0 where masked or absent."""
    return rollout.multiplicity[:, :, None] * rollout.mask


class RatioStatistics(NamedTuple):
    """The method's ratio over the live tokens of a batch."""

    low: Array
    high: Array
    quantiles: Array
    """[len(QUANTILES)(, R)]."""


def ratio_statistics(method: Method, rollout: Rollout, logp: Array) -> RatioStatistics:
    """Extremes and quantiles of the ratio after the last inner step. logp [P, N, T(, R)]."""
    rollout, logp = sanitized(rollout, logp)
    log_ratio = method.ratio(rollout, logp)
    weight = token_weight(rollout) + jnp.zeros_like(log_ratio)
    low = jnp.min(jnp.where(weight > 0, log_ratio, jnp.inf), (0, 1, 2))
    high = jnp.max(jnp.where(weight > 0, log_ratio, -jnp.inf), (0, 1, 2))
    quantiles = jnp.stack([quantile(log_ratio, weight, q, (0, 1, 2))[0, 0, 0] for q in QUANTILES])
    return RatioStatistics(low=exponential(low), high=exponential(high), quantiles=exponential(quantiles))


class MismatchStatistics(NamedTuple):
    """π_old/q over a batch, q the sampler and π_old the ratio's denominator, as the sampler reports it."""

    mean: Array
    """Over tokens."""
    low: Array
    high: Array
    sequence: Array
    """Mean over outputs of the product over their tokens: 1 where q covers π_old, the mass kept by top-p."""
    effective: Array
    """Effective sample size of the outputs' products w, (Σw)²/(N Σw²): 1 for equal weights, in (0, 1]."""
    kl: Array
    """Mean over outputs of log q − log π_old, nats: an estimate of KL(q‖π_old), exact where the batch is."""


def mismatch_statistics(rollout: Rollout) -> MismatchStatistics:
    """How far the sampler is from the policy that the ratio divides by, over the draws of a batch."""
    rollout, _ = sanitized(rollout, jnp.zeros(()))
    gap = jnp.where(rollout.mask > 0, rollout.old_logp - rollout.sampling_logp, 0)
    weight = token_weight(rollout) + jnp.zeros_like(gap)
    entries = rollout.multiplicity + jnp.zeros_like(gap[:, :, 0])
    count = jnp.sum(entries, (0, 1))
    whole = jnp.sum(gap, 2)
    product = exponential(whole)

    def over_entries(values: Array) -> Array:
        return jnp.sum(_times(entries, values), (0, 1)) / count

    square = over_entries(product**2)
    return MismatchStatistics(
        mean=jnp.sum(_times(weight, exponential(gap)), (0, 1, 2)) / jnp.sum(weight, (0, 1, 2)),
        low=exponential(jnp.min(jnp.where(weight > 0, gap, jnp.inf), (0, 1, 2))),
        high=exponential(jnp.max(jnp.where(weight > 0, gap, -jnp.inf), (0, 1, 2))),
        sequence=over_entries(product),
        effective=over_entries(product) ** 2 / square,
        kl=-over_entries(jnp.where(impossible(whole), -jnp.inf, whole)),
    )


def over_answers(rollout: Rollout, values: Array) -> Array:
    """Mean over the answers of a batch of values [P, N(, R)], or of one number."""
    weight = rollout.multiplicity
    return jnp.sum(_times(weight, values + jnp.zeros_like(weight)), (0, 1)) / jnp.sum(weight, (0, 1))


def over_tokens(rollout: Rollout, values: Array) -> Array:
    """Mean over the tokens of a batch of values [P, N, T(, R)]."""
    weight = token_weight(rollout) + jnp.zeros_like(values)
    return jnp.sum(_times(weight, values), (0, 1, 2)) / jnp.sum(weight, (0, 1, 2))


def clip_fractions(method: Method, rollout: Rollout, advantages: Array, logp: Array) -> tuple[Array, Array]:
    """Share of tokens whose gain the clip holds constant, above and below.

    Advantages [P, N, 1 or T(, R)], logp [P, N, T(, R)]; two scalars, or [R].
    """
    rollout, logp = sanitized(rollout, logp)
    out = clip_mask(method.gain, method.ratio(rollout, logp), advantages)
    weight = token_weight(rollout)
    mass = materialize(total(weight, (0, 1, 2))[0, 0, 0])
    high, low = (total(jnp.where(side, weight, 0), (0, 1, 2))[0, 0, 0] / mass for side in out)
    return high, low


def norm(tree: Params, *, runs: bool) -> Array:
    """Euclidean norm over all leaves, runs apart.

    A scalar; [R] where leaves have ``runs`` as their last axis.
    """

    def squares(leaf: Array) -> Array:
        axes = tuple(range(leaf.ndim - 1)) if runs else None
        return jnp.sum(leaf.astype(float) ** 2, axes)

    return jnp.sqrt(jnp.sum(jnp.stack([squares(leaf) for leaf in jax.tree.leaves(tree)]), 0))


def finite(tree: Params, *, runs: bool, start: Params | None = None) -> Array:
    """True for every run all of whose numbers are finite.

    A scalar; [R] where leaves have ``runs`` as their last axis.

    A number may be −inf (a logit of probability 0) where ``start``, a tree alike, is; nowhere without it.
    """

    def every(leaf: Array, first: Array) -> Array:
        allowed = jnp.isfinite(leaf) | ((leaf == -jnp.inf) & (first == -jnp.inf))
        wrong = jnp.where(allowed, 0.0, 1.0)
        axes = tuple(range(leaf.ndim - 1)) if runs else tuple(range(leaf.ndim))
        return total(wrong, axes).reshape(leaf.shape[-1:] if runs else ()) == 0

    firsts = jax.tree.map(lambda _: jnp.zeros(()), tree) if start is None else start
    found = jax.tree.map(every, tree, firsts)
    return jnp.all(jnp.stack(jax.tree.leaves(found)), 0)


def all_prompts(policy: Policy) -> Any:
    """Every context once, known while tracing."""
    if policy.contexts is None:
        raise ValueError(f"{type(policy).__name__} has no finite list of prompts")
    return np.arange(policy.contexts)


def held_out_accuracy(
    policy: Policy, task: HasHeldOut, params: Params, at: tuple[Array, Array, Array], count: int
) -> Array:
    """Share of held-out problems that are answered right (graded 1), one sampled answer to each. A scalar.

    Args:
      policy: who answers.
      task: what it is asked.
      params: its parameters, of one run.
      at: (seed root, seed, step): what the problems and answers that are drawn depend on.
      count: problems asked.
    """
    prompts = task.held_out_prompts(uniforms(*at, Stream.HELD_OUT, (count,)))
    tokens, mask = policy.sample(params, prompts, uniforms(*at, Stream.ANSWER, (count, 1, policy.horizon)))
    return jnp.mean(jnp.where(task.grade(prompts, tokens, mask) == 1, 1.0, 0.0))
