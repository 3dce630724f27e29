"""Supervised training on right answers, to a stated accuracy or for so long: where reinforcement begins."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from grpo_jax import diagnostics, optimizers
from grpo_jax.bounds import whole
from grpo_jax.fit import check_fit
from grpo_jax.optimizers import AdamW, ClippedNorm, Optimizer
from grpo_jax.random import Stream, uniforms
from grpo_jax.types import Array, Params, Policy, Teaches

Held = tuple[Params, Any, Array]
"""Parameters, the optimizer's state, steps taken."""


@runtime_checkable
class TeachesBriefly(Teaches, Protocol):
    """A task that has right answers without a chain of thought, too."""

    def short_demonstrations(self, uniforms: Array) -> tuple[Array, Array, Array]:
        """As ``demonstrations``: to the same problems from the same uniforms."""


class WarmStart(NamedTuple):
    """A policy that answers some of its problems right."""

    policy: Policy
    """It starts from the parameters found (``start``), whatever the seed."""
    accuracy: float
    """Share of held-out problems that it answers right, one sampled answer to each."""
    steps: int
    """Optimizer steps taken."""
    history: tuple[tuple[int, float], ...]
    """(step, accuracy) at every check."""


def fit(
    policy: Any,
    task: Any,
    *,
    accuracy: tuple[float, float] = (0.3, 0.4),
    optimizer: Optimizer | None = None,
    batch: int = 64,
    every: int = 64,
    checked: int = 1024,
    most: int = 50_000,
    long: float | None = None,
    seed: int = 0,
    progress: bool = True,
) -> WarmStart:
    """Train on −mean log π(token) of right answers until held-out accuracy lies in a band.

    Accuracy is checked every few steps. A check that finds it beyond the band goes back to the one before,
    and on from there with half as many steps to the next.

    Args:
      policy: one with a field ``start``.
      task: with right answers to imitate and held-out problems (``tasks.Verifiable``).
      accuracy: (least, greatest) to stop at.
      optimizer: None is AdamW at 1e-3 under a global norm of 1.
      batch: right answers in a step.
      every: steps between checks, at first.
      checked: held-out problems at a check; accuracy has a standard error of about √(p(1 − p)/checked).
      most: steps after which to give up.
      long: as in ``imitate``.
      seed: of weights, problems and checks.
      progress: show a bar.

    Raises:
      ValueError: where the band is no band, or is not reached; where the policy or the task is no such.
    """
    _require_teaching(policy, task, long)
    low, high = accuracy
    if not 0 <= low < high <= 1:
        raise ValueError(f"accuracy is {accuracy}; it must be (least, greatest) in [0, 1], least first")
    for name, value in (("batch", batch), ("every", every), ("checked", checked), ("most", most)):
        whole(name, value)
    check_fit(policy, task)
    optimizer = optimizer or _OPTIMIZER
    root, held = jnp.uint32(seed), _begin(policy, optimizer, seed)
    params = held[0]
    train = functools.partial(_train, policy, task, optimizer, batch, long)
    check = functools.partial(_accuracy, policy, task, checked)
    found = float(check(params, root, jnp.uint32(0)))
    history = [(0, found)]
    with tqdm(total=most, disable=None if progress else True, desc="warm start", unit="step") as bar:
        while found < low:
            ahead = train(held, root, every)
            found = float(check(ahead[0], root, ahead[2]))
            history.append((int(ahead[2]), found))
            if found > high and every > 1:
                every, found = every // 2, history[-2][1] if history[-2][1] < low else 0.0
                continue
            held = ahead
            bar.update(every)
            bar.set_postfix(accuracy=f"{found:.2f}")
            if found > high or int(held[2]) >= most:
                break
    if not low <= found <= high:
        raise ValueError(
            f"after {int(held[2])} steps {found:.2f} of the held-out answers are right, not {low} to {high}"
        )
    return WarmStart(_starting(policy, held), found, int(held[2]), tuple(history))


def imitate(
    policy: Any,
    task: Any,
    *,
    steps: int,
    long: float | None = None,
    optimizer: Optimizer | None = None,
    batch: int = 64,
    seed: int = 0,
) -> Any:
    """Next-token training: so many steps on −mean log π(token) of right answers, whatever comes of it.

    Args:
      policy: one with a field ``start``.
      task: with right answers to imitate.
      steps: optimizer steps.
      long: share in [0, 1] of the answers that are the task's ``demonstrations``, chain of thought included;
        the others are its ``short_demonstrations``. None is all of them.
      optimizer: None is AdamW at 1e-3 under a global norm of 1.
      batch: right answers in a step.
      seed: of weights, problems and which answers are long.

    Returns:
      The policy; it starts from the parameters found (``start``), whatever the seed.

    Raises:
      ValueError: where the policy or the task is no such; where ``long`` is no share.
    """
    _require_teaching(policy, task, long)
    for name, value in (("steps", steps), ("batch", batch)):
        whole(name, value)
    check_fit(policy, task)
    optimizer = optimizer or _OPTIMIZER
    held = _begin(policy, optimizer, seed)
    return _starting(policy, _train(policy, task, optimizer, batch, long, held, jnp.uint32(seed), steps))


_OPTIMIZER = ClippedNorm(inner=AdamW(learning_rate=1e-3), max_norm=1.0)


def _begin(policy: Any, optimizer: Optimizer, seed: int) -> Held:
    params = policy.init(jax.random.fold_in(jax.random.key(0), seed))
    return params, optimizers.init(optimizer, params, runs=False), jnp.uint32(0)


def _starting(policy: Any, held: Held) -> Any:
    return dataclasses.replace(policy, start=jax.tree.map(np.asarray, held[0]))


def _require_teaching(policy: Any, task: Any, long: float | None) -> None:
    if not isinstance(task, Teaches):
        raise ValueError(
            f"{type(task).__name__} has no right answers to imitate (no ``demonstrations``); a warm start "
            f"takes a task such as Verifiable(problems=Addition())"
        )
    if "start" not in {field.name for field in dataclasses.fields(policy)}:
        raise ValueError(
            f"{type(policy).__name__} cannot be given weights to start from (no field ``start``); a warm "
            f"start takes a network, such as TransformerPolicy"
        )
    if long is None:
        return
    if isinstance(long, bool) or not 0 <= long <= 1:
        raise ValueError(f"long is {long!r}; it must be a share in [0, 1]")
    if not isinstance(task, TeachesBriefly):
        raise ValueError(
            f"{type(task).__name__} has no short answers to mix with long ones (no ``short_demonstrations``)"
        )
    jax.eval_shape(task.short_demonstrations, jnp.zeros(1))  # problems may have none, and say so


@functools.partial(jax.jit, static_argnums=3)
def _train(
    policy: Any, task: Any, optimizer: Any, batch: int, long: Any, held: Held, root: Array, count: int
) -> Held:
    """``count`` steps on right answers."""

    def loss(params: Params, step: Array) -> Array:
        chosen = uniforms(root, jnp.uint32(0), step, Stream.PROMPT, (batch,))
        prompts, tokens, mask = task.demonstrations(chosen)
        if long is not None:
            shown = uniforms(root, jnp.uint32(0), step, Stream.REWARD, (batch, 1)) < long
            brief = task.short_demonstrations(chosen)
            tokens, mask = jnp.where(shown, tokens, brief[1]), jnp.where(shown, mask, brief[2])
        logp = policy.score(params, prompts, tokens[:, None], mask[:, None]).logp
        return -jnp.sum(logp) / jnp.sum(mask)

    def one(_: Any, held: Held) -> Held:
        params, state, step = held
        grads = jax.grad(loss)(params, step)
        params, state, _ = optimizers.step(optimizer, grads, state, params, runs=False)
        return params, state, step + 1

    return jax.lax.fori_loop(0, count, one, held)


@functools.partial(jax.jit, static_argnums=2)
def _accuracy(policy: Any, task: Any, count: int, params: Params, root: Array, step: Array) -> Array:
    """Share of ``count`` held-out problems whose one sampled answer is right."""
    return diagnostics.held_out_accuracy(policy, task, params, (root, jnp.uint32(0), step), count)
