"""The surrogate's value is no progress meter.

Claim B5 of arXiv:2601.05002 (Proposition 4). Scenario A, where every ratio is 1: under length-normalised
weights and without masks J = -beta E[R], whatever the rewards; under constant weights J = C sum A_i len_i -
beta E[R]; in general sum A_i Omega_i = G Cov(A, Omega), Omega_i an output's total weight. Refuted if one of
these fails by more than 1e-12, or, over training (scenario B), if the value follows the true expected reward
in one of the methods it speaks of (mean correlation of 0.5 or more, while the mean reward of the batch, the
control, has that). GPG and CISPO, whose value is a log-likelihood, are exempt.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import xarray as xr

from experiments.length_task import RATES, SPACE, STEPS, correlation, policy, problem, table_runs
from experiments.verdict import Number, judge, mean, worst
from grpo_jax import methods, train
from grpo_jax.expectations import Sampled
from grpo_jax.part import aligned
from grpo_jax.surrogate import objective
from grpo_jax.tasks import trees

CLAIM = "B5"
PAPER = "B"
PRECISION = "float64"

SIZES = {"smoke": 16, "quick": 128, "full": 1024}
NORMALISED = ("grpo", "gspo", "gspo_token")
PENALISED = {"grpo": 0.04, "grpo_v32": 0.04, "dr_grpo": 0.0}
FOLLOWS = 0.5
"""Correlation from which on a value follows another."""
EXEMPT = ("gpg", "cispo")


def at_old(root: int, seeds: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """Scenario A: each method's value at theta = theta_old, and by hand, on graded rewards: name -> [R]."""
    start = policy(np.full(len(seeds), 0.5))
    reference = start.logits + np.random.default_rng(root).normal(size=start.logits.shape)
    found = {}
    for name in (*NORMALISED, "dr_grpo", "dapo", "grpo_v32", "cppo", "gpg", "cispo"):
        config = problem(np.full(len(seeds), 0.5), methods.get(name), task=trees.graded(SPACE, seed=root))
        config = aligned(dataclasses.replace(config, reference=reference))
        state = train.init(config, seeds, root=root)
        batch = Sampled().collect(config, state)
        value = objective(config.method, batch.rollout, batch.advantages, batch.rollout.old_logp)
        found[name] = {"value": np.asarray(value), **by_hand(name, batch)}
    return found


def by_hand(name: str, batch) -> dict[str, np.ndarray]:
    """The three formulas [R], in numpy: -beta E[R]; constant weights; G Cov(A, Omega) - beta E[R]."""
    rollout, group = batch.rollout, batch.rollout.tokens.shape[1]
    mask = np.asarray(rollout.mask)[0]
    lengths = mask.sum(1)
    advantage = np.asarray(batch.advantages)[0, :, 0]
    x = np.asarray(rollout.ref_logp - rollout.old_logp)[0]
    divergence = ((np.exp(x) - x - 1) * mask).sum(1)
    flat = name == "dr_grpo"
    penalty = PENALISED.get(name, 0.0) * (divergence / (1 if flat else lengths)).mean(0)
    weight = {"dr_grpo": lengths / group, "dapo": lengths / lengths.sum(0)}.get(
        name, np.ones_like(lengths) / group
    )
    covariance = group * ((advantage - advantage.mean(0)) * (weight - weight.mean(0))).mean(0)
    return {
        "penalty": -penalty,
        "constant": (advantage * lengths).sum(0) / group - penalty,
        "covariance": covariance - penalty,
    }


def simulate(key: jax.Array, size: str) -> xr.Dataset:
    """Values at theta_old with their formulas, and values beside rewards over training."""
    root = int(jax.random.key_data(key)[-1])
    seeds = np.arange(SIZES[size])
    first, runs = at_old(root, seeds), table_runs(root, seeds, size)
    fields = ("value", "penalty", "constant", "covariance")
    series = {
        name: np.stack([run[name] for run in runs.values()]) for name in ("surrogate", "expected_reward")
    }
    meters = [
        [correlation(run[meter], run["expected_reward"]) for meter in ("surrogate", "reward")]
        for run in runs.values()
    ]
    return xr.Dataset(
        {
            **{name: (("first", "seed"), np.stack([v[name] for v in first.values()])) for name in fields},
            "correlation": (("row", "meter", "rate", "seed"), np.array(meters)),
            **{name: (("row", "step", "seed"), value[:, :, 0]) for name, value in series.items()},
        },
        coords={
            "first": list(first), "row": list(runs), "meter": ["surrogate", "reward"], "rate": RATES,
            "step": np.arange(1, STEPS + 1), "seed": seeds,
        },
    )  # fmt: skip


def check(data: xr.Dataset):
    """The formulas of scenario A and the correlations of scenario B."""
    at = data.sel(first=list(NORMALISED))
    numbers = {
        "length-normalised: J + beta E[R]": worst(at.value, expected=at.penalty, tolerance=1e-12),
        "constant weights: J - formula": worst(
            data.value.sel(first="dr_grpo"), expected=data.constant.sel(first="dr_grpo"), tolerance=1e-12
        ),
    }
    for name in ("grpo", "grpo_v32", "dr_grpo", "dapo"):
        here = data.sel(first=name)
        numbers[f"{name}: J - G Cov(A, Omega) + beta E[R]"] = worst(
            here.value, expected=here.covariance, tolerance=1e-12
        )
    numbers["cppo: J without the mask's condition"] = Number(float(abs(data.value.sel(first="cppo")).mean()))
    for name in EXEMPT:
        numbers[f"{name} (exempt): mean |J|"] = Number(float(abs(data.value.sel(first=name)).mean()))
    refutes = [name for name, number in numbers.items() if number.expected is not None]
    for name in data.row.values:
        here = data.correlation.sel(row=name, rate=0.1)
        value, control = (here.sel(meter=meter).dropna("seed") for meter in ("surrogate", "reward"))
        if value.size > 2:
            numbers[f"{name}: correlation of value and true reward"] = mean(
                value, expected=FOLLOWS, relation="at most"
            )
            numbers[f"{name}: correlation of batch reward, the control"] = mean(
                control, expected=FOLLOWS, relation="at least"
            )
            refutes += [f"{name}: correlation of batch reward, the control"]
            refutes += [] if name in EXEMPT else [f"{name}: correlation of value and true reward"]
    return judge(numbers, refutes=refutes)


def draw(figure, data: xr.Dataset) -> None:
    """One training run's value beside its true reward, and the correlations of all methods."""
    figure.set_size_inches(11.5, 4.2)
    left, right = figure.subplots(1, 2, width_ratios=(1.1, 1))
    _draw_runs(left, data)
    _draw_correlations(right, data)
    for panel in (left, right):
        panel.spines["top"].set_visible(False)
    right.spines["right"].set_visible(False)


def _draw_runs(axes, data: xr.Dataset) -> None:
    other = axes.twinx()
    reward = data.expected_reward.sel(row="grpo")
    other.plot(data.step, reward.mean("seed"), color="#1b9e77", lw=2)
    other.fill_between(data.step, *reward.quantile([0.05, 0.95], "seed"), color="#1b9e77", alpha=0.2, lw=0)
    for name, color in (("grpo", "#d95f02"), ("dr_grpo", "#7570b3")):
        value = data.surrogate.sel(row=name)
        axes.plot(data.step, value.mean("seed"), color=color, lw=1.6, label=f"surrogate, {name}")
        axes.plot(data.step, value.isel(seed=0), color=color, lw=0.6, alpha=0.7)
    axes.set(xlabel="training step", ylabel="value of the surrogate")
    other.set_ylabel("true expected reward (grpo)", color="#1b9e77")
    axes.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1.0, 0.2))
    axes.set_title("Thick: mean over seeds. Thin: one run. From success rate 0.1", fontsize=9)


def _draw_correlations(axes, data: xr.Dataset) -> None:
    names = list(data.row.values)[::-1]
    for row, name in enumerate(names):
        for meter, color in (("surrogate", "#d95f02"), ("reward", "#1b9e77")):
            samples = data.correlation.sel(row=name, rate=0.1, meter=meter).dropna("seed")
            if samples.size > 2:
                number = mean(samples)
                axes.plot([number.low, number.high], [row, row], color=color, lw=4, solid_capstyle="butt")
                axes.plot(number.value, row, "o", color=color, ms=4)
    axes.plot([], [], "o-", color="#d95f02", label="value of the surrogate")
    axes.plot([], [], "o-", color="#1b9e77", label="mean reward of the batch")
    axes.axvline(0, color="k", lw=0.8, ls=":")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.annotate("(drops all outputs)", (0.05, names.index("gtpo")), fontsize=7, va="center")
    axes.set(xlim=(-1, 1), xlabel="correlation with the true expected reward over training")
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    axes.set_title("99.9 % intervals over seeds", fontsize=9)
