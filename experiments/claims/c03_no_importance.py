"""Remarkably, the variant that entirely removes importance sampling and performs multiple optimization steps
using gradients estimated at a fixed old policy attains performance comparable to standard GRPO.

[C], abstract, after v5 (23 March 2026); v2 says the same ("importance sampling is entirely removed"). The
full text was not available. On random trees of four tokens, binary or graded rewards, exact and sampled
(groups of 8), μ = 2 and 8, also σ-normalised. The gradient stays at θ_old for all μ steps; performance is
mean J over training, compared at one and the same learning rate, as in an ablation, at each of eight up to
the one that is best for the baseline. Standard GRPO clips at 1 ± 0.2; beside it stands GRPO without a clip,
from which importance sampling alone is removed.

Refuted if, for an optimizer and a kind of reward, mean J differs from unclipped GRPO's by more than 0.02
(99.9 % over trees, whichever setting and rate is furthest). Qualified if it does from clipped GRPO's. Checks of
the instrument: all methods agree at μ = 1; μ frozen SGD steps of η are one of μη (to 1e-10 in mean J and
‖∇J‖²).
"""

import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.harness.numbers import Number, furthest, mean, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems import trees
from experiments.problems.trees import EPS, KINDS, RATES, SETTINGS, member
from grpo_jax import diagnostics, plotting
from grpo_jax.measures import StepView
from grpo_jax.sequences import Sequences
from grpo_jax.types import Array

PRECISION = "float64"
SIZES = sizes(tables=(16, 48, 256), iterations=(6, 20, 40), steps=(128, 1024, 4096))

TREE = Sequences(vocab=2, horizon=4)
MARGIN = 0.02
METHODS = {
    "GRPO": member(low=EPS, high=EPS),
    "GRPO unclipped": member(),
    "frozen at θ_old": member(held=1.0),
    "score at θ": member(score=1.0),
}
"""The third is the paper's; the last takes ∇log π at the current θ, without a ratio."""
READ, OTHER = "frozen at θ_old", "score at θ"
BASES = ("GRPO unclipped", "GRPO")


@gj.measure("context", about="mean of A log π over the batch", per="step")
def objective(view: StepView) -> Array:
    """[context] E[A log π_θ] of the batch: what the score without a ratio ascends."""
    batch = view.batch
    weight = batch.rollout.multiplicity / jnp.sum(batch.rollout.multiplicity, 1, keepdims=True)
    return jnp.sum(weight * batch.advantages[:, :, 0] * jnp.sum(view.logp, 2), 1)


@gj.measure("context", about="J, exact", per="step")
def truth(view: StepView) -> Array:
    """[context] J where the step starts."""
    policy, task = view.config.policy, view.config.task
    return diagnostics.prompt_reward(policy, task, view.params, diagnostics.all_prompts(policy))


def one_batch(root: int, size: Any) -> xr.Dataset:
    """μ SGD steps of η = 1 on one batch: E[A log π] and J where they end, at powers of two."""
    given = trees.problems(root, TREE, tables=min(size.tables, 50))
    methods = {name: METHODS[name] for name in (*BASES, OTHER)}
    count = size.steps + 1
    config = trees.training(given, optimizer="SGD", steps=count, period=count, inner_steps=count)
    data = gj.sweep(
        config, trees.axes_of(given, methods), iterations=1, root=root, record=[],
        measure={"objective": objective, "truth": truth}, progress=False,
    )  # fmt: skip
    steps = 2 ** np.arange(int(np.log2(size.steps)) + 1)
    data = trees.named(data).isel(iteration=0, drop=True).isel(inner_step=[0, *steps])
    return data.rename(inner_step="mu").assign_coords(mu=[0, *steps])


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Training by optimizer, setting and learning rate; one step a batch; and many steps on one batch."""
    given = trees.problems(seed, TREE, tables=size.tables)
    told = {"root": seed, "iterations": size.iterations}

    def by_setting(name: str) -> xr.Dataset:
        return trees.by_setting(SETTINGS[name], given, METHODS, RATES[name], optimizer=name, **told)

    def once(name: str, rates: np.ndarray) -> xr.Dataset:
        return trees.trained(given, METHODS, rates, optimizer=name, steps=1.0, **told)

    return {
        **{name: by_setting(name) for name in RATES},
        "SGD once": once("SGD", 8 * RATES["SGD"]),
        "AdamW once": once("AdamW", RATES["AdamW"]),
        "one batch": one_batch(seed, size),
    }


def gaps(value: xr.DataArray, method: str, base: str) -> xr.DataArray:
    """Mean J less the baseline's at one rate; past the rate that is best for the baseline 0."""
    standard = value.sel(algorithm=base, drop=True)
    best = standard.mean("table").idxmax("learning_rate")
    gap = value.sel(algorithm=method, drop=True) - standard
    return gap.where(gap.learning_rate <= best, 0.0)


def tuned(value: xr.DataArray, method: str, base: str) -> xr.DataArray:
    """Mean J less the baseline's, each at the rate that is best for it."""
    best = trees.at_best_rate(value.to_dataset(name="value")).value.drop_vars("learning_rate")
    return best.sel(algorithm=method, drop=True) - best.sel(algorithm=base, drop=True)


def judge_reading(data: dict[str, xr.Dataset], claim: Claim, method: str) -> None:
    """A reading against both baselines, by optimizer and kind of reward."""
    for name, kind in itertools.product(RATES, KINDS):
        value, told = data[name].value.sel(kind=kind, drop=True), f"{name}, {kind}: {method}"
        for base in BASES:
            gap = furthest(gaps(value, method, base), tolerance=MARGIN, over="table")
            if base == "GRPO":
                claim.qualifies(f"{told} - {base}", gap, only="against GRPO without a clip")
            else:
                claim.refutes(f"{told} - {base}", gap)
            best = furthest(tuned(value, method, base), tolerance=MARGIN, over="table")
            claim.reports(f"{told} - {base}, each at its best rate", best)


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """Comparable at best rates judges, at equal rates qualifies; then the other reading, and its bound."""
    for name in RATES:
        value = data[f"{name} once"].value
        claim.requires(
            f"{name}: mean J at μ = 1, spread over methods",
            worst(value.max("algorithm"), expected=value.min("algorithm"), tolerance=1e-10),
        )
    eight, one = data["SGD"].sel(setting="μ = 8", algorithm=READ), data["SGD once"].sel(algorithm=READ)
    one = one.assign_coords(learning_rate=eight.learning_rate)
    for measure in ("value", "square"):
        claim.requires(
            f"SGD: eight frozen steps of η - one of 8η, mean {trees.SYMBOLS[measure]}",
            worst(eight[measure], expected=one[measure], tolerance=1e-10),
        )
    judge_reading(data, claim, READ)
    judge_reading(
        data,
        claim.ours(
            "The other reading, the score at the current θ without a ratio, performs comparably, too."
        ),
        OTHER,
    )
    judge_bound(
        data["one batch"],
        claim.ours(
            "On one batch the score without a ratio ascends A log π_θ without a bound; clipped GRPO stops."
        ),
    )


def judge_bound(data: xr.Dataset, row: Claim) -> None:
    """What the second half of the steps adds to A log π, over what the first half did."""
    rise = data.objective - data.objective.sel(mu=0)
    last = int(data.mu[-1])
    half, whole = rise.sel(mu=last // 2), rise.sel(mu=last)
    growth = (whole / half).where(whole != 0)
    for kind in KINDS:
        for sampling in ("exact", "sampled"):
            at = growth.sel(kind=kind, sampling=sampling)
            told = f"A log π at μ = {last} over half of that, {kind}, {sampling}"
            first, second, third = (at.sel(algorithm=name).dropna("table") for name in (OTHER, *BASES))
            row.refutes(f"{told}: {OTHER}", mean(first, expected=1.5, relation="at least"))
            row.requires(f"{told}: GRPO", mean(second, expected=1.5, relation="at most"))
            row.reports(f"{told}: GRPO unclipped", mean(third))


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """Mean J less that of unclipped GRPO, over learning rates."""
    figure.set_size_inches(7, 5)
    panels = plotting.panels(figure, 2, 2, sharey=True)
    shown = ["GRPO", READ, OTHER]
    for axes, (kind, name) in zip(panels, itertools.product(KINDS, RATES), strict=True):
        value = data[name].value.sel(kind=kind, setting="μ = 8")
        gap = value.sel(algorithm=shown) - value.sel(algorithm="GRPO unclipped", drop=True)
        plotting.curves(axes, gap, over="table", x="learning_rate", by=("algorithm", "sampling"))
        axes.axhspan(-MARGIN, MARGIN, color="0.9", zorder=0)
        axes.set_xscale("log", base=2)
        axes.set_title(f"{name}, {kind} rewards")
