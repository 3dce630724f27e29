"""(Our paraphrase of its reviews.) Clipped from above only, the ratio leaves a gradient of bounded variance.

[C], arXiv:2508.02833. The sentence paraphrases public reviews of its conference submission and stands in
neither abstract (v2 of 2025, v5 of 23 March 2026). We could read the abstracts and the paper's beginning
only, and so do not know the clip's form: with w = Π_t ρ_t and c = 1 + ε it may be min(w, c)A, differentiated;
sg[min(w, c)]A log π; or, with the minimum of PPO, min(wA, min(w, c)A). Sequences of T tokens, the same old
and new law at every prefix, hence the same χ² = Σ π_θ²/π_old − 1; rewards say which of two tokens is more
frequent; groups of 8, shift-only; θ drifts towards winners, towards losers or towards neither.

Refuted if under one of the first two forms, which ignore the sign of A, the variance exceeds (1 + ε)² times
that without drift at some T = 1..12, judged for every drift by itself. Qualified if it does under PPO's
minimum. The two-sided clip is a row of ours. Checks of the instrument: E_old[w²] = (1 + χ²)^T to 1e-10, in
closed form and on enumerated trees that drift in random directions; the unclipped trajectory ratio is
unbiased to 1e-10; and the variance of gradients that the library samples is the exact one to 5 % for every
ratio and clip at T = 4 and 6, drifts towards winners and towards losers of χ² = 0.1. What T = 12 and χ² = 0.3
give is the closed form's alone. The 5 % are twice the half width, 2.5 % at most, that intervals have at this
many seeds (99.9 % together): the interval of a right variance lies within them, and that of a variance wrong
by 10 % beyond them.
"""

import functools
from typing import Any

import numpy as np
import xarray as xr

from experiments.formulas.drift_moments import CHI2, HORIZONS, exact, random_trees
from experiments.harness.numbers import Number, each, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems.three_tokens import DRIFTS, HIGH, SAMPLED, distances
from grpo_jax import plotting
from grpo_jax.parts.gains import Clip, Truncated, TruncatedScore
from grpo_jax.theory import variance

SIZES = sizes(trees=(8, 64, 256), seeds=(32768, 32768, 114688), horizons=((4,), (4, 6), (4, 6)))

CAP = (1 + HIGH) ** 2
SIGNED = "upper, minimum"
"""Acts on winners only."""
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
    """Exact moments, enumerated trees, and sampled groups; two clips at the first horizon only."""
    rng = np.random.default_rng(seed)
    listed = [[random_trees(rng, size.trees, int(T), chi2) for T in HORIZONS[:6]] for chi2 in CHI2]
    run = functools.partial(distances, seeds=size.seeds, root=seed)
    forms, ratios = tuple(variance.FORMS), variance.RATIOS
    found = [run(Clip(), forms[:3], ratios, horizon=T) for T in size.horizons]
    found += [
        run(gain(high=HIGH), [clip], ratios[:2], horizon=size.horizons[0])
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
    """The instrument; clips that ignore A's sign; PPO's minimum; the two-sided clip."""
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
    for clip in UNSIGNED:
        claim.refutes(f"variance under {LABELS[clip]} over on-policy", largest(whole.variance.sel(clip=clip)))
    signed = largest(whole.variance.sel(clip=SIGNED))
    claim.qualifies(
        f"variance under {LABELS[SIGNED]} over on-policy", signed, only="in a form that ignores the sign of A"
    )
    free = whole.variance.sel(clip="none")
    claim.reports("variance without a clip over on-policy", Number(float(free.max())))
    for clip in ("none", "two-sided", SIGNED):
        for drift in DRIFTS:
            rate = growth(whole.moment.sel(clip=clip, drift=drift, chi2=0.1))
            claim.reports(f"{LABELS[clip]}: growth of log E[c²] per log(1 + χ²), {drift}", Number(rate))
    told(whole, signed, claim)
    row = claim.ours("GRPO's two-sided clip bounds the variance of a trajectory-level ratio.")
    most = largest(whole.variance.sel(clip="two-sided"))
    row.refutes("variance under the two-sided clip over on-policy", most)
    top = max(most.values(), key=lambda number: number.value)
    row.finds(
        f"Losers with a great ratio stay as they are: up to {top.value:.0f} times the on-policy variance.",
        when=top.holds is False,
    )


def told(whole: xr.Dataset, signed: dict[str, Number], claim: Claim) -> None:
    """The price of a clip that ignores A's sign, where PPO's minimum fails, and where it does not."""
    far = whole.sel(chi2=0.1, horizon=12)
    for clip in variance.FORMS:
        for drift in SAMPLED:
            here = far.sel(clip=clip, drift=drift)
            claim.reports(f"{LABELS[clip]}: bias at T = 12, χ² = 0.1, {drift}", Number(float(here.bias)))
            claim.reports(
                f"{LABELS[clip]}: variance there over on-policy, {drift}", Number(float(here.variance))
            )
    biases = far.bias.sel(clip=list(UNSIGNED), drift="towards losers")
    bounded = [claim.numbers[name].holds is True for name, role in claim.roles.items() if role == "refutes"]
    claim.finds(
        "A clip that ignores the sign of A bounds the variance. The price is bias: at T = 12 and χ² = 0.1, "
        f"towards losing answers, the mean gradient is off by {float(biases.min()):.2f} to "
        f"{float(biases.max()):.2f} of ‖∇J(θ)‖.",
        when=all(bounded) and bool((biases > MARGIN).all()),
    )
    lost, won = signed["towards losers"], signed["towards winners"]
    free = float(whole.variance.sel(clip="none", drift="towards losers").max())
    alike = Number(lost.value / free, 1.0, 0.01)
    claim.reports("towards losers: variance under PPO's minimum over that without a clip", alike)
    claim.finds(
        "PPO's minimum never clips an answer with a negative advantage. Where the policy drifts towards "
        f"losing answers the variance reaches {lost.value:.0f} times the on-policy one ({lost.at}), as "
        "without a clip.",
        when=lost.holds is False and alike.holds is True,
    )
    claim.finds(
        "Where it drifts towards winning answers it never exceeds the on-policy one by over a thousandth.",
        when=won.value <= 1.001,
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
        SIGNED: (plotting.COLORS[1], 2.0, "--"),
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
    figure.suptitle("Variance of a group's gradient with the trajectory ratio, by clip and drift (χ² = 0.3)")
