"""How an iteration sees its groups: as G samples, or as a histogram of G samples over the support."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from grpo_jax import user_parts
from grpo_jax.config import (
    Batch,
    Config,
    Expectation,
    Origin,
    OwnStatistics,
    ResolvesCells,
    TrainState,
    prompt_count,
)
from grpo_jax.diagnostics import all_prompts
from grpo_jax.kernels import materialize
from grpo_jax.part import Swept, at_hand, declared, outside, part, put_all, subparts, substituted
from grpo_jax.prepared import plain, prepared
from grpo_jax.random import Stream, uniforms
from grpo_jax.sampling import (
    Listing,
    counted,
    each,
    listing,
    mixed,
    sampler,
    samples,
    scored,
    shared,
    support_score,
    truncation,
    with_reports,
)
from grpo_jax.surrogate import advantages, objective
from grpo_jax.types import (
    Array,
    Countable,
    FiniteActions,
    HasMeans,
    HasNoise,
    Listable,
    Params,
    Rollout,
    Scores,
    SplitsRewards,
    require_means,
    require_support,
)


def draw_prompts(config: Config, state: TrainState) -> Any:
    """[P] every context in order, or [P(, R)] drawn ones."""
    if config.loop.prompts is None:
        return all_prompts(config.policy)
    return config.task.prompts(
        uniforms(state.root, state.seed, state.step, Stream.PROMPT, (config.loop.prompts,))
    )


def with_entropy(rollout: Rollout, scores: Scores) -> Rollout:
    """The current policy's entropies, detached: what entropy-aware corrections read.

    [P, N, T(, R)], as the rollout's tokens.
    """
    return rollout._replace(entropy=jax.lax.stop_gradient(scores.entropy))


@part
class Sampled:
    """G samples per prompt: the general form."""

    def collect(self, config: Config, state: TrainState) -> Batch:
        """Groups from the old policy; noise and tokens depend on (root, seed, step) alone."""
        refill, drawn = config.loop.refill, None
        if refill is None:
            rollout, origin = self._drawn(config, state)
        else:
            group, prompts = refill.widened(config.loop.group_size, config.loop.prompts)
            every = put_all(config, {"loop.group_size": group, "loop.prompts": prompts})
            rollout, origin, drawn = refill.filled(*self._drawn(every, state))
        return Batch(rollout, materialize(advantages(config.method, rollout)), origin, drawn)

    def _drawn(self, config: Config, state: TrainState) -> tuple[Rollout, Origin | None]:
        prompts, count = draw_prompts(config, state), prompt_count(config)
        group = (count, config.loop.group_size)
        draws = uniforms(state.root, state.seed, state.step, Stream.TOKEN, (*group, config.policy.horizon))
        drawn = samples(config, state, prompts, draws)
        tokens, mask = drawn.tokens, drawn.mask
        noise = uniforms(state.root, state.seed, state.step, Stream.REWARD, group)
        old = config.policy.score(state.old_params, prompts, tokens, mask)
        ref = config.policy.score(state.ref_params, prompts, tokens, mask)
        rollout = Rollout(
            prompts=prompts,
            tokens=tokens,
            mask=mask,
            rewards=config.task.rewards(prompts, tokens, mask, noise),
            multiplicity=drawn.present,
            sampling_logp=old.logp,
            old_logp=old.logp,
            ref_logp=ref.logp,
            entropy=old.entropy,
            truncated=truncation(config, tokens, mask),
        )

        def score(who: Any, at: Params) -> Scores:
            return who.score(at, prompts, tokens, mask)

        origin = None
        if drawn.reported is not None:
            rollout, origin = with_reports(config, state, rollout, score, drawn.reported, drawn.origin)
        return rollout, origin

    def objective(self, config: Config, batch: Batch, params: Params) -> tuple[Array, Array]:
        """The surrogate of the sampled groups. A scalar or [R], and logp [P, N, T(, R)]."""
        rollout = batch.rollout
        scores = config.policy.score(params, rollout.prompts, rollout.tokens, rollout.mask)
        return objective(
            config.method, with_entropy(rollout, scores), batch.advantages, scores.logp
        ), scores.logp

    def objective_at_old(self, config: Config, batch: Batch, params: Params) -> tuple[Array, Array]:
        """``objective`` at θ = θ_old, with log π_old(y) = log π_θ(y) held fixed instead of scored again.

        A scalar or [R], and logp [P, N, T(, R)].
        """
        rollout = batch.rollout
        scores = config.policy.score(params, rollout.prompts, rollout.tokens, rollout.mask)
        old = jax.lax.stop_gradient(scores.logp)
        rollout = with_entropy(rollout._replace(old_logp=old, sampling_logp=old), scores)
        return objective(config.method, rollout, batch.advantages, scores.logp), scores.logp


def support_rollout(
    config: Config, state: TrainState, prompts: Any, multiplicity: Array, every: Listing | None = None
) -> tuple[Rollout, Origin | None]:
    """The whole support as one group per prompt, given its multiplicities: rewards must be deterministic.

    Args:
      config: the configuration.
      state: where the group is collected.
      prompts: [P].
      multiplicity: [P, S], of every output; or [P, S·A], of every entry of a listing by age.
      every: that listing.
    """
    policy = config.policy
    support = require_support(policy, prompts, instead="use Sampled()")
    assert isinstance(policy, Listable)
    tokens, mask = shared(support.tokens, state), shared(support.mask, state)
    old = policy.score_support(state.old_params, prompts)
    ref = policy.score_support(state.ref_params, prompts)
    task = require_means(config.task, instead="use Sampled()")
    width = 1 if every is None else every.width
    cut = truncation(config, tokens, mask)
    rollout = Rollout(
        prompts=prompts,
        tokens=each(tokens, width),
        mask=each(mask, width),
        rewards=each(task.means(prompts, tokens, mask), width)[:, :, None],
        multiplicity=multiplicity,
        sampling_logp=each(old.logp, width),
        old_logp=each(old.logp, width),
        ref_logp=each(ref.logp, width),
        entropy=each(old.entropy, width),
        truncated=None if cut is None else each(cut, width),
    )
    score = support_score(prompts, width)
    if every is not None:
        origin = Origin(age=every.age, kept=every.kept)
        return with_reports(config, state, rollout, score, every.reported, origin)
    return scored(config, state, rollout, score, sampler(config, state).params)


@part
class Counts:
    """The histogram of the same G samples over the support: equal to ``Sampled``, cheaper on small supports.

    Needs rewards that depend on the output alone.
    """

    def collect(self, config: Config, state: TrainState) -> Batch:
        """Counts over the support, from the very draws that ``Sampled`` would make."""
        if isinstance(config.task, HasNoise) and config.task.noise is not None:
            raise ValueError("Counts() needs rewards that depend on the output alone; this task has noise")
        if config.loop.refill is not None:
            raise ValueError("Counts() draws every group once; use Sampled() with Loop(refill=...)")
        policy = config.policy
        if not isinstance(policy, Countable):
            raise ValueError(f"{type(policy).__name__} cannot count its outputs; use Sampled()")
        prompts = draw_prompts(config, state)
        group = (prompt_count(config), config.loop.group_size, config.policy.horizon)
        draws = uniforms(state.root, state.seed, state.step, Stream.TOKEN, group)
        every = listing(config, state, prompts) if mixed(config) else None
        if every is None:
            counts = sampler(config, state).counts(prompts, draws)
        else:
            counts = counted(every, draws[:, :, 0])
        rollout, origin = support_rollout(config, state, prompts, materialize(counts), every)
        return Batch(rollout, materialize(advantages(config.method, rollout)), origin)

    def objective(self, config: Config, batch: Batch, params: Params) -> tuple[Array, Array]:
        """The surrogate of the histogram. A scalar or [R], and logp [P, N, T(, R)]."""
        assert isinstance(config.policy, Listable)
        scores = every_score(config, batch.rollout, params)
        rollout = with_entropy(batch.rollout, scores)
        return objective(config.method, rollout, batch.advantages, scores.logp), scores.logp


def every_score(config: Config, rollout: Rollout, params: Params) -> Scores:
    """Log-probabilities and entropies [P, N, T] of every entry of a rollout of the whole support."""
    assert isinstance(config.policy, Listable)
    scores = config.policy.score_support(params, rollout.prompts)
    width = rollout.tokens.shape[1] // scores.logp.shape[1]
    return Scores(logp=each(scores.logp, width), entropy=each(scores.entropy, width))


COUNTED = 1024
"""The most actions of which groups are counted unasked: a softmax over them costs as much as the counts."""


def _forgetful(config: Config, swept: Swept, *, asked: bool) -> list[str]:
    """Parts from outside because of which a histogram is not the samples it counts; none while traced.

    What cannot be tried is counted if ``asked``, and not otherwise.
    """
    names = outside(config.method)
    if not names or not at_hand(config.method):
        return []
    heeds = user_parts.respects_multiplicity(config.method, swept)
    return [] if heeds or (asked and heeds is None) else names


def reward_count(config: Config) -> int:
    """M, how many rewards the task gives each entry; by shapes alone, nothing is computed."""
    if not outside(config.task):
        return 1

    def rewards(config: Config) -> Array:
        first = {path: jnp.asarray(v)[..., 0] for path, v, rank in declared(config) if jnp.ndim(v) > rank}
        config = substituted(config, first)
        policy, task, count = config.policy, config.task, prompt_count(config)
        prompts = all_prompts(policy) if config.loop.prompts is None else task.prompts(jnp.zeros(count))
        params = policy.init(jax.random.key(0))
        tokens, mask = policy.sample(params, prompts, jnp.zeros((count, 1, policy.horizon)))
        return task.rewards(prompts, tokens, mask, jnp.zeros((count, 1)))

    shape = jax.eval_shape(rewards, config).shape
    return shape[2] if len(shape) > 2 else 1


def _splitting(config: Config) -> list[str]:
    """Parts that may tell an entry's several rewards apart, where the task gives several.

    What is listed instead of sampled has its expected total only.
    """
    known = list(subparts(config.method))
    split = [type(sub).__name__ for sub in known if isinstance(sub, SplitsRewards) and sub.splits_rewards]
    said = {type(sub).__name__ for sub in known if isinstance(sub, SplitsRewards)}
    found = [*split, *(name for name in outside(config.method) if name not in said)]
    return list(dict.fromkeys(found)) if found and reward_count(config) > 1 else []


def choose(config: Config, swept: Swept = ()) -> Config:
    """Fill in the expectation: counts where a reward depends on one of few actions alone, else samples.

    Samples, too, where a part from outside this package does not heed multiplicities, at the numbers that the
    configuration has or a sweep puts in, or where a part reads several rewards of an entry one by one;
    ValueError where the expectation that is given cannot serve such a part.

    A given expectation decides what it left open (``Exact`` its cells), where the numbers are known.
    """
    if config.expectation is not None:
        by_total = isinstance(config.expectation, (Counts, OwnStatistics))
        split = _splitting(config) if by_total else []
        if split:
            raise ValueError(
                f"{', '.join(split)} reads the {reward_count(config)} rewards of an entry one by one, and "
                f"{type(config.expectation).__name__}() knows their expected total only; use Sampled()"
            )
        wrong = [] if isinstance(config.expectation, Sampled) else _forgetful(config, swept, asked=True)
        if wrong:
            raise ValueError(
                f"{', '.join(wrong)} gives {type(config.expectation).__name__}() another objective than the "
                "samples that rollout.multiplicity counts; weigh entries by it, or use Sampled()"
            )
        if isinstance(config.expectation, ResolvesCells):
            return dataclasses.replace(config, expectation=config.expectation.resolved(config))
        return config
    made: Expectation = Counts() if _uncountable(config, swept) is None else Sampled()
    return dataclasses.replace(config, expectation=made)


def _uncountable(config: Config, swept: Swept) -> str | None:
    """What keeps groups from being counted unasked; None if nothing does."""
    if config.loop.refill is not None:
        return "groups that tie are drawn anew"
    if not (isinstance(config.policy, FiniteActions) and isinstance(config.policy, Countable)):
        return "outputs are not single actions"
    if not isinstance(config.task, HasMeans):
        return "expected rewards are not known"
    if not isinstance(config.task, HasNoise) or config.task.noise is not None:
        return "rewards may vary for one and the same action"
    if config.policy.actions > COUNTED:
        return f"more than {COUNTED} actions"
    split = _splitting(config)
    if split:
        return f"{', '.join(split)} reads several rewards one by one"
    forgetful = _forgetful(config, swept, asked=False)
    return f"{', '.join(forgetful)} is not known to heed multiplicities" if forgetful else None


def reason(config: Config, swept: Swept = ()) -> str:
    """Why ``choose`` takes the expectation that it takes, in a few words."""
    if config.expectation is not None:
        return "as asked"
    return _uncountable(config, swept) or "rewards depend on one of few actions alone"


def prepared_state(config: Config, state: TrainState) -> TrainState:
    """The state, its parameters prepared where no one but the policy reads them on the way.

    A sampler apart, or an expectation from outside, gets them plain; and where prompts are drawn, few of the
    contexts that would be prepared are asked for.
    """
    own = isinstance(config.expectation, (Counts, Sampled))
    if not own or config.behavior is not None or config.loop.prompts is not None:
        return state
    return _each(state, functools.partial(prepared, config.policy))


def plain_state(state: TrainState) -> TrainState:
    """The state with its parameters alone."""
    return _each(state, plain)


def _each(state: TrainState, make: Callable[[Params], Params]) -> TrainState:
    return state._replace(
        params=make(state.params), old_params=make(state.old_params), ref_params=make(state.ref_params)
    )
