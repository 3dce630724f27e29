"""What the behaviour policy draws: samples, or the law of its outputs by age; and what it reports of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from grpo_jax.ages import of_age, picked
from grpo_jax.config import Config, Origin, TrainState
from grpo_jax.kernels import exponential, trailing
from grpo_jax.random import Stream, uniforms
from grpo_jax.sequences import inverse_cdf
from grpo_jax.types import (
    Array,
    Countable,
    Listable,
    OverSequences,
    Params,
    Rollout,
    Scores,
    reads_truncation,
    support_of,
)


def shared(array: Any, state: TrainState) -> Any:
    """An array that all runs share, with a trailing axis of one where runs are present."""
    return array[..., None] if state.seed.ndim else array


def each(array: Array, width: int) -> Array:
    """[P, S, ...] -> [P, S·width, ...], every output repeated: for its ages, for the levels of its reward."""
    return array if width == 1 else jnp.repeat(array, width, axis=1)


def side_by_side(array: Array) -> Array:
    """[P, S, A, ...] -> [P, S·A, ...]."""
    return array.reshape((array.shape[0], -1, *array.shape[3:]))


def truncation(config: Config, tokens: Array, mask: Array) -> Array | None:
    """[P, N] which outputs were cut off at the budget; None where no part asks for it.

    ValueError where one does, and neither policy nor task says which token ends an output.
    """
    if not reads_truncation(config.method):
        return None
    for one in (config.policy, config.task):
        if isinstance(one, OverSequences):
            return one.space.truncated(tokens, mask)
    raise ValueError(
        f"{type(config.policy).__name__} does not say which outputs are cut off; a policy or a task over "
        "``Sequences`` does"
    )


class Drawn(NamedTuple):
    """Who samples an iteration's groups, and with which parameters."""

    policy: Any
    """As its engine decodes it."""
    params: Params

    def counts(self, prompts: Any, draws: Array) -> Array:
        """[P, S] histogram of its draws over the support."""
        assert isinstance(self.policy, Countable)
        return self.policy.counts(self.params, prompts, draws)


def sampler(config: Config, state: TrainState) -> Drawn:
    """The behaviour policy q, where all answers are of one age; the old policy if none is named."""
    if config.behavior is None:
        return Drawn(config.policy, state.old_params)
    return Drawn(config.behavior.sampler(config.policy), config.behavior.params(state))


def mixed(config: Config) -> bool:
    """Whether answers of one batch may differ in age, or be lost."""
    return config.behavior is not None and config.behavior.mixed


Score = Callable[[Any, Params], Scores]
"""(policy, parameters) -> scores [P, N, T] of a rollout's tokens."""


def support_score(prompts: Any, width: int) -> Score:
    """Scores of the whole support, every output ``width`` times."""

    def score(who: Any, at: Params) -> Scores:
        scores = who.score_support(at, prompts)
        return Scores(each(scores.logp, width), each(scores.entropy, width))

    return score


def scored(
    config: Config, state: TrainState, rollout: Rollout, score: Score, at: Params
) -> tuple[Rollout, Origin | None]:
    """The rollout with what the sampler reports and with the proximal policy's log-probabilities.

    All [P, N, T(, R)].

    Args:
      config: the configuration.
      state: where the groups are collected.
      rollout: as the old policy scores it.
      score: of the rollout's tokens.
      at: the sampler's parameters.
    """
    behavior = config.behavior
    if behavior is None:
        return rollout, None
    reported = score(behavior.reported(config.policy), at).logp
    origin = Origin(kept=_kept(config, score, at))
    return with_reports(config, state, rollout, score, reported, origin)


def with_reports(
    config: Config, state: TrainState, rollout: Rollout, score: Score, reported: Array, origin: Origin
) -> tuple[Rollout, Origin]:
    """The rollout with log q and, mixed with it as the configuration says, the proximal policy's.

    All [P, N, T(, R)].
    """
    assert config.behavior is not None
    old, proximal = rollout.old_logp, config.behavior.proximal
    if proximal is not None:
        origin = origin._replace(trainer_logp=old)
        if proximal.lag is not None:
            held = state.old_params if state.queue is None else picked(state.queue, proximal.lag)
            old = score(config.policy, held).logp
        old = proximal(old, reported, rollout.mask)
    return rollout._replace(sampling_logp=reported, old_logp=old), origin


def _kept(config: Config, score: Score, at: Params) -> Array | None:
    """[P, N, T] mass that the filters keep at the state of each token, q's own; None without filters."""
    behavior = config.behavior
    if behavior is None or not behavior.filters:
        return None
    free, kept = (score(who(config.policy), at).logp for who in (behavior.unfiltered, behavior.sampler))
    return exponential(free - kept)


class Listing(NamedTuple):
    """Every (output, age) of a prompt: N = S·A entries, the ages 0, ..., depth of one output side by side."""

    tokens: Array
    """[P, N, T(, 1)]."""
    mask: Array
    """[P, N, T(, 1)]."""
    width: int
    """A."""
    probability: Array
    """[P, N(, R)] of drawing (o, a)."""
    alive: Array
    """bool [P, N(, R)], False where it is lost on its way."""
    age: Array
    """[P, N(, R)] a."""
    reported: Array
    """[P, N, T(, R)] log-probability that the engine reports."""
    kept: Array | None
    """[P, N, T(, R)] mass that its filters keep."""


def listing(config: Config, state: TrainState, prompts: Any) -> Listing:
    """Every output at every age with its probability; the policy's outputs can be listed."""
    policy, behavior = config.policy, config.behavior
    assert behavior is not None
    assert behavior.age is not None
    assert isinstance(policy, Listable)
    found = support_of(policy, prompts)
    assert found is not None
    tokens, mask = (shared(jnp.asarray(array), state) for array in found)
    params = behavior.params_by_age(state)

    def by_age(who: Any) -> Array:
        """[P, S, A, T(, R)]."""
        return jnp.stack([who.score_support(one, prompts).logp for one in params], 2)

    drawn = by_age(behavior.sampler(policy))
    law, alive = behavior.age.law(jnp.sum(drawn, 3), jnp.sum(mask, 2))
    width = len(params)
    ages = jnp.broadcast_to(jnp.arange(width).reshape((1, 1, -1) + (1,) * (law.ndim - 3)), law.shape)
    reported = drawn if behavior.records == "processed" else by_age(behavior.reported(policy))
    kept = exponential(by_age(behavior.unfiltered(policy)) - drawn) if behavior.filters else None
    return Listing(
        tokens=each(tokens, width),
        mask=each(mask, width),
        width=width,
        probability=side_by_side(law),
        alive=side_by_side(alive),
        age=side_by_side(ages),
        reported=side_by_side(reported),
        kept=None if kept is None else side_by_side(kept),
    )


class Samples(NamedTuple):
    """G answers to each prompt."""

    tokens: Array
    """[P, G, T(, R)]."""
    mask: Array
    """[P, G, T(, R)]."""
    present: Array
    """[P, G(, R or 1)] 1, and 0 where an answer is lost."""
    reported: Array | None = None
    """[P, G, T(, R)] log q; None where the old policy samples."""
    origin: Origin = Origin()


def samples(config: Config, state: TrainState, prompts: Any, draws: Array) -> Samples:
    """G answers of the behaviour policy. ``draws`` [P, G, T(, R)] are uniform."""
    if mixed(config):
        return _mixed(config, state, prompts, draws)
    drawn = sampler(config, state)
    tokens, mask = drawn.policy.sample(drawn.params, prompts, draws)
    present = shared(jnp.ones(draws.shape[:2]), state)
    if config.behavior is None:
        return Samples(tokens, mask, present)

    def score(who: Any, at: Params) -> Scores:
        return who.score(at, prompts, tokens, mask)

    reported = score(config.behavior.reported(config.policy), drawn.params).logp
    return Samples(tokens, mask, present, reported, Origin(kept=_kept(config, score, drawn.params)))


def _mixed(config: Config, state: TrainState, prompts: Any, draws: Array) -> Samples:
    """Each answer is of an age of its own.

    Outputs that can be listed are drawn together with their ages; of others every age is sampled, which
    needs ages that do not depend on lengths.
    """
    if support_of(config.policy, prompts) is not None:
        return _from_listing(listing(config, state, prompts), draws[:, :, 0])
    behavior = config.behavior
    assert behavior is not None
    assert behavior.age is not None
    age = behavior.age
    group, width = draws.shape[:2], age.depth + 1
    ages = jnp.arange(width).reshape((1, 1, -1) + (1,) * state.seed.ndim)
    start = age.started(ages)
    start = jnp.where(age.in_time(ages), start, 0) if age.refill else start
    own = inverse_cdf(start, uniforms(state.root, state.seed, state.step, Stream.AGE, group))
    params = behavior.params_by_age(state)
    drawn = [behavior.sampler(config.policy).sample(one, prompts, draws) for one in params]
    tokens, mask = (of_age(jnp.stack([pair[i] for pair in drawn]), own) for i in (0, 1))

    def by_age(who: Any) -> Array:
        return of_age(jnp.stack([who.score(one, prompts, tokens, mask).logp for one in params]), own)

    engine = by_age(behavior.sampler(config.policy))
    reported = engine if behavior.records == "processed" else by_age(behavior.reported(config.policy))
    kept = exponential(by_age(behavior.unfiltered(config.policy)) - engine) if behavior.filters else None
    present = jnp.where(age.in_time(own), 1.0, 0.0)
    return Samples(tokens, mask, present, reported, Origin(age=own, kept=kept))


def chosen(every: Listing, draws: Array) -> Array:
    """int [P, G(, R)] the entries that uniform draws [P, G(, R)] give."""
    return inverse_cdf(every.probability[:, None], draws)


def counted(every: Listing, draws: Array) -> Array:
    """[P, N(, R)] how often uniform draws [P, G(, R)] give each entry, 0 for what is lost."""
    index = chosen(every, draws)
    rows = trailing(jnp.arange(every.probability.shape[1]), index.ndim - 1)
    found = jnp.sum(index[:, :, None] == rows, 1, dtype=int).astype(draws.dtype)
    return jnp.where(every.alive, found, 0)


def _pick(array: Array, index: Array) -> Array:
    """array[p, index[p, g(, R)], ...(, R)]."""
    place = index if array.ndim == index.ndim else jnp.expand_dims(index, 2)
    rest = jnp.broadcast_shapes(array.shape[2:], place.shape[2:])
    wide = jnp.broadcast_to(array, array.shape[:2] + rest)
    return jnp.take_along_axis(wide, jnp.broadcast_to(place, place.shape[:2] + rest), axis=1)


def _from_listing(every: Listing, draws: Array) -> Samples:
    index = chosen(every, draws)
    tokens, mask = _pick(every.tokens, index), _pick(every.mask, index)
    kept = None if every.kept is None else _pick(every.kept, index)
    present = jnp.where(_pick(every.alive, index), 1.0, 0.0)
    origin = Origin(age=_pick(every.age, index), kept=kept)
    return Samples(tokens, mask, present, _pick(every.reported, index), origin)
