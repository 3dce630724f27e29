"""GRPO's stationary policies satisfy [1 - (P_G(o | π) - E_π P_G(o' | π))/β] π(o) = π_ref(o) wherever π(o) >
0, and there P_G(o | π) < E_π P_G(o' | π) + β.

[A] (arXiv:2502.18548v3), (11). On-policy (one step a batch), no clip; 3 to 8 answers, groups of
2 to 32, rewards fixed, coin flips, and dice that beat each other in a circle.

Refuted if a policy where exact ascent ends, from starts all over the simplex, leaves (11) by 1e-6 or the
bound at all, or if sampled SGD, extrapolated to learning rate zero, is not within 0.01 of the root of (11)
(99.9 % intervals, every group size by itself). Qualified if AdamW is not, every β2 and every weight decay by
itself. That the solver's root satisfies (11) to 1e-10 is a check of the instrument.

Of our rows the slopes in the rate may miss the predicted ones by a quarter in pairs and by half in larger
groups. Many inner steps: refuted if training settles anywhere where the root's multiplier is below -1.05, if
it does not on more than 5 % of the map where it is above -0.95, or if no more than half of the settings that
never settle go to and fro between two policies. This last rule was drawn up after a first quick run, of 60
batches, in which slow decays and rounds longer than two batches broke a simpler one (95 % of the map as
predicted, to and fro everywhere); the full map has other settings.
"""

from typing import Any

import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.formulas.inner_steps import multiplier
from experiments.formulas.step_noise import adam_limit, ask, rest, sgd_slope
from experiments.harness.numbers import Number, extrapolated, furthest, interval, mean, tabulated, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems.answers import BURN, EVERY, pairs, question
from experiments.problems.fixed_points import CASES, ascended
from grpo_jax import plotting
from grpo_jax.theory.counts import number_of_histograms

PRECISION = "float64"
SIZES = sizes(
    cases=(2, 3, 4),
    questions=(2, 8, 64),
    seeds=(64, 384, 1024),
    iterations=(3000, 3000, 12000),
    points=(8, 15, 30),
)

REWARDS, REFERENCE, BETA = np.array([1.0, 0.5, 0.0]), np.array([0.05, 0.25, 0.7]), 0.5
"""The question of the sampled runs and of the paths that are drawn."""
GROUPS, SGD_RATES, ADAM_RATES = [2, 8, 32], [0.05, 0.1, 0.2, 0.4], [0.02, 0.04, 0.08]
ADAM = {
    "β2 = 0.9": (0.9, 0.0),
    "β2 = 0.99": (0.99, 0.0),
    "β2 = 0.999": (0.999, 0.0),
    "weight decay 0.03": (0.99, 0.03),
    "weight decay 0.1": (0.99, 0.1),
    "weight decay 0.3": (0.99, 0.3),
}
"""β2 and weight decay of AdamW."""
TRAVEL, INNER, BATCHES = [4.0, 16.0, 64.0], 128, 300
"""Inner steps times their rate; inner steps a batch and batches."""
MARGIN = 0.01
WRONG = {2: 0.25, 8: 0.5, 32: 0.5}
"""By which share a slope in the rate may miss its prediction; larger groups' are too small for less."""
STILL = 1e-3
"""A policy that swings by less has settled."""
SLOW = 0.05
"""So near to -1 a multiplier changes too slowly to tell (0.95 to the power of 300 is 2e-7)."""
BACK = 0.1
"""A policy that after two batches has changed by a smaller share of its swing goes to and fro."""


def averages(config: gj.Config, axes: dict[Any, Any], size: Any, seed: int, **variants: Any) -> xr.DataArray:
    """Mean policies over sampled runs but for their burn-in."""
    data = gj.sweep(
        config, {"kl_coef": [BETA], **axes}, variants=variants, seeds=size.seeds, iterations=size.iterations,
        root=seed, record=["probabilities"], record_every=EVERY, average_from=BURN,
    )  # fmt: skip
    return data.probabilities.squeeze(["context", "kl_coef"], drop=True)


def sampled(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Sampled runs from π_ref, SGD for every group size, AdamW with pairs; where they should settle."""
    common: dict[str, Any] = {
        "rewards": REWARDS,
        "reference": REFERENCE,
        "group_size": 2,
        "expectation": None,
    }
    sgd = averages(question(**common), {"learning_rate": SGD_RATES}, size, seed, group_size=GROUPS)
    config = question(**common, optimizer=gj.AdamW(learning_rate=0.02))
    adam = averages(config, {("b2", "weight_decay"): ADAM, "learning_rate": ADAM_RATES}, size, seed)
    rows = number_of_histograms(max(GROUPS), len(REWARDS))
    asked = [ask(REWARDS, REFERENCE, BETA, group, rows=rows) for group in GROUPS]
    roots = [np.asarray(rest(one)) for one in asked]
    slopes = [sgd_slope(one, root) for one, root in zip(asked, roots, strict=True)]
    rests = [adam_limit(asked[0], roots[0], b1=0.9, b2=b2, weight_decay=decay) for b2, decay in ADAM.values()]
    adam = adam.rename({"b2+weight_decay": "setting"}).drop_vars(["b2", "weight_decay"])
    return {
        "SGD": xr.Dataset(
            {
                "average": sgd,
                "root": (("group_size", "output"), roots),
                "slope": (("group_size", "output"), slopes),
            }
        ),
        "AdamW": xr.Dataset(
            {"average": adam, "root": ("output", roots[0]), "rest": (("setting", "output"), rests)}
        ),
    }


def inner(points: int) -> xr.Dataset:
    """Many inner steps: how much π(a) varies in the last ten batches, and every other one; the multiplier."""
    references, strengths = np.geomspace(0.002, 0.9, points), np.linspace(0.1, 3.0, points)
    loop = gj.Loop(group_size=2, inner_steps=INNER)
    config = question([1.0, 0.0], group_size=2, loop=loop)
    axes = {
        "learning_rate": {travel: travel / INNER for travel in TRAVEL},
        "reference": pairs(references),
        "kl_coef": strengths,
    }
    data = gj.sweep(config, axes, iterations=BATCHES, record=["probabilities"])
    late = data.probabilities.isel(context=0, output=0, seed=0, drop=True).sel(
        iteration=slice(BATCHES - 9, None)
    )
    swing = (late.max("iteration") - late.min("iteration")).rename(learning_rate="travel", kl_coef="strength")
    told = tabulated(
        lambda travel, r, b: multiplier(r, b, travel),
        travel=TRAVEL,
        reference=references.tolist(),
        strength=strengths.tolist(),
    )
    back = abs(late - late.shift(iteration=2)).max("iteration")
    back = back.rename(learning_rate="travel", kl_coef="strength")
    return xr.Dataset({"swing": swing, "back": back, "multiplier": told})


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Exact ascent of random questions, sampled runs, their predictions, the map of many inner steps."""
    drawn = {"reference": REFERENCE, "beta": BETA, "table": REWARDS, "rate": 0.25}
    first, *others = list(CASES)[: size.cases]
    made, paths = ascended(first, size.questions, seed, last=drawn, every=2)
    return {
        first: made,
        **{case: ascended(case, size.questions, seed)[0] for case in others},
        "path": paths.isel(question=-1, drop=True).to_dataset(name="path"),
        **sampled(seed, size),
        "inner": inner(size.points),
    }


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """(11) and the bound where training ends, exact and sampled; then what training adds to (11)."""
    unique = claim.ours("From every start on the simplex exact ascent ends at one policy.")
    for case in [case for case in CASES if case in data]:
        made = data[case]
        claim.requires(f"{case}: (11) at the solver's root", worst(made.root_gap, tolerance=1e-10))
        claim.refutes(f"{case}: (11) where exact ascent ends", worst(made.gap, tolerance=1e-6))
        claim.refutes(f"{case}: least β + E P_G - P_G(o)", worst(made.slack, relation="at least"))
        unique.refutes(
            f"{case}: exact ascent - solver's root", worst(made.ended, expected=made.root, tolerance=1e-6)
        )
    runs = sum(data[case].gap.size for case in CASES if case in data)
    unique.finds(
        f"{runs} runs, from beside every corner of the simplex, end where (11) has its root.",
        when=list(unique.numbers.values()),
    )
    sgd, adam = data["SGD"], data["AdamW"]
    at_zero, slope = extrapolated(sgd.average)
    for group in GROUPS:
        gap = furthest(at_zero.sel(group_size=group), sgd.root.sel(group_size=group), tolerance=MARGIN)
        claim.refutes(f"SGD, G = {group}: sampled, extrapolated - root", gap)
    adam_at_zero, _ = extrapolated(adam.average)
    gaps = {name: furthest(adam_at_zero.sel(setting=name), adam.root, tolerance=MARGIN) for name in ADAM}
    lost = {decay: gaps[name] for name, (_, decay) in ADAM.items() if decay and gaps[name].holds is False}
    less = f"with weight decay below {min(lost):g}" if lost else "without weight decay"
    for name, (b2, decay) in ADAM.items():
        told = f"AdamW, {name}: sampled, extrapolated - root"
        claim.qualifies(told, gaps[name], only=less if decay else f"with β2 above {b2}")
    claim.finds(
        f"Sampled training without weight decay ends within {MARGIN} of the root of (11): under SGD for "
        "every group size, under AdamW in pairs, with β2 of .9 to .999.",
        when=[n for name, n in claim.numbers.items() if "SGD" in name or "β2" in name],
    )
    told = " and ".join(f"by {abs(gap.value):.2f} at {decay:g}" for decay, gap in lost.items())
    claim.finds(f"AdamW's weight decay moves a probability, in pairs, {told}.", when=bool(lost))
    judge_biases(slope, adam_at_zero, data, claim)
    judge_inner_steps(data["inner"], claim)


def judge_biases(
    slope: xr.DataArray, adam_at_zero: xr.DataArray, data: dict[str, xr.Dataset], claim: Claim
) -> None:
    """What an optimizer adds to (11)."""
    row = claim.ours(
        "What an optimizer adds to (11) follows from the law of a group's gradient: SGD a bias "
        "proportional to the rate, AdamW a rest of its own that stays at rate zero."
    )
    sgd, adam = data["SGD"], data["AdamW"]
    for group in GROUPS:
        told = float(sgd.slope.sel(group_size=group, output=0))
        found = mean(slope.sel(group_size=group, output=0), expected=told, tolerance=WRONG[group] * abs(told))
        row.refutes(f"SGD, G = {group}: slope of π(best) in the rate", found)
        row.reports(f"SGD, G = {group}: slope of π(best), predicted", Number(told))
    for name in ADAM:
        gap = furthest(adam_at_zero.sel(setting=name), adam.rest.sel(setting=name), tolerance=MARGIN)
        row.refutes(f"AdamW, {name}: sampled, extrapolated - predicted", gap)
        away = float((adam.rest - adam.root).sel(setting=name, output=0))
        row.reports(f"AdamW, {name}: predicted - root, best answer", Number(away))
    pair, large = (float(slope.sel(group_size=g, output=0).mean()) for g in (GROUPS[0], GROUPS[-1]))
    row.finds(
        "SGD's bias grows with the rate and falls with the group: per unit of rate the best answer's "
        f"probability loses {-pair:.3f} in pairs and {-large:.4f} in groups of {GROUPS[-1]}.",
        when=[number for name, number in row.numbers.items() if row.roles[name] == "refutes"],
    )


def judge_inner_steps(inner: xr.Dataset, claim: Claim) -> None:
    """Where many inner steps a batch destroy the stability of the root."""
    row = claim.ours(
        "In a region of small π_ref and β near γ many unclipped inner steps a batch destroy the root's "
        "stability: training never settles, and for most settings goes to and fro between two policies."
    )
    moving = inner.swing > STILL
    pairwise = moving & (inner.back < BACK * inner.swing)
    lost, kept = inner.multiplier < -1 - SLOW, inner.multiplier > -1 + SLOW
    beside = 0
    for travel in TRAVEL:
        here, told = moving.sel(travel=travel), f"{travel:g}/rate inner steps"
        unstable = lost.sel(travel=travel)
        settled = int((unstable & ~here).sum())
        caught = int((kept.sel(travel=travel) & here).sum())
        beside += caught
        if unstable.any():
            words = f"{told}: of {int(unstable.sum())} settings with an unstable root, settle"
            row.refutes(words, Number(settled, 0.0))
        share = caught / max(1, int(kept.sel(travel=travel).sum()))
        row.refutes(
            f"{told}: share that never settles where the root is stable",
            Number(share, 0.05, relation="at most"),
        )
        row.reports(f"{told}: share of the map that never settles", Number(float(here.mean())))
    most = TRAVEL[-1]
    where = moving.sel(travel=most)
    greatest = float(where.reference.where(where.any("strength")).max())
    near = bool(where.sel(strength=1.0, method="nearest").any())
    row.refutes("greatest π_ref that never settles", Number(greatest, 0.5, relation="at most"))
    row.refutes("some π_ref never settles at β nearest to γ", Number(float(near), 1.0))
    count = max(1, int(moving.sum()))
    between = Number(int(pairwise.sum()) / count, 0.5, relation="at least")
    row.refutes("of the settings that never settle, share that goes to and fro", between)
    row.finds(
        f"With {most:g}/rate inner steps a batch training never settles for some β, but only where π_ref is "
        f"{greatest:.2g} or less. Of all settings that never settle {between.value:.0%} go to and fro "
        "between two policies, the others in longer or irregular rounds"
        + (f"; {beside} of {count} round a root that is stable." if beside else "."),
        when=[number for name, number in row.numbers.items() if row.roles[name] == "refutes"],
    )


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """Exact ascent on the simplex, SGD's bias, where AdamW rests, and the map of many inner steps."""
    figure.set_size_inches(7.0, 6.0)
    triangle, rates, rests, cycles = plotting.panels(figure, 2, 2, height_ratios=(1, 1.1))
    draw_triangle(triangle, data["path"].path, data["SGD"].root.sel(group_size=8))
    draw_rates(rates, data["SGD"])
    draw_rests(rests, data["AdamW"])
    draw_cycles(cycles, data["inner"])
    figure.suptitle("Rate and weight decay move the root of (11); inner steps destabilise it")


def draw_triangle(axes: Any, path: xr.DataArray, root: xr.DataArray) -> None:
    """Paths of exact ascent from all starts."""
    order = [1, 2, 0]
    paths = path.sel(iteration=slice(0, 400)).isel(output=order).transpose("start", "iteration", "output")
    names = [f"reward {reward:g}" for reward in REWARDS[order]]
    marks = {"π_ref": REFERENCE[order], "root": root.values[order]}
    plotting.simplex(axes, paths=paths.values, points=marks, corners=names)
    axes.set_title("Exact ascent: a colour a start", loc="left")


def draw_rates(axes: Any, sgd: xr.Dataset) -> None:
    """Time averages of sampled SGD over the rate, and the predicted slopes."""
    line = np.array([0.0, 1.05 * max(SGD_RATES)])
    apart = interval(sgd.average - sgd.root).sel(output=0)
    for group, color in zip(GROUPS, plotting.COLORS, strict=False):
        here = apart.sel(group_size=group)
        axes.plot(
            line, line * float(sgd.slope.sel(group_size=group, output=0)), color=color, label=f"G = {group}"
        )
        plotting.points(axes, SGD_RATES, here.value, here.low, here.high, color=color)
    axes.set(xlabel="learning rate", ylabel="mean π(best) - root", xlim=(0, line[1]))
    axes.set_title("SGD: a bias ∝ rate (lines: predicted)", loc="left")


def draw_rests(axes: Any, adam: xr.Dataset) -> None:
    """Where AdamW rests at rate zero, and where it was predicted to."""
    found = interval(extrapolated(adam.average)[0] - adam.root).sel(output=0)
    rows = {name: found.sel(setting=name) for name in ADAM}
    plotting.intervals(axes, rows, expected=0.0, margin=MARGIN)
    told = (adam.rest - adam.root).sel(output=0)
    axes.plot(told, range(len(ADAM)), "o", ms=8, mfc="none", color=plotting.COLORS[1], label="predicted")
    axes.legend(loc="lower center")
    axes.set(xlabel="π(best) - root, sampled, G = 2, rate → 0")
    axes.set_title("AdamW: β2 and weight decay", loc="left")


def draw_cycles(axes: Any, inner: xr.Dataset) -> None:
    """Where many inner steps are predicted to cycle, and where they do."""
    r, b = np.meshgrid(np.geomspace(0.0015, 0.95, 150), np.linspace(0.03, 3.1, 150), indexing="ij")
    for travel, color in plotting.shades(TRAVEL).items():
        factor = multiplier(r, b, travel)
        axes.contour(b, r, factor, [-1], colors=[color], linestyles="solid")
        axes.plot([], [], color=color, label=f"{travel:g}" + ("" if factor.min() < -1 else ", nowhere"))
    most = inner.sel(travel=TRAVEL[-1]).stack(point=("reference", "strength"))
    moving, back = most.swing > STILL, most.back < BACK * most.swing
    looks = (
        (moving & back, "o", "to and fro at 64"),
        (moving & ~back, "x", "other rounds at 64"),
        (~moving, ".", "settles at 64"),
    )
    for chosen, marker, told in looks:
        here = most.isel(point=np.flatnonzero(chosen))
        size, fill = (2, None) if marker == "." else (4, "none")
        axes.plot(here.strength, here.reference, marker, ms=size, mfc=fill, color="0.4", ls="", label=told)
    axes.set(yscale="log", ylim=(0.0015, 1), xlabel="β/γ", ylabel="π_ref(a)")
    axes.legend(title="inner steps x rate", loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    axes.set_title("Inner steps: unstable inside lines", loc="left")
