"""Sequence trees for the claims of arXiv:2508.02833.

Every change that TIC-GRPO makes is a number here, so that one program trains all of its variants, over every
learning rate and number of inner steps, as runs side by side.
"""

import functools
from typing import Any, ClassVar, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from grpo_jax import diagnostics, train
from grpo_jax.collectors import Counts, draw_prompts, support_rollout
from grpo_jax.config import Batch, Config, Loop, TrainState
from grpo_jax.exact import values as tree_values
from grpo_jax.optimizers import SGD, AdamW, Optimizer
from grpo_jax.part import aligned, number, part, static
from grpo_jax.parts.advantages import Normalized
from grpo_jax.parts.gains import Clip
from grpo_jax.parts.shaping import lengths
from grpo_jax.policies import TreePolicy
from grpo_jax.sequences import Sequences
from grpo_jax.statistics import divide
from grpo_jax.surrogate import Method, advantages
from grpo_jax.tasks import SequenceTable
from grpo_jax.types import Array, Number, Params, Rollout

INF = float("inf")


@part
class Blend:
    """The ratio as two numbers: ``Token`` at 0 and 0, ``Trajectory`` at trajectory 1, ``Score`` at score 1.

    log ρ_t = log π_θ − log π_old − score·sg[log π_θ − log π_old] and log s = (1 − trajectory)·log ρ_t +
    trajectory·Σ_t log ρ_t.
    """

    trajectory: Number = number(0.0, low=0.0, high=1.0)
    score: Number = number(0.0, low=0.0, high=1.0)

    def __call__(self, rollout: Rollout, logp: Array) -> Array:
        gap = jnp.where(rollout.mask > 0, logp - rollout.old_logp, 0)
        gap = gap - self.score * jax.lax.stop_gradient(gap)
        return gap + self.trajectory * (jnp.sum(gap, 2, keepdims=True) - gap)


@part
class LengthPower:
    """Token weights 1/(B·|o|^power): ``Constant(length=1)`` at 0, ``PerSequence`` at 1."""

    power: Number = number(0.0, low=0.0)

    def __call__(self, rollout: Rollout) -> Array:
        counted = rollout.mask * rollout.multiplicity[:, :, None]
        entries = jnp.sum(rollout.multiplicity, (0, 1), keepdims=True)[:, :, None]
        return divide(counted, entries * lengths(rollout)[:, :, None] ** self.power)


@part
class RewardPerLength:
    """r/|o|^power: ``Sum`` at 0, ``PerToken`` at 1."""

    power: Number = number(0.0, low=0.0)

    def __call__(self, rollout: Rollout) -> Array:
        return divide(jnp.sum(rollout.rewards, 2), lengths(rollout) ** self.power)


@part
class FirstSteps:
    """A learning rate that is 0 after the first ``steps`` of every ``period`` steps: μ becomes a number."""

    rate: Number = number(1.0, low=0.0)
    steps: Number = number(1.0, low=0.0)
    period: int = static(8, low=1)

    def __call__(self, count: Array) -> Array:
        return jnp.where(count % self.period < self.steps, self.rate, 0)


@part
class Paused:
    """The inner optimizer in the first ``steps`` of every ``period`` steps, and nothing in the others.

    Unlike ``FirstSteps`` it leaves moments and their count alone, too, which are then each run's own.
    """

    inner: Optimizer
    steps: Number = number(1.0, low=0.0)
    period: int = static(8, low=1)
    reduces: ClassVar[bool] = True

    def transform(self) -> optax.GradientTransformation:
        """The inner transformation, its state held while it pauses."""
        inner = self.inner.transform()

        def init(params: Params) -> tuple[Array, Any]:
            return jnp.zeros((), int), inner.init(params)

        def update(grads: Params, state: tuple[Array, Any], params: Params = None) -> tuple[Params, Any]:
            count, held = state
            updates, after = inner.update(grads, held, params)
            on = count % self.period < self.steps
            held = jax.tree.map(lambda new, old: jnp.where(on, new, old), after, held)
            return jax.tree.map(lambda step: jnp.where(on, step, 0), updates), (count + 1, held)

        return optax.GradientTransformation(init, update)


@part
class Population(Counts):
    """The expected update in the limit of a large group: every output with its probability, A = r − E_old[r].

    With shift-only advantages and two reward levels, or without a clip, groups of G have this expectation
    times 1 − 1/G.
    """

    def collect(self, config: Config, state: TrainState) -> Batch:
        """Every output, as often as the old policy gives it."""
        prompts = draw_prompts(config, state)
        logp = diagnostics.log_support(config.policy, state.old_params, prompts)
        rollout = support_rollout(config, state, prompts, jnp.exp(logp))
        return Batch(rollout, advantages(config.method, rollout))


class Problem(NamedTuple):
    """Random reward tables [S, tables] and starting logits [rows, V, tables] over one space."""

    space: Sequences
    table: np.ndarray
    logits: np.ndarray


def problem(root: int, space: Sequences, *, tables: int, kind: str, spread: float = 0.5) -> Problem:
    """Rewards 0 or 1 (``binary``) or one of four levels (``graded``), neither constant, and normal logits."""
    rng = np.random.default_rng([root, space.horizon, space.vocab, kind == "graded"])
    size = len(space.support[0])
    levels = 2 if kind == "binary" else 4
    table = rng.integers(0, levels, (size, tables)) / (levels - 1)
    flat = np.ptp(table, 0) == 0
    table[:, flat] = np.linspace(0, 1, size).round()[:, None]
    return Problem(space, table, spread * rng.normal(size=(space.offsets[-1], space.vocab, tables)))


def grid(**axes) -> dict[str, np.ndarray]:
    """The product of the axes, flattened to runs."""
    return dict(zip(axes, (a.ravel() for a in np.meshgrid(*axes.values(), indexing="ij")), strict=True))


def method(*, trajectory, low, high, score=0.0, loss_power=0.0, reward_power=0.0, spread_power=0.0) -> Method:
    """A member of the family by numbers; shift-only at ``spread_power`` 0, σ-normalised at 1.

    A trajectory ratio that is differentiated stands at each of |o| tokens: one more 1/|o|.
    """
    return Method(
        shaping=RewardPerLength(power=reward_power),
        advantage=Normalized(power=spread_power),
        ratio=Blend(trajectory=trajectory, score=score),
        gain=Clip(low=low, high=high),
        reduction=LengthPower(power=trajectory + loss_power),
    )


def config_of(
    given: Problem,
    which: np.ndarray,
    method: Method,
    *,
    rate,
    steps,
    period: int,
    group_size: int | None,
    optimizer: str = "SGD",
) -> Config:
    """A run [R] for each entry of ``which`` table; ``group_size`` None is the expected update."""
    space = given.space
    return Config(
        policy=TreePolicy(space=space, logits=given.logits[None][..., which]),
        task=SequenceTable(space=space, table=given.table[None][..., which]),
        method=method,
        optimizer=stepping(optimizer, rate, steps, period),
        loop=Loop(group_size=group_size or 2, inner_steps=period),
        expectation=Counts() if group_size else Population(),
    )


def stepping(optimizer: str, rate, steps, period: int) -> Optimizer:
    """SGD or AdamW (without weight decay) whose number of inner steps is a number for each run."""
    if optimizer == "SGD":
        return SGD(learning_rate=cast(Any, FirstSteps(rate=rate, steps=steps, period=period)))
    return Paused(inner=AdamW(learning_rate=rate, weight_decay=0.0), steps=steps, period=period)


@functools.partial(jax.jit, static_argnames=("iterations",))
def trained(config: Config, state: TrainState, *, iterations: int) -> tuple[Array, Array]:
    """[iterations + 1, R] exact J and ‖∇J‖² before every iteration and after the last."""
    prompts = diagnostics.all_prompts(config.policy)
    config = aligned(config)
    start = diagnostics.log_support(config.policy, state.params, prompts)
    means = diagnostics.support_means(config.policy, config.task, prompts, start)

    def value(params: Array) -> Array:
        return jnp.sum(jnp.exp(diagnostics.log_support(config.policy, params, prompts)) * means, (0, 1))

    def measure(params: Array) -> tuple[Array, Array]:
        gradient = jax.grad(lambda p: jnp.sum(value(p)))(params)
        return value(params), jnp.sum(gradient**2, (0, 1, 2))

    def body(state: TrainState, _: None) -> tuple[TrainState, tuple[Array, Array]]:
        return train.step(config, state, record=())[0], measure(state.params)

    state, (values, squares) = jax.lax.scan(body, state, length=iterations)
    last = measure(state.params)
    return jnp.concatenate([values, last[0][None]]), jnp.concatenate([squares, last[1][None]])


def curvature_gap(given: Problem) -> np.ndarray:
    """[tables] gᵀ(H − H_block)g of J at the starting logits, H_block the blocks of H within one prefix."""
    gap = jax.vmap(functools.partial(_curvature_gap, given.space), in_axes=(2, 1))
    return np.asarray(gap(jnp.asarray(given.logits), jnp.asarray(given.table)))


@functools.partial(jax.jit, static_argnums=0)
def _curvature_gap(space: Sequences, logits: Array, table: Array) -> Array:
    at = (TreePolicy.uniform(space), SequenceTable(space=space, table=table[None]), logits[None])
    slope = tree_values.return_gradient(*at).ravel()
    return slope @ (tree_values.return_hessian(*at) - tree_values.block_hessian(*at)) @ slope


def averages(
    given: Problem,
    root: int,
    cells: dict[str, np.ndarray],
    method: Method,
    group_size: int | None,
    iterations: int,
    *,
    optimizer: str = "SGD",
) -> np.ndarray:
    """[3, R] mean J, mean ‖∇J‖² over outer iterations, and final J; a seed for each table, μ at most 8."""
    which = cells["table"].astype(int)
    config = config_of(
        given, which, method, rate=cells["rate"], steps=cells["steps"], period=8, group_size=group_size,
        optimizer=optimizer,
    )  # fmt: skip
    values, squares = trained(config, train.init(config, which, root=root), iterations=iterations)
    return np.stack([values[1:].mean(0), squares[1:].mean(0), values[-1]])
