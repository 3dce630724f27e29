"""The whole configuration of a training run, its state, and the checks that need more than one part."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax import methods, surrogate, user_parts
from grpo_jax.ages import check_ages
from grpo_jax.behavior import Behavior
from grpo_jax.bounds import check_precision, is_concrete, may_be_number, whole
from grpo_jax.fit import check_fit
from grpo_jax.optimizers import AdamW, Optimizer
from grpo_jax.part import Swept, declared, leaf_paths, part, per_run, static, subparts, substituted
from grpo_jax.refill import Refill
from grpo_jax.surrogate import Method
from grpo_jax.types import (
    Array,
    Decodable,
    NeedsGroup,
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
    queue: Params = None
    """[depth + 1, ...] θ_old of this iteration and of the last ones, newest first; None unless the sampler's
    weights have an age (``behavior.Age``)."""


class Origin(NamedTuple):
    """Where the entries of a rollout come from, as far as their sampler is not the old policy."""

    age: Array | None = None
    """[P, N(, R)] iterations, where answers differ in it."""
    kept: Array | None = None
    """[P, N, T(, R)] mass that the sampler's filters keep where each token was drawn."""
    lost: Array | None = None
    """[P(, R)] probability that a draw is lost on its way, where groups are summed over."""
    trainer_logp: Array | None = None
    """[P, N, T(, R)] log-probability under the trainer's weights at collection; None where it is
    ``rollout.old_logp``."""


class Batch(NamedTuple):
    """A rollout with the advantages that were computed where it was collected."""

    rollout: Rollout
    advantages: Any
    """[P, N, 1 or T]; None where the rollout is no group that was drawn (``Exact``): an outcome's advantage
    depends on the group, and so does what a clip holds."""
    origin: Origin | None = None
    """None where the old policy sampled."""
    drawn: Array | None = None
    """[P(, R)] groups drawn for each that is kept (``Loop.refill``); None where every group is kept."""


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
class HasObjectiveAtOld(Protocol):
    """An expectation that can spare scoring its batch twice where θ_old = θ."""

    def objective_at_old(self, config: Config, batch: Batch, params: Params) -> tuple[Array, Array]:
        """``objective`` at θ = θ_old."""


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
      refill: groups whose rewards all tie are drawn anew; None keeps them.
    """

    group_size: int = static(8, low=1)
    prompts: int | None = static(None, low=1)
    inner_steps: int = static(1, low=1)
    minibatches: int = static(1, low=1)
    refresh_every: int = static(1, low=1)
    refill: Refill | None = None

    @property
    def one_step(self) -> bool:
        """Whether each batch has a single step, from the θ_old that sampled it."""
        return self.refresh_every == self.inner_steps == self.minibatches == 1


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
      behavior: who samples the groups; None is the old policy itself.
    """

    policy: Policy
    task: Task
    method: Method = methods.grpo
    optimizer: Optimizer = AdamW()
    loop: Loop = Loop()
    expectation: Expectation | None = None
    reference: Any = None
    behavior: Behavior | None = None


def prompt_count(config: Config) -> int:
    """P."""
    count = config.loop.prompts if config.loop.prompts is not None else config.policy.contexts
    if count is None:
        raise ValueError("loop.prompts must be given: this policy has no finite list of contexts")
    return count


def validate(config: Config, swept: Swept = ()) -> None:
    """Raise, before anything compiles, for a configuration that has no meaning. Traced leaves pass unseen.

    Args:
      config: the configuration.
      swept: the numbers that a sweep puts in, a mapping for each dimension: what depends on numbers is judged
        by these instead of the configuration's own.
    """
    check_slots(config)
    group, prompts = config.loop.group_size, prompt_count(config)
    if prompts < 1:
        raise ValueError(f"{type(config.policy).__name__} has no contexts: there is nothing to ask")
    for sub in subparts(config.method):
        if isinstance(sub, NeedsGroup) and group < sub.least_group:
            raise ValueError(
                f"group_size is {group}; {type(sub).__name__} needs groups of at least {sub.least_group}"
            )
    if prompts % config.loop.minibatches:
        raise ValueError(f"{config.loop.minibatches} minibatches do not divide {prompts} prompts")
    check_fit(config.policy, config.task)
    _check_refill(config)
    _check_numbers(config)
    _check_reference(config, swept)
    _check_filters(config, swept)
    check_behavior(config, swept)
    user_parts.check_method(config.method, swept)
    user_parts.check_problem(config.policy, config.task, prompts=config.loop.prompts)
    user_parts.check_optimizer(config.optimizer, config.policy)


def _check_refill(config: Config) -> None:
    refill = config.loop.refill
    if refill is None:
        return
    if config.loop.group_size < 2:
        raise ValueError("a group of one always ties: Loop(refill=...) needs groups of at least 2")
    if refill.other and config.loop.prompts is None:
        raise ValueError("Refill(other=True) takes prompts that are drawn; give Loop(prompts=...)")
    age = None if config.behavior is None else config.behavior.age
    if age is not None and age.loses:
        raise ValueError("Loop(refill=...) does not draw groups anew that lose answers; use Age(refill=True)")


_SLOTS = {
    "policy": ("init", "sample", "score", "horizon", "contexts", "trailing", "rank"),
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
    if not isinstance(config.loop, Loop):
        raise TypeError(f"loop is {config.loop!r}; it must be a Loop(group_size=...)")
    for slot, needed in _SLOTS.items():
        value = getattr(config, slot)
        # The class is asked first: a property of a part that is wrong otherwise may fail.
        lacking = [name for name in needed if not (hasattr(type(value), name) or hasattr(value, name))]
        chosen_later = value is None and slot == "expectation"
        if not chosen_later and (isinstance(value, type) or lacking):
            hint = {"optimizer": "; optimizers.Custom wraps an Optax transformation"}.get(slot, "")
            what = "a class, not an instance" if isinstance(value, type) else f"without {', '.join(lacking)}"
            raise TypeError(f"{slot} is {value!r}, {what}{hint}")
    for path, leaf in leaf_paths(config).items():
        if not isinstance(leaf, (int, float, np.number, np.ndarray, jax.Array)) or isinstance(leaf, bool):
            raise TypeError(
                f"{path} is {leaf!r}, neither a number nor a part; decorate its class with @part, or declare "
                "the field static()"
            )


def _check_numbers(config: Config) -> None:
    """Every number at hand is one in the precision in use."""
    ranks = {path: rank for path, _, rank in declared(config)}
    for path, leaf in leaf_paths(config).items():
        if is_concrete(leaf) and may_be_number(leaf, 1):
            check_precision(path, leaf, ranks.get(path, jnp.ndim(leaf)))


def _check_reference(config: Config, swept: Swept) -> None:
    """π_ref is shaped like the policy and has no zero that the policy lacks, if a penalty reads it."""
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
    given = {path: leaf for path, leaf in leaf_paths(config).items() if path.split(".")[0] == "reference"}
    for path, leaf in (*given.items(), *(item for dimension in swept for item in dimension.items())):
        if path in given and is_concrete(leaf):
            _check_logits(config.policy, path, np.asarray(leaf, float))
    if isinstance(config.policy, Tabular):
        _check_reference_zeros(config, swept)


def check_behavior(config: Config, swept: Swept = ()) -> None:
    """The policy can be decoded otherwise, if that is asked; the queue is as deep as the greatest age."""
    if config.behavior is None:
        return
    if not isinstance(config.behavior, Behavior):
        raise TypeError(f"behavior is {config.behavior!r}; it must be a Behavior(decoding=..., age=...)")
    if config.behavior.decodes and not isinstance(config.policy, Decodable):
        raise ValueError(
            f"{type(config.policy).__name__} has no field ``decoding``, so that its sampler cannot be given "
            "a temperature or a filter"
        )
    if config.behavior.age is not None:
        given = {path: values for dimension in swept for path, values in dimension.items()}
        check_ages(config.behavior.age, config.policy, given, prefix="behavior.age.")


def _check_logits(policy: Policy, path: str, logits: np.ndarray) -> None:
    if np.isnan(logits).any() or np.isposinf(logits).any():
        raise ValueError(f"{path} holds NaN or +inf; log-probabilities of the reference must be below +inf")
    if np.isneginf(logits).any() and not isinstance(policy, Tabular):
        raise ValueError(f"{path} holds -inf, which only a table of logits may")


def _check_reference_zeros(config: Config, swept: Swept) -> None:
    """No setting of the sweep, and no run, has a penalty and a zero of π_ref where π has none."""
    one_each = per_run(config)
    if np.ndim(config.reference) == config.policy.rank + 1 and is_concrete(config.reference):
        one_each["reference"] = np.moveaxis(np.asarray(config.reference), -1, 0)
    dimensions = [*swept, one_each] if one_each else list(swept)
    zero, by_reference = _zeros(config, "reference", dimensions)
    ours, by_logits = _zeros(config, "policy.logits", dimensions)
    if zero is None or ours is None or not zero.any():
        return
    always, read = _penalised(config.method, dimensions)
    free = always or any(on.any() for d, on in read.items() if d not in (by_reference, by_logits))
    nowhere = np.zeros(1, bool)
    of_reference, of_logits = (
        nowhere if d is None else read.get(d, nowhere) for d in (by_reference, by_logits)
    )
    if by_reference == by_logits:
        hit = (zero & ~ours).any(1) & (free | of_reference)
    else:
        lacking = zero.astype(np.int64) @ (~ours).T.astype(np.int64) > 0
        hit = lacking & (free | of_reference[:, None] | of_logits)
    if hit.any():
        raise ValueError(
            "the reference gives probability 0 to an action of the policy: the penalty would be "
            "infinite; use a positive reference, or coef 0"
        )


def _check_filters(config: Config, swept: Swept) -> None:
    """A policy that filters tokens itself has zeros where others have none: so has π_ref."""
    if not isinstance(config.policy, Decodable) or config.policy.decoding is None:
        return
    if not config.policy.decoding.filters:
        return
    always, read = _penalised(config.method, swept)
    if always or any(on.any() for on in read.values()):
        raise ValueError(
            "policy.decoding has filters, so that the reference gives probability 0 to tokens that the "
            "policy comes to keep: the penalty would be infinite; use coef 0, or filter the sampler's tokens "
            "alone (behavior=Behavior(decoding=...))"
        )


def _zeros(config: Config, path: str, dimensions: Swept) -> tuple[np.ndarray | None, int | None]:
    """bool [n, entries], where the table at ``path`` is −inf, and the dimension that its settings lie along.

    n is 1, and there is no dimension, where it is not swept; the table is None where it is traced.
    """
    for d, columns in enumerate(dimensions):
        if path in columns:
            return np.isneginf(columns[path]).reshape(len(columns[path]), -1), d
    table = config.reference if path == "reference" else config.policy.logits  # type: ignore[attr-defined]
    return (np.isneginf(np.asarray(table)).reshape(1, -1), None) if is_concrete(table) else (None, None)


def _penalised(method: Method, dimensions: Swept) -> tuple[bool, dict[int, np.ndarray]]:
    """Whether a penalty reads π_ref in every setting, and dimension -> bool [n], in which of its settings."""
    prefix = "method."
    read: dict[int, np.ndarray] = {}
    varied: set[int] = set()
    for d, columns in enumerate(dimensions):
        own = {p.removeprefix(prefix): v for p, v in columns.items() if p.startswith(prefix) and v.ndim == 1}
        for i, coef in enumerate(_coefs(substituted(method, own)) if own else ()):
            if np.ndim(coef):
                varied.add(i)
                read[d] = read.get(d, False) | (np.asarray(coef) != 0)
    fixed = (coef for i, coef in enumerate(_coefs(method)) if i not in varied)
    return any(is_concrete(coef) and bool(np.any(np.asarray(coef))) for coef in fixed), read


def _coefs(method: Method) -> list[Any]:
    return [sub.reference_coef for sub in subparts(method) if isinstance(sub, ReadsReference)]


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


def check_root(root: Any) -> Any:
    """The seed root; it must be a whole number in [0, 2^32), where it is at hand."""
    if not isinstance(root, jax.core.Tracer) and whole("root", root, low=0) >= 2**32:
        raise ValueError(f"root is {root}; it must be below 2^32")
    return root
