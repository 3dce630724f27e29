"""Policies, tasks and optimizers from outside: do they give the shapes they should, and keep runs apart?

What comes from this package is not tried, except for functions it is given (``SequenceReward``, ``Custom``,
``from_function``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

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
    OverSequences,
    Params,
    Policy,
    ReducesParams,
    Task,
    support_of,
)
from grpo_jax.user_parts.grades import check_grades
from grpo_jax.user_parts.methods import QUICK

ENTRIES = 4
"""Entries of each prompt's group in a trial."""
RUNS = 2
LISTED = 10_000
"""The most outputs that are listed in a trial."""
AXES = "axes 0, 1, 2 are prompts, entries, tokens, and what follows are runs"


def one_run(tree: Any) -> Any:
    """The tree with the first run's numbers where it has one per run."""
    own = {path: np.asarray(v)[..., 0] for path, v, rank in declared(tree) if np.ndim(v) == rank + 1}
    return put_all(tree, own)


class _Given(NamedTuple):
    """What a trial hands over; every array may have runs behind."""

    params: Params
    """The policy's start, moved apart from run to run; None where the policy is not tried."""
    chosen: Any
    """[P] uniforms that draw prompts; None stands for every context once."""
    uniforms: Any
    """[P, N, T]."""
    noise: Any
    """[P, N]."""
    tokens: Any
    """int [P, N, T]."""
    mask: Any
    """[P, N, T]; None where the space of sequences says it."""


def check_problem(policy: Policy, task: Task, *, prompts: int | None) -> None:
    """Raise ValueError where a policy or a task from outside gives a wrong shape or mixes runs.

    Args:
      policy: any; while numbers are traced nothing is tried.
      task: any.
      prompts: how many are drawn, or None for every context of the policy.
    """
    check_grades(task)
    if not (outside(policy) or outside(task)) or not (at_hand(policy) and at_hand(task)):
        return
    policy, task = one_run(policy), one_run(task)
    with jax.ensure_compile_time_eval():
        given = _given(policy, prompts)
        if outside(policy):
            said = _try(_policy_says, policy, policy, task, given)
            given = given._replace(tokens=said["sample (tokens)"], mask=said["sample (mask)"])
        if outside(task):
            _try(_task_says, task, policy, task, given._replace(params=None))


def _given(policy: Policy, prompts: int | None) -> _Given:
    rng = np.random.default_rng(0)
    runs = (RUNS,) if policy.trailing else ()
    shape = (prompts or policy.contexts or 1, ENTRIES, policy.horizon)

    def moved(leaf: Any) -> np.ndarray:
        leaf = np.asarray(leaf)
        every = np.broadcast_to(leaf.reshape(leaf.shape + (1,) * len(runs)), leaf.shape + runs)
        if not np.issubdtype(leaf.dtype, np.floating):
            return every
        return (every + 0.3 * rng.normal(size=every.shape)).astype(leaf.dtype)

    tried = bool(outside(policy))
    drawn = prompts is not None or policy.contexts is None
    return _Given(
        params=jax.tree.map(moved, policy.init(jax.random.key(0))) if tried else None,
        chosen=rng.uniform(size=shape[:1] + runs) if drawn else None,
        uniforms=rng.uniform(size=shape + runs),
        noise=rng.uniform(size=shape[:2] + runs),
        tokens=np.zeros(shape + runs, int) if tried else _tokens(policy, rng, shape + runs),
        mask=None if isinstance(policy, OverSequences) else np.ones(shape + runs),
    )


def _tokens(policy: Any, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Any outputs of a policy of this package; its own draws may all be alike."""
    if not isinstance(policy, OverSequences):
        return rng.integers(0, policy.actions, shape)
    steps = [rng.choice(np.flatnonzero(row), shape[:2] + shape[3:]) for row in policy.space.allowed]
    return np.stack(steps, 2)


Says = Callable[[Policy, Task, _Given], dict[str, Array]]


def _try(says: Says, who: Any, policy: Policy, task: Task, given: _Given) -> dict[str, np.ndarray]:
    """What ``who`` says of each run alone; ValueError unless it says the same of several at once."""
    if not policy.trailing:
        found = jax.eval_shape(functools.partial(_alone, says), policy, task, given)
        return {what: np.zeros(value.shape, value.dtype) for what, value in found.items()}
    alone, together = jax.device_get(_both(says, policy, task, given))
    mixed = [what for what, value in alone.items() if not _alike(together[what], value)]
    if mixed:
        raise ValueError(
            f"{type(who).__name__} mixes runs ({', '.join(mixed)}): {AXES}; reduce over axis 1 for a group, "
            "over axis 2 for a sequence, never over the last"
        )
    return alone


def _alike(together: np.ndarray, alone: np.ndarray) -> bool:
    size = np.max(np.abs(alone), initial=0, where=np.isfinite(alone))
    return bool(np.allclose(together, alone, rtol=1e-4, atol=1e-5 * size, equal_nan=True))


@functools.partial(jax.jit, static_argnums=0)
def _alone(says: Says, policy: Policy, task: Task, given: _Given) -> dict[str, Array]:
    return says(policy, task, given)


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def _both(says: Says, policy: Policy, task: Task, given: _Given) -> tuple[dict, dict]:
    """What is said of each run alone, one after the other, and of several at once; runs last."""
    alone = [says(policy, task, jax.tree.map(lambda x, r=r: x[..., r], given)) for r in range(RUNS)]
    stacked = {what: jnp.stack([one[what] for one in alone], -1) for what in alone[0]}
    return stacked, says(aligned(policy), aligned(task), given)


class _Kept:
    """What somebody said, spread over all runs."""

    def __init__(self, who: Any, runs: tuple[int, ...]) -> None:
        self.who, self.runs = type(who).__name__, runs
        self.said: dict[str, Array] = {}

    def keep(self, what: str, value: Any, axes: str, lead: tuple[int, ...]) -> None:
        """Raise ValueError unless its shape is ``lead`` (0: any length), then every run or one for all."""
        shape = jnp.shape(value)
        own, behind = shape[: len(lead)], shape[len(lead) :]
        right = len(own) == len(lead) and all(want in (0, have) for have, want in zip(own, lead, strict=True))
        if not right or behind not in (self.runs, (1,) * len(self.runs)):
            lengths = ", ".join(str(n) if n else axes[3 * i + 1] for i, n in enumerate(lead))
            then = ", then runs" if self.runs else ""
            raise ValueError(f"{self.who}.{what} gives shape {shape}; it must be {axes}: ({lengths}){then}")
        self.said[what] = jnp.broadcast_to(value, own + self.runs)


def _prompts(policy: Policy, task: Task, given: _Given) -> Any:
    return np.arange(policy.contexts or 0) if given.chosen is None else task.prompts(given.chosen)


def _policy_says(policy: Policy, task: Task, given: _Given) -> dict[str, Array]:
    shape, ids = given.uniforms.shape[:3], _prompts(policy, task, given)
    kept = _Kept(policy, given.uniforms.shape[3:])
    tokens, mask = policy.sample(given.params, ids, given.uniforms)
    kept.keep("sample (tokens)", tokens, "[P, N, T]", shape)
    kept.keep("sample (mask)", mask, "[P, N, T]", shape)
    scores = policy.score(given.params, ids, tokens, mask)
    kept.keep("score (logp)", scores.logp, "[P, N, T]", shape)
    kept.keep("score (entropy)", scores.entropy, "[P, N, T]", shape)
    support = support_of(policy, ids)
    if support is not None and support.tokens.shape[1] <= LISTED:
        assert isinstance(policy, Listable)
        size = (shape[0], support.tokens.shape[1])
        listed = policy.score_support(given.params, ids).logp
        kept.keep("score_support (logp)", listed, "[P, S, T]", (*size, shape[2]))
        if isinstance(policy, Countable):
            kept.keep("counts", policy.counts(given.params, ids, given.uniforms), "[P, S]", size)
    return kept.said


def _task_says(policy: Policy, task: Task, given: _Given) -> dict[str, Array]:
    groups, ids = given.noise.shape[:2], _prompts(policy, task, given)
    kept = _Kept(task, given.noise.shape[2:])
    tokens, mask = jnp.asarray(given.tokens), given.mask
    if mask is None:
        assert isinstance(policy, OverSequences)
        tokens, mask = policy.space.ended(tokens)
    rewards = task.rewards(ids, tokens, jnp.asarray(mask), given.noise)
    kept.keep("rewards", rewards, "[P, N, M], M rewards of each entry (usually one)", (*groups, 0))
    if isinstance(task, HasMeans):
        kept.keep("means", task.means(ids, tokens, mask), "[P, N]", groups)
    levels = task.levels(ids, tokens, mask) if isinstance(task, HasLevels) else None
    if levels is not None:
        kept.keep("levels (values)", levels.values, "[P, N, L]", (*groups, 0))
    return kept.said


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

    def drawn(leaf: Any) -> np.ndarray:
        return (rng.normal(size=(*leaf.shape, RUNS)) * np.arange(1, RUNS + 1)).astype(leaf.dtype)

    grads, params = (jax.tree.map(drawn, start) for _ in range(2))
    together, alone = jax.device_get(_updates(optimizer, grads, params))
    if not all(map(_alike, jax.tree.leaves(together), jax.tree.leaves(alone))):
        raise ValueError(
            f"{name} mixes runs, which are the last axis of parameters and gradients: declare "
            "reduces: ClassVar[bool] = True, and it is given one run at a time"
        )
