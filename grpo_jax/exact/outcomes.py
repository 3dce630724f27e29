"""The outcomes of one draw: every (output, reward level) of a prompt, with its probability."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from grpo_jax.collectors import sampler, scored, shared
from grpo_jax.config import Config, TrainState
from grpo_jax.types import Array, HasLevels, HasNoise, Levels, Listable, Rollout, Scores, require_support


def support_levels(config: Config, state: TrainState, prompts: Any) -> tuple[Array, Array, Levels]:
    """Tokens and mask [P, S, T] of every output, and its reward levels; ValueError if not listable."""
    support = require_support(config.policy, prompts, instead="nothing is exact then; use Sampled()")
    tokens, mask = shared(support.tokens, state), shared(support.mask, state)
    task = config.task
    levels = task.levels(prompts, tokens, mask) if isinstance(task, HasLevels) else None
    if levels is None:
        name = type(task.noise if isinstance(task, HasNoise) and task.noise else task).__name__
        raise ValueError(f"{name} rewards have no finite list of levels, so nothing is exact; use Sampled()")
    return tokens, mask, levels


def outcomes(config: Config, state: TrainState, prompts: Any) -> Rollout:
    """Every outcome as an entry of its prompt's group; its multiplicity is q(o)·p(level|o), q the sampler.

    Returns a rollout with N = S·L entries: S outputs of the policy's support, L levels of the task's
    reward, the levels of one output side by side.
    """
    tokens, mask, levels = support_levels(config, state, prompts)
    assert isinstance(config.policy, Listable)
    old = config.policy.score_support(state.old_params, prompts)
    ref = config.policy.score_support(state.ref_params, prompts)
    if config.behavior is None:
        return listed(prompts, tokens, mask, levels, old, ref)
    drawn = sampler(config, state)
    rollout = listed(
        prompts, tokens, mask, levels, old, ref, drawn=drawn.policy.score_support(drawn.params, prompts)
    )
    width = levels.values.shape[2]

    def score(who: Any, at: Any) -> Scores:
        scores = who.score_support(at, prompts)
        return Scores(logp=each_level(scores.logp, width), entropy=scores.entropy)

    return scored(config, rollout, drawn, score)


def listed(
    prompts: Any,
    tokens: Array,
    mask: Array,
    levels: Levels,
    old: Scores,
    ref: Scores,
    *,
    drawn: Scores | None = None,
) -> Rollout:
    """The rollout of all outcomes: support [P, S, T], levels [P, S, L] and scores [P, S, T] together.

    ``drawn`` are the sampler's scores, where it is not the old policy.
    """
    width = levels.values.shape[2]
    chance = jnp.exp(jnp.sum((old if drawn is None else drawn).logp, 2))
    probability = chance[:, :, None] * levels.probabilities
    old_logp = each_level(old.logp, width)
    return Rollout(
        prompts=prompts,
        tokens=each_level(tokens, width),
        mask=each_level(mask, width),
        rewards=_flat(levels.values)[:, :, None],
        multiplicity=_flat(probability),
        sampling_logp=old_logp,
        old_logp=old_logp,
        ref_logp=each_level(ref.logp, width),
        entropy=each_level(old.entropy, width),
    )


def each_level(array: Array, width: int) -> Array:
    """[P, S, ...] -> [P, S·L, ...], every output repeated for its L levels."""
    return array if width == 1 else jnp.repeat(array, width, axis=1)


def _flat(array: Array) -> Array:
    return array.reshape((array.shape[0], -1, *array.shape[3:]))
