"""Under π_old = π the penalty D = π_ref/π - log(π_ref/π) - 1 estimates KL(π‖π_ref), yet its gradient is, up
to a constant, that of the reverse KL(π_ref‖π).

[A] (arXiv:2502.18548v3), (8)-(10): the derivative in π(o) is 1 - π_ref(o)/π(o). The constant
vanishes in logits. Exact expectations over random π and π_ref with five answers; training of pairs, G = 2,
on-policy, no clip; sampled runs start apart from where they should end.

Refuted if D's mean, its derivative or its gradient in logits are not the printed ones to 1e-12, if exact
ascent ends 1e-6 from the policy that the reverse KL leads to, or if sampled SGD, extrapolated to learning
rate zero, is not within 0.01 of it (99.9 %).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from experiments.harness.numbers import Number, extrapolated, furthest, interval, mean, tabulated, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems.answers import ended, question, time_averages
from experiments.problems.divergences import ESTIMATORS, missed_on_trees, penalized, weights
from grpo_jax import plotting, theory
from grpo_jax.exact import expected_gradient, expected_objective
from grpo_jax.parts.penalties import K3
from grpo_jax.types import Array

PRECISION = "float64"
SIZES = sizes(tables=(8, 64, 1024), trees=(16, 16, 64), seeds=(48, 48, 256), iterations=(3000, 3000, 12000))

TARGETS = {"KL(π‖π_ref)": "forward", "KL(π_ref‖π)": "reverse"}
ACTIONS, HORIZONS = 5, [1, 4]
DRIFTS = [0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 3.0]
"""Standard deviation of log π - log π_old over outputs."""
BETAS, REFERENCE = np.logspace(-0.6, 1, 13), 0.2
TRAINED, SAMPLED = ["k2", "k3", "ratio x k3"], ["k3", "ratio x k3"]
"""On-policy k2 and the ratio times k3 have the same gradient in every sample: one of them is sampled."""
SAMPLED_BETAS, RATES, START = [0.3, 1.0], [0.05, 0.1, 0.2], [0.35, 0.65]
EXACT, MARGIN = 1e-12, 0.01


def one_step(seed: int, size: Any) -> xr.Dataset:
    """Exact means and gradients in logits of every estimator, where π has drifted from π_old."""
    raw = np.random.default_rng(seed).normal(size=(3, ACTIONS, size.tables))
    here, anchor, towards = (xr.DataArray(x, dims=("answer", "table")) for x in raw)
    unit = (towards - towards.mean("answer")) / towards.std("answer")
    drift = xr.DataArray(DRIFTS, {"drift": DRIFTS}, "drift")
    chosen = xr.DataArray(
        list(weights(list(ESTIMATORS)).values()), {"estimator": list(ESTIMATORS)}, ("estimator", "weight")
    )
    policies = {"now": here, "old": here - drift * unit, "reference": 1.5 * anchor}
    every = xr.Dataset(policies | {"weights": chosen})
    runs = xr.broadcast(every, exclude=["answer", "weight"])[0].stack(run=("estimator", "drift", "table"))
    config = question(np.zeros(ACTIONS), group_size=2, method=penalized(weights=runs.weights.values))
    at = {name: runs[name].values[None] for name in ("old", "reference")}
    now = runs.now.values[None]
    found = xr.Dataset(
        {
            "gradient": (("answer", "run"), -np.asarray(expected_gradient(config, now, **at))[0]),
            "value": ("run", -np.asarray(expected_objective(config, now, **at))),
        },
        runs.coords,
    ).unstack("run")
    chances = every[["now", "reference"]].map(np.exp)
    return found.merge(chances / chances.sum("answer"))


def derivative(now: xr.DataArray, reference: xr.DataArray) -> xr.DataArray:
    """d/dπ(o) of the mean of D under π_old = π, for free π(o), by differentiating k3 itself."""

    def average(free: Array) -> Array:
        return jnp.sum(now.values * K3()(jnp.log(free), jnp.log(reference.values)))

    return now.copy(data=jax.grad(average)(jnp.asarray(now.values)))


def trained() -> xr.DataArray:
    """π(a) where exact ascent of pairs ends."""
    config = question([1.0, 0.0], group_size=2, reference=[REFERENCE, 1 - REFERENCE], method=penalized())
    axes = {
        "method.penalty.weights": weights(list(ESTIMATORS)),
        ("kl_coef", "learning_rate"): {b: (b, 2 / (1 + b)) for b in BETAS},
    }
    found = ended(config, axes, iterations=3000)
    named = {"method.penalty.weights": "estimator", "kl_coef+learning_rate": "beta"}
    return found.drop_vars(["kl_coef", "learning_rate"]).rename(named)


def predicted(betas: Any) -> xr.DataArray:
    """What k2, k3 and the ratio times k3 should train pairs to."""
    reverse = tabulated(lambda beta: theory.stationary_pair(REFERENCE, beta), beta=betas)
    forward = tabulated(lambda beta: theory.stationary_pair_direct(REFERENCE, beta), beta=betas)
    return xr.concat([forward, reverse, forward], xr.Variable("estimator", TRAINED))


def sampled(seed: int, size: Any) -> xr.DataArray:
    """Time averages of π(a) in sampled runs, from a start apart from π_ref and from every prediction."""
    reference = [REFERENCE, 1 - REFERENCE]
    config = question([1.0, 0.0], group_size=2, reference=reference, start=START, method=penalized())
    axes = {"method.penalty.weights": weights(SAMPLED), "kl_coef": SAMPLED_BETAS, "learning_rate": RATES}
    named = {"method.penalty.weights": "estimator", "kl_coef": "beta"}
    return time_averages(config, axes, size, seed).rename(named)


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Exact gradients of four estimators on and off policy and on trees, and what each trains to."""
    step = one_step(seed, size)
    return {
        "step": step.assign(derivative=derivative(step.now, step.reference)),
        "trees": xr.Dataset({"missed": missed_on_trees(HORIZONS, size.trees, seed)}),
        "exact": xr.Dataset({"trained": trained()}),
        "sampled": xr.Dataset({"average": sampled(seed, size)}),
    }


def targets(step: xr.Dataset) -> xr.Dataset:
    """The gradients in logits of both divergences of single answers."""
    log_ratio = np.log(step.now / step.reference)
    forward = step.now * (log_ratio - (step.now * log_ratio).sum("answer"))
    return xr.Dataset({"forward": forward, "reverse": step.now - step.reference})


def distances(step: xr.Dataset) -> xr.DataArray:
    """Of each gradient from both divergences', over the divergence's norm; root mean square over tables."""
    aims = targets(step).to_dataarray("target")
    squares = ((step.gradient - aims) ** 2).sum("answer") / (aims**2).sum("answer")
    return np.sqrt(squares.mean("table")).assign_coords(target=list(TARGETS))


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """Mean, derivative and gradient of k3 and where it trains; other estimators; off-policy; sequences."""
    step, aims = data["step"], targets(data["step"])
    on = step.sel(drift=0.0)
    divergence = (step.now * np.log(step.now / step.reference)).sum("answer")
    value = on.value.sel(estimator="k3")
    claim.refutes("mean - KL(π‖π_ref)", worst(value, expected=divergence, tolerance=EXACT))
    printed = 1 - step.reference / step.now
    claim.refutes("derivative - (1 - π_ref/π)", worst(step.derivative, expected=printed, tolerance=EXACT))
    gap = worst(on.gradient.sel(estimator="k3"), expected=aims.reverse, tolerance=EXACT)
    claim.refutes("gradient in logits - that of KL(π_ref‖π)", gap)
    judge_training(data, claim, ["k3"])
    claim.finds(
        "What the penalty reports is KL(π‖π_ref); what it pulls with is the gradient of KL(π_ref‖π).",
        when=[number for name, number in claim.numbers.items() if claim.roles[name] == "refutes"],
    )
    others = claim.ours(
        "On-policy and in logits k1 has no gradient and k2 has that of KL(π‖π_ref); so has k3 times the "
        "ratio, off-policy, too."
    )
    others.refutes("k1: gradient", worst(on.gradient.sel(estimator="k1"), tolerance=EXACT))
    for name, here in (("k2", on), ("ratio x k3", step)):
        gap = worst(here.gradient.sel(estimator=name), expected=aims.forward, tolerance=1e-11)
        others.refutes(f"{name}: gradient - that of KL(π‖π_ref)", gap)
    free = data["exact"].trained.sel(estimator="k1")
    held = Number(float(free.min()), 0.99, relation="at least")
    others.refutes("k1: exact ascent, least π(a) at any β", held)
    judge_training(data, others, ["k2", "ratio x k3"])
    others.finds("A loss with k1 in it penalises nothing: every β trains to the best answer.", when=held)
    judge_drift(distances(step).sel(estimator="k3"), claim)
    judge_sequences(data["trees"].missed, claim)


def judge_training(data: dict[str, xr.Dataset], row: Claim, names: list[str]) -> None:
    """Where exact and sampled training of pairs ends."""
    at_zero, slope = extrapolated(data["sampled"].average)
    for name in names:
        ended, told = (x.sel(estimator=name) for x in (data["exact"].trained, predicted(BETAS)))
        row.refutes(f"{name}: exact ascent - theory", worst(ended, expected=told, tolerance=1e-6))
        if name not in SAMPLED:
            continue
        told = predicted(SAMPLED_BETAS).sel(estimator=name)
        gap = furthest(at_zero.sel(estimator=name), told, tolerance=MARGIN)
        row.refutes(f"{name}: SGD, sampled, extrapolated - theory", gap)
        row.reports(
            f"{name}: steepest slope in the learning rate", worst(slope.sel(estimator=name).mean("seed"))
        )


def judge_drift(apart: xr.DataArray, claim: Claim) -> None:
    """Once the policy has left the one that sampled."""
    row = claim.ours(
        "Once π has left π_old, the gradient of k3 leaves that of KL(π_ref‖π) in proportion to the drift "
        "and is not that of KL(π‖π_ref) either."
    )
    reverse, forward = (apart.sel(target=told) for told in ("KL(π_ref‖π)", "KL(π‖π_ref)"))
    early = reverse.sel(drift=slice(0.01, 0.3))
    power = np.polyfit(np.log(early.drift), np.log(np.maximum(early, 1e-300)), 1)[0]
    row.refutes("exponent of the drift, .01 to .3", Number(float(power), 1.0, tolerance=0.1))
    row.refutes(
        "drift 1: distance from KL(π_ref‖π)", Number(float(reverse.sel(drift=1)), 0.1, relation="at least")
    )
    row.refutes(
        "any drift: least distance from KL(π‖π_ref)", Number(float(forward.min()), 0.1, relation="at least")
    )
    near = apart.sel(drift=0.1, target="KL(π_ref‖π)")
    row.finds(
        f"At ratios of e^±0.1 k3's gradient is {float(near):.0%} from that of KL(π_ref‖π), at e^±1 "
        f"{float(apart.sel(drift=1.0, target='KL(π_ref‖π)')):.0%}.",
        when=list(row.numbers.values()),
    )


def judge_sequences(missed: xr.DataArray, claim: Claim) -> None:
    """Token by token."""
    row = claim.ours(
        "In sequences all this holds at each prefix with the chance of the prefix held; the divergence of"
        " whole sequences has a further term."
    )
    for name in missed.estimator.values:
        here = missed.sel(estimator=name)
        row.refutes(
            f"{name}, prefix by prefix: relative error", worst(here.sel(held="prefix"), tolerance=EXACT)
        )
        whole = here.sel(held="sequence")
        row.requires(f"{name}, one token: missing share", worst(whole.sel(horizon=1), tolerance=EXACT))
        share = mean(whole.sel(horizon=HORIZONS[-1]), expected=0.05, relation="at least")
        row.refutes(f"{name}, {HORIZONS[-1]} tokens: missing share of the gradient", share)
        row.finds(
            f"On random trees of {HORIZONS[-1]} tokens {name} per token misses {share.value:.0%} "
            f"({share.low:.0%} to {share.high:.0%}) of the gradient of the sequences' divergence.",
            when=share,
        )


LOOKS = {"k1": ("^", 6), "k2": ("s", 2), "k3": ("o", 1), "ratio x k3": ("x", 0)}
"""Estimator -> marker and number of its colour."""


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """What each estimator trains a pair to; how far k3's gradient is from both divergences' off-policy."""
    left, right = plotting.panels(figure, 1, 2)
    fine = predicted(np.geomspace(BETAS[0], BETAS[-1], 80))
    for name, words in (("k3", "KL(π_ref‖π)"), ("ratio x k3", "KL(π‖π_ref)")):
        color = plotting.COLORS[LOOKS[name][1]]
        left.plot(fine.beta, fine.sel(estimator=name), color=color, label=f"theory, {words}")
    runs = interval(extrapolated(data["sampled"].average)[0])
    for name, (marker, place) in LOOKS.items():
        color, here = plotting.COLORS[place], data["exact"].trained.sel(estimator=name)
        left.plot(here.beta, here, marker, mfc="none", color=color, label=name)
        if name in SAMPLED:
            bar = runs.sel(estimator=name)
            plotting.points(left, bar.beta, bar.value, bar.low, bar.high, color=color, marker="_")
    left.plot([], [], "_", color="0.3", label="sampled, rate → 0")
    left.axhline(REFERENCE, color="0.6", ls=":")
    left.text(BETAS[0], REFERENCE + 0.01, "π_ref", color="0.4")
    left.set(xscale="log", ylim=(0, 1.04), xlabel="β", ylabel="trained π(a), G = 2")
    left.legend(loc="upper right", bbox_to_anchor=(1, 0.93))
    left.set_title("On-policy k3 pulls like the reverse KL…", loc="left")
    apart = distances(data["step"])
    for target, style in zip(TARGETS, ("--", "-"), strict=True):
        for name in ("k3", "ratio x k3"):
            marker, place = LOOKS[name]
            here = apart.sel(estimator=name, target=target)
            label = f"{name} from {target}"
            right.plot(here.drift, here, style, color=plotting.COLORS[place], label=label)
    right.set_xscale("symlog", linthresh=0.01)
    right.set_yscale("symlog", linthresh=0.01)
    right.set(xlim=(0, 3), ylim=(-0.001, 30), xlabel="drift from π_old (std of log ratio)")
    right.set_ylabel("distance of gradients over the KL's norm")
    right.set_title("…and like neither once π has moved", loc="left")
    right.legend(loc="lower right", bbox_to_anchor=(1, 0.05))
