"""With two answers and groups of two, the stationary policy is
π(a) = ½(1 − β/γ + √((1 − β/γ)² + 4(β/γ)π_ref(a))).

[A] (14): γ = P(a ≻ b) − P(b ≻ a) > 0; π_ref for a tie; at least max(1 − β/γ, π_ref(a)); √π_ref(a) at β = γ;
with a jump at π_ref(a) = 0 iff β < γ. All training starts apart from π_ref: a penalty that pulls to the
start or to the sampling policy instead, which a run that starts at π_ref and has no reason to leave it would
not show, ends elsewhere.

Refuted if exact ascent ends 1e-6 from the curve, from the bound or from the ends of the curve, 0.01 from 0
where π_ref(a) = 1e-9 and β ≥ γ (from ½, where it creeps), or if a sampled run's time average under SGD,
extrapolated to learning rate zero, is not within 0.01 of it (99.9 % intervals of every setting). Qualified
if AdamW, judged with the same margin, is not. The general solver of (11), which knows nothing of (14), and a
placebo (a fair coin for both answers, which leads to π_ref) are checks of the instrument.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.formulas.optimality import LOCAL, MAXIMUM, MINIMUM, rank
from experiments.harness.numbers import Number, extrapolated, furthest, interval, tabulated, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems.answers import ended, pairs, question, time_averages
from grpo_jax import plotting, theory
from grpo_jax.tasks import Bernoulli

PRECISION = "float64"
SIZES = sizes(seeds=(64, 64, 256), iterations=(3000, 3000, 12000))

REFERENCES = [0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9]
STRENGTHS = [0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 3.0, 10.0]
"""β/γ."""
STARTS = [0.02, 0.3, 0.7, 0.98]
PAIRS = {1.0: (1.0, 0.0), 0.4: (0.7, 0.3), 0.1: (0.95, 0.85)}
"""γ -> success probabilities of the two answers."""
TIES = {"coins of 0.6": (0.6, 0.6), "both certain": (1.0, 1.0)}
SAMPLED = {"reference": [0.05, 0.2, 0.5, 0.8], "strength": [0.25, 0.5, 1.0, 3.0]}
START = [0.35, 0.65]
"""Where sampled runs start: apart from every π_ref."""
OPTIMIZERS = {"SGD": (gj.SGD, [0.05, 0.1, 0.2]), "AdamW": (gj.AdamW, [0.02, 0.04, 0.08])}
FINE = np.geomspace(1e-4, 0.99, 160), np.linspace(0.025, 4, 160)
"""π_ref and β/γ of the map of optimality."""
TINY = 1e-9
MARGIN = 0.01


def settled(
    success, strengths, references, starts, *, gap: float = 1.0, iterations: int = 800
) -> xr.DataArray:
    """π(a) where exact ascent ends; in a tie β is the strength itself."""
    config = question(success, group_size=2, noise=Bernoulli())
    scale = gap or 1.0
    forces = {s: (scale * s, 3 / (gap + scale * s)) for s in strengths}
    axes = {
        "reference": pairs(references),
        ("kl_coef", "learning_rate"): forces,
        "policy.logits": pairs(starts),
    }
    found = ended(config, axes, iterations=iterations).rename({"kl_coef+learning_rate": "strength"})
    return found.rename({"policy.logits": "start"}).drop_vars(["kl_coef", "learning_rate"])


def solved(references, strengths) -> xr.DataArray:
    """π(a) of the general solver of (11), which knows nothing of (14)."""

    @jax.vmap
    def solve(gap, anchor, strength, success):
        rewards = theory.Rewards(jnp.array([0.0, 1.0]), jnp.stack([1 - success, success], 1))
        anchor = jnp.stack([anchor, 1 - anchor])
        return theory.stationary(anchor, rewards, gap * strength, group_size=2).policy[0]

    def of(gap, anchor, strength):
        success = np.array([PAIRS[g] for g in gap.ravel()])
        found = jax.jit(solve)(gap.ravel(), anchor.ravel(), strength.ravel(), success)
        return np.reshape(found, gap.shape)

    return tabulated(of, gap=list(PAIRS), reference=references, strength=strengths)


def sampled(name: str, seed: int, size: Any) -> xr.DataArray:
    """Time averages of π(a) with rewards 1 and 0, from a start apart from every π_ref."""
    kind, rates = OPTIMIZERS[name]
    config = question([1.0, 0.0], group_size=2, start=START, optimizer=kind(learning_rate=0.1))
    axes = {"learning_rate": rates, "reference": pairs(SAMPLED["reference"]), "kl_coef": SAMPLED["strength"]}
    return time_averages(config, axes, size, seed).rename(kl_coef="strength")


def placebo(seed: int, size: Any) -> xr.DataArray:
    """The same where a fair coin rewards both answers: β = 1 leads to π_ref."""
    config = question([0.5, 0.5], group_size=2, start=START, noise=Bernoulli())
    axes = {"learning_rate": OPTIMIZERS["SGD"][1], "reference": pairs(SAMPLED["reference"])}
    return time_averages(config, axes, size, seed)


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Exact ascent over the curve and at its left end, the solver, and sampled time averages."""
    untied = [settled(p, STRENGTHS, REFERENCES, STARTS, gap=g) for g, p in PAIRS.items()]
    tied = [settled(p, STRENGTHS, REFERENCES, STARTS, gap=0.0) for p in TIES.values()]
    below, above = ([s for s in STRENGTHS if (s < 1) == less] for less in (True, False))
    averages = {name: xr.Dataset({"average": sampled(name, seed, size)}) for name in OPTIMIZERS}
    return {
        "exact": xr.Dataset({
            "trained": xr.concat(untied, xr.Variable("gap", list(PAIRS))),
            "tied": xr.concat(tied, xr.Variable("tie", list(TIES))),
            "solved": solved(REFERENCES, STRENGTHS),
        }),
        "left": xr.Dataset({
            "trained": settled((1.0, 0.0), below, [TINY], [0.5]).squeeze(drop=True),
            "at_zero": settled((1.0, 0.0), below, [0.0], [0.0]).squeeze(drop=True),
        }),
        "no jump": xr.Dataset({
            "trained": settled((1.0, 0.0), above, [TINY], [0.5], iterations=8000).squeeze(drop=True)
        }),
        "corner": xr.Dataset({"solved": solved([TINY], STRENGTHS).squeeze(drop=True)}),
        "map": xr.Dataset({"rank": tabulated(rank, reference=FINE[0], strength=FINE[1])}),
        "placebo": xr.Dataset({"average": placebo(seed, size)}),
        **averages,
    }  # fmt: skip


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """The curve, its ends, ties and bounds; sampled runs; and what maximises its own surrogate."""
    exact, left, corner = data["exact"], data["left"], data["corner"].solved
    corner_trained = data["no jump"].trained
    curve = tabulated(theory.stationary_pair, reference=REFERENCES, strength=STRENGTHS)
    bound = tabulated(partial(theory.lower_bound, group_size=2), reference=REFERENCES, strength=STRENGTHS)
    end = 1 - left.strength
    claim.requires("solver of (11) - (14)", worst(exact.solved, expected=curve, tolerance=1e-10))
    claim.requires(
        "solver at π_ref = 1e-9, β < γ",
        worst(corner.sel(strength=left.strength), expected=end, tolerance=1e-6),
    )
    claim.requires(
        "solver at π_ref = 1e-9, β ≥ γ: no jump", worst(corner.sel(strength=slice(1, None)), tolerance=1e-4)
    )
    claim.refutes("exact ascent - (14)", worst(exact.trained, expected=curve, tolerance=1e-6))
    claim.refutes(
        "exact ascent - bound", worst(exact.trained, expected=bound, tolerance=1e-6, relation="at least")
    )
    root = np.sqrt(exact.reference)
    claim.refutes(
        "exact ascent at β = γ, - √π_ref", worst(exact.trained.sel(strength=1), expected=root, tolerance=1e-6)
    )
    claim.refutes("tied: exact ascent - π_ref", worst(exact.tied, expected=exact.reference, tolerance=1e-6))
    claim.refutes("π_ref = 1e-9: exact ascent - (1 - β/γ)", worst(left.trained, expected=end, tolerance=1e-6))
    claim.requires("π_ref = 0, started at 0: exact ascent", worst(left.at_zero))
    claim.refutes("π_ref = 1e-9, β ≥ γ: exact ascent from ½", worst(corner_trained, tolerance=MARGIN))
    for name in OPTIMIZERS:
        at_zero, slope = extrapolated(data[name].average)
        gap = furthest(at_zero, tabulated(theory.stationary_pair, **SAMPLED), tolerance=MARGIN)
        told = f"{name}: sampled, extrapolated - (14)"
        claim.refutes(told, gap) if name == "SGD" else claim.qualifies(told, gap, only="under SGD")
        claim.reports(f"{name}: steepest slope in the learning rate", worst(slope.mean("seed")))
        bent, _ = extrapolated(data[name].average, degree=2)
        claim.reports(
            f"{name}: quadratic extrapolation - (14)",
            furthest(bent, tabulated(theory.stationary_pair, **SAMPLED), tolerance=MARGIN),
        )
        claim.finds(f"{name} settles on the curve, sampled, to within {MARGIN}.", when=gap)
    at_zero, _ = extrapolated(data["placebo"].average)
    claim.requires(
        "placebo: sampled, extrapolated - π_ref", furthest(at_zero, at_zero.reference, tolerance=MARGIN)
    )
    judge_optimality(data["map"]["rank"], abs(exact.trained - curve).max(["gap", "start"]), claim)


def judge_optimality(kind: xr.DataArray, gap: xr.DataArray, claim: Claim) -> None:
    """Stationary is not optimal: where a point of the curve is only a local maximum, or not even that.

    Args:
      kind: rank of each point of the map.
      gap: of exact ascent from the curve, by π_ref and β/γ.
      claim: gets the row.
    """
    row = claim.ours(
        "Part of the curve does not maximise its own surrogate; exact ascent ends there all the same."
    )
    greatest = {}
    for least, words in ((LOCAL, "a better policy"), (MINIMUM, "curvature upwards")):
        greatest[least] = float(kind.reference.where((kind >= least).any("strength")).max())
        number = Number(greatest[least], REFERENCES[0], relation="at least")
        row.refutes(f"greatest π_ref with {words}", number)
    lowest = tabulated(rank, reference=gap.reference.values, strength=gap.strength.values) == MINIMUM
    met = Number(float(lowest.sum()), 1.0, relation="at least")
    row.requires("trained settings with curvature upwards", met)
    stays = worst(gap.where(lowest, 0.0), tolerance=1e-6)
    row.refutes("exact ascent - (14) where its surrogate curves upwards", stays)
    if not (kind >= MINIMUM).any():
        return
    strengths = kind.strength.where((kind >= MINIMUM).any("reference"), drop=True)
    low, high = float(strengths.min()), float(strengths.max())
    row.finds(
        f"For some π_ref of at most {greatest[MINIMUM]:.2g} and β/γ between {low:.2f} and {high:.2f} the "
        "stationary point is a minimum of its own surrogate; exact ascent settles there all the same.",
        when=[met, stays],
    )


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """The curve of (14) for every β/γ, where exact ascent ends (rings), and where sampled runs do."""
    axes, right = plotting.panels(figure, 1, 2, width_ratios=(1.5, 1))
    fine = np.concatenate([np.geomspace(1e-6, 0.01, 60), np.linspace(0.011, 0.999, 200)])
    for strength, color in plotting.shades(STRENGTHS).items():
        curve, best = (
            theory.stationary_pair(fine, strength),
            rank(fine, np.full(fine.shape, strength)) == MAXIMUM,
        )
        axes.plot(fine, np.where(best, curve, np.nan), color=color, label=f"{strength:g}")
        axes.plot(fine, np.where(best, np.nan, curve), ":", color=color)
        here = data["exact"].trained.sel(gap=0.4, strength=strength).isel(start=0)
        axes.plot(here.reference, here, "o", mfc="white", ms=4, color=color)
        if strength in SAMPLED["strength"]:
            draw_residuals(right, data["SGD"].average.sel(strength=strength), strength, color)
        if strength < 1:
            axes.plot(0, 1 - strength, "o", ms=4, color=color, clip_on=False)
    axes.plot([], [], ":", color="0.3", label="no maximum of\nits own surrogate")
    axes.legend(title="β/γ")
    axes.set(xlim=(0, 1), ylim=(0, 1.01), xlabel="π_ref(a)", ylabel="stationary π(a)")
    axes.set_title("Exact ascent (rings) ends on the curve of (14)…", loc="left")
    right.axhspan(-MARGIN, MARGIN, color="0.93")
    right.axhline(0, color="0.4", lw=0.8)
    right.set(xlim=(0, 1), ylim=(-0.012, 0.012), xlabel="π_ref(a)", ylabel="π(a) at rate → 0, less (14)")
    right.set_title("…and so does sampled SGD", loc="left")


def draw_residuals(axes: Any, average: xr.DataArray, strength: float, color: Any) -> None:
    """Sampled runs at rate zero, less the curve, drawn side by side for each β/γ."""
    at_zero, _ = extrapolated(average)
    curve = tabulated(theory.stationary_pair, reference=at_zero.reference.values, strength=[strength])
    apart = interval(at_zero - curve.isel(strength=0, drop=True))
    beside = 0.025 * (SAMPLED["strength"].index(strength) - 1.5)
    plotting.points(axes, apart.reference + beside, apart.value, apart.low, apart.high, color=color)
