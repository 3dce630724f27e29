"""Clipping stops the gradient, not Adam: momentum pushes the policy on beyond the clip, by updates that
shrink as (β1/√β2)^(k+1) of the last live one, at (0.9, 0.95) to 0.923 after one clipped step and 0.66
after five.

[B] abstract (iii), Propositions 3 and 7. T is Adam's count at the first step on zero gradient, k = 0 that
step; C_{T,k} = β1^{k+1} (1 - β1^{T-1})/(1 - β1^{T+k}) √((1 - β2^{T+k})/(β2^{k+1} (1 - β2^{T-1}))), exact
at ε = 0 without weight decay, tends to (β1/√β2)^(k+1). A pair of answers that reach their clip together,
a first and a second batch of many steps; a sequence tree, whose unvisited prefixes have no gradient,
alone, with weight decay, with a schedule and with clipped norms; a small network.

Refuted if Adam or AdamW do not go on by one live step at least past the clip, if the measured late factor
at (0.9, 0.95) is not 0.923 (± 0.0005) after one step or 0.66 (± 0.005) after five, or if a factor exceeds 1
where β1 ≤ √β2. Qualified if one exceeds 1 where β1 > √β2, a condition that is not stated. Our own
arithmetic, that measured factors are C_{T,k} (1e-9), and that SGD and RMSProp stop at once, are checks of
the instrument.
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
from experiments.problems.past_the_clip import (
    ADAM,
    CLIP,
    RATE,
    RATIOS,
    STEPS,
    VARIANTS,
    coasted,
    in_steps,
    network,
    pair,
    tree,
)
from grpo_jax import plotting, train
from grpo_jax.measures import View, measure
from grpo_jax.optimizers import Adam, HeavyBall, Lion, RMSProp
from grpo_jax.theory.optimizer import coasting, coasting_rate, coasting_travel, heavy_ball_coasting

PRECISION = "float64"
SIZES = sizes(seeds=(16, 64, 256))

DECAYS = [(0.9, 0.95), (0.9, 0.999), (0.8, 0.99), (0.95, 0.999), (0.0, 0.95), (0.99, 0.9)]
ONE_STEP, FIVE_STEPS = 0.923, 0.66
"""Printed for (0.9, 0.95)."""
LONG, COAST = 72, 40
"""Steps on a batch, and updates on zero gradient that are added up."""
DRAWS = 16
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


def factors(seed: int) -> xr.Dataset:
    """The pair: factors after the clip in a first batch and in a second one, late in Adam's count."""
    config = pair(optimizer=Adam(learning_rate=0.01, eps=0.0), loop=gj.Loop(group_size=64, inner_steps=LONG))
    axes = {("optimizer.b1", "optimizer.b2"): {str(decays): decays for decays in DECAYS}}
    data = gj.sweep(config, axes, seeds=DRAWS, iterations=2, record=[], measure=STEPS, root=seed)
    data = data.rename({"optimizer.b1+optimizer.b2": "decays"})
    right = in_steps(data[list(STEPS)].isel(context=0, row=0, coordinate=0, drop=True))
    right["change"] = right.change / 0.01
    return coasted(right, data["optimizer.b1"], data["optimizer.b2"]).drop_vars(
        ("optimizer.b1", "optimizer.b2"), errors="ignore"
    )


def branches(seed: int) -> xr.DataArray:
    """The tree: greatest |factor - C_{T,k}| of any coordinate by variant."""
    paths = ("inner.weight_decay", "learning_rate.end", "max_norm")
    data = gj.sweep(
        tree(), {paths: VARIANTS}, seeds=DRAWS, iterations=30, record=[], measure=STEPS, root=seed
    )
    steps = in_steps(data[list(STEPS)].rename({"+".join(paths): "variant"}))
    ends = [dataclasses.replace(RATE, end=end) for _, end, _ in VARIANTS.values()]
    rates = np.array([[float(rate(jnp.asarray(step - 1.0))) for step in steps.step.values] for rate in ends])
    labels = {"variant": list(VARIANTS), "step": steps.step.values}
    steps["change"] = steps.change / xr.DataArray(rates, labels)
    found = coasted(steps, 0.9, 0.999)
    return abs(found.ratio - found.expected).max(("context", "row", "coordinate", "step", "seed"))


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
        "through": through(seed, size),
        "pairs": xr.Dataset({"ratio": pairs(seed, size)}),
        "networks": networks(seed, size),
        "small": xr.Dataset({"tree": branches(seed), "idle": idle(seed, size)}),
    }


def at(factors: xr.Dataset, k: int) -> xr.DataArray:
    """Factors after k + 1 updates on zero gradient in the second batch, once in every run that is clipped."""
    late = (factors.k == k) & (factors.step > LONG)
    return factors.ratio.where(late).mean("step")


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """The printed numbers against measured factors; the arithmetic; what stops and what does not."""
    found, path = data["factors"], data["through"]
    told = found.ratio.notnull()
    gaps = abs(found.ratio - found.expected).where(told, 0)
    claim.requires("pair: measured factor - C_{T,k}", worst(gaps, tolerance=1e-9))
    for variant in data["small"].variant.values:
        error = Number(float(data["small"].tree.sel(variant=variant)), 0.0, 1e-9)
        if variant == "weight decay":
            claim.reports("tree, weight decay: measured factor - C_{T,k}", error)
        else:
            claim.requires(f"tree, {variant}: measured factor - C_{{T,k}}", error)
    late = {k: at(found, k).sel(decays=str(DECAYS[0])).dropna("seed") for k in (0, 4)}
    one = mean(late[0], expected=ONE_STEP, tolerance=5e-4)
    five = mean(late[4], expected=FIVE_STEPS, tolerance=0.005)
    claim.refutes("(0.9, 0.95), late: update after one clipped step over the last live one", one)
    claim.refutes("(0.9, 0.95), late: after five clipped steps", five)
    first = found.ratio.where((found.k == 0) & (found.live == found.live.where(told).min()))
    claim.reports("smallest factor after one clipped step, early", Number(float(first.min())))
    for decays in DECAYS:
        greatest = Number(float(found.ratio.sel(decays=str(decays)).max()), 1.0, 1e-9, relation="at most")
        name = f"{decays}: greatest factor"
        if decays[0] <= decays[1] ** 0.5:
            claim.refutes(name, greatest)
        else:
            only = "where β1 ≤ √β2: beyond, Adam accelerates on zero gradient"
            claim.qualifies(name, greatest, only=only)
        claim.reports(f"{decays}: late travel in live steps", Number(float(coasting_travel(*decays))))
    far = travel(path)
    for name in ("Adam", "AdamW"):
        on = mean(far.sel(optimizer=name), expected=1.0, relation="at least")
        claim.refutes(f"{name}: travel past the clip, in live steps", on)
    for name in ("SGD", "RMSProp"):
        claim.requires(f"{name}: travel past the clip", worst(far.sel(optimizer=name)))
    claim.finds(
        f"Measured at (0.9, 0.95), the first clipped step still moves the policy by {one.value:.3f} of the "
        f"last live one, the fifth by {five.value:.3f}, not by the printed {FIVE_STEPS:g} (0.92 to the "
        "fifth).",
        when=one.holds is True and five.holds is False,
    )
    adam = far.sel(optimizer="Adam").mean()
    claim.finds(
        f"With Adam at (0.9, 0.999) the policy goes {float(adam):.1f} live steps past the clip before it "
        "rests.",
        when=float(adam) > 1,
    )
    judge_optimizers(path, far, claim)
    judge_users(data, claim)
    judge_idle(data["small"].idle, claim)


def travel(path: xr.Dataset) -> xr.DataArray:
    """Updates after the last live gradient, COAST of them, in units of the last live update."""
    last = path.step.where(path.slope != 0).max("step")
    coast = path.change.where((path.step > last) & (path.step <= last + COAST), 0).sum("step")
    return coast / path.change.where(path.step == last, 0).sum("step")


def judge_optimizers(path: xr.Dataset, far: xr.DataArray, claim: Claim) -> None:
    """What an optimizer does past the clip follows from its rule."""
    row = claim.ours(
        "What happens past the clip is the optimizer's rule: heavy ball goes β/(1 - β) live steps, Adam the "
        "sum of its C_{T,k}, Lion never stops."
    )
    k = np.arange(COAST)
    live = int((path.slope.sel(optimizer="Adam", seed=0) != 0).sum())
    expected = {
        "heavy ball": float(heavy_ball_coasting(0.9, k=k).sum()),
        "Adam": float(coasting(0.9, 0.999, live=live, k=k).sum()),
        "Lion": float(COAST),
    }
    for name, steps in expected.items():
        row.refutes(
            f"{name}: travel in {COAST} steps", mean(far.sel(optimizer=name), expected=steps, tolerance=1e-3)
        )
    row.finds(
        f"In {COAST} steps on zero gradient heavy ball goes {expected['heavy ball']:.1f} live steps on, Lion "
        f"{expected['Lion']:.0f}; SGD and RMSProp stop at once.",
        when=row.numbers.values(),
    )


def judge_users(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """How far ratios go for a pair of answers and for a network."""
    row = claim.ours(
        f"At a learning rate of 0.01 AdamW carries ratios of a small network past a clip at {1 + CLIP:g} "
        "within 8 passes; at 1e-4 16 passes do not reach it."
    )
    found = data["networks"]
    for setting in found.setting.values:
        here = found.sel(setting=setting)
        for passes in PASSES:
            ratio = mean(here.winner.sel(passes=passes))
            told, judged = (
                f"network, {setting}, {passes} passes: greatest ratio",
                setting in judged_settings(),
            )
            if judged and setting.endswith("rate 0.01") and passes == 8:
                row.refutes(told, dataclasses.replace(ratio, expected=1 + CLIP, relation="at least"))
            elif judged and setting.endswith("rate 0.0001") and passes == PASSES[-1]:
                row.refutes(told, dataclasses.replace(ratio, expected=1 + CLIP, relation="at most"))
            else:
                row.reports(told, ratio)
        for name, words in {"loser": "least ratio", "held": "share of tokens held"}.items():
            row.reports(
                f"network, {setting}, {PASSES[-1]} passes: {words}", mean(here[name].sel(passes=PASSES[-1]))
            )
        row.reports(f"network, {setting}: mean log ratio of one step", mean(here.moved.sel(passes=1)))
    ratio = data["pairs"].ratio
    for decays, passes in itertools.product(ratio.decays.values, (16, 64)):
        here = ratio.sel(decays=decays, passes=passes)
        for rate in (1e-3, 1e-2, 1e-1, 1.0):
            told = f"pair, {decays}, {passes} passes: ratio at rate {rate:g}"
            row.reports(told, mean(here.sel(rate=rate, method="nearest")))
    usual = found.winner.sel(setting=worded(0.01, *USERS[0], 1e-8)).mean("seed")
    row.finds(
        f"After 8 passes at 0.01 the greatest ratio of a batch is {float(usual.sel(passes=8)):.2f}, after 16 "
        f"{float(usual.sel(passes=16)):.2f}, under a clip at {1 + CLIP:g}.",
        when=bool(usual.sel(passes=8) > 1 + CLIP),
    )


def judged_settings() -> set[str]:
    """What users run."""
    return {worded(rate, *decays, 1e-8) for decays in USERS for rate in (1e-4, 1e-2)}


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
    found = data["factors"]
    for decays, color in zip(DECAYS, plotting.COLORS, strict=False):
        here = xr.concat([at(found, k).sel(decays=str(decays)).mean("seed") for k in range(COAST)], "k")
        k = np.arange(COAST)
        left.plot(k + 1, coasting_rate(*decays) ** (k + 1), color=color, label=str(decays))
        plotting.points(left, k[::3] + 1, here[::3], color=color)
    left.plot([1, 5], [ONE_STEP, FIVE_STEPS], "k*", ms=7, label="printed", zorder=5)
    left.set(ylim=(-0.05, 2.6), xlabel="updates on zero gradient", ylabel="update / last live update")
    left.set_title("Points: measured late. Lines: (β1/√β2)^(k+1)")
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
