"""The whole configuration of a training run, its state, and the checks that need more than one part."""

from __future__ import annotations

import numbers
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax import methods, surrogate, user_parts
from grpo_jax.optimizers import AdamW, Optimizer
from grpo_jax.part import declared, leaf_paths, part, static, subparts
from grpo_jax.surrogate import Method
from grpo_jax.types import (
    Array,
    FiniteActions,
    HasContexts,
    HasTable,
    NeedsGroup,
    OneToken,
    OverSequences,
    Params,
    Policy,
    ReadsReference,
    Rollout,
    Tabular,
    Task,
)


class TrainState(NamedTuple):
    """What the next iteration needs."""

    params: Params
    old_params: Params
    """θ_old: samples the groups, and is the denominator of the ratio."""
    ref_params: Params
    opt_state: Any
    step: Array
    """uint32, iterations done."""
    root: Array
    """uint32, the seed root."""
    seed: Array
    """uint32 seed coordinate: a scalar, or [R], one per run. Its rank says whether runs are present."""


class Batch(NamedTuple):
    """A rollout with the advantages that were computed where it was collected."""

    rollout: Rollout
    advantages: Array
    """[P, N, 1 or T]."""


class Expectation(Protocol):
    """How an iteration sees the groups that the old policy would sample."""

    def collect(self, config: Config, state: TrainState) -> Batch:
        """Groups of the old policy."""

    def objective(self, config: Config, batch: Batch, params: Params) -> tuple[Array, Array]:
        """J(θ), a scalar or [R], and the log-probabilities [P, N, T] of the batch's rollout at θ."""


@runtime_checkable
class ResolvesCells(Protocol):
    """An expectation that leaves something open until the configuration's numbers are known."""

    def resolved(self, config: Config) -> Expectation:
        """The same with everything decided."""


@runtime_checkable
class OwnStatistics(Protocol):
    """An expectation whose batch is no group that was drawn: it takes statistics over groups itself."""

    def clip_fractions(self, config: Config, batch: Batch, logp: Array) -> tuple[Array, Array]:
        """Share of the tokens whose gain the clip holds constant, above and below."""

    def tied(self, config: Config, batch: Batch) -> Array:
        """Share of the groups whose rewards all tie."""


@part
class Loop:
    """The shape of an iteration; all of it structure.

    Args:
      group_size: G.
      prompts: P prompts drawn anew each iteration, or None for every context once.
      inner_steps: μ passes over one batch.
      minibatches: optimizer steps per pass; groups stay whole and are shuffled. Must divide P.
      refresh_every: iterations between refreshes of θ_old.
    """

    group_size: int = static(8, low=1)
    prompts: int | None = static(None, low=1)
    inner_steps: int = static(1, low=1)
    minibatches: int = static(1, low=1)
    refresh_every: int = static(1, low=1)


@part
class Config:
    """Everything a run depends on besides its seed: numbers are traced leaves, kinds are structure.

    Args:
      policy: where training starts, and the family of policies.
      task: prompts and rewards.
      method: the seven slots.
      optimizer: an Optax transformation with traced numbers.
      loop: groups, inner steps, minibatches.
      expectation: ``Sampled()``, ``Counts()``, ``Exact()``; None chooses (``collectors.choose``).
      reference: parameters of π_ref, shaped like the policy's; None is the starting policy.
    """

    policy: Policy
    task: Task
    method: Method = methods.grpo
    optimizer: Optimizer = AdamW()
    loop: Loop = Loop()
    expectation: Expectation | None = None
    reference: Any = None


def prompt_count(config: Config) -> int:
    """P."""
    count = config.loop.prompts if config.loop.prompts is not None else config.policy.contexts
    if count is None:
        raise ValueError("loop.prompts must be given: this policy has no finite list of contexts")
    return count


def validate(config: Config) -> None:
    """Raise, before anything compiles, for a configuration that has no meaning. Traced leaves pass unseen."""
    check_slots(config)
    group, prompts = config.loop.group_size, prompt_count(config)
    for sub in subparts(config.method):
        if isinstance(sub, NeedsGroup) and group < sub.least_group:
            raise ValueError(
                f"group_size is {group}; {type(sub).__name__} needs groups of at least {sub.least_group}"
            )
    if prompts % config.loop.minibatches:
        raise ValueError(f"{config.loop.minibatches} minibatches do not divide {prompts} prompts")
    contexts = _task_contexts(config.task)
    if contexts is not None and config.policy.contexts not in (None, contexts):
        raise ValueError(f"the policy has {config.policy.contexts} contexts, the task {contexts}")
    _check_table(config)
    _check_reference(config)
    user_parts.check(config.method)


_SLOTS = {
    "policy": ("init", "sample", "score"),
    "task": ("prompts", "rewards"),
    "optimizer": ("transform",),
    "expectation": ("collect", "objective"),
}


def check_slots(config: Config) -> None:
    """Raise TypeError for a slot that holds the wrong kind of thing."""
    if not isinstance(config, Config):
        raise TypeError(f"the configuration is a {type(config).__name__}; it must be a Config")
    if not isinstance(config.method, Method):
        raise TypeError(
            f"method is {config.method!r}; it must be a Method (methods.get(name) finds one by name)"
        )
    surrogate.check_slots(config.method)
    for slot, needed in _SLOTS.items():
        value = getattr(config, slot)
        lacking = [name for name in needed if not hasattr(value, name)]
        if value is not None and (isinstance(value, type) or lacking):
            hint = {"optimizer": "; optimizers.Custom wraps an Optax transformation"}.get(slot, "")
            what = "a class, not an instance" if isinstance(value, type) else f"without {', '.join(lacking)}"
            raise TypeError(f"{slot} is {value!r}, {what}{hint}")
    for path, leaf in leaf_paths(config).items():
        if not isinstance(leaf, (numbers.Number, np.ndarray, jax.Array)):
            raise TypeError(
                f"{path} is {leaf!r}, neither a number nor a part; decorate its class with @part, or declare "
                "the field static()"
            )


def _task_contexts(task: Task) -> int | None:
    if isinstance(task, HasContexts):
        return task.contexts
    return int(jnp.shape(task.table)[0]) if isinstance(task, HasTable) else None


def _check_table(config: Config) -> None:
    task, policy = config.task, config.policy
    if isinstance(task, OneToken) and policy.horizon != 1:
        raise ValueError(
            f"{type(task).__name__} rewards single actions; {type(policy).__name__} gives sequences of up to "
            f"{policy.horizon} tokens, of which it would read the first; use SequenceTable or SequenceReward"
        )
    if isinstance(task, OneToken) and isinstance(policy, OverSequences):
        answers = jnp.shape(task.table)[1]
        if answers != policy.space.vocab:
            raise ValueError(
                f"the reward table has {answers} answers, the policy {policy.space.vocab} tokens"
            )
    if isinstance(task, HasTable) and isinstance(policy, FiniteActions):
        answers = jnp.shape(task.table)[1]
        if answers != policy.actions:
            raise ValueError(f"the reward table has {answers} answers, the policy {policy.actions} actions")
    if isinstance(task, OverSequences) and isinstance(policy, OverSequences) and task.space != policy.space:
        raise ValueError("policy and task are over different spaces of sequences")


def _check_reference(config: Config) -> None:
    """π_ref is shaped like the policy and does not vanish where it does not, if a penalty reads it."""
    if config.reference is None:
        return
    start = jax.eval_shape(config.policy.init, jax.random.key(0))
    built: Any = jax.tree.structure(start)
    if built != jax.tree.structure(config.reference):
        raise ValueError("the reference must be built like the policy's parameters (policy.init gives some)")
    rank = config.policy.rank if config.policy.trailing else None
    for own, like in zip(jax.tree.leaves(config.reference), jax.tree.leaves(start), strict=True):
        if jnp.shape(own)[:rank] != like.shape[:rank]:
            raise ValueError(f"the reference has shape {jnp.shape(own)}, the policy {like.shape}")
    _check_reference_zeros(config)


def _check_reference_zeros(config: Config) -> None:
    coefs = [sub.reference_coef for sub in subparts(config.method) if isinstance(sub, ReadsReference)]
    if not isinstance(config.policy, Tabular):
        return
    logits, reference = config.policy.logits, config.reference
    if any(isinstance(leaf, jax.core.Tracer) for leaf in (*coefs, logits, reference)):
        return
    if not any(np.any(np.asarray(coef)) for coef in coefs):
        return
    zero, ours = np.isneginf(np.asarray(reference)), np.isneginf(np.asarray(logits))
    shared = config.policy.rank
    zero, ours = (x[..., None] if x.ndim == shared else x for x in (zero, ours))
    if (zero & ~ours).any():
        raise ValueError(
            "the reference gives probability 0 to an action of the policy: the penalty would be "
            "infinite; use a positive reference, or coef 0"
        )


def check_runs(config: Config, seed: Array) -> None:
    """Raise unless every number is one for all runs, or [..., R] with R the number of seeds."""
    runs = jnp.shape(seed)
    for path, value, rank in declared(config):
        own = jnp.shape(value)[rank:]
        if own not in ((), runs) and not (runs and own == (1,)):
            takes = f"a table of {rank} axes" if rank else "a number"
            raise ValueError(
                f"{path} has shape {jnp.shape(value)}; it takes {takes}, or runs as the last axis, "
                f"as many as seeds (their shape is {runs})"
            )
