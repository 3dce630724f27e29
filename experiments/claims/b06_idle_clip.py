"""The clip is idle where every batch is used once.

Claim B6 of arXiv:2601.05002: with one pass over each batch (mu = 1) the ratio is exactly 1, so clipping at
0.2 and not at all give the same run. Refuted if one bit of a policy differs, or if the controls do not
differ: 64 passes, and mu = 1 with an old policy that is refreshed every eighth iteration only. Reported: from
how many passes on clipping changes the reward that training ends with (99.9 % intervals over seeds, as many
optimizer steps at every mu), what share of tokens it holds, and the gradient at exactly 1 +- eps.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from experiments.verdict import Number, judge, mean
from grpo_jax import optimizers, train
from grpo_jax.collectors import choose
from grpo_jax.config import Batch, Config, Loop
from grpo_jax.measures import clip_fractions
from grpo_jax.methods import grpo
from grpo_jax.optimizers import SGD, AdamW
from grpo_jax.part import aligned, put_all
from grpo_jax.parts.gains import Clip
from grpo_jax.policies import ActionPolicy
from grpo_jax.tasks import Bernoulli, Questions
from grpo_jax.types import Array, Evaluation

CLAIM = "B6"
PAPER = "B"
PRECISION = "float32"

BOUND = 0.2
PASSES = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64])
STEPS = 576
"""Optimizer steps: more passes, fewer batches."""
RATES = {"SGD": 1.0, "AdamW": 0.03}
SIZES = {"smoke": 16, "quick": 128, "full": 1024}


def rewards(root: int) -> np.ndarray:
    """[8, 5] chances: one answer right most often, another often enough to mislead."""
    rng = np.random.default_rng(root)
    return np.stack([rng.permutation([0.9, 0.6, 0.2, 0.1, 0.0]) for _ in range(8)])


def problem(root: int, name: str, seeds: np.ndarray, **loop) -> tuple[Config, train.TrainState]:
    """Runs [2, seed] clipped at 0.2 and not at all, on the same draws, from uniform policies."""
    bound = np.repeat([BOUND, np.inf], len(seeds))
    rate = RATES[name]
    config = Config(
        policy=ActionPolicy.uniform(contexts=8, actions=5),
        task=Questions(table=rewards(root), noise=Bernoulli()),
        method=put_all(dataclasses.replace(grpo, penalty=None), {"gain.low": bound, "gain.high": bound}),
        optimizer=SGD(learning_rate=rate) if name == "SGD" else AdamW(learning_rate=rate),
        loop=Loop(group_size=8, **loop),
    )
    return config, train.init(config, np.tile(seeds, 2), root=root)


@jax.jit
def passed(config: Config, state: train.TrainState, passes: int, batches: int) -> tuple[Array, Array]:
    """Parameters after ``batches`` of ``passes`` each, and the share of tokens held by the clip [R].

    The arithmetic of ``train.run`` with ``inner_steps`` = passes, which is traced here: one program for all.
    """
    config = choose(aligned(config))
    expectation: Any = config.expectation

    def one(_, carry, batch: Batch):
        params, opt_state, held = carry

        def negated(point: Array) -> tuple[Array, Array]:
            value, logp = expectation.objective(config, batch, point)
            return -jnp.sum(value), logp

        grads, logp = jax.grad(negated, has_aux=True)(params)
        updates, opt_state = optimizers.update(config.optimizer, grads, opt_state, params, runs=True)
        return params + updates, opt_state, held + sum(clip_fractions(config, batch, logp))

    def collected(_, carry):
        state, held = carry
        batch = expectation.collect(config, state)
        step = functools.partial(one, batch=batch)
        params, opt_state, held = jax.lax.fori_loop(0, passes, step, (state.params, state.opt_state, held))
        return state._replace(
            params=params, old_params=params, opt_state=opt_state, step=state.step + 1
        ), held

    state, held = jax.lax.fori_loop(0, batches, collected, (state, jnp.zeros(state.seed.shape)))
    return state.params, held / (passes * batches)


def swept(root: int, seeds: np.ndarray, name: str) -> dict[str, np.ndarray]:
    """STEPS optimizer steps at every number of passes: arrays [passes, 2, seed], ``params`` with more."""
    config, state = problem(root, name, seeds)
    table = rewards(root)[:, :, None]
    found: dict[str, list[np.ndarray]] = {"reward": [], "clipped": [], "params": []}
    for passes in PASSES:
        params, held = map(np.asarray, passed(config, state, int(passes), STEPS // int(passes)))
        chance = np.asarray(jax.nn.softmax(params, axis=1))
        found["reward"].append((chance * table).sum(1).mean(0))
        found["clipped"].append(held)
        found["params"].append(params)
    return {key: np.array(runs).reshape(*np.shape(runs)[:-1], 2, -1) for key, runs in found.items()}


def difference(params: np.ndarray) -> np.ndarray:
    """[seed] greatest difference between clipped and unclipped parameters [..., 2, seed]."""
    gap = abs(params[..., 0, :] - params[..., 1, :])
    return gap.reshape(-1, gap.shape[-1]).max(0)


def engine(root: int, seeds: np.ndarray, name: str, **loop) -> np.ndarray:
    """[seed] the same with one pass and ``train.run``."""
    config, state = problem(root, name, seeds, **loop)
    after, _ = train.run(config, state, iterations=STEPS, record=())
    return difference(np.asarray(after.params).reshape(8, 5, 2, -1))


def boundary_gradients() -> dict[str, float]:
    """∂/∂s of the clipped gain at s = 1 + 0.2 and 1 − 0.2, A = ±1: ours, and autodiff of min and clip."""

    def naive(ratio: jax.Array, advantage: float) -> jax.Array:
        return jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - BOUND, 1 + BOUND) * advantage)

    def ours(ratio: jax.Array, advantage: float) -> jax.Array:
        log_ratio, value = jnp.log(ratio).reshape(1, 1, 1), jnp.full((1, 1, 1), advantage)
        rollout: Any = None  # the clip reads none of it
        at = Evaluation(rollout=rollout, logp=log_ratio, log_ratio=log_ratio, advantages=value)
        return jnp.sum(Clip(low=BOUND, high=BOUND)(at))

    found = {}
    for side, advantage, exact in (("1 + eps, A > 0", 1.0, 1 + BOUND), ("1 - eps, A < 0", -1.0, 1 - BOUND)):
        at = jnp.float32(1) + jnp.float32(exact - 1)
        for kind, function in (("autodiff of min and clip", naive), ("ours", ours)):
            found[f"{kind} at {side}"] = float(jax.grad(function)(at, advantage)) / advantage
    return found


def simulate(key: jax.Array, size: str) -> xr.Dataset:
    """Runs with and without clipping over passes and optimizers, and gradients at the boundary."""
    root = int(jax.random.key_data(key)[-1])
    seeds = np.arange(SIZES[size])
    runs = {name: swept(root, seeds, name) for name in RATES}
    bits = [engine(root, seeds, name).max() for name in RATES]
    moved = [
        [engine(root, seeds, name, refresh_every=8) for name in RATES],
        [difference(runs[name]["params"][-1]) for name in RATES],
    ]
    corner = boundary_gradients()
    dims = ("optimizer", "passes", "clip", "seed")
    return xr.Dataset(
        {
            **{key: (dims, np.array([run[key] for run in runs.values()])) for key in ("reward", "clipped")},
            "bits": ("optimizer", np.array(bits)),
            "moved": (("control", "optimizer", "seed"), np.array(moved)),
            "gradient": ("corner", list(corner.values())),
        },
        coords={
            "optimizer": list(RATES), "passes": PASSES, "clip": [BOUND, np.inf], "corner": list(corner),
            "control": ["mu = 1, stale old policy", f"mu = {PASSES[-1]}"],
        },
    )  # fmt: skip


def check(data: xr.Dataset):
    """Bits at mu = 1, controls, and where clipping changes the final reward."""
    numbers = {}
    for name in data.optimizer.values:
        numbers[f"{name}, mu = 1: greatest difference"] = Number(float(data.bits.sel(optimizer=name)), 0.0)
        for control in data.control.values:
            moved = data.moved.sel(optimizer=name, control=control)
            numbers[f"{name}, {control}: difference"] = mean(moved, expected=1e-3, relation="at least")
    judged = list(numbers)
    gain = data.reward.isel(clip=0) - data.reward.isel(clip=1)
    for name in data.optimizer.values:
        gains = {int(n): mean(gain.sel(optimizer=name, passes=n)) for n in data.passes.values}
        held = {n: mean(data.clipped.isel(clip=0).sel(optimizer=name, passes=n)) for n in gains}
        for what, found in (("reward gained by clipping", gains), ("share of tokens held", held)):
            numbers |= {f"{name}, mu = {n}: {what}": number for n, number in found.items()}
        matters = [n for n, number in gains.items() if (number.low or 0) > 0 or (number.high or 0) < 0]
        acts = [n for n, number in held.items() if number.value > 0.01]
        numbers[f"{name}: fewest passes at which clipping changes the reward"] = Number(_least(matters))
        numbers[f"{name}: fewest passes at which it holds 1 % of tokens"] = Number(_least(acts))
    for corner in data.corner.values:
        numbers[f"gradient: {corner}"] = Number(float(data.gradient.sel(corner=corner)))
    return judge(numbers, refutes=judged)


def _least(passes: list[int]) -> float:
    return float(min(passes, default=np.nan))


def draw(figure, data: xr.Dataset) -> None:
    """The final reward with and without clipping, the share held, and the gradient at the boundary."""
    figure.set_size_inches(11.5, 3.9)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 0.85))
    colors = {"SGD": "#1b9e77", "AdamW": "#d95f02"}
    for name, color in colors.items():
        gain = (data.reward.isel(clip=0) - data.reward.isel(clip=1)).sel(optimizer=name)
        intervals = [mean(gain.sel(passes=n)) for n in PASSES]
        middles = [number.value for number in intervals]
        left.fill_between(
            PASSES, [n.low for n in intervals], [n.high for n in intervals], color=color, alpha=0.2
        )
        left.plot(PASSES, middles, "o-", ms=4, color=color, label=name)
        held = data.clipped.sel(optimizer=name).isel(clip=0).mean("seed")
        middle.plot(PASSES, held, "o-", ms=4, color=color, label=name)
    left.axhline(0, color="k", lw=0.8, ls=":")
    left.annotate("μ = 1: bit-identical", (1, 0), (4, 8), textcoords="offset points", fontsize=8)
    left.set(ylabel="final reward, clipped − unclipped")
    left.set_title(f"{STEPS} optimizer steps, 99.9 % bands", fontsize=9)
    middle.set(ylabel="share of tokens held by the clip")
    middle.set_title("How often the clip acts", fontsize=9)
    for panel in (left, middle):
        panel.set_xscale("log", base=2)
        panel.set_xticks(2 ** np.arange(7), [str(2**n) for n in range(7)])
        panel.set_xlabel("passes over each batch, μ")
        panel.legend(frameon=False, fontsize=8)
    _draw_boundary(right, data)
    for panel in (left, middle, right):
        panel.spines[["top", "right"]].set_visible(False)


def _draw_boundary(axes, data: xr.Dataset) -> None:
    ratio = np.linspace(1, 1.4, 200)
    axes.plot(ratio, np.where(ratio < 1 + BOUND, 1.0, 0.0), color="0.6", lw=1.5)
    for kind, color in (("ours", "#7570b3"), ("autodiff of min and clip", "#e7298a")):
        value = float(data.gradient.sel(corner=f"{kind} at 1 + eps, A > 0"))
        axes.plot(1 + BOUND, value, "o", ms=8, color=color, label=f"{kind}: {value:g}")
    axes.set(xlabel="ratio s, A = 1", ylabel="∂ gain / ∂s", ylim=(-0.05, 1.35))
    axes.set_title("At exactly 1 + ε", fontsize=9)
    axes.legend(frameon=False, fontsize=8, loc="upper right")
