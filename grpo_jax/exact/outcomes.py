"""The outcomes of one draw: every (output, reward level) of a prompt, with its probability."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from grpo_jax.config import Config, Origin, TrainState
from grpo_jax.sampling import (
    each,
    listing,
    mixed,
    sampler,
    scored,
    shared,
    support_score,
    truncation,
    with_reports,
)
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


def outcomes(config: Config, state: TrainState, prompts: Any) -> tuple[Rollout, Origin | None]:
    """Every outcome as an entry of its prompt's group; its multiplicity is q(o)·p(level|o), q the sampler.

    Returns a rollout with N = S·L entries, S outputs of the policy's support, L levels of the task's reward,
    the levels of one output side by side; with answers of A ages N = S·A·L, and the multiplicity of what is
    lost on its way is 0. And where entries come from, if not from the old policy.
    """
    tokens, mask, levels = support_levels(config, state, prompts)
    assert isinstance(config.policy, Listable)
    old = config.policy.score_support(state.old_params, prompts)
    ref = config.policy.score_support(state.ref_params, prompts)
    if config.behavior is None:
        return listed(config, prompts, tokens, mask, levels, old, ref), None
    if mixed(config):
        return _by_age(config, state, prompts, levels, old, ref)
    drawn = sampler(config, state)
    scores = drawn.policy.score_support(drawn.params, prompts)
    rollout = listed(config, prompts, tokens, mask, levels, old, ref, drawn=scores)
    score = support_score(prompts, levels.values.shape[2])
    return scored(config, state, rollout, score, drawn.params)


def _by_age(
    config: Config, state: TrainState, prompts: Any, levels: Levels, old: Scores, ref: Scores
) -> tuple[Rollout, Origin]:
    loses = config.behavior is not None and config.behavior.age is not None and config.behavior.age.loses
    if loses and prompts.shape[0] > 1:
        raise ValueError(
            "the size of a batch that loses answers depends on all its prompts, so that groups cannot be "
            "summed prompt by prompt; use one prompt, Age(refill=True), or Sampled()"
        )
    every = listing(config, state, prompts)
    width = levels.values.shape[2]
    entries = every.width * width
    values, chance = (each(array, every.width) for array in (levels.values, levels.probabilities))
    law = every.probability[:, :, None] * chance
    alive = every.alive[:, :, None]
    cut = truncation(config, every.tokens, every.mask)
    rollout = Rollout(
        prompts=prompts,
        tokens=each(every.tokens, width),
        mask=each(every.mask, width),
        rewards=_flat(values)[:, :, None],
        multiplicity=_flat(jnp.where(alive, law, 0)),
        sampling_logp=each(every.reported, width),
        old_logp=each(old.logp, entries),
        ref_logp=each(ref.logp, entries),
        entropy=each(old.entropy, entries),
        truncated=None if cut is None else each(cut, width),
    )

    score = support_score(prompts, entries)
    origin = Origin(
        age=each(every.age, width),
        kept=None if every.kept is None else each(every.kept, width),
        lost=jnp.sum(jnp.where(alive, 0, law), (1, 2)) if loses else None,
    )
    return with_reports(config, state, rollout, score, each(every.reported, width), origin)


def listed(
    config: Config,
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
    old_logp = each(old.logp, width)
    cut = truncation(config, tokens, mask)
    return Rollout(
        prompts=prompts,
        tokens=each(tokens, width),
        mask=each(mask, width),
        rewards=_flat(levels.values)[:, :, None],
        multiplicity=_flat(probability),
        sampling_logp=old_logp,
        old_logp=old_logp,
        ref_logp=each(ref.logp, width),
        entropy=each(old.entropy, width),
        truncated=None if cut is None else each(cut, width),
    )


def _flat(array: Array) -> Array:
    return array.reshape((array.shape[0], -1, *array.shape[3:]))
