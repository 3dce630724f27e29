"""(Davis and Recht.) "Several popular algorithms for reinforcement learning in large language models with
binary rewards can be viewed as stochastic gradient ascent on a monotone transform of the probability of a
correct answer"; the transformation "associated with the GRPO algorithm is the arcsine of the square root".

arXiv:2510.13651, read as an abstract. Dividing by σ ascends Σ_q w_G(p_q)∇p_q, w_G(p) = E√(K(G − K))/(G p(1 −
p)), K ~ Bin(G, p); the arcsine's weight is 1/√(p(1 − p)). Success rates from .05 to .95. Trees with whole
sequences, on-policy, constant token weights; for training ten prompts with logits of their own, SGD.

Refuted if in groups of 1024 w_G is not within 2 % of the arcsine's weight; qualified if in groups of 8, 16 or
64 it is not within 10 % of any multiple of it. The abstract says nothing of the group's size. In a row of its
own a sentence of tinker-cookbook 579: "large gradients" we read, kindly, as ones no smaller than that of a
question of one half; refuted if at .05 or .95 the expected update in log-odds, p(1 − p)w_G, is smaller in
groups of 64, qualified if smaller in groups of 8 or 16; weights without p(1 − p) are told. Ours: how many
times w_G's largest value over all success rates is its smallest, for rewards of 0 and 1: by sums over groups
√(G − 1)/w_G(1/2), by a thousandth, in groups of 2, 3, 8 and 64; and that in training, at equal effective
learning rates and at each one's best rate (equal samples), dividing by σ moves the mean success rate by at
most .02 at every moment of training in groups of 8 and 16. Checks of our instrument: the library's expected
update against all groups of 4 in NumPy, with each library's convention and with a verifier that errs (1e-10);
w_G against `theory`; in groups of 3 both handlings are one (control).
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.formulas import difficulty
from experiments.harness.numbers import Number, furthest, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems import difficulties
from grpo_jax import plotting, presets, theory
from grpo_jax.exact import expected_gradient
from grpo_jax.methods import SHIFT
from grpo_jax.parts.advantages import Normalized
from grpo_jax.parts.gains import Linear
from grpo_jax.parts.ratios import Score
from grpo_jax.parts.reductions import Constant
from grpo_jax.tasks import Bernoulli

PRECISION = "float64"
SIZES = sizes(seeds=(24, 96, 512), iterations=(60, 120, 400))

RATES = np.linspace(0.05, 0.95, 91)
GROUPS = [2, 3, 8, 16, 64, 1024]
USED = [8, 16, 64]
CONVENTIONS: dict[str, tuple[Any, difficulty.Rule]] = {
    "r − r̄": (SHIFT, difficulty.centred),
    "paper": (Normalized(), difficulty.divided),
    "TRL": (presets.trl().advantage, partial(difficulty.divided, ddof=1, added=1e-4)),
    "verl": (presets.verl().advantage, partial(difficulty.divided, ddof=1, added=1e-6)),
    "OpenRLHF": (presets.openrlhf().advantage, partial(difficulty.divided, ddof=1, added=1e-9)),
}
"""What the library computes, and the same by hand."""
BY_HAND: dict[str, difficulty.Rule] = {
    "open-instruct": partial(difficulty.divided, added=1e-8),
    "NeMo-RL": difficulty.without_own,
}
"""From the recorded formulas (open-instruct 0.3.0 with its option on; NeMo-RL 0.6.0, leave-one-out)."""
TRIED, FLIPS = 4, 0.1
"""Groups that are enumerated; how often the verifier errs, either way."""
SPACE = gj.Sequences(vocab=3, horizon=2, eos=2)
REWARDS = np.array(
    [[1, 0, 0, 0, 0, 0, 0], [0, 1, 0, 1, 0, 1, 1], [0, 0, 0, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1.0]]
)
"""Of unequal prompts, the last one tied."""
ENDS, ALIKE, LARGE, MOVED, THOUSANDTH = 1e-6, 0.1, 1.0, 0.02, 1e-3
LEARNING = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0]
"""Effective, of one prompt."""
CONTROL = 3
BATCH = [0.05, 0.35, 0.65, 0.95]
"""Prompts of a batch whose σ is that of all its rewards."""


def identities() -> xr.DataArray:
    """Largest gap of the library's update to all groups in NumPy and to w(p)∇p, by convention."""
    logits = np.random.default_rng(2).normal(size=(len(REWARDS), SPACE.offsets[-1], SPACE.vocab))
    found = np.zeros((2, 2, len(CONVENTIONS)))
    for j, (advantage, rule) in enumerate(CONVENTIONS.values()):
        for v, flips in enumerate((0.0, FLIPS)):
            table = REWARDS + flips * (1 - 2 * REWARDS)
            method = gj.Method(advantage=advantage, ratio=Score(), gain=Linear(),
                               reduction=Constant(length=1.0))  # fmt: skip
            config = gj.Config(
                policy=gj.TreePolicy(space=SPACE, logits=logits), method=method, expectation=gj.Exact(),
                task=gj.SequenceTable(space=SPACE, table=table, noise=Bernoulli()),
                loop=gj.Loop(group_size=TRIED),
            )  # fmt: skip
            moved = len(REWARDS) * np.asarray(expected_gradient(config, jnp.asarray(logits)))
            for row, rewards, update in zip(logits, REWARDS, moved, strict=True):
                p, slope = difficulty.slope(SPACE, row, rewards)
                seen = np.asarray(p + flips * (1 - 2 * p))
                told = 0.0 if seen >= 1 - ENDS else (1 - 2 * flips) * difficulty.weight_of(rule, seen, TRIED)
                found[0, v, j] = max(found[0, v, j], abs(update - told * slope).max())
                if flips == 0:
                    by_hand = difficulty.enumerated(SPACE, row, rewards, rule, TRIED)
                    found[1, v, j] = max(found[1, v, j], abs(update - by_hand).max())
    return xr.DataArray(
        found, {"against": ["w(p)∇p", "all groups"], "errs": [0.0, FLIPS], "rule": list(CONVENTIONS)}
    )


def weights() -> xr.Dataset:
    """w by convention, group size and success rate; of a batch's σ, and with a verifier that errs."""
    rules = {name: rule for name, (_, rule) in CONVENTIONS.items()} | BY_HAND
    ends = np.concatenate([[ENDS], RATES, [1 - ENDS]])
    found = [[difficulty.weight_of(rule, ends, g) for g in GROUPS] for rule in rules.values()]
    seen = RATES + FLIPS * (1 - 2 * RATES)
    noisy = [(1 - 2 * FLIPS) * difficulty.weight_of(difficulty.divided, seen, g) for g in GROUPS]
    batch = [difficulty.batch_weight(np.array(BATCH), g) for g in (2, 8, 16)]
    return xr.Dataset({
        "weight": xr.DataArray(found, {"rule": list(rules), "group_size": GROUPS, "rate": ends}),
        "noisy": xr.DataArray(noisy, {"group_size": GROUPS, "seen": RATES}),
        "batch": xr.DataArray(batch, {"batch_group": [2, 8, 16], "prompt": BATCH}),
    })  # fmt: skip


def trained(seed: int, size: Any, group_size: int, *, exact: bool = False) -> xr.DataArray:
    """Success rates with and without division, at equal effective learning rates."""
    start = difficulty.weight_of(difficulty.divided, difficulties.PROMPTS, group_size).mean()
    handlings = {"r − r̄": (0.0, 1 - 1 / group_size), "(r − r̄)/σ": (1.0, float(start))}
    paths = ("advantage.power", "reduction.length")
    given = difficulties.config(Normalized(), group_size=group_size, exact=exact)
    found = difficulties.trained(
        given, {paths: handlings}, LEARNING, iterations=size.iterations, root=seed,
        seeds=1 if exact else size.seeds,
    )  # fmt: skip
    return found.rename({"+".join(paths): "handling"}).drop_vars(paths, errors="ignore")


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """The identities, the weights, and training."""
    sampled = [trained(seed, size, g) for g in (CONTROL, *USED)]
    exact = [trained(seed, size, g, exact=True).isel(seed=0, drop=True) for g in (8, 64)]
    return {
        "identities": xr.Dataset({"gap": identities()}),
        "weights": weights(),
        "sampled": xr.concat(sampled, xr.Variable("group_size", [CONTROL, *USED])).to_dataset(name="rate"),
        "exact": xr.concat(exact, xr.Variable("group_size", [8, 64])).to_dataset(name="rate"),
    }


def fold(weight: xr.DataArray) -> xr.DataArray:
    """How many times the smallest weight the largest one is, over success rates."""
    return weight.max("rate") / weight.min("rate")


def bent(weight: xr.DataArray) -> xr.DataArray:
    """How far w is, as a share, from the best multiple of the arcsine's weight, over success rates."""
    ratio = weight * np.sqrt(weight.rate * (1 - weight.rate))
    return np.sqrt(ratio.max("rate") / ratio.min("rate")) - 1


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """The arcsine's weight against w_G, and what is left of it in training."""
    whole = data["weights"].weight
    weight = whole.sel(rate=RATES)
    paper = weight.sel(rule="paper", drop=True)
    claim.requires("library's update - by hand", worst(data["identities"].gap, tolerance=1e-10))
    known = [theory.preference_gap(RATES, group_size=g) for g in GROUPS]
    claim.requires("w by hand - theory", worst(paper, expected=np.asarray(known), tolerance=1e-9))
    arcsine = paper.sel(group_size=1024) * np.sqrt(paper.rate * (1 - paper.rate))
    claim.refutes("groups of 1024: w / arcsine's weight", worst(arcsine, expected=1.0, tolerance=0.02))
    for g in USED:
        off = Number(float(bent(paper).sel(group_size=g)), 0.0, ALIKE)
        claim.qualifies(f"groups of {g}: from a multiple of it", off, only="in large groups")
    fold_used = ", ".join(f"{float(fold(paper).sel(group_size=g)):.2f} at G = {g}" for g in USED)
    claim.finds(
        f"From .05 to .95 the largest weight is {fold_used} times the smallest; the arcsine's is "
        f"{0.5 / np.sqrt(0.05 * 0.95):.2f} times.",
        when=bool((bent(paper).sel(group_size=USED[:2]) > ALIKE).all()),
    )
    difficulty_bias(paper, claim.also(
        '(tinker-cookbook 579.) Dividing by the deviation, "questions where rewards have low variance (too '
        'easy or too hard) get disproportionately large gradients because 1/std blows up when rewards within '
        'a group are similar."'
    ))  # fmt: skip
    answer(data["weights"], whole, claim.ours(
        "For rewards of 0 and 1 dividing by σ reweighs prompts by their success rate "
        f"{difficulty.greatest_fold(8):.3g}-fold at most in groups of 8 and "
        f"{difficulty.greatest_fold(64):.3g}-fold in groups of 64; in groups of 2 and 3 not at all."
    ))  # fmt: skip
    training(data, claim.ours(
        "In groups of 8 and 16 dividing by σ moves the mean success rate by at most .02 all along, at "
        "equal effective learning rates and at each one's best rate."
    ))  # fmt: skip


def difficulty_bias(paper: xr.DataArray, row: Claim) -> None:
    """The update of hard and easy questions against that of one half."""
    size = paper * paper.rate * (1 - paper.rate)
    update, weight = (
        of.sel(rate=[0.05, 0.95]).min("rate") / of.sel(rate=0.5, method="nearest") for of in (size, paper)
    )
    for g in USED:
        number = Number(float(update.sel(group_size=g)), LARGE, relation="at least")
        told = f"groups of {g}: expected update at .05 and .95 / at .5"
        row.refutes(told, number) if g == 64 else row.qualifies(told, number, only="in large groups")
        row.reports(f"groups of {g}: weight at .05 and .95 / at .5", Number(float(weight.sel(group_size=g))))
    eight = float(update.sel(group_size=8))
    row.finds(
        f"In groups of 8 the expected update of a question of .05 is {eight:.2f} of that of one of .5 in "
        f"log-odds, though its weight is {float(weight.sel(group_size=8)):.2f} times as large: smaller, not "
        "larger.",
        when=eight < LARGE,
    )


def answer(data: xr.Dataset, whole: xr.DataArray, row: Claim) -> None:
    """How many times more the most favoured success rate weighs than the least."""
    folds = fold(whole.sel(rule="paper"))
    for g in (2, 3, 8, 64):
        fold_here = Number(float(folds.sel(group_size=g)), difficulty.greatest_fold(g), THOUSANDTH)
        row.refutes(f"groups of {g}: fold", fold_here)
    used = fold(whole.sel(rate=RATES))
    for name in whole.rule.values:
        for g in USED:
            told = f"{name}, groups of {g}: fold from .05 to .95"
            row.reports(told, Number(float(used.sel(rule=name, group_size=g))))
    for g in data.batch_group.values:
        batch = data.batch.sel(batch_group=g)
        row.reports(f"σ of a batch of four, groups of {g}: fold", Number(float(batch.max() / batch.min())))
    noisy = data.noisy.max("seen") / data.noisy.min("seen")
    for g in USED:
        told = f"verifier errs in {FLIPS:.0%}, groups of {g}: fold from .05 to .95"
        row.reports(told, Number(float(noisy.sel(group_size=g))))
    eight, four = used.sel(group_size=8), data.batch.sel(batch_group=8)
    row.finds(
        "From .05 to .95 the fold is "
        + ", ".join(f"{float(used.sel(rule='paper', group_size=g)):.2f} at G = {g}" for g in USED)
        + "; at G = 8 "
        + ", ".join(f"{float(eight.sel(rule=n)):.2f} in {n}" for n in eight.rule.values[2:])
        + f"; with σ of the batch {float(four.max() / four.min()):.2f}"
        + f", with a verifier that errs in {FLIPS:.0%} {float(noisy.sel(group_size=8)):.2f}."
    )


def training(data: dict[str, xr.Dataset], row: Claim) -> None:
    """Mean success rate over training, with less without division."""
    course = data["sampled"].rate.mean("prompt")
    plain, scaled = (course.sel(handling=name, drop=True) for name in ("r − r̄", "(r − r̄)/σ"))
    alike = data["sampled"].rate.sel(group_size=CONTROL)
    apart = alike.sel(handling="r − r̄") - alike.sel(handling="(r − r̄)/σ")
    row.requires("control, groups of 3: one handling - the other", worst(apart, tolerance=1e-9))
    gap = scaled - plain
    best = at_best_rate(scaled) - at_best_rate(plain)
    for g in (8, 16):
        row.refutes(f"groups of {g}, equal effective rates", furthest(gap.sel(group_size=g), tolerance=MOVED))
        row.refutes(
            f"groups of {g}, best rates",
            furthest(best.sel(group_size=g), tolerance=MOVED),
        )
    for told, apart in (("equal effective rates", gap), ("best rates", best)):
        row.reports(f"groups of 64, {told}", furthest(apart.sel(group_size=64), tolerance=MOVED))
    ends = data["exact"].rate.isel(iteration=-1).sel(prompt=difficulties.HARD).mean("prompt")
    lead = (ends.sel(handling="(r − r̄)/σ") - ends.sel(handling="r − r̄")).max("learning_rate")
    for g in (8, 64):
        row.reports(
            f"exact, groups of {g}: most that hard prompts gain", Number(float(lead.sel(group_size=g)))
        )


def at_best_rate(course: xr.DataArray) -> xr.DataArray:
    """At the rate with the greatest mean over seeds and training, group size by group size."""
    place = course.mean(["seed", "iteration"]).argmax("learning_rate")
    return course.isel(learning_rate=place).drop_vars("learning_rate")


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """The weight over the success rate, and what it does in training."""
    figure.set_size_inches(7, 3.0)
    left, right = plotting.panels(figure, 1, 2)
    weight = data["weights"].weight.sel(rule="paper", rate=RATES)
    groups = [3, 8, 16, 64]
    for g, color in plotting.shades(groups).items():
        here = weight.sel(group_size=g)
        left.plot(RATES, here / here.sel(rate=0.5, method="nearest"), color=color, label=f"G = {g}")
    plotting.theory(left, RATES, 0.5 / np.sqrt(RATES * (1 - RATES)), label="arcsine (G → ∞)")
    left.legend()
    left.set(xlabel="success rate p", ylabel="weight of a prompt, relative to p = ½", ylim=(0.9, 2.4))
    left.set_title("Dividing by σ reweighs little at G = 8")
    course = data["sampled"].rate.sel(learning_rate=0.5, group_size=8).mean("prompt")
    course.attrs = {"long_name": "mean success rate"}
    plotting.curves(right, course.rename(handling="advantage"), over="seed", by="advantage")
    right.set_title("… and training hardly sees it")
