"""Sequence trees for the claims of arXiv:2508.02833.

Every change that TIC-GRPO makes is a number here, so that one program trains all of its variants, over every
learning rate, as runs side by side.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

import grpo_jax as gj
from experiments.problems.weights import LengthPower
from grpo_jax import diagnostics
from grpo_jax.collectors import Counts, sampler
from grpo_jax.config import Batch, Config, Loop, TrainState
from grpo_jax.exact import values as tree_values
from grpo_jax.kernels import materialize
from grpo_jax.measures import View
from grpo_jax.optimizers import scale_by_adam
from grpo_jax.part import number, part
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
EPS = 0.2
KINDS = ("binary", "graded")
NUMBERS = (
    "ratio.trajectory", "ratio.score", "optimizer.held", "clip_low", "clip_high", "reduction.power",
    "shaping.power",
)  # fmt: skip
"""What tells the methods apart: the path of each switch."""
SYMBOLS = {"value": "J", "square": "‖∇J‖²"}
RATES = {"SGD": 2.0 ** np.arange(2, 8), "AdamW": 2.0 ** np.arange(-4, 2)}
"""Up to where sampled training on graded rewards is past its best; with binary ones no rate is too large."""
Setting = Mapping[str, Any]


def few_steps(count: int) -> Setting:
    """So many steps a batch, in a loop as long: a step left out would cost as much as one that is taken."""
    return {"steps": float(count), "period": float(count), "inner_steps": count}


SETTINGS: dict[str, dict[str, Setting]] = {
    "SGD": {"μ = 8": {}, "μ = 2": few_steps(2), "μ = 8, A/σ": {"normalized": 1.0}},
    "AdamW": {"μ = 8": {}, "μ = 2": few_steps(2)},
}
"""AdamW hardly sees the scale of advantages."""


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
class RewardPerLength:
    """r/|o|^power: ``Sum`` at 0, ``PerToken`` at 1."""

    power: Number = number(0.0, low=0.0)

    def __call__(self, rollout: Rollout) -> Array:
        return divide(jnp.sum(rollout.rewards, 2), lengths(rollout) ** self.power)


@part
class Stepper:
    """SGD at ``adaptive`` 0, AdamW without decay at 1, in the first ``steps`` of every ``period`` steps.

    So the optimizer and μ become numbers; moments and their count stand still in the other steps. At ``held``
    1 every step of a period takes the gradient of its first, at θ_old.
    """

    learning_rate: Number = number(1.0, low=0.0)
    steps: Number = number(1.0, low=0.0)
    adaptive: Number = number(0.0, low=0.0, high=1.0)
    held: Number = number(0.0, low=0.0, high=1.0)
    period: Number = number(8.0, low=1.0)
    reduces: ClassVar[bool] = True

    def transform(self) -> optax.GradientTransformation:
        """The chosen steps, as an Optax transformation of one run."""
        moments = scale_by_adam(0.9, 0.999, 1e-8)

        def init(params: Params) -> tuple[Array, Any, Params]:
            return jnp.zeros((), int), moments.init(params), jnp.zeros_like(params)

        def update(grads: Params, state: Any, params: Params = None) -> tuple[Params, Any]:
            count, held, first = state
            place = count % self.period
            first = jnp.where(place == 0, grads, first)
            grads = jnp.where(self.held > 0, first, grads)
            direction, after = moments.update(grads, held, params)
            on = place < self.steps
            held = jax.tree.map(lambda new, old: jnp.where(on, new, old), after, held)
            step = -self.learning_rate * jnp.where(self.adaptive > 0, direction, grads)
            return jnp.where(on, step, 0), (count + 1, held, first)

        return optax.GradientTransformation(init, update)


@part
class Groups(Counts):
    """Groups of G at ``exact`` 0; at 1 every output as often as its sampler q gives it, A = r − E_q[r].

    The latter is the expected update in the limit of a large group. With shift-only advantages and two reward
    levels, or without a clip, groups of G have this expectation times 1 − 1/G.
    """

    exact: Number = number(0.0, low=0.0, high=1.0)

    def collect(self, config: Config, state: TrainState) -> Batch:
        """The drawn histogram or the whole distribution, as multiplicities of the support."""
        drawn = super().collect(config, state).rollout
        who = sampler(config, state)
        chance = jnp.exp(diagnostics.log_support(who.policy, who.params, drawn.prompts))
        rollout = drawn._replace(multiplicity=jnp.where(self.exact > 0, chance, drawn.multiplicity))
        return Batch(rollout, materialize(advantages(config.method, rollout)))


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


def method(
    *, trajectory, low, high, score=0.0, loss_power=0.0, reward_power=0.0, spread_power=0.0, apart=False
) -> Method:
    """A member of the family by numbers; shift-only at ``spread_power`` 0, σ-normalised at 1.

    A trajectory ratio that is differentiated stands at each of |o| tokens: one more 1/|o|.
    """
    return Method(
        shaping=RewardPerLength(power=reward_power),
        advantage=Normalized(power=spread_power),
        ratio=Blend(trajectory=trajectory, score=score),
        gain=Clip(low=low, high=high),
        reduction=LengthPower(power=trajectory + loss_power, apart=apart),
    )


def member(
    *,
    trajectory: float = 0.0,
    score: float = 0.0,
    held: float = 0.0,
    low: float = 1.0,
    high: float = INF,
    loss_power: float = 0.0,
    reward_power: float = 0.0,
) -> tuple[float, ...]:
    """A member of the family as values of ``NUMBERS``, unclipped unless it says otherwise."""
    numbers = trajectory, score, held, low, high, trajectory + loss_power, reward_power
    return tuple(map(float, numbers))


def problems(root: int, space: Sequences, *, tables: int) -> dict[str, Problem]:
    """Problems by kind of reward."""
    return {kind: problem(root, space, tables=tables, kind=kind) for kind in KINDS}


def questions(given: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Logits [tables, rows, V] and rewards [tables, S]: every table is a question with a tree of its own."""
    return given.logits.transpose(2, 0, 1), given.table.T


def training(
    given: Mapping[str, Problem],
    *,
    optimizer: str,
    steps: float = 8.0,
    period: float = 8.0,
    normalized: float = 0.0,
    inner_steps: int = 8,
) -> Config:
    """GRPO with groups of 8 on all questions at once, each trained as if it were alone."""
    logits, table = questions(next(iter(given.values())))
    space = next(iter(given.values())).space
    return Config(
        policy=TreePolicy(space=space, logits=logits),
        task=SequenceTable(space=space, table=table),
        method=method(trajectory=0.0, low=EPS, high=EPS, spread_power=normalized, apart=True),
        optimizer=Stepper(adaptive=float(optimizer == "AdamW"), steps=steps, period=period),
        loop=Loop(group_size=8, inner_steps=inner_steps),
        expectation=Groups(),
    )


def axes_of(given: Mapping[str, Problem], methods: Mapping[str, tuple[float, ...]]) -> dict[Any, Any]:
    """Kinds of reward, exact and sampled updates, and methods, as axes of a sweep."""
    return {
        ("policy.logits", "task.table"): {kind: questions(each) for kind, each in given.items()},
        "expectation.exact": {"exact": 1.0, "sampled": 0.0},
        NUMBERS: dict(methods),
    }


def named(data: xr.Dataset) -> xr.Dataset:
    """A sweep over ``axes_of`` with dimensions kind, sampling, algorithm and table."""
    told = ("policy.logits", "task.table", "finite", *NUMBERS)
    words = {
        "policy.logits+task.table": "kind",
        "expectation.exact": "sampling",
        "+".join(NUMBERS): "algorithm",
        "context": "table",
    }
    return data.drop_vars(told, errors="ignore").isel(seed=0, drop=True).rename(words)


def trained(
    given: Mapping[str, Problem],
    methods: Mapping[str, tuple[float, ...]],
    rates: Sequence[float] | np.ndarray,
    *,
    root: int,
    iterations: int,
    **setting: Any,
) -> xr.Dataset:
    """J (``value``) and ‖∇J‖² (``square``) of every question, means over iterations; see ``training``.

    Whatever is no axis is a number of the configuration, so that calls of equal shape share a program.
    """
    axes = axes_of(given, methods) | {"learning_rate": list(rates)}
    data = gj.sweep(
        training(given, **setting), axes, iterations=iterations, root=root, record=["prompt_reward"],
        measure={"square": squared_gradient}, average_from=1, progress=False,
    )  # fmt: skip
    return named(data).rename(prompt_reward="value")


def by_setting(
    settings: Mapping[str, Setting],
    given: Mapping[str, Problem],
    methods: Mapping[str, tuple[float, ...]],
    rates: Sequence[float] | np.ndarray,
    **told: Any,
) -> xr.Dataset:
    """``trained`` in each of the settings, along a dimension of their names."""
    found = [trained(given, methods, rates, **{**told, **setting}) for setting in settings.values()]
    return xr.concat(found, xr.Variable("setting", list(settings)))


def at_start(given: Mapping[str, Problem]) -> xr.Dataset:
    """J and ‖∇J‖² of every question before training, and the reward of its best answer, by kind."""
    found = []
    for each in given.values():
        value, square = _at_start(each.space, *questions(each))
        best = each.table.max(0)
        columns = {"value": value, "square": square, "best": best}
        found.append(xr.Dataset({told: ("table", column) for told, column in columns.items()}))
    return xr.concat(found, xr.Variable("kind", list(given)))


@functools.partial(jax.jit, static_argnums=0)
def _at_start(space: Sequences, logits: Array, table: Array) -> tuple[Array, Array]:
    policy, task = TreePolicy.uniform(space, contexts=len(logits)), SequenceTable(space=space, table=table)
    value = diagnostics.prompt_reward(policy, task, logits, diagnostics.all_prompts(policy))
    return value, _squared(policy, task, logits)


def at_best_rate(data: xr.Dataset) -> xr.Dataset:
    """Every method and setting at the learning rate that gives it the greatest mean J over questions.

    NaN counts as the greatest, lest a choice of the rate hide it.
    """
    best = data.value.mean("table", skipna=False).argmax("learning_rate", skipna=False)
    return data.isel(learning_rate=best)


@gj.measure("context", about="squared norm of the gradient of J, exact")
def squared_gradient(view: View) -> Array:
    """[context] ‖∇J‖² of every question."""
    return _squared(view.config.policy, view.config.task, view.params)


def _squared(policy: Any, task: Any, params: Array) -> Array:
    gradient = tree_values.return_gradient(policy, task, params)  # of the mean over questions
    return jnp.sum((gradient.shape[0] * gradient) ** 2, (1, 2))


def curvature_gap(given: Problem) -> np.ndarray:
    """[tables] gᵀ(H − H_block)g of J at the starting logits, H_block the blocks of H within one prefix."""
    gap = jax.vmap(functools.partial(_curvature_gap, given.space), in_axes=(2, 1))
    return np.asarray(gap(jnp.asarray(given.logits), jnp.asarray(given.table)))


def curvature_gaps(given: Mapping[str, Problem]) -> xr.DataArray:
    """``curvature_gap`` by kind of reward."""
    found = {kind: xr.DataArray(curvature_gap(each), dims="table") for kind, each in given.items()}
    return xr.concat(list(found.values()), xr.Variable("kind", list(found)))


@functools.partial(jax.jit, static_argnums=0)
def _curvature_gap(space: Sequences, logits: Array, table: Array) -> Array:
    at = (TreePolicy.uniform(space), SequenceTable(space=space, table=table[None]), logits[None])
    slope = tree_values.return_gradient(*at).ravel()
    return slope @ (tree_values.return_hessian(*at) - tree_values.block_hessian(*at)) @ slope
