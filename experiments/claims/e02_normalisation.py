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

from typing import Any

import numpy as np
import xarray as xr

from experiments.formulas import difficulty
from experiments.harness.numbers import Number, at_best_rate, furthest, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems import difficulties, weighings
from experiments.problems.difficulties import PLAIN, SCALED
from grpo_jax import plotting, theory

PRECISION = "float64"
SIZES = sizes(seeds=(24, 96, 512), iterations=(60, 120, 400))

RATES = np.linspace(0.05, 0.95, 91)
GROUPS = [2, 3, 8, 16, 64, 1024]
USED = [8, 16, 64]
FLIPS = 0.1
"""How often a verifier errs, either way."""
ENDS, ALIKE, LARGE, MOVED, THOUSANDTH = 1e-6, 0.1, 1.0, 0.02, 1e-3
LEARNING = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0]
"""Effective, of one prompt."""
CONTROL = 3
BATCH = [0.05, 0.35, 0.65, 0.95]
"""Prompts of a batch whose σ is that of all its rewards."""
RULES = {name: rule for name, (_, rule) in weighings.CONVENTIONS.items()} | weighings.BY_HAND


def weights() -> xr.Dataset:
    """w by convention, group size and success rate; of a batch's σ, and with a verifier that errs."""
    seen = RATES + FLIPS * (1 - 2 * RATES)
    noisy = (1 - 2 * FLIPS) * difficulty.weight_of(difficulty.divided, seen, 8)
    return xr.Dataset({
        "weight": weighings.table(RULES, GROUPS, np.concatenate([[ENDS], RATES, [1 - ENDS]])),
        "noisy": xr.DataArray(noisy, {"seen": RATES}),
        "batch": xr.DataArray(difficulty.batch_weight(np.array(BATCH), 8), {"prompt": BATCH}),
    })  # fmt: skip


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """The identities, the weights, and training."""
    sampled = [difficulties.normalised(seed, size, LEARNING, group_size=g) for g in (CONTROL, *USED)]
    return {
        "identities": xr.Dataset({"gap": weighings.identities(FLIPS)}),
        "weights": weights(),
        "sampled": xr.concat(sampled, xr.Variable("group_size", [CONTROL, *USED])).to_dataset(name="rate"),
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
    paper = whole.sel(rate=RATES, rule="paper", drop=True)
    claim.requires("library's update - by hand", worst(data["identities"].gap, tolerance=1e-10))
    known = [theory.preference_gap(RATES, group_size=g) for g in GROUPS]
    claim.requires("w by hand - theory", worst(paper, expected=np.asarray(known), tolerance=1e-9))
    arcsine = paper.sel(group_size=1024) * np.sqrt(paper.rate * (1 - paper.rate))
    claim.refutes("groups of 1024: w / arcsine's weight", worst(arcsine, expected=1.0, tolerance=0.02))
    for g in USED:
        off = Number(float(bent(paper).sel(group_size=g)), 0.0, ALIKE)
        claim.qualifies(f"groups of {g}: from a multiple of it", off, only="in large groups")
    used = ", ".join(f"{float(fold(paper).sel(group_size=g)):.2f} at G = {g}" for g in USED)
    claim.finds(
        f"From .05 to .95 the largest weight is {used} times the smallest; the arcsine's is "
        f"{0.5 / np.sqrt(0.05 * 0.95):.2f} times.",
        when=bool((bent(paper).sel(group_size=USED[:2]) > ALIKE).all()),
    )
    difficulty_bias(paper, claim)
    answer(data["weights"], used, claim)
    training(data["sampled"].rate, claim)


def difficulty_bias(paper: xr.DataArray, claim: Claim) -> None:
    """The update of hard and easy questions against that of one half."""
    row = claim.also(
        '(tinker-cookbook 579.) Dividing by the deviation, "questions where rewards have low variance (too '
        "easy or too hard) get disproportionately large gradients because 1/std blows up when rewards within "
        'a group are similar."'
    )
    update, weight = (
        of.sel(rate=[0.05, 0.95]).min("rate") / of.sel(rate=0.5, method="nearest")
        for of in (paper * paper.rate * (1 - paper.rate), paper)
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


def answer(data: xr.Dataset, used: str, claim: Claim) -> None:
    """How many times more the most favoured success rate weighs than the least."""
    row = claim.ours(
        "For rewards of 0 and 1 dividing by σ reweighs prompts by their success rate "
        f"{difficulty.greatest_fold(8):.3g}-fold at most in groups of 8 and "
        f"{difficulty.greatest_fold(64):.3g}-fold in groups of 64; in groups of 2 and 3 not at all."
    )
    folds = fold(data.weight.sel(rule="paper"))
    for g in (2, 3, 8, 64):
        fold_here = Number(float(folds.sel(group_size=g)), difficulty.greatest_fold(g), THOUSANDTH)
        row.refutes(f"groups of {g}: fold", fold_here)
    eight = fold(data.weight.sel(rate=RATES, group_size=8))
    batch, noisy = (float(of.max() / of.min()) for of in (data.batch, data.noisy))
    row.finds(
        f"From .05 to .95 the fold is {used}; at G = 8 "
        + ", ".join(f"{float(eight.sel(rule=n)):.2f} in {n}" for n in eight.rule.values[2:])
        + f"; with σ of the batch {batch:.2f}, with a verifier that errs in {FLIPS:.0%} {noisy:.2f}."
    )


def training(rate: xr.DataArray, claim: Claim) -> None:
    """Mean success rate over training, with less without division."""
    row = claim.ours(
        "In groups of 8 and 16 dividing by σ moves the mean success rate by at most .02 all along, at "
        "equal effective learning rates and at each one's best rate."
    )
    alike = rate.sel(group_size=CONTROL)
    apart = alike.sel(handling=PLAIN) - alike.sel(handling=SCALED)
    row.requires("control, groups of 3: one handling - the other", worst(apart, tolerance=1e-9))
    plain, scaled = (rate.mean("prompt").sel(handling=name, drop=True) for name in (PLAIN, SCALED))
    over = ["seed", "iteration"]
    best = at_best_rate(scaled, over=over) - at_best_rate(plain, over=over)
    for g in (8, 16):
        gaps = {"equal effective rates": scaled - plain, "best rates": best}
        for told, gap in gaps.items():
            row.refutes(f"groups of {g}, {told}", furthest(gap.sel(group_size=g), tolerance=MOVED))


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
