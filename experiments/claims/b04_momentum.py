"""Optimizer momentum can push policy updates beyond the intended clipping region under repeated optimization
steps: on zero gradient Adam's updates are (β1/√β2)^(k+1) of the last live one, late in training.

[B] abstract (iii), Propositions 3 and 7. T is Adam's count at the first step on zero gradient, k = 0 that
step; C_{T,k} = β1^{k+1} (1 - β1^{T-1})/(1 - β1^{T+k}) √((1 - β2^{T+k})/(β2^{k+1} (1 - β2^{T-1}))), exact
at ε = 0 without weight decay, tends to (β1/√β2)^(k+1). A pair of answers that reach their clip together,
a first and a second batch of many steps, and one of thousands at a small learning rate; a sequence tree,
whose unvisited prefixes have no gradient, alone, with weight decay, with a schedule and with clipped norms; a
small network.

Refuted if Adam or AdamW do not go on by one live step at least past the clip, or if after 4000 live steps a
factor is not within 0.005 of (β1/√β2)^(k+1), k to 9, for a pair of decays with β1 ≤ √β2. The numbers printed
for (0.9, 0.95) are a row of their own, refuted if the limit is not 0.923 (± 0.0005) after one step or not
0.66 (± 0.005) after five. Our own arithmetic, that measured factors are C_{T,k} (1e-9), how far each
optimizer's rule carries it past the clip, that SGD and RMSProp stop at once: checks of the instrument.
"""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.harness.numbers import Number, mean, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems.coasting import (
    COAST,
    DECAYS,
    FEW,
    LATE,
    LONG,
    NINE,
    STEADY,
    branches,
    factors,
    late,
)
from experiments.problems.past_the_clip import (
    ADAM,
    CLIP,
    RATIOS,
    STEPS,
    in_steps,
    network,
    pair,
)
from grpo_jax import plotting, train
from grpo_jax.measures import View, measure
from grpo_jax.optimizers import HeavyBall, Lion, RMSProp
from grpo_jax.theory.optimizer import coasting, coasting_rate, coasting_travel, heavy_ball_coasting

PRECISION = "float64"
SIZES = sizes(seeds=(16, 64, 256))

ONE_STEP, FIVE_STEPS = 0.923, 0.66
"""Printed for (0.9, 0.95)."""
NO_MOMENTUM = (0.0, 0.95)
USERS = [(0.9, 0.999), (0.9, 0.95)]
RATES = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2]
OTHERS = [
    *((0.01, *decays, 1e-8) for decays in DECAYS[2:]),
    *((0.01, *decays, eps) for decays in USERS for eps in (0.0, 1e-5)),
]
NETWORKS = [*((rate, *decays, 1e-8) for decays in USERS for rate in RATES), *OTHERS]
"""Learning rate, β1, β2 and Adam's ε."""
PASSES = (1, 2, 4, 8, 16)
PAIR_PASSES = (1, 4, 16, 64)
PAIR_RATES = np.logspace(-4, 0, 13)
OPTIMIZERS = {
    "SGD": gj.SGD(learning_rate=0.05),
    "RMSProp": RMSProp(learning_rate=0.02),
    "heavy ball": HeavyBall(learning_rate=0.006),
    "Adam": gj.AdamW(learning_rate=0.02, weight_decay=0.0),
    "AdamW": gj.AdamW(learning_rate=0.02, weight_decay=0.1),
    "Lion": Lion(learning_rate=0.02),
}
IDLE = {
    "momentum (0.9, 0.999)": (0.9, 0.999, 0.0),
    "momentum (0.9, 0.95)": (0.9, 0.95, 0.0),
    "weight decay": (0.0, 0.999, 0.1),
    "neither": (0.0, 0.999, 0.0),
}
"""β1, β2 and weight decay on batches where every group ties."""


def worded(rate: float, b1: float, b2: float, eps: float) -> str:
    """A setting in words.

    >>> worded(0.01, 0.9, 0.95, 1e-5)
    '(0.9, 0.95), ε 1e-05, rate 0.01'
    """
    return f"({b1:g}, {b2:g}){'' if eps == 1e-8 else f', ε {eps:g}'}, rate {rate:g}"


def through(seed: int, size: Any) -> xr.Dataset:
    """One batch of the pair under each optimizer: the right answer's ratio, updates and slopes."""
    config = pair(loop=gj.Loop(group_size=64, inner_steps=LONG))
    data = gj.sweep(
        config, variants={"optimizer": OPTIMIZERS}, seeds=size.seeds, iterations=1, record=[], root=seed,
        measure={"winner": RATIOS["winner"], **STEPS},
    )  # fmt: skip
    return in_steps(data[["winner", *STEPS]].isel(context=0, row=0, coordinate=0, drop=True))


def pairs(seed: int, size: Any) -> xr.DataArray:
    """What users meet on the pair: the right answer's ratio after passes over one batch, with AdamW."""
    config = pair(
        optimizer=gj.AdamW(learning_rate=0.02, weight_decay=0.01),
        loop=gj.Loop(group_size=8, inner_steps=PAIR_PASSES[-1] + 1),
    )
    axes = {
        ("optimizer.b1", "optimizer.b2"): {str(decays): decays for decays in USERS},
        "optimizer.learning_rate": PAIR_RATES,
    }
    data = gj.sweep(
        config,
        axes,
        seeds=size.seeds,
        iterations=1,
        record=[],
        root=seed,
        measure={"winner": RATIOS["winner"]},
    )
    return after(data, PAIR_PASSES).winner.rename(
        {"optimizer.b1+optimizer.b2": "decays", "optimizer.learning_rate": "rate"}
    )


def networks(seed: int, size: Any) -> xr.Dataset:
    """The network's second batch, the first one's momentum along: ratios after passes, in float32."""
    axes = {ADAM: {worded(*setting): setting for setting in NETWORKS}}
    with jax.enable_x64(False):
        data = gj.sweep(
            network(passes=PASSES[-1] + 1), axes, seeds=size.seeds, iterations=2, record=[], root=seed,
            measure=RATIOS,
        )  # fmt: skip
    return after(data, PASSES)[list(RATIOS)].rename({"+".join(ADAM): "setting"})


def after(data: xr.Dataset, passes: tuple[int, ...]) -> xr.Dataset:
    """The last batch after some passes; a step looks where its gradient is taken, before it."""
    last = data.isel(iteration=-1, drop=True).isel(inner_step=list(passes))
    last = last.rename(inner_step="passes").assign_coords(passes=list(passes))
    return last.drop_vars([name for name in last.coords if name not in last.dims])


def idle(seed: int, size: Any) -> xr.DataArray:
    """Total variation moved by batches on which every group ties, after 12 live ones."""

    @measure()
    def right(view: View) -> jax.Array:
        return view.probabilities[0, 0]

    runs = np.repeat(np.array(list(IDLE.values())), size.seeds, 0)
    b1, b2, decay = (jnp.asarray(column) for column in runs.T)
    config = pair(optimizer=gj.AdamW(learning_rate=0.02, b1=b1, b2=b2, weight_decay=decay))
    state = train.init(config, np.tile(np.arange(size.seeds), len(IDLE)), root=seed)
    state, _ = train.run(config, state, iterations=12, record=[])
    tied = dataclasses.replace(config, task=gj.Questions(table=np.ones((1, 2))))
    _, seen = train.run(tied, state, iterations=COAST, record=[], measure={"right": right}, record_start=True)
    moved = xr.DataArray(np.asarray(abs(seen["right"][-1] - seen["right"][0])), dims="run")
    causes, seeds = np.repeat(list(IDLE), size.seeds), np.tile(np.arange(size.seeds), len(IDLE))
    labelled = moved.assign_coords(cause=("run", causes), seed=("run", seeds))
    return labelled.set_index(run=("cause", "seed")).unstack("run")


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Factors, ways through the clip, what users meet, and batches where every group ties."""
    return {
        "factors": factors(seed),
        "late": late(seed),
        "through": through(seed, size),
        "pairs": xr.Dataset({"ratio": pairs(seed, size)}),
        "networks": networks(seed, size),
        "small": xr.Dataset({"tree": branches(seed), "idle": idle(seed, size)}),
    }


def limits(found: xr.Dataset) -> xr.DataArray:
    """(β1/√β2)^(k+1) for the pairs of decays measured late."""
    rows = [coasting_rate(*decays) ** (found.k.values + 1) for decays in STEADY]
    return xr.DataArray(np.array(rows), {"decays": [str(decays) for decays in STEADY], "k": found.k.values})


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """Late factors against their limit; the arithmetic; what stops and what does not."""
    found, path = data["factors"], data["through"]
    told = found.ratio.notnull()
    gaps = abs(found.ratio - found.expected).where(told, 0)
    claim.requires("pair: measured factor - C_{T,k}", worst(gaps, tolerance=1e-9))
    gaps = data["late"].ratio - data["late"].expected
    claim.requires("pair, late: measured factor - C_{T,k}", worst(gaps.fillna(0), tolerance=1e-9))
    for variant in data["small"].variant.values:
        error = Number(float(data["small"].tree.sel(variant=variant)), 0.0, 1e-9)
        if variant == "weight decay":
            claim.reports("tree, weight decay: measured factor - C_{T,k}", error)
        else:
            claim.requires(f"tree, {variant}: measured factor - C_{{T,k}}", error)
    late = data["late"].ratio
    gaps = late.mean("seed") - limits(data["late"])
    for decays in STEADY:
        counted = Number(
            float(late.sel(decays=str(decays)).notnull().sum("seed").min()), 2, relation="at least"
        )
        claim.requires(f"{decays}: runs with a late factor, of {FEW}", counted)
        number = worst(gaps.sel(decays=str(decays), drop=True), tolerance=0.005)
        claim.refutes(f"{decays}, after {LATE} live steps: factor - (β1/√β2)^(k+1)", number)
    first = found.ratio.where((found.k == 0) & (found.live == found.live.where(told).min()))
    for decays in DECAYS:
        early = Number(float(first.sel(decays=str(decays)).min()))
        claim.reports(f"{decays}: smallest factor after one clipped step, early", early)
        claim.reports(f"{decays}: late travel in live steps", Number(float(coasting_travel(*decays))))
    far = travel(path)
    onwards = {}
    for name in ("Adam", "AdamW"):
        onwards[name] = mean(far.sel(optimizer=name), expected=1.0, relation="at least")
        claim.refutes(f"{name}: travel past the clip, in live steps", onwards[name])
    adam = onwards["Adam"]
    claim.finds(
        f"With Adam at (0.9, 0.999) the policy goes {adam.value:.1f} live steps past the clip in "
        f"{COAST} updates on zero gradient; late in training it is {float(coasting_travel(0.9, 0.999)):.1f}.",
        when=adam,
    )
    judge_printed(claim)
    judge_optimizers(path, far, claim)
    judge_growth(found, claim)
    judge_users(data, claim)
    judge_idle(data["small"].idle, claim)


def judge_printed(claim: Claim) -> None:
    """The two printed numbers against the limit of C_{T,k}."""
    row = claim.also("The decay at (0.9, 0.95) is 0.923 after one step and 0.66 after five.")
    rate, numbers = float(coasting_rate(0.9, 0.95)), {}
    for k, (printed, margin) in {0: (ONE_STEP, 5e-4), 4: (FIVE_STEPS, 5e-3)}.items():
        numbers[k] = Number(rate ** (k + 1), printed, margin)
        row.refutes(f"(β1/√β2)^{k + 1}", numbers[k])
    row.finds(
        f"It is {numbers[0].value:.3f} after one step and {numbers[4].value:.3f} after five.",
        when=numbers[0].holds is True and numbers[4].holds is False,
    )


def judge_growth(found: xr.Dataset, claim: Claim) -> None:
    """Beyond β1 = √β2 updates on zero gradient grow."""
    row = claim.ours("On zero gradient Adam's updates shrink where β1 ≤ √β2 and grow where β1 > √β2.")
    for decays in DECAYS:
        here = found.sel(decays=str(decays))
        if decays in STEADY:
            greatest = Number(float(here.ratio.max()), 1.0, 1e-9, relation="at most")
            row.refutes(f"{decays}: greatest factor", greatest)
            continue
        for k in (0, NINE, COAST - 1):
            ratio, live = here.ratio.where(here.k == k), here.live.where(here.k == k)
            number = Number(float(ratio.min()), 1.05, relation="at least")
            told = f"{decays}: least factor after {k + 1} updates on zero gradient"
            (row.refutes if k == NINE else row.reports)(told, number)
            row.reports(f"{told}: live steps before, at most", Number(float(live.max())))
            row.finds(
                f"At {decays} the {k + 1}th update on zero gradient is {number.value:.2f} of the last live "
                f"one, early: {float(live.max()):.0f} live steps came before, at most.",
                when=k == NINE and number.holds is True,
            )


def travel(path: xr.Dataset) -> xr.DataArray:
    """Updates after the last live gradient, COAST of them, in units of the last live update."""
    last = path.step.where(path.slope != 0).max("step")
    coast = path.change.where((path.step > last) & (path.step <= last + COAST), 0).sum("step")
    return coast / path.change.where(path.step == last, 0).sum("step")


def judge_optimizers(path: xr.Dataset, far: xr.DataArray, claim: Claim) -> None:
    """What an optimizer does past the clip follows from its rule."""
    k = np.arange(COAST)
    live = int((path.slope.sel(optimizer="Adam", seed=0) != 0).sum())
    expected = {
        "SGD": 0.0,
        "RMSProp": 0.0,
        "heavy ball": float(heavy_ball_coasting(0.9, k=k).sum()),
        "Adam": float(coasting(0.9, 0.999, live=live, k=k).sum()),
        "Lion": float(COAST),
    }
    numbers = []
    for name, steps in expected.items():
        numbers.append(mean(far.sel(optimizer=name), expected=steps, tolerance=1e-3))
        claim.requires(f"{name}: travel in {COAST} updates, by its rule", numbers[-1])
    claim.finds(
        f"In {COAST} updates on zero gradient heavy ball goes {expected['heavy ball']:.1f} live steps on, "
        f"Lion {expected['Lion']:.0f}; SGD and RMSProp stop at once.",
        when=numbers,
    )


def judge_users(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """How far ratios go for a pair of answers and for a network, with momentum and without."""
    row = claim.ours(
        f"At a learning rate of 0.01 AdamW carries ratios of a small network past a clip at {1 + CLIP:g} "
        "within 8 passes, without momentum (β1 = 0) as far as with it; at 1e-4 16 passes do not reach it."
    )
    found = data["networks"]
    numbers = {}
    for setting in found.setting.values:
        here = found.sel(setting=setting)
        for passes in PASSES:
            ratio = mean(here.winner.sel(passes=passes))
            told = f"network, {setting}, {passes} passes: greatest ratio"
            judged = setting in judged_settings()
            if judged and setting.endswith("rate 0.01") and passes == 8:
                numbers[setting] = dataclasses.replace(ratio, expected=1 + CLIP, relation="at least")
                row.refutes(told, numbers[setting])
            elif judged and setting.endswith("rate 0.0001") and passes == PASSES[-1]:
                row.refutes(told, dataclasses.replace(ratio, expected=1 + CLIP, relation="at most"))
            else:
                row.reports(told, ratio)
        for name, words in {"loser": "least ratio", "held": "share of tokens held"}.items():
            row.reports(
                f"network, {setting}, {PASSES[-1]} passes: {words}", mean(here[name].sel(passes=PASSES[-1]))
            )
        row.reports(f"network, {setting}: mean log ratio of one step", mean(here.moved.sel(passes=1)))
    usual, still = (worded(0.01, *decays, 1e-8) for decays in ((0.9, 0.95), NO_MOMENTUM))
    less = found.winner.sel(setting=usual) - found.winner.sel(setting=still)
    for passes in PASSES:
        number = mean(less.sel(passes=passes), expected=0.0, tolerance=CLIP)
        told = f"network, (0.9, 0.95) less {NO_MOMENTUM}, rate 0.01, {passes} passes: greatest ratio"
        if passes == 8:
            numbers["paired"] = number
            row.refutes(told, number)
        else:
            row.reports(told, number)
    ratio = data["pairs"].ratio
    for decays, passes in itertools.product(ratio.decays.values, (16, 64)):
        here = ratio.sel(decays=decays, passes=passes)
        for rate in (1e-3, 1e-2, 1e-1, 1.0):
            told = f"pair, {decays}, {passes} passes: ratio at rate {rate:g}"
            row.reports(told, mean(here.sel(rate=rate, method="nearest")))
    row.finds(
        f"After 8 passes at 0.01 the greatest ratio of a batch is {numbers[usual].value:.2f} under a clip at "
        f"{1 + CLIP:g}, and {numbers[still].value:.2f} without momentum: a network "
        "overshoots as far without.",
        when=numbers.values(),
    )


def judged_settings() -> set[str]:
    """What users run."""
    usual = {worded(rate, *decays, 1e-8) for decays in USERS for rate in (1e-4, 1e-2)}
    return usual | {worded(0.01, *NO_MOMENTUM, 1e-8)}


def judge_idle(moved: xr.DataArray, claim: Claim) -> None:
    """Batches without a signal."""
    row = claim.ours(
        "Batches on which every group ties still move the policy, by momentum and by weight decay."
    )
    row.requires("neither: total variation moved", worst(moved.sel(cause="neither")))
    numbers = {}
    for cause in list(IDLE)[:3]:
        least = 0.001 if cause == "weight decay" else 0.05
        numbers[cause] = mean(moved.sel(cause=cause), expected=least, relation="at least")
        row.refutes(f"{cause}: total variation moved by {COAST} tied batches", numbers[cause])
    first, decay = (numbers[cause].value for cause in ("momentum (0.9, 0.999)", "weight decay"))
    row.finds(
        f"{COAST} tied batches after 12 live ones move a pair of answers by {first:.3f} in probability "
        f"through momentum, by {decay:.3f} through a weight decay of 0.1 alone.",
        when=numbers.values(),
    )


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """The factors after the clip, measured and predicted, with the printed numbers."""
    figure.set_size_inches(7, 3.4)
    left, right = plotting.panels(figure, 1, 2)
    late = data["late"].ratio.mean("seed")
    k = np.arange(COAST // 2)
    for decays, color in zip(STEADY, plotting.COLORS, strict=False):
        left.plot(k + 1, coasting_rate(*decays) ** (k + 1), color=color, label=str(decays))
        plotting.points(left, late.k.values + 1, late.sel(decays=str(decays)).values, color=color)
    left.plot([1, 5], [ONE_STEP, FIVE_STEPS], "k*", ms=7, label="printed", zorder=5)
    left.set(ylim=(-0.05, 1.05), xlabel="updates on zero gradient", ylabel="update / last live update")
    left.set_xticks([1, 5, 10, 15, 20])
    left.set_title(f"Points: after {LATE} steps. Lines: (β1/√β2)^(k+1)")
    left.legend(title="(β1, β2)")
    path = data["through"].winner
    for name, color in zip(OPTIMIZERS, plotting.COLORS, strict=False):
        ratio = path.sel(optimizer=name).mean("seed")
        steps = ratio.step - int((ratio > 1 + CLIP).argmax("step")) - 1
        inside = (steps >= -8) & (steps <= COAST)
        right.plot(steps[inside], ratio[inside], color=color, label=name)
    right.axhline(1 + CLIP, color="0.3", ls=":")
    right.set(xlabel="steps after the last live gradient", ylabel="ratio of the right answer")
    right.set_title(f"One batch, clip at {1 + CLIP:g}: who stops?")
    right.legend()
    figure.suptitle("Adam's momentum carries the policy past the clip; SGD and RMSProp stop")
