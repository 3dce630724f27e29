"""Dividing by the spread makes β an effective penalty βσ(π) on the rewards themselves: concentrated policies
are regularised less.

[A] (arXiv:2502.18548v3), on the scale, read at large G: advantages r − mean with a penalty of weight
βσ(π), noise within an answer included, have GRPO's stationary policy. The weight is by how much the expected
gradient without the spread exceeds that with it, at all 11 points of three paths that start at the uniform
policy and concentrate until 0.98 of the probability is there: on one certain answer (G = 1024), on the best
and the worst of three (G = 64), on one whose reward is a coin flip (G = 1024).

Refuted if the weight leaves σ by 2 % anywhere, if exact ascent without the spread at βσ, σ at GRPO's trained
policy in groups of 64, ends 0.01 from it, if ignoring the weight fits as well, or if the weight at the end of
the path to one certain answer is not 0.01 below that at its start. Qualified if the weight rises by more than
0.01 on the way, or on one of the other paths. Sampled runs, which start apart, are extrapolated to learning
rate zero and refute if they are not within 0.002 of the exact ascent. That the two gradients are parallel,
that the exact weight of the finite group leads to GRPO's own policy (to 1e-6), and that the weight does not
rise from one half on are checks of the instrument. What a finite group does is ours, a row of its own.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.harness.numbers import Number, extrapolated, furthest, interval, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems.answers import ended, force, logits, method, pairs, question, time_averages
from grpo_jax import plotting
from grpo_jax.parts.advantages import Normalized
from grpo_jax.tasks import Bernoulli
from grpo_jax.theory import effective_penalty_binary

PRECISION = "float64"
SIZES = sizes(exact=(400, 2500, 10000), seeds=(16, 48, 256), iterations=(2000, 2000, 10000))
"""Iterations of exact ascent; seeds and iterations of sampled runs."""

CERTAIN, EXTREMES, FLIP = "one certain answer", "best and worst of three", "a coin flip"
PATHS = {
    CERTAIN: ([1.0, 0.0, 0.0], [0.98, 0.01, 0.01], False, 1024),
    EXTREMES: ([1.0, 0.5, 0.0], [0.495, 0.01, 0.495], False, 64),
    FLIP: ([1.0, 0.5, 1.0], [0.01, 0.98, 0.01], True, 1024),
}
"""Rewards or success chances; where the path from the uniform policy ends; coin flips or not; group size."""
ALONG = np.linspace(0, 1, 11)
GROUPS = [4, 64]
RARE = np.logspace(-5, np.log10(0.5), 18)
GROUP, REFERENCE = 64, 0.2
BETAS = [0.15, 0.3, 0.6, 1.2, 2.5]
FLIPS = {"certain": (1.0, 0.0), "coin flips": (0.8, 0.3)}
"""Success chances of the two answers that are trained."""
SAMPLED_BETAS, START = [0.3, 1.2], [0.35, 0.65]
GRPO, SAME, EXACT, PLAIN = "GRPO", "shift-only at βσ", "shift-only at the exact weight", "shift-only at β"
RATES = {GRPO: [0.05, 0.1, 0.2], SAME: [0.1, 0.2, 0.4]}
"""Of sampled runs; without the spread the forces are smaller by σ."""
MARGIN, SAMPLED_MARGIN = 0.01, 0.002
RISE = 0.01
"""Of a weight that lies between 0 and 1/2: less is no rise."""


def divided(*, coef: float = 1.0) -> gj.Method:
    """GRPO of [A] with the spread to a power that can be swept: 1, or 0 for none."""
    made = method()
    kind: Any = made.penalty
    penalty = dataclasses.replace(kind, coef=coef)
    return dataclasses.replace(made, advantage=Normalized(power=jnp.asarray(1.0)), penalty=penalty)


def weights(
    rewards: Any, policies: dict[float, np.ndarray], group: int, *, flips: bool = False
) -> xr.Dataset:
    """The penalty's weight over β, and the cosine of the gradients with and without the spread."""
    noise = Bernoulli() if flips else None
    config = question(rewards, group_size=group, method=divided(coef=0.0), noise=noise)
    found = force(config, {"policy.logits": policies, "power": [1.0, 0.0]})
    scaled, plain = found.sel(power=1, drop=True), found.sel(power=0, drop=True)
    inner, squares = (scaled * plain).sum("output"), (scaled**2).sum("output")
    cosine = inner / np.sqrt(squares * (plain**2).sum("output"))
    return xr.Dataset({"weight": inner / squares / (1 - 1 / group), "cosine": cosine})


def path(name: str) -> xr.DataArray:
    """Policies [along, output] from the uniform one to a concentrated one."""
    along = xr.DataArray(ALONG, {"along": ALONG})
    return (1 - along) / 3 + along * xr.DataArray(PATHS[name][1], dims="output")


def spread(name: str) -> xr.DataArray:
    """σ(π) along a path, noise within an answer included."""
    rewards, _, flips, _ = PATHS[name]
    reward = xr.DataArray(rewards, dims="output")
    square = reward if flips else reward**2
    return (path(name).dot(square) - path(name).dot(reward) ** 2) ** 0.5


def followed(name: str) -> xr.Dataset:
    """Weights along a path."""
    rewards, _, flips, group = PATHS[name]
    policies = {float(p.along): logits(p.values) for p in path(name)}
    return weights(rewards, policies, group, flips=flips).rename({"policy.logits": "along"})


def trained(rewards: str, betas: Any, iterations: int) -> xr.DataArray:
    """π(a) [power, beta] where exact ascent ends with and without the spread."""
    config = question(FLIPS[rewards], group_size=GROUP, noise=Bernoulli(), method=divided())
    anchor = logits([REFERENCE, 1 - REFERENCE])
    config = dataclasses.replace(config, reference=anchor, policy=gj.ActionPolicy(logits=anchor))
    forces = {label: (b, 3 / (1 + b)) for label, b in zip(BETAS, betas, strict=True)}
    axes = {"power": [1.0, 0.0], ("kl_coef", "learning_rate"): forces}
    found = ended(config, axes, iterations=iterations).drop_vars(["kl_coef", "learning_rate"])
    return found.rename({"kl_coef+learning_rate": "beta"})


def spread_of(policy: Any, rewards: str) -> np.ndarray:
    """σ of two answers' rewards, noise within an answer included."""
    p, q = FLIPS[rewards]
    success = np.asarray(policy) * p + (1 - np.asarray(policy)) * q
    return np.sqrt(success * (1 - success))


def compared(rewards: str, iterations: int) -> xr.DataArray:
    """π(a) [trainer, beta]: GRPO; and without the spread at βσ, at the exact weight and at β itself."""
    first = trained(rewards, BETAS, iterations)
    grpo, plain = first.sel(power=1, drop=True), first.sel(power=0, drop=True)
    same = trained(rewards, np.array(BETAS) * spread_of(grpo, rewards), iterations).sel(power=0, drop=True)
    p, q = FLIPS[rewards]
    success = (grpo * p + (1 - grpo) * q).values
    weight = effective_penalty_binary(np.array(BETAS), success, group_size=GROUP)
    exact = trained(rewards, np.asarray(weight), iterations).sel(power=0, drop=True)
    return xr.concat([grpo, same, exact, plain], xr.Variable("trainer", [GRPO, SAME, EXACT, PLAIN]))


def sampled(ends: xr.DataArray, seed: int, size: Any) -> xr.DataArray:
    """Time averages of π(a) [trainer, beta] by the place of the learning rate; `ends` [beta] is GRPO's."""
    config = question(
        [1.0, 0.0], group_size=GROUP, reference=[REFERENCE, 1 - REFERENCE], start=START, method=divided()
    )

    def averages(trainer: str, felt: list[float]) -> xr.DataArray:
        axes = {
            "learning_rate": RATES[trainer],
            "power": [1.0 if trainer == GRPO else 0.0],
            "kl_coef": dict(zip(SAMPLED_BETAS, felt, strict=True)),
        }
        found = time_averages(config, axes, size, seed).isel(power=0, drop=True).rename(kl_coef="beta")
        return found.assign_coords(learning_rate=RATES[GRPO], beta=SAMPLED_BETAS)

    same = [b * float(spread_of(ends.sel(beta=b), "certain")) for b in SAMPLED_BETAS]
    found = [averages(GRPO, SAMPLED_BETAS), averages(SAME, same)]
    return xr.concat(found, xr.Variable("trainer", [GRPO, SAME]))


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Weights along paths and for rare answers, and policies trained with and without the spread."""
    ends = xr.concat([compared(name, size.exact) for name in FLIPS], xr.Variable("rewards", list(FLIPS)))
    rare = [weights([1.0, 0.0], pairs(RARE), group).weight for group in GROUPS]
    return {
        "paths": xr.concat([followed(name) for name in PATHS], xr.Variable("path", list(PATHS))),
        "rare": xr.Dataset({"weight": xr.concat(rare, xr.Variable("group", GROUPS))}).rename(
            {"policy.logits": "p"}
        ),
        "trained": xr.Dataset({"ended": ends}),
        "sampled": xr.Dataset({
            "average": sampled(ends.sel(rewards="certain", trainer=GRPO), seed, size)
        }),
    }  # fmt: skip


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """βσ; the same trained policy; where concentration lowers the weight and where it does not."""
    judge_weights(data["paths"], claim)
    judge_policies(data["trained"].ended, data["sampled"].average, claim)
    judge_rare(data["rare"].weight, claim)


def judge_policies(ended: xr.DataArray, average: xr.DataArray, claim: Claim) -> None:
    """Where training without the spread ends, by its penalty, against GRPO; and sampled runs."""
    for rewards in FLIPS:
        here = ended.sel(rewards=rewards, drop=True)
        grpo, same, exact, plain = (here.sel(trainer=t, drop=True) for t in (GRPO, SAME, EXACT, PLAIN))
        claim.refutes(f"{rewards}: {SAME} - GRPO", worst(same, expected=grpo, tolerance=MARGIN))
        claim.requires(f"{rewards}: {EXACT} - GRPO", worst(exact, expected=grpo, tolerance=1e-6))
        apart = float(abs(plain - grpo).max())
        claim.refutes(f"{rewards}: distance from {PLAIN}", Number(apart, 0.05, relation="at least"))
    at_zero, _ = extrapolated(average)
    for name in (GRPO, SAME):
        aim = ended.sel(rewards="certain", trainer=name, beta=SAMPLED_BETAS, drop=True)
        gap = furthest(at_zero.sel(trainer=name, drop=True), aim, tolerance=SAMPLED_MARGIN)
        claim.refutes(f"{name}: sampled, extrapolated - exact ascent", gap)


def judge_weights(paths: xr.Dataset, claim: Claim) -> None:
    """The weight against σ at every point of every path, and whether it falls on the way."""
    claim.requires("cosine of the two gradients", worst(paths.cosine, expected=1.0, tolerance=1e-9))
    ratios = {}
    for name in PATHS:
        ratio = paths.weight.sel(path=name, drop=True) / spread(name)
        ratios[name] = worst(ratio, expected=1.0, tolerance=0.02)
        claim.refutes(f"{name}: weight / σ - 1", ratios[name])
    certain = paths.weight.sel(path=CERTAIN, drop=True)
    change = Number(float(certain.isel(along=-1) - certain.isel(along=0)), -RISE, relation="at most")
    claim.refutes(f"to {CERTAIN}: weight at the end less that at the start", change)
    half = _rise(certain.where(path(CERTAIN).isel(output=0) >= 0.5, drop=True))
    claim.requires(f"to {CERTAIN}, from one half: greatest rise of the weight", half)
    only = "while it concentrates on one answer of certain reward that already has half the probability"
    rises = {name: _rise(paths.weight.sel(path=name, drop=True)) for name in PATHS}
    for name, rise in rises.items():
        claim.qualifies(
            f"to {name}: greatest rise of the weight",
            rise,
            only=only,
        )
    claim.finds(
        "Dividing by the spread multiplies β by the spread of rewards at the policy. That falls once an "
        "answer of a certain reward has half the probability; a policy that concentrates on two answers of "
        "unlike rewards, or on one whose reward is a coin flip, is regularised more.",
        when=all(number.holds is True for number in (*ratios.values(), change, half))
        and all(number.holds is False for number in rises.values()),
    )


def _rise(weight: xr.DataArray) -> Number:
    """By how much the weight exceeds the least one before it."""
    least = xr.zeros_like(weight) + np.minimum.accumulate(weight.values)
    return worst(weight - least, tolerance=RISE, relation="at most")


def judge_rare(measured: xr.DataArray, claim: Claim) -> None:
    """Weights [group, p] over (1 - 1/G) where an answer is rare."""
    row = claim.ours(
        "In a group of G two answers with a gap of 1 never weigh the penalty by less than √(G − 1)/G, "
        "however rare one of them becomes."
    )
    weight = measured * (1 - 1 / measured.group)
    told = [np.asarray(effective_penalty_binary(1.0, RARE, group_size=group)) for group in GROUPS]
    theory = xr.DataArray(told, {"group": GROUPS, "p": weight.p})
    row.refutes("weight - theory", worst(weight, expected=theory, tolerance=1e-10))
    floor = np.sqrt(weight.group - 1) / weight.group
    least = worst(weight / floor, expected=1.0, relation="at least")
    row.refutes("weight over √(G - 1)/G, less 1", least)
    rarest = float(measured.sel(group=GROUPS[-1]).isel(p=0) / np.sqrt(RARE[0]))
    row.reports(f"G = {GROUPS[-1]}, p = 1e-5: weight / σ", Number(rarest))
    row.finds(
        f"Where one answer has 1e-5 of the probability, groups of {GROUPS[-1]} weigh the penalty "
        f"{rarest:.0f} times as much as σ says.",
        when=least,
    )


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """Left: weights along three ways to concentrate. Right: nearly the same trained policy at βσ."""
    figure.set_size_inches(7.0, 3.2)
    left, right = plotting.panels(figure, 1, 2)
    for name, color, marker in zip(PATHS, plotting.COLORS, "os^", strict=False):
        left.plot(ALONG, spread(name), color=color)
        weight = data["paths"].weight.sel(path=name)
        left.plot(ALONG, weight, marker, ms=5, mfc="white", color=color, label=f"on {name}")
    left.set(xlabel="uniform policy → concentrated policy", ylim=(0, 0.62), ylabel="penalty's weight over β")
    left.legend(loc="lower left")
    left.set_title("Lines: σ(π); marks: measured weight")
    ended = data["trained"].ended.sel(rewards="certain")
    runs = interval(extrapolated(data["sampled"].average)[0])
    blue, red = plotting.COLORS[:2]
    right.plot(BETAS, ended.sel(trainer=GRPO), color=blue, label=GRPO)
    right.plot(BETAS, ended.sel(trainer=SAME), "o", ms=6, mfc="white", color=blue, label=SAME)
    right.plot(BETAS, ended.sel(trainer=PLAIN), "x:", ms=5, color=red, label=PLAIN)
    for name, shift in ((GRPO, 0.9), (SAME, 1.1)):
        here = runs.sel(trainer=name)
        label = "sampled, rate → 0" if name == SAME else None
        bars = {"low": here.low, "high": here.high, "label": label}
        plotting.points(right, shift * here.beta, here.value, **bars, color="#222222", marker="_")
    right.legend(loc="lower left")
    right.set(xscale="log", xlabel="β", ylabel="trained π of the better answer", ylim=(0, 1.03))
    right.set_xticks(BETAS, [f"{beta:g}" for beta in BETAS])
    right.set_xticks([], minor=True)
    right.set_title(f"At βσ without the spread: GRPO's policy, G = {GROUP}")
