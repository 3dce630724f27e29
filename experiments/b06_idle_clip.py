"""The clip is idle where every batch is used once.

Claim B6 of arXiv:2601.05002: with one pass over each batch (mu = 1) the ratio is exactly 1, so clipping at
0.2 and not at all give the same run. Refuted if one bit of a policy differs, or if the controls do not
differ: 64 passes, and mu = 1 with an old policy that is refreshed every eighth iteration only. Reported: from
how many passes on clipping changes the reward that training ends with, and the gradient at exactly 1 +- eps.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from experiments.verdict import Number, judge, mean
from grpo_jax import train
from grpo_jax.config import Config, Loop
from grpo_jax.methods import grpo
from grpo_jax.optimizers import SGD, AdamW
from grpo_jax.part import put_all
from grpo_jax.parts.gains import Clip
from grpo_jax.policies import ActionPolicy
from grpo_jax.tasks import Bernoulli, Questions

CLAIM = "B6"
PAPER = "B"
PRECISION = "float32"

BOUND = 0.2
PASSES = np.array([1, 4, 16, 64])
STEPS = 512
"""Optimizer steps: more passes, fewer batches."""
RATES = {"SGD": 1.0, "AdamW": 0.03}
SIZES = {"smoke": 16, "quick": 128, "full": 1024}


def problem(root: int, optimizer, bound: np.ndarray, **loop) -> Config:
    """Eight questions of five answers, one of them right most often, another often enough to mislead."""
    rng = np.random.default_rng(root)
    table = np.stack([rng.permutation([0.9, 0.6, 0.2, 0.1, 0.0]) for _ in range(8)])
    method = dataclasses.replace(grpo, penalty=None)
    method = put_all(method, {"gain.low": bound, "gain.high": bound})
    return Config(
        policy=ActionPolicy.uniform(contexts=8, actions=5),
        task=Questions(table=table, noise=Bernoulli()),
        method=method,
        optimizer=optimizer,
        loop=Loop(group_size=8, **loop),
    )


def made(name: str):
    """The optimizer of that name."""
    return SGD(learning_rate=RATES[name]) if name == "SGD" else AdamW(learning_rate=RATES[name])


def compare(root: int, seeds: np.ndarray, name: str, steps: int = STEPS, **loop) -> dict[str, np.ndarray]:
    """Runs clipped at 0.2 beside runs never clipped, on the same draws: [2, seed] each."""
    bound = np.repeat([BOUND, np.inf], len(seeds))
    config = problem(root, made(name), bound, **loop)
    state = train.init(config, np.tile(seeds, 2), root=root)
    each = loop.get("inner_steps", 1)
    state, info = train.run(config, state, iterations=max(steps // each, 1), record=RECORD)
    found = {key: np.asarray(info[key]).reshape(-1, 2, len(seeds)) for key in RECORD}
    return {
        "reward": found["expected_reward"][-1],
        "clipped": (found["clip_high"] + found["clip_low"]).mean(0),
        "params": np.asarray(state.params).reshape(-1, 2, len(seeds)),
    }


RECORD = ("expected_reward", "clip_high", "clip_low")


def boundary_gradients() -> dict[str, float]:
    """∂/∂s of the clipped gain at s = 1 + 0.2 and 1 − 0.2, A = ±1: ours, and autodiff of min and clip."""

    def naive(ratio: jax.Array, advantage: float) -> jax.Array:
        return jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - BOUND, 1 + BOUND) * advantage)

    def ours(ratio: jax.Array, advantage: float) -> jax.Array:
        log_ratio, value = jnp.log(ratio).reshape(1, 1, 1), jnp.full((1, 1, 1), advantage)
        rollout: Any = None  # the clip reads none of it
        return jnp.sum(Clip(low=BOUND, high=BOUND)(rollout, log_ratio, log_ratio, value))

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
    passes = {name: [compare(root, seeds, name, inner_steps=int(n)) for n in PASSES] for name in RATES}
    stale = [compare(root, seeds, name, refresh_every=8) for name in RATES]
    bits = [abs(runs[0]["params"][:, 0] - runs[0]["params"][:, 1]).max() for runs in passes.values()]
    many = [runs[-1] for runs in passes.values()]
    moved = [[abs(r["params"][:, 0] - r["params"][:, 1]).max(0) for r in runs] for runs in (stale, many)]
    corner = boundary_gradients()
    dims = ("optimizer", "passes", "clip", "seed")
    return xr.Dataset(
        {
            "reward": (dims, np.array([[run["reward"] for run in runs] for runs in passes.values()])),
            "clipped": (dims, np.array([[run["clipped"] for run in runs] for runs in passes.values()])),
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
    gain = data.reward.isel(clip=0) - data.reward.isel(clip=1)
    for name in data.optimizer.values:
        for passes in data.passes.values[1:]:
            here = gain.sel(optimizer=name, passes=passes)
            numbers[f"{name}, mu = {passes}: reward gained by clipping"] = mean(here)
            share = data.clipped.sel(optimizer=name, passes=passes).isel(clip=0)
            numbers[f"{name}, mu = {passes}: share of tokens held"] = mean(share)
    for corner in data.corner.values:
        numbers[f"gradient: {corner}"] = Number(float(data.gradient.sel(corner=corner)))
    return judge(numbers, refutes=[name for name, number in numbers.items() if number.expected is not None])


def draw(figure, data: xr.Dataset) -> None:
    """The final reward with and without clipping, the share held, and the gradient at the boundary."""
    figure.set_size_inches(11.5, 3.9)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 0.85))
    colors = {"SGD": "#1b9e77", "AdamW": "#d95f02"}
    for name, color in colors.items():
        gain = (data.reward.isel(clip=0) - data.reward.isel(clip=1)).sel(optimizer=name)
        intervals = [mean(gain.sel(passes=n)) if n > 1 else Number(0.0, low=0.0, high=0.0) for n in PASSES]
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
        panel.set_xticks(PASSES, [str(n) for n in PASSES])
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
