"""Clipped from above only, the trajectory-level ratio leaves TIC-GRPO's gradient with a bounded variance.

[C], arXiv:2508.02833. The full text was not available: the sentence paraphrases what is said of the method's
upper-only clip, and stands in neither abstract (v2 of 2025, v5 of 23 March 2026). With the minimum of PPO the
clip is min(wA, min(w, c)A), w = Π_t ρ_t and c = 1 + ε. Sequences of T tokens, the same old and new law at
every prefix, hence the same χ² = Σ π_θ²/π_old − 1; rewards say which of two tokens is more frequent; groups
of 8, shift-only; θ drifts towards winners, towards losers or towards neither.

Refuted if under this clip the variance exceeds (1 + ε)² times that without drift at some T = 1..12, judged
for every drift by itself. Forms that ignore the sign of A, and the two-sided clip, are rows of ours. Checks
of the instrument: E_old[w²] = (1 + χ²)^T to 1e-10, in closed form and on enumerated trees that drift in
random directions; the unclipped trajectory ratio is unbiased to 1e-10; and the variance of gradients that the
library samples is the exact one to 5 % for every ratio and clip at T = 2, 4 and 6. The 5 % are twice the half
width, 2.5 % at most, that intervals have at this many seeds (99.9 % together): the interval of a right
variance lies within them, and that of a variance wrong by 10 % beyond them.
"""

import functools
from typing import Any

import numpy as np
import xarray as xr

from experiments.formulas.drift_moments import CHI2, HORIZONS, exact, random_trees
from experiments.harness.numbers import Number, each, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems.three_tokens import DRIFTS, HIGH, distances
from grpo_jax import plotting
from grpo_jax.parts.gains import Clip, Truncated, TruncatedScore
from grpo_jax.theory import variance

SIZES = sizes(trees=(8, 64, 256), seeds=(28672, 28672, 114688), horizons=((2,), (2, 4, 6), (2, 4, 6)))

CAP = (1 + HIGH) ** 2
OWN = "upper, minimum"
"""TIC-GRPO's clip."""
UNSIGNED = ("upper, truncated", "upper, truncated score")
"""Act whatever the sign of A."""
MARGIN = 0.05
LABELS = {
    "none": "no clip",
    "two-sided": "two-sided",
    "upper, minimum": "min(wA, min(w, c)A)",
    "upper, truncated": "min(w, c)A",
    "upper, truncated score": "sg[min(w, c)]A log π",
}


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Exact moments, enumerated trees, and sampled groups; two clips at one horizon only."""
    rng = np.random.default_rng(seed)
    listed = [[random_trees(rng, size.trees, int(T), chi2) for T in HORIZONS[:6]] for chi2 in CHI2]
    run = functools.partial(distances, seeds=size.seeds, root=seed)
    forms, ratios, middle = tuple(variance.FORMS), variance.RATIOS, size.horizons[len(size.horizons) // 2]
    found = [run(Clip(), forms[:3], ratios, horizon=T) for T in size.horizons]
    found += [
        run(gain(high=HIGH), [clip], ratios[:2], horizon=middle)
        for clip, gain in zip(UNSIGNED, (Truncated, TruncatedScore), strict=True)
    ]
    axes = {"chi2": CHI2, "horizon": HORIZONS[:6]}
    return {
        "exact": exact(),
        "listed": xr.Dataset({"moment": (("chi2", "horizon", "tree"), listed)}, axes),
        "sampled": xr.Dataset({"variance": xr.concat(found, "setting")}),
    }


def largest(variances: xr.DataArray) -> dict[str, Number]:
    """For every drift the greatest variance over that without drift, and where; it should not exceed CAP."""
    found = {}
    for drift in DRIFTS:
        here = variances.sel(drift=drift)
        top = here.isel(here.argmax(...))
        at = f"T = {int(top.horizon)}, χ² = {float(top.chi2):g}"
        found[drift] = Number(float(top), CAP, relation="at most", at=at)
    return found


def growth(moment: xr.DataArray) -> float:
    """Rate of log E[c²] over the last four horizons, in units of log(1 + χ²)."""
    return float(np.log(moment.sel(horizon=12) / moment.sel(horizon=8)) / 4 / np.log1p(moment.chi2))


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """The instrument; TIC-GRPO's own clip; forms that ignore A's sign; the two-sided clip."""
    whole = data["exact"].sel(ratio="trajectory")
    formula = (1 + whole.chi2) ** whole.horizon
    few = formula.sel(horizon=data["listed"].horizon)
    claim.requires(
        "E[w²]/(1 + χ²)^T − 1, closed form",
        worst(whole.moment.sel(clip="none") / formula - 1, tolerance=1e-10),
    )
    claim.requires(
        "E[w²]/(1 + χ²)^T − 1, enumerated trees", worst(data["listed"].moment / few - 1, tolerance=1e-10)
    )
    claim.requires(
        "bias of the unclipped trajectory ratio", worst(whole.bias.sel(clip="none"), tolerance=1e-10)
    )
    claim.requires("sampled variance / exact", sampled_numbers(data["sampled"].variance))
    own = largest(whole.variance.sel(clip=OWN))
    claim.refutes("variance under min(wA, min(w, c)A) over on-policy", own)
    free = whole.variance.sel(clip="none")
    claim.reports("variance without a clip over on-policy", Number(float(free.max())))
    lost, won = own["towards losers"], own["towards winners"]
    alike = Number(lost.value / float(free.sel(drift="towards losers").max()), 1.0, 0.01)
    claim.reports("towards losers: variance over that without a clip", alike)
    claim.finds(
        "PPO's minimum never clips an answer with a negative advantage. Where the policy drifts towards "
        f"losing answers the variance reaches {lost.value:.0f} times the on-policy one ({lost.at}), as "
        "without a clip.",
        when=lost.holds is False and alike.holds is True,
    )
    claim.finds(
        f"Where it drifts towards winning answers it is at most {won.value:.2f} times the on-policy one.",
        when=won,
    )
    for clip in ("none", "two-sided", OWN):
        for drift in DRIFTS:
            rate = growth(whole.moment.sel(clip=clip, drift=drift, chi2=0.1))
            claim.reports(f"{LABELS[clip]}: growth of log E[c²] per log(1 + χ²), {drift}", Number(rate))
    judge_other_forms(whole, claim)


def judge_other_forms(whole: xr.Dataset, claim: Claim) -> None:
    """Rows of ours: clips that ignore A's sign bound the variance, at a price; the two-sided one does not."""
    row = claim.ours(
        "An upper clip that ignores the sign of A bounds the variance of a trajectory-level ratio."
    )
    for clip in UNSIGNED:
        row.refutes(f"variance under {LABELS[clip]} over on-policy", largest(whole.variance.sel(clip=clip)))
    far = whole.sel(chi2=0.1, horizon=12)
    for clip in variance.FORMS:
        for drift in ("towards winners", "towards losers"):
            here = far.sel(clip=clip, drift=drift)
            row.reports(f"{LABELS[clip]}: bias at T = 12, χ² = 0.1, {drift}", Number(float(here.bias)))
            row.reports(
                f"{LABELS[clip]}: variance there over on-policy, {drift}", Number(float(here.variance))
            )
    biases = far.bias.sel(clip=list(UNSIGNED), drift="towards losers")
    row.finds(
        f"The price is bias: at T = 12 and χ² = 0.1 the mean gradient is off by {float(biases.min()):.2f} to "
        f"{float(biases.max()):.2f} of ‖∇J(θ)‖.",
        when=bool((biases > MARGIN).all()),
    )
    row = claim.ours("GRPO's two-sided clip bounds the variance of a trajectory-level ratio.")
    most = largest(whole.variance.sel(clip="two-sided"))
    row.refutes("variance under the two-sided clip over on-policy", most)
    top = max(most.values(), key=lambda number: number.value)
    row.finds(
        f"Losers with a great ratio stay as they are: up to {top.value:.0f} times the on-policy variance.",
        when=top.holds is False,
    )


def sampled_numbers(samples: xr.DataArray) -> dict[str, Number]:
    """Of every setting [setting, seed] the mean, which should be 1; all intervals hold together."""
    return each(samples, expected=1.0, tolerance=MARGIN, together=True)


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """Variance against T, a panel for each drift: which clips keep it below (1 + ε)² times the on-policy."""
    figure.set_size_inches(7, 3.1)
    panels = plotting.panels(figure, 1, 3, sharey=True)
    whole = data["exact"].variance.sel(ratio="trajectory", chi2=0.3)
    looks = {
        "none": ("0.75", 3.6, "-"),
        "two-sided": (plotting.COLORS[0], 1.4, ":"),
        "upper, truncated": (plotting.COLORS[2], 1.6, "-"),
        "upper, truncated score": (plotting.COLORS[3], 1.6, "-"),
        OWN: (plotting.COLORS[1], 2.0, "--"),
    }
    for axes, drift in zip(panels, DRIFTS, strict=True):
        for clip, (color, width, dash) in looks.items():
            line = whole.sel(drift=drift, clip=clip)
            axes.plot(line.horizon, line, dash, color=color, lw=width, label=LABELS[clip])
        axes.axhline(CAP, color="black", lw=0.8)
        axes.set(yscale="log", xlabel="T (tokens)", xticks=range(2, 13, 2), title=f"drift {drift}")
        axes.yaxis.set_major_formatter("{x:g}")
    panels[0].annotate("(1 + ε)²", (12, CAP), (0, -10), textcoords="offset points", fontsize=7.5, ha="right")
    panels[0].set_ylabel("variance / variance on-policy")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=7.5)
    figure.suptitle(
        "TIC-GRPO's clip min(wA, min(w, c)A) bounds the variance only in a drift towards winners (χ² = 0.3)"
    )
