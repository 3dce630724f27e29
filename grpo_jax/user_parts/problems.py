"""Policies, tasks and optimizers from outside: do they give the shapes they should, and keep runs apart?

What comes from this package is not tried, except for functions it is given (``SequenceReward``, ``Custom``).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax import optimizers
from grpo_jax.optimizers import Custom, Optimizer
from grpo_jax.part import aligned, at_hand, declared, outside, put_all, subparts
from grpo_jax.types import (
    Array,
    Countable,
    HasLevels,
    HasMeans,
    Listable,
    Params,
    Policy,
    ReducesParams,
    Tabular,
    Task,
    support_of,
)
from grpo_jax.user_parts.methods import QUICK

ENTRIES = 4
"""Entries of each prompt's group in a trial."""
RUNS = 3
LISTED = 10_000
"""The most outputs that are listed in a trial."""
AXES = "axes 0, 1, 2 are prompts, entries, tokens, and what follows are runs"


def one_run(tree: Any) -> Any:
    """The tree with the first run's numbers where it has one per run."""
    own = {path: np.asarray(v)[..., 0] for path, v, rank in declared(tree) if np.ndim(v) == rank + 1}
    return put_all(tree, own)


def check_problem(policy: Policy, task: Task, *, prompts: int | None) -> None:
    """Raise ValueError where a policy or a task from outside gives a wrong shape or mixes runs.

    Args:
      policy: any; while numbers are traced nothing is tried.
      task: any.
      prompts: how many are drawn, or None for every context of the policy.
    """
    if not (outside(policy) or outside(task)) or not (at_hand(policy) and at_hand(task)):
        return
    policy, task = one_run(policy), one_run(task)
    with jax.ensure_compile_time_eval():
        jax.eval_shape(functools.partial(_alone, prompts=prompts), policy, task)
        if policy.trailing:
            _require_equal(*jax.device_get(_together_and_alone(policy, task, prompts)))


@functools.partial(jax.jit, static_argnames="prompts")
def _alone(policy: Policy, task: Task, prompts: int | None) -> dict[str, Array]:
    return _said(policy, task, prompts, *_draws(policy, prompts, ()))


def _require_equal(together: dict[str, np.ndarray], alone: dict[str, np.ndarray]) -> None:
    for what, value in alone.items():
        size = np.max(np.abs(value), initial=0, where=np.isfinite(value))
        if not np.allclose(together[what], value, rtol=1e-4, atol=1e-5 * size, equal_nan=True):
            raise ValueError(
                f"{what} mixes runs: {AXES}; reduce over axis 1 for a group and over axis 2 for a sequence, "
                "never over the last"
            )


@functools.partial(jax.jit, static_argnames="prompts", compiler_options=QUICK)
def _together_and_alone(policy: Policy, task: Task, prompts: int | None) -> tuple[dict, dict]:
    """What policy and task say for several runs at once, and for each alone; runs last."""
    draws = _draws(policy, prompts, (RUNS,))
    alone = jax.vmap(lambda *one: _said(policy, task, prompts, *one), in_axes=-1, out_axes=-1)
    return _said(aligned(policy), aligned(task), prompts, *draws), alone(*draws)


def _draws(policy: Policy, prompts: int | None, runs: tuple[int, ...]) -> tuple[Params, Array, Array]:
    """Parameters that differ from run to run, uniforms [P] for prompts, [P, N, T+1] for tokens and noise."""
    rng = np.random.default_rng(0)
    count = prompts or policy.contexts or 1

    def spread(leaf: Array) -> Array:
        if isinstance(policy, Tabular):  # a start that is nearly certain would draw one output in every run
            leaf = jnp.where(jnp.isfinite(leaf), 0, leaf)
        leaf = jnp.broadcast_to(leaf.reshape(leaf.shape + (1,) * len(runs)), leaf.shape + runs)
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return leaf + 0.3 * rng.normal(size=leaf.shape).astype(leaf.dtype)

    params = jax.tree.map(spread, policy.init(jax.random.key(0)))
    uniforms = rng.uniform(size=(count, ENTRIES, policy.horizon + 1, *runs))
    return params, jnp.asarray(rng.uniform(size=(count, *runs))), jnp.asarray(uniforms)


def _said(
    policy: Policy, task: Task, prompts: int | None, params: Params, chosen: Array, uniforms: Array
) -> dict[str, Array]:
    """What policy and task say, each under the name of who says it; shapes are checked."""
    shape, runs = (*uniforms.shape[:2], policy.horizon), uniforms.shape[3:]
    said: dict[str, Array] = {}

    def keep(who: Any, method: str, value: Any, axes: str, lead: tuple[int, ...]) -> Any:
        name = f"{type(who).__name__}.{method}"
        _require_shape(name, jnp.shape(value), axes, lead, runs)
        said[name] = jnp.broadcast_to(value, jnp.shape(value)[: jnp.ndim(value) - len(runs)] + runs)
        return value

    ids: Any = np.arange(policy.contexts or 0)
    if prompts is not None or policy.contexts is None:
        ids = task.prompts(chosen)
    tokens, mask = policy.sample(params, ids, uniforms[:, :, :-1])
    keep(policy, "sample (mask)", mask, "[P, N, T]", shape)
    keep(policy, "sample (tokens)", jnp.where(mask > 0, tokens, 0), "[P, N, T]", shape)
    if outside(policy):
        scores = policy.score(params, ids, tokens, mask)
        keep(policy, "score (logp)", scores.logp, "[P, N, T]", shape)
        keep(policy, "score (entropy)", scores.entropy, "[P, N, T]", shape)
        said |= _listed(policy, params, ids, uniforms[:, :, :-1])
    rewards = task.rewards(ids, tokens, mask, uniforms[:, :, -1])
    keep(task, "rewards", rewards, "[P, N, M], M rewards of each entry (usually one)", (*shape[:2], 0))
    if isinstance(task, HasMeans):
        keep(task, "means", task.means(ids, tokens, mask), "[P, N]", shape[:2])
    levels = task.levels(ids, tokens, mask) if isinstance(task, HasLevels) else None
    if levels is not None:
        keep(task, "levels (values)", levels.values, "[P, N, L]", (*shape[:2], 0))
        keep(task, "levels (probabilities)", levels.probabilities, "[P, N, L]", (*shape[:2], 0))
    return said


def _listed(policy: Policy, params: Params, ids: Any, uniforms: Array) -> dict[str, Array]:
    """What a policy says of all its outputs, where it can list them and they are not too many."""
    support = support_of(policy, ids)
    if support is None or support.tokens.shape[1] > LISTED:
        return {}
    assert isinstance(policy, Listable)
    name = type(policy).__name__
    said = {f"{name}.score_support": policy.score_support(params, ids).logp}
    if isinstance(policy, Countable):
        said[f"{name}.counts"] = policy.counts(params, ids, uniforms)
    return said


def _require_shape(
    name: str, shape: tuple[int, ...], axes: str, lead: tuple[int, ...], runs: tuple[int, ...]
) -> None:
    """ValueError unless ``shape`` is ``lead`` (0 for any length), then all runs or one for all."""
    own, behind = shape[: len(lead)], shape[len(lead) :]
    right = len(own) == len(lead) and all(want in (0, have) for have, want in zip(own, lead, strict=True))
    if not right or behind not in (runs, (1,) * len(runs)):
        known = ", ".join(str(n) if n else axes.split(", ")[i].strip("]") for i, n in enumerate(lead))
        raise ValueError(
            f"{name} gives shape {shape}; it must be {axes}: ({known}){', then runs' if runs else ''}"
        )


def check_optimizer(optimizer: Optimizer, policy: Policy) -> None:
    """Raise for an optimizer from outside that is no transformation of gradients, or that mixes runs."""
    custom = any(isinstance(p, Custom) for p in subparts(optimizer))
    if not (custom or outside(optimizer)) or not (at_hand(optimizer) and at_hand(policy)):
        return
    optimizer, name = one_run(optimizer), type(optimizer).__name__
    made = optimizer.transform()
    if not (callable(getattr(made, "init", None)) and callable(getattr(made, "update", None))):
        called = getattr(made, "__name__", None)
        hint = f"; call it: {called}(...)" if called and callable(made) else ""
        raise TypeError(f"{name} holds {made!r}, which is no Optax transformation{hint}")
    with jax.ensure_compile_time_eval():
        start = jax.eval_shape(one_run(policy).init, jax.random.key(0))
        try:
            given = jax.eval_shape(functools.partial(_update, runs=False), optimizer, start, start)
        except TypeError as error:
            raise TypeError(
                f"{name} wants more than gradients, its state and parameters, which is all that training "
                f"gives it: {error}"
            ) from error
        built, wanted = ([leaf.shape for leaf in jax.tree.leaves(tree)] for tree in (given, start))
        if built != wanted:
            raise ValueError(f"{name} gives updates that are not shaped like the parameters")
        apart = any(isinstance(p, ReducesParams) and p.reduces for p in subparts(optimizer))
        if policy.trailing and not apart:
            _require_unmixed(name, optimizer, start)


def _update(optimizer: Optimizer, grads: Params, params: Params, *, runs: bool) -> Params:
    state = optimizers.init(optimizer, params, runs=runs)
    return optimizers.update(optimizer, grads, state, params, runs=runs)[0]


@functools.partial(jax.jit, compiler_options=QUICK)
def _updates(optimizer: Optimizer, grads: Params, params: Params) -> tuple[Params, Params]:
    alone = jax.vmap(lambda g, p: _update(optimizer, g, p, runs=False), in_axes=-1, out_axes=-1)
    return _update(optimizer, grads, params, runs=True), alone(grads, params)


def _require_unmixed(name: str, optimizer: Optimizer, start: Params) -> None:
    rng = np.random.default_rng(0)

    def drawn(leaf: Any) -> Array:
        return jnp.asarray(rng.normal(size=(*leaf.shape, RUNS)) * np.arange(1, RUNS + 1), leaf.dtype)

    together, alone = _updates(optimizer, jax.tree.map(drawn, start), jax.tree.map(drawn, start))
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        if not np.allclose(a, b, rtol=1e-4, atol=1e-6 * float(np.max(np.abs(b))), equal_nan=True):
            raise ValueError(
                f"{name} mixes runs, which are the last axis of parameters and gradients: declare "
                "reduces: ClassVar[bool] = True, and it is given one run at a time"
            )
