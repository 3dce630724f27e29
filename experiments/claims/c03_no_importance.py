"""A variant that entirely removes importance sampling and performs multiple optimization steps using
gradients estimated at a fixed old policy attains performance comparable to standard GRPO.

[C], abstract, after v5 (23 March 2026, which adds that the ratios' bias is "negligible in practice"); v2
says the same of the ablation. The full text was not available. Random trees of four tokens, binary or graded
rewards, exact and sampled (groups of 8), μ = 8 and 2 steps a batch. The gradient stays at θ_old for all μ
steps; performance is mean J over training at one and the same learning rate, as in an ablation, at each of
four up to a quarter of what is best for sampled graded rewards (beyond, which output a run happens to settle
on decides). Standard GRPO clips at 1 ± 0.2; unclipped GRPO differs by importance sampling alone.

Refuted if, for an optimizer and a kind of reward, mean J differs from unclipped GRPO's by more than 0.02
(99.9 % over trees, whichever setting and rate is furthest). Qualified if it does from clipped GRPO's. Checks
of the instrument: all methods agree at μ = 1; μ frozen SGD steps of η are one of μη (to 1e-10 in mean J and
‖∇J‖²).
"""

import itertools
import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.harness.numbers import Number, furthest, mean, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems import trees
from experiments.problems.trees import EPS, KINDS, member
from grpo_jax import diagnostics, plotting
from grpo_jax.measures import StepView
from grpo_jax.sequences import Sequences
from grpo_jax.types import Array

PRECISION = "float64"
SIZES = sizes(tables=(16, 160, 512), iterations=(6, 20, 40), steps=(128, 1024, 4096))

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
RATES = {"SGD": 2.0 ** np.arange(-5, 2, 2), "AdamW": 2.0 ** np.arange(-9, -2, 2)}
SETTINGS = {"μ = 8": {}, "μ = 2": {"steps": 2.0}}


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

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="all runs are identical")  # as they should be at μ = 1
        once = trees.trained(given, METHODS, 8 * RATES["SGD"], optimizer="SGD", steps=1.0, **told)
    return {
        **{n: trees.by_setting(SETTINGS, given, METHODS, RATES[n], optimizer=n, **told) for n in RATES},
        "once": once.assign_coords(learning_rate=RATES["SGD"]),
        "one batch": one_batch(seed, size),
    }


def gaps(data: dict[str, xr.Dataset], name: str, method: str, base: str) -> xr.DataArray:
    """Mean J of a method less that of another, at one learning rate."""
    value = data[name].value
    return value.sel(algorithm=method, drop=True) - value.sel(algorithm=base, drop=True)


def judge_reading(data: dict[str, xr.Dataset], claim: Claim, method: str) -> None:
    """A reading against both baselines, by optimizer and kind of reward."""
    held, told = [], []
    for base in BASES:
        means = []
        for name, kind in itertools.product(RATES, KINDS):
            gap = gaps(data, name, method, base).sel(kind=kind, drop=True)
            number, words = (
                furthest(gap, tolerance=MARGIN, over="table"),
                f"{name}, {kind}: {method} - {base}",
            )
            if base == "GRPO":
                claim.qualifies(words, number, only="against GRPO without a clip")
            else:
                claim.refutes(words, number)
                held.append(number)
            means.append(gap.mean("table"))
        low, high = (float(f([float(f(m)) for m in means])) for f in (np.min, np.max))
        told.append(f"{low:+.3f} to {high:+.3f} against {base}")
    claim.finds(
        f"Without importance sampling mean J changes by {' and by '.join(told)}: the clip matters.",
        when=held,
    )


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """Comparable to GRPO without a clip, and with one; the other reading; and its bound on one batch."""
    eight, one = data["SGD"].sel(setting="μ = 8", algorithm=READ), data["once"]
    claim.requires(
        "mean J at μ = 1, spread over methods",
        worst(one.value.max("algorithm"), expected=one.value.min("algorithm"), tolerance=1e-10),
    )
    for measure, symbol in trees.SYMBOLS.items():
        claim.requires(
            f"SGD: eight frozen steps of η - one of 8η, mean {symbol}",
            worst(eight[measure], expected=one[measure].sel(algorithm=READ), tolerance=1e-10),
        )
    judge_reading(data, claim, READ)
    other = "The other reading, the score at the current θ without a ratio, performs comparably, too."
    judge_reading(data, claim.ours(other), OTHER)
    bound = "On one batch the score without a ratio ascends A log π_θ without a bound; clipped GRPO stops."
    judge_bound(data["one batch"], claim.ours(bound))


def judge_bound(data: xr.Dataset, row: Claim) -> None:
    """What the second half of the steps adds to A log π, over what the first half did."""
    rise = data.objective - data.objective.sel(mu=0)
    last, harmless = int(data.mu[-1]), []
    half, whole = rise.sel(mu=last // 2), rise.sel(mu=last)
    growth = (whole / half).where(whole != 0)
    for kind in KINDS:
        for sampling in ("exact", "sampled"):
            at = growth.sel(kind=kind, sampling=sampling)
            told = f"A log π at μ = {last} over half of that, {kind}, {sampling}"
            score, clipped, free = (
                at.sel(algorithm=n).dropna("table") for n in (OTHER, "GRPO", "GRPO unclipped")
            )
            row.refutes(f"{told}: {OTHER}", mean(score, expected=1.5, relation="at least"))
            row.requires(f"{told}: GRPO", mean(clipped, expected=1.5, relation="at most"))
            row.reports(f"{told}: GRPO unclipped", mean(free))
            path = data.truth.sel(kind=kind, sampling=sampling, algorithm=OTHER).mean("table")
            best, end = float(path.max()), float(path[-1])
            row.reports(f"J at μ = {last}, {kind}, {sampling}: {OTHER}", Number(end))
            row.reports(f"greatest J at any μ, {kind}, {sampling}: {OTHER}", Number(best))
            harmless.append(best - end <= MARGIN)
    row.finds(
        f"A log π_θ grows in proportion to μ up to {last} steps, which does no harm to J: it ends at its "
        "greatest value or near.",
        when=all(harmless),
    )


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """Mean J without importance sampling less that of both baselines, over learning rates."""
    figure.set_size_inches(7, 4.6)
    panels = plotting.panels(figure, 2, 2, sharey=True)
    for axes, (kind, name) in zip(panels, itertools.product(KINDS, RATES), strict=True):
        both = xr.concat(
            [gaps(data, name, READ, base) for base in BASES], xr.Variable("baseline", list(BASES))
        )
        gap = both.sel(kind=kind, setting="μ = 8")
        plotting.curves(axes, gap, over="table", x="learning_rate", by=("baseline", "sampling"))
        axes.axhspan(-MARGIN, MARGIN, color="0.9", zorder=0)
        axes.get_legend().set_visible(axes is panels[0])
        axes.set_xscale("log", base=2)
        axes.set(title=f"{name}, {kind} rewards", ylabel="mean J - the baseline's")
    figure.suptitle(
        "Without importance sampling J is that of GRPO without a clip; the clip is what costs GRPO"
    )
