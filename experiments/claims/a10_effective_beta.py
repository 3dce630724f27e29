"""Dividing by the spread makes β an effective penalty βσ(π) on the rewards themselves: concentrated policies
are regularised less.

[A] Section 5, read at large G: advantages r − mean with a penalty of weight βσ(π), noise within an answer
included, have GRPO's stationary policy. The weight is by how much the expected gradient without the spread
exceeds that with it, at all 11 points of three paths that start at the uniform policy and concentrate: on one
certain answer, on the best and the worst of three, on one whose reward is a coin flip.

Refuted if the weight leaves σ by 2 % anywhere, if training without the spread at the weight taken at GRPO's
trained policy ends 1e-6 elsewhere (sampled, extrapolated to learning rate zero: not within 0.01), if ignoring
the weight fits as well, or if the weight rises by more than 0.01 while an answer of a certain reward that has
half of the probability gets more. Qualified if it does on the way to that half, or on one of the other paths.
That the two gradients are parallel is a check of the instrument. What a finite group does is ours, a row of
its own.
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
from experiments.problems.answers import ended, logits, method, pairs, question, time_averages
from experiments.problems.policies import force
from grpo_jax import plotting
from grpo_jax.parts.advantages import Normalized
from grpo_jax.tasks import Bernoulli
from grpo_jax.theory import effective_penalty_binary

PRECISION = "float64"
SIZES = sizes(exact=(400, 2500, 10000), seeds=(4, 48, 256), iterations=(200, 2000, 10000))
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
SAMPLED_BETAS, RATES = [0.3, 1.2], [0.05, 0.1, 0.2]
GRPO, SAME, PLAIN = "GRPO", "shift-only at its weight", "shift-only at β"
MARGIN = 0.01
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


def compared(rewards: str, iterations: int) -> xr.DataArray:
    """π(a) [trainer, beta]: GRPO, and training without the spread at GRPO's weight and at β itself."""
    first = trained(rewards, BETAS, iterations)
    p, q = FLIPS[rewards]
    success = first.sel(power=1) * p + (1 - first.sel(power=1)) * q
    weight = effective_penalty_binary(np.array(BETAS), success.values, group_size=GROUP)
    second = trained(rewards, np.asarray(weight), iterations)
    found = [first.sel(power=1), second.sel(power=0), first.sel(power=0)]
    return xr.concat([one.drop_vars("power") for one in found], xr.Variable("trainer", [GRPO, SAME, PLAIN]))


def sampled(ends: xr.DataArray, seed: int, size: Any) -> xr.DataArray:
    """Time averages of π(a) [trainer, beta], of runs that start where GRPO's exact ascent ends, [beta]."""
    config = question([1.0, 0.0], group_size=GROUP, reference=[REFERENCE, 1 - REFERENCE], method=divided())

    def averages(power: float, betas: dict[float, float]) -> xr.DataArray:
        start = {b: logits([p := float(ends.sel(beta=b)), 1 - p]) for b in betas}
        axes = {
            "learning_rate": RATES,
            "power": [power],
            ("kl_coef", "policy.logits"): {b: (felt, start[b]) for b, felt in betas.items()},
        }
        found = time_averages(config, axes, size, seed).drop_vars(["kl_coef", "policy.logits"])
        return found.rename({"kl_coef+policy.logits": "beta"}).isel(power=0, drop=True)

    same = {
        b: float(effective_penalty_binary(b, float(ends.sel(beta=b)), group_size=GROUP))
        for b in SAMPLED_BETAS
    }
    found = [averages(1.0, {b: b for b in SAMPLED_BETAS}), averages(0.0, same)]
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
    ended = data["trained"].ended
    for rewards in FLIPS:
        here = ended.sel(rewards=rewards, drop=True)
        grpo, same, plain = (here.sel(trainer=name, drop=True) for name in (GRPO, SAME, PLAIN))
        claim.refutes(f"{rewards}: GRPO - {SAME}", worst(same, expected=grpo, tolerance=1e-6))
        apart = float(abs(plain - grpo).max())
        claim.refutes(f"{rewards}: distance from {PLAIN}", Number(apart, 0.05, relation="at least"))
    at_zero, _ = extrapolated(data["sampled"].average)
    aim = ended.sel(rewards="certain", trainer=GRPO, beta=SAMPLED_BETAS, drop=True)
    for name in (GRPO, SAME):
        gap = furthest(at_zero.sel(trainer=name, drop=True), aim, tolerance=MARGIN)
        claim.refutes(f"{name}: sampled, extrapolated - GRPO's exact ascent", gap)
    judge_rare(data["rare"].weight, claim)


def judge_weights(paths: xr.Dataset, claim: Claim) -> None:
    """The weight against σ at every point of every path, and whether it falls on the way."""
    claim.requires("cosine of the two gradients", worst(paths.cosine, expected=1.0, tolerance=1e-9))
    for name in PATHS:
        ratio = paths.weight.sel(path=name, drop=True) / spread(name)
        claim.refutes(f"{name}: weight / σ - 1", worst(ratio, expected=1.0, tolerance=0.02))
    half = path(CERTAIN).isel(output=0) >= 0.5
    certain = paths.weight.sel(path=CERTAIN, drop=True)
    after = certain.where(half, drop=True)
    before = certain.isel(along=slice(0, int((~half).sum()) + 1))
    claim.refutes(f"to {CERTAIN}, from one half: greatest rise of the weight", _rise(after))
    rises = {
        f"to {CERTAIN}, up to one half": (before, "once one answer has half the probability"),
        f"to {EXTREMES}": (paths.weight.sel(path=EXTREMES, drop=True), "where it is on one answer"),
        f"to {FLIP}": (paths.weight.sel(path=FLIP, drop=True), "where that answer's reward is certain"),
    }
    found = {name: _rise(weight) for name, (weight, _) in rises.items()}
    for name, (_, condition) in rises.items():
        claim.qualifies(f"{name}: greatest rise of the weight", found[name], only=condition)
    claim.finds(
        "Dividing by the spread multiplies β by the spread of rewards at the policy. That falls once an "
        "answer of a certain reward has half the probability; a policy that concentrates on two answers of "
        "unlike rewards, or on one whose reward is a coin flip, is regularised more.",
        when=all(number.holds is False for number in found.values()),
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
    """Left: weights along three ways to concentrate. Right: the same trained policy at that weight."""
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
    right.set_title(f"At β times the weight: one policy, G = {GROUP}")
