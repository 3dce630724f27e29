"""The training loop: ``init``, ``step``, ``run``. Pure functions of (configuration, state), for many runs."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax import optimizers, runtime
from grpo_jax.collectors import choose, plain_state, prepared_state
from grpo_jax.config import Batch, Config, TrainState, check_root, check_runs, validate
from grpo_jax.kernels import LongSum, materialize
from grpo_jax.measures import Measure, StepView, View
from grpo_jax.part import aligned
from grpo_jax.records import Recording, recording
from grpo_jax.steps import optimizer_steps
from grpo_jax.surrogate import idle_corrections
from grpo_jax.types import Array, Rollout

Info = dict[str, Array]
"""Name -> what was recorded, runs last."""


def init(config: Config, seed: Any = 0, *, root: int = 0) -> TrainState:
    """The state before the first iteration.

    Args:
      config: the configuration; it is validated.
      seed: the seed coordinate, an integer or [R] integers, one per run: runs are everything's last axis.
      root: the seed root, shared by an experiment.
    """
    validate(config)
    root, seed = check_root(root), _coordinate(seed)
    check_runs(config, seed)
    if seed.ndim and not config.policy.trailing:
        raise ValueError(
            f"{type(config.policy).__name__} takes one run at a time; vmap over runs, or use sweep"
        )
    return _start(config, seed, root)


def start(config: Config, seed: Array, root: Any) -> TrainState:
    """``init`` of a configuration that was validated; ``seed`` and ``root`` may be traced.

    ``seed`` is a scalar, or [R] for runs.
    """
    runs = bool(seed.ndim)
    key = jax.random.key(root)
    key = key if runs else jax.random.fold_in(key, seed)

    def spread_out(leaf: Array, like: Array) -> Array:
        leaf = jnp.asarray(leaf, like.dtype)
        if not runs:
            return leaf
        leaf = leaf if leaf.ndim > config.policy.rank else leaf[..., None]
        return jnp.broadcast_to(leaf, (*leaf.shape[:-1], seed.shape[0]))

    begin = config.policy.init(key)
    params = jax.tree.map(lambda leaf: spread_out(leaf, leaf), begin)
    ref = params if config.reference is None else jax.tree.map(spread_out, config.reference, begin)
    return TrainState(
        params=params,
        old_params=params,
        ref_params=ref,
        opt_state=optimizers.init(config.optimizer, params, runs=runs),
        step=jnp.uint32(0),
        root=jnp.asarray(root, jnp.uint32),
        seed=seed,
        queue=None if config.behavior is None else config.behavior.queued(params),
    )


_start = jax.jit(start)
"""Compiled whole: a network's random weights are many small programs otherwise."""


def _coordinate(seed: Any) -> Array:
    if not isinstance(seed, jax.Array):
        given = np.asarray(seed)
        whole = given.dtype.kind in "iu" and given.ndim < 2 and given.size > 0
        if not whole or given.min() < 0 or given.max() >= 2**32:
            raise ValueError(f"seed is {seed!r}; it must be a whole number in [0, 2^32), or [R] of them")
    return jnp.asarray(seed, jnp.uint32)


def ready(config: Config, state: TrainState) -> Config:
    """The configuration checked and its expectation chosen: what every public call does first, once."""
    validate(config)
    check_runs(config, state.seed)
    if config.behavior is not None:
        config.behavior.require_queue(state.queue)
    return choose(config)


def warn_of_idle_corrections(config: Config, *, stacklevel: int = 3) -> None:
    """UserWarning for parts that correct for a sampler apart from π_old, which training does not have."""
    idle = idle_corrections(config.method, one_step=config.loop.one_step)
    if idle and (config.behavior is None or not config.behavior.apart(config.policy)):
        verb = "corrects" if len(idle) == 1 else "correct"
        warnings.warn(
            f"{', '.join(idle)} {verb} nothing here: the old policy samples, so that its ratio to the "
            "sampler is exactly 1",
            stacklevel=stacklevel,
        )


def _steps_watched(
    measures: Mapping[str, Measure], view: StepView, recorded: Array | None
) -> dict[str, Array]:
    """Measures per step; where ``recorded`` says that nobody will read them, zeros that cost nothing."""

    def take() -> dict[str, Array]:
        return {name: jnp.asarray(measure(view)) for name, measure in measures.items()}

    if recorded is None or not measures:
        return take()
    blank = _zeros(jax.eval_shape(take))
    return jax.lax.cond(recorded, take, lambda: blank)


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


def _assert_shapes(rollout: Rollout) -> None:
    """AssertionError for a rollout whose arrays disagree in [P, N, T]: a policy or an expectation errs."""
    chex.assert_equal_shape_prefix([rollout.tokens, rollout.rewards, rollout.multiplicity], 2)
    logps = [rollout.sampling_logp, rollout.old_logp, rollout.ref_logp]
    chex.assert_equal_shape_prefix([rollout.tokens, rollout.mask, *logps], 3)


def iterate(
    config: Config, state: TrainState, plan: Recording, recorded: Array | None = None, fresh: bool = False
) -> tuple[TrainState, Batch, dict[str, Array]]:
    """One iteration: groups from θ_old, optimizer steps on them, θ_old refreshed when it is time.

    ``recorded`` is a scalar bool; ``fresh`` says that θ_old is θ at its only step: the batch is then scored
    once for both.

    Returns:
      The next state, the batch, and the plan's measures per step.
    """
    assert config.expectation is not None
    batch = config.expectation.collect(config, state)
    _assert_shapes(batch.rollout)
    watched = functools.partial(_steps_watched, plan.named("step"), recorded=recorded)
    after, steps = optimizer_steps(config, state, batch, watched, fresh=fresh)
    done = state.step + 1
    old = after.params
    if config.loop.refresh_every > 1:  # otherwise the two stay one array, carried and scored once
        refresh = done % config.loop.refresh_every == 0
        old = jax.tree.map(lambda new, old: jnp.where(refresh, new, old), old, state.old_params)
    after = after._replace(old_params=old, step=done)
    if config.behavior is not None and config.behavior.age is not None:
        after = after._replace(queue=config.behavior.age.pushed(state.queue, old))
    return after, batch, steps


def measured(config: Config, state: TrainState, batch: Batch, steps: Any, plan: Recording) -> Info:
    """Every measure of the plan after an iteration; each [own axes...(, R)]."""
    view = View(config, plain_state(state), batch, steps)
    found = {}
    for name, measure in plan.measures:
        if measure.per == "iteration":
            value = jnp.asarray(measure(view))
        else:
            value = jnp.mean(steps[name], 0) if measure.mean else steps[name]
        found[name] = materialize(_with_runs(name, measure, value, state.seed))
    return found


def _with_runs(name: str, measure: Measure, value: Array, seed: Array) -> Array:
    """The measure's value with its runs; what all runs share is recorded for each of them."""
    free = measure.dims is None
    own = value.ndim - seed.ndim if free else len(measure.dims or ()) + measure.stacked
    last = value.shape[own:]
    if value.ndim != own + seed.ndim or (seed.ndim and last[0] not in (1, seed.shape[0])):
        axes = ", ".join([*(("inner_step",) if measure.stacked else ()), *(measure.dims or ())])
        raise ValueError(
            f"the measure {name!r} gives shape {value.shape}; it must be [{axes}]"
            + (f", then {seed.shape[0]} runs" if seed.ndim else "")
        )
    return jnp.broadcast_to(value, value.shape[:own] + seed.shape)


def step(
    config: Config,
    state: TrainState,
    *,
    record: Iterable[str] | None = None,
    measure: Mapping[str, Any] | None = None,
) -> tuple[TrainState, Info]:
    """One iteration: collect groups with θ_old, then μ passes of optimizer steps on the surrogate.

    Returns the next state and what ``run`` would record of it; under ``jit`` unread values are free.
    """
    config = ready(config, state)
    plan = recording(config, record, measure, iterations=1)
    config = aligned(config) if state.seed.ndim else config
    after, batch, steps = iterate(config, state, plan)
    return after, measured(config, after, batch, steps, plan)


_iterate: Any = jax.jit(iterate, static_argnames=("plan", "fresh"))
"""``iterate``, traced once however often a program needs it or its shapes."""


def forget_traces() -> None:
    """Let go of what tracing iterations has left, megabytes each; programs that were made need none of it."""
    _iterate.clear_cache()


def advance(
    config: Config, state: TrainState, iterations: int, plan: Recording, fresh: bool = False
) -> tuple[TrainState, Info]:
    """``run`` without its checks: the configuration is ``ready``. An iteration is lowered once.

    ``fresh`` says that every iteration has one step, from θ_old = θ (``starts_fresh``).

    Returns:
      The state, and name -> [recorded, ...(, R)], or [...(, R)] where the plan averages.
    """
    config = aligned(config) if state.seed.ndim else config
    state = prepared_state(config, state)
    if plan.average_from is not None:
        return _averaged(config, state, iterations, plan, fresh)
    after, kept = jax.lax.scan(
        lambda state, _: next_record(config, state, plan, fresh), state, length=iterations // plan.every
    )
    if plan.start:
        first = at_start(config, state, plan, fresh)
        kept = {name: jnp.concatenate([first[name][None], value]) for name, value in kept.items()}
    return plain_state(after), kept


def next_record(
    config: Config, state: TrainState, plan: Recording, fresh: bool = False
) -> tuple[TrainState, Info]:
    """The plan's ``every`` iterations, and what is recorded of the last; the configuration is aligned.

    Returns:
      The state, and name -> [...(, R)].
    """
    if plan.every == 1:
        state, batch, steps = _iterate(config, state, plan, fresh=fresh)
        return state, measured(config, state, batch, steps, plan)
    blank = _zeros(_shapes(config, state, plan, fresh)[0])
    return _through(config, state, plan.every, plan, blank, lambda i: i == plan.every - 1, _newest, fresh)


def shapes(config: Config, state: TrainState, plan: Recording) -> Info:
    """What an iteration records, for ``jax.eval_shape``; the configuration is ``ready``."""
    config = aligned(config) if state.seed.ndim else config
    if not plan.named("step"):  # optimizer steps, half of what is traced, change no shape
        return at_start(config, state, plan)
    after, batch, steps = _iterate(config, state, plan)
    return measured(config, after, batch, steps, plan)


def _newest(old: Info, new: Info) -> Info:
    return new


def _shapes(config: Config, state: TrainState, plan: Recording, fresh: bool) -> tuple[Info, Info]:
    """Shapes of what is recorded, and of the measures per step, from the trace that the loop needs anyway."""

    def one(state: TrainState) -> tuple[Info, Info]:
        after, batch, steps = _iterate(config, state, plan, jnp.array(True), fresh=fresh)
        return measured(config, after, batch, steps, plan), steps

    return jax.eval_shape(one, state)


def _through(
    config: Config,
    state: TrainState,
    count: int,
    plan: Recording,
    info: Any,
    recorded_at: Callable[[Array], Array],
    merge: Callable[[Any, Info], Any],
    fresh: bool,
) -> tuple[TrainState, Any]:
    """``count`` iterations; what is measured where ``recorded_at`` says so is merged into ``info``."""

    def body(i: Array, carry: tuple[TrainState, Any]) -> tuple[TrainState, Any]:
        state, info = carry
        recorded = jnp.asarray(recorded_at(i), bool)  # never weakly typed: that would be another trace
        state, batch, steps = _iterate(config, state, plan, recorded, fresh=fresh)

        def taken() -> Any:
            return merge(info, measured(config, state, batch, steps, plan))

        return state, jax.lax.cond(recorded, taken, lambda: info)

    return jax.lax.fori_loop(0, count, body, (state, info))


def _averaged(
    config: Config, state: TrainState, iterations: int, plan: Recording, fresh: bool
) -> tuple[TrainState, Info]:
    """Means over the recorded iterations from ``plan.average_from`` on; nothing is stored on the way."""
    first, every = plan.average_from or 0, plan.every
    means = {name for name, measure in plan.measures if measure.averaged}
    blank = _zeros(_shapes(config, state, plan, fresh)[0])
    sums = {name: LongSum.empty(value) if name in means else value for name, value in blank.items()}

    def add(old: Any, new: Info) -> Any:
        return {name: old[name].add(new[name]) if name in means else new[name] for name in old}

    def recorded_at(i: Array) -> Array:
        return (i + 1 >= first) & ((i + 1) % every == 0)

    after, sums = _through(config, state, iterations, plan, sums, recorded_at, add, fresh)
    count = int(np.sum(plan.iterations(iterations) >= first))
    return plain_state(after), {name: s.value / count if name in means else s for name, s in sums.items()}


def at_start(config: Config, state: TrainState, plan: Recording, fresh: bool = False) -> Info:
    """What is recorded of the state before the first step; measures per step are NaN.

    Name -> [...(, R)]; the configuration is aligned.
    """
    assert config.expectation is not None
    missing = _shapes(config, state, plan, fresh)[1] if plan.named("step") else {}
    steps = {name: jnp.full(s.shape, jnp.nan, s.dtype) for name, s in missing.items()}
    return measured(config, state, config.expectation.collect(config, state), steps, plan)


@functools.cache
def _compiled(inner: bool, networks: bool) -> Any:
    """``advance`` under ``jit``; only an outermost program may choose how it is compiled."""
    options = None if inner else runtime.compiler_options(networks=networks)
    return jax.jit(advance, static_argnames=("iterations", "plan", "fresh"), compiler_options=options)


def run(
    config: Config,
    state: TrainState,
    *,
    iterations: int,
    record_every: int = 1,
    record: Iterable[str] | None = None,
    measure: Mapping[str, Any] | None = None,
    average_from: float | None = None,
    record_start: bool = False,
) -> tuple[TrainState, Info]:
    """``iterations`` steps in one compiled scan, recording every ``record_every``-th.

    Two short runs equal one long run bit for bit. A run that turns non-finite says so in ``finite`` and
    leaves its neighbours alone.

    Args:
      config: one compile per tree structure; numbers are traced.
      state: from ``init`` or an earlier ``run``.
      iterations: a multiple of ``record_every``.
      record_every: record every n-th iteration.
      record: names of diagnostics (``measures.DIAGNOSTICS``); None is ``measures.DEFAULT``.
      measure: measures of one's own, name -> function of a ``measures.View`` (``measures.measure`` names its
        axes).
      average_from: record the mean over the recorded iterations from this one on (a whole number) or from
        this share of the run on (a fraction), taken inside the program, instead of each iteration.
      record_start: record the state before the first step, too.

    Returns:
      The state, and name -> [recorded, ...(, R)]; [...(, R)] with ``average_from``.
    """
    traced = runtime.staged(config, state)
    if not traced:
        runtime.keep_compilations()
        warn_of_idle_corrections(config)
    config = ready(config, state)
    plan = recording(
        config, record, measure, iterations=iterations, every=record_every, average_from=average_from,
        start=record_start,
    )  # fmt: skip
    advancing = _compiled(traced, not config.policy.trailing)
    return advancing(config, state, iterations, plan, not traced and _fresh(config, state))


def starts_fresh(config: Config) -> bool:
    """Whether a network takes one step a batch, from the θ_old that sampled it: then one score serves both.

    A table gains nothing by it, and its program stays as it is, to the bit.
    """
    return config.loop.one_step and not config.policy.trailing and config.behavior is None


def _fresh(config: Config, state: TrainState) -> bool:
    """``starts_fresh``, where the state given starts so, too."""
    if not starts_fresh(config):
        return False
    same = jax.tree.map(functools.partial(np.array_equal, equal_nan=True), state.params, state.old_params)
    return jax.tree.all(same)
