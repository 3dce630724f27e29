"""(verl-recipe 125.) "No safe dose. Even λ=0.10 fully collapses both baselines ..."

github.com/verl-project/verl-recipe/pull/125, gsm8k_outcome_gating/README.md (read): reward 1 or 0, less
λ·min(length/512, 1); a group that fails whole has "std > 0", and GRPO "normalizes the tiny shaping
differences into full-size advantages"; exact match fell from .715 to .10 in 40 steps at λ = .3. Baselines:
no filter, and a filter that sets advantages to 0 where the shaped reward has no spread, where they are 0:
one serves for both. Their prompts share one network. Here eight prompts of abilities .05 to 1 share a tree
of stopping decisions, 1 to 10 tokens; an answer of n tokens is right with probability a(1 − (1 − x)²),
x = (n − 1)/9. Groups of 8, σ with eps 0, SGD and AdamW; λ down to .001.

Refuted if on prompts a fifth as able, whose groups mostly fail whole, J does not end below half of where it
started at any λ in {.001, .01, .1}; greater ones are told, as there the reward itself prefers short answers.
Qualified if on the able ones it does not at any λ in {.001, .01, .1, .3, .5}. The sentence goes on "within 40
steps": how many it takes is not judged (here it has 640). Other rows, other sentences of that page: an
outcome gate keeps nine tenths of J at λ of .1 to .5 (qualified if not on prompts a fifth as able); mean J
over training falls by .01 or more from λ = .1 to .3 to .5. Told: what length paid for (λ = −.3) leaves; here
longer answers are better, so that nothing could fall. Ours: λ = .001 costs a tenth or more, and more than
half of what λ = .5 costs; prompts a fifth as able fall below half at every λ up to .1, not with the gate at
.1; without σ, or with the length normalised apart, λ = .01 costs less than a tenth; paying for brevity on
right answers only (prime-rl 3376) is enough. Checks of the instrument: by enumeration in NumPy (two prompts,
unequal groups of three) the update's part from groups that tie in outcome is, to 1e-10, independent of λ at
eps 0, Σ λσ/(λσ + eps) of it at eps .01, λ times a vector without σ; at λ = 0, and where length does not
matter at λ = .3, J does not fall by .02.
"""

import itertools
from typing import Any

import xarray as xr

import grpo_jax as gj
from experiments.harness.numbers import Number, each, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems import phantoms
from experiments.problems.phantoms import ARMS, GATE, NONE, PLAIN, RIGHT, SPLIT
from grpo_jax import plotting
from grpo_jax.parts.shaping import WithLength

PRECISION = "float64"
SIZES = sizes(seeds=(8, 16, 256), iterations=(480, 640, 4000))

DOSES = [0.001, 0.01, 0.1, 0.3, 0.5]
PRINTED = ["0.1", "0.3", "0.5"]
SMALL = ["0.001", "0.01", "0.1"]
"""At which the shaped reward of prompts a fifth as able, too, is greatest where nine tenths of J are left."""
LONG = -0.3
HALF, TENTH, STILL, APART = 0.5, 0.9, 0.02, 0.01
END = "J at the end / start"


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """The identities, and training under every handling."""
    found = {"identities": xr.Dataset({"gap": phantoms.identities(DOSES)})}
    for name, given in ARMS.items():
        some = {NONE: [LONG, 0.0, *DOSES], SPLIT: DOSES[1:3]}.get(name, DOSES[1:])
        found[name] = phantoms.trained(given, some, size, seed)
    for name, some in {NONE: DOSES, GATE: DOSES[2:]}.items():
        found[f"{name}, hard"] = phantoms.trained(ARMS[name], some, size, seed, kind=phantoms.HARD)
    found["flat"] = phantoms.trained(ARMS[NONE], [0.3], size, seed, kind=phantoms.FLAT)
    short = phantoms.method(WithLength(weight=0.1, limit=3.0))
    one = type(size)(seeds=1, iterations=300)
    found["exact"] = phantoms.trained(short, [0.0, 0.001, 0.1], one, seed, horizon=3, expectation=gj.Exact())
    return found


def kept(data: xr.Dataset) -> xr.DataArray:
    """J at the end over J at the start, by run."""
    start, end = (data.expected_reward.isel(iteration=place, drop=True) for place in (0, -1))
    return end / start


def halved(share: xr.DataArray) -> dict[str, Number]:
    """What is left of J in every setting, against at most a half."""
    return each(share, expected=HALF, relation="at most")


def spared(share: xr.DataArray) -> dict[str, Number]:
    """What is left of J in every setting, against nine tenths or more."""
    return each(share, expected=TENTH, relation="at least")


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """What is left of J under each handling of the same shaped reward."""
    gap = worst(data["identities"].gap, tolerance=1e-10)
    claim.requires("update of groups with one outcome - NumPy", gap)
    left = {name: kept(runs) for name, runs in data.items() if name != "identities"}
    controls = {"λ = 0": (NONE, "0"), "length does not matter, λ = .3": ("flat", "0.3")}
    for told, (name, dose) in controls.items():
        course = data[name].expected_reward.sel(dose=dose, drop=True)
        moved = course.isel(iteration=-1) - course.isel(iteration=0)
        claim.requires(f"{told}: J, end - start", each(moved, expected=-STILL, relation="at least"))
    hard, gated, able = left[f"{NONE}, hard"], left[f"{GATE}, hard"], left[NONE]
    claim.refutes(f"a fifth as able: {END}", halved(hard.sel(dose=SMALL)))
    claim.reports(f"a fifth as able: {END}", each(hard.sel(dose=PRINTED[1:])))
    only = "where most groups fail"
    claim.qualifies(f"able: {END}", halved(able.sel(dose=[f"{d:g}" for d in DOSES])), only=only)
    exact = left["exact"].isel(seed=0, drop=True).sel(dose=["0.001", "0.1"])
    few = worst(exact, expected=HALF, relation="at most")
    claim.qualifies(f"able, exact, 3 tokens: {END}", few, only=only)
    claim.reports(f"length paid for, λ = {LONG:g}: {END}", each(able.sel(dose=f"{LONG:g}", drop=True)))
    told = ", ".join(f"{name} {float(left[name].sel(dose='0.1').mean()):.2f}" for name in ARMS)
    claim.finds(
        f"Share of J that is left at λ = .1: {told}; at λ = .001 under σ "
        f"{float(able.sel(dose='0.001').mean()):.2f}. Of prompts a fifth as able at λ = .1: σ "
        f"{float(hard.sel(dose='0.1').mean()):.2f}, outcome gate {float(gated.sel(dose='0.1').mean()):.2f}."
    )

    gate = claim.also('"The binary-outcome filter is immune at every dose."')
    gate.refutes(f"outcome gate: {END}", spared(left[GATE].sel(dose=PRINTED)))
    only = "where the reward does not itself prefer short answers"
    gate.qualifies(f"outcome gate, a fifth as able: {END}", spared(gated.sel(dose=PRINTED)), only=only)
    speed = claim.also('"λ only sets the collapse speed (mid-run EM orders monotonically with λ)."')
    over = data[NONE].expected_reward.mean("iteration")
    for less, more in itertools.pairwise(PRINTED):
        faster = each(over.sel(dose=more) - over.sel(dose=less), expected=-APART, relation="at most")
        speed.refutes(f"mean J over training, λ = {more} - {less}", faster)
    ours(left, claim)


def ours(left: dict[str, xr.DataArray], claim: Claim) -> None:
    """What is left of J at small doses, of prompts a fifth as able, and under each handling."""
    small = claim.ours(
        "Under σ no dose is small: a thousandth costs more than half of what a half costs (stated after "
        "numbers of seed 0 were seen)."
    )
    least, most = (left[NONE].sel(dose=dose, drop=True) for dose in ("0.001", "0.5"))
    small.refutes(f"λ = .001: {END}", each(least, expected=TENTH, relation="at most"))
    dear = each((1 - least) - (1 - most) / 2, expected=0.0, relation="at least")
    small.refutes("what λ = .001 costs, less half of what λ = .5 does", dear)
    hard = claim.ours(
        "Prompts a fifth as able collapse under σ at every dose up to .1; the outcome gate keeps them at .1."
    )
    hard.refutes(f"σ: {END}", halved(left[f"{NONE}, hard"].sel(dose=SMALL)))
    hard.refutes(f"outcome gate: {END}", spared(left[f"{GATE}, hard"].sel(dose=["0.1"])))
    for name in (PLAIN, SPLIT):
        mild = claim.ours(f"{name[0].upper()}{name[1:]}, λ = .01 costs less than a tenth of J.")
        mild.refutes(f"{name}, λ = .01: {END}", spared(left[name].sel(dose="0.01", drop=True)))
    right = claim.ours("Paying for brevity on right answers only is enough, under σ, too.")
    right.refutes(f"right answers only: {END}", spared(left[RIGHT].sel(dose=PRINTED)))


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """J over training for every λ under σ, and what each handling keeps of it."""
    figure.set_size_inches(7.4, 3.0)
    left, right = plotting.panels(figure, 1, 2)
    curve = data[NONE].expected_reward.sel(
        optimizer="SGD", dose=["0", "0.001", "0.01", "0.1", "0.5"], drop=True
    )
    curve.attrs = {"long_name": "success rate J"}
    plotting.curves(left, curve.rename(dose="λ"), over="seed", by="λ")
    left.set(ylim=(0, 1), title="With σ no λ is small …")
    for name, color in zip(ARMS, plotting.COLORS, strict=False):
        end = data[name].expected_reward.isel(iteration=-1).sel(optimizer="SGD").mean("seed")
        doses = [d for d in end.dose.values if float(d) > 0]
        right.plot([float(d) for d in doses], end.sel(dose=doses), "o-", ms=4, color=color, label=name)
    right.set(xscale="log", ylim=(0, 1), xlabel="λ, weight of the length", ylabel="J in the end")
    right.set_title("… without it, or gated, it is", loc="left")
    right.legend()
