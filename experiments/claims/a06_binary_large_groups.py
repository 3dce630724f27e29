"""With two answers and large groups the stationary policy is
π = (2β²π_ref + 1 + √(1 + 4β²π_ref(1 − π_ref))) / (2(1 + β²)), at least max(1/(1 + β²), π_ref).

[A] (arXiv:2502.18548v3), (15) and Figure 2, the limit G → ∞ of one question with two answers. Rewards are
certain (any gap between them), or coin flips whose chances have the same order.

Refuted if exact ascent on certain rewards at G = 256 ends 0.01 from (15) or 0.01 below the bound. Qualified
if it does on coin flips. That formula and limit fit together, the solver, and a placebo (a fair coin for both
answers, which leads to π_ref) are checks of the instrument. The paper's sentence on the order of the expected
rewards is a row of its own: it falls if rewards of the same order, noisy ones among them, move the policy by
more than 0.01. So is, as ours, the curve of every other group size, β(π − π_ref) = φ_G(π).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.harness.numbers import Number, extrapolated, furthest, interval, tabulated, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems.answers import ended, logits, pairs, question, time_averages
from grpo_jax import plotting, theory
from grpo_jax.tasks import Bernoulli

PRECISION = "float64"
SIZES = sizes(
    seeds=(16, 48, 256),
    iterations=(2000, 2000, 10000),
    groups=((2, 256), (2, 8, 256), (2, 4, 8, 16, 64, 256)),
)
"""Seeds and iterations of sampled runs, and groups trained exactly."""

REFERENCES = [0.01, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9]
BETAS = [0.25, 0.5, 1.0, 2.0, 5.0]
STARTS = {0.03: 1e-3, 0.5: 1.0, 0.97: 50.0}
"""Start -> difference of the two rewards that goes with it."""
PAIRS = {"1, 0": (1.0, 0.0), "0.95, 0.05": (0.95, 0.05), "0.7, 0.3": (0.7, 0.3), "0.55, 0.45": (0.55, 0.45)}
"""Success chances of the two answers; the first pair is certain."""
CERTAIN, COINS = "1, 0", "0.7, 0.3"
SMALL, FIRST = 1e-5, 3e-4
"""π_ref near the jump, and where training starts there."""
BELOW, ABOVE = 0.9, 1.1
"""β/√(G − 1) on either side of the jump."""
LARGEST = 256
SAMPLED = {"reference": [0.05, 0.2, 0.5], "beta": [0.5, 1.0, 2.0]}
SAMPLED_GROUP = 8
OPTIMIZERS = {"SGD": (gj.SGD, [0.05, 0.1, 0.2]), "AdamW": (gj.AdamW, [0.02, 0.04, 0.08])}
MARGIN = 0.01


def trained(group: int) -> xr.Dataset:
    """Where exact ascent ends: for every start, for coin flips, and beside the jump."""
    config = question([1.0, 0.0], group_size=group, noise=Bernoulli())
    cases: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    for r, b in ((r, b) for r in REFERENCES for b in BETAS):
        for start, gap in STARTS.items():
            cases["start", r, b, start] = (r, b, 3 / (1 + b), start, PAIRS[CERTAIN], gap)
        for name, chances in PAIRS.items():
            cases["noise", r, b, name] = (r, b, 2.4 / (chances[0] - chances[1] + b), r, chances, 1.0)
    low, high = (side * math.sqrt(group - 1) for side in (BELOW, ABOVE))
    cases["edge", SMALL, low, BELOW] = (SMALL, low, 50.0, FIRST, PAIRS[CERTAIN], 1.0)
    cases["edge", SMALL, high, ABOVE] = (SMALL, high, 0.1 / (SMALL * high), FIRST, PAIRS[CERTAIN], 1.0)
    paths = ("reference", "kl_coef", "learning_rate", "policy.logits", "task.table", "reward_scale")
    axes = {
        paths: {
            str(case): (logits([r, 1 - r]), b, rate, logits([p, 1 - p]), [chances], gap)
            for case, (r, b, rate, p, chances, gap) in cases.items()
        }
    }
    found = dict(zip(cases, ended(config, axes, iterations=400).values, strict=True))

    def table(kind: str, name: str, labels: Any) -> xr.DataArray:
        return tabulated(
            np.vectorize(lambda r, b, label: found[kind, r, b, label], otypes=[float]),
            reference=REFERENCES, beta=BETAS, **{name: list(labels)},
        )  # fmt: skip

    edge = xr.DataArray([found["edge", SMALL, low, BELOW], found["edge", SMALL, high, ABOVE]], dims="side")
    return xr.Dataset({
        "trained": table("start", "start", STARTS),
        "noisy": table("noise", "pair", PAIRS),
        "edge": edge.assign_coords(side=[BELOW, ABOVE]),
        "edge_curve": ("side", curve([SMALL, SMALL], [low, high], group)),
        "curve": curves(group),
    })  # fmt: skip


def curve(reference: Any, beta: Any, group: float) -> np.ndarray:
    """β(π − π_ref) = φ_G(π) solved for π; calls share one shape, and so one compiled program a group."""
    reference, beta = np.broadcast_arrays(np.asarray(reference, float), np.asarray(beta, float))
    padded = (np.resize(x.ravel(), len(REFERENCES) * len(BETAS)) for x in (reference, beta))
    found = theory.stationary_binary(*padded, group_size=group)
    return np.reshape(np.asarray(found)[: reference.size], reference.shape)


def curves(group: int) -> xr.DataArray:
    """The curve [reference, beta] of a group size."""
    return tabulated(lambda r, b: curve(r, b, group), reference=REFERENCES, beta=BETAS)


def solved(group: float) -> xr.DataArray:
    """π of the general solver of (11), which knows nothing of the curves."""

    @jax.vmap
    def solve(reference, beta, chances):
        rewards = theory.Rewards(jnp.array([0.0, 1.0]), jnp.stack([1 - chances, chances], 1))
        return theory.stationary(
            jnp.stack([reference, 1 - reference]), rewards, beta, group_size=group
        ).policy[0]

    def of(place, reference, beta):
        chances = np.array(list(PAIRS.values()))[place.ravel()]
        return np.reshape(jax.jit(solve)(reference.ravel(), beta.ravel(), chances), beta.shape)

    found = tabulated(of, pair=range(len(PAIRS)), reference=REFERENCES, beta=BETAS)
    return found.assign_coords(pair=list(PAIRS))


def sampled(name: str, seed: int, size: Any) -> xr.DataArray:
    """Time averages with certain rewards."""
    kind, rates = OPTIMIZERS[name]
    config = question([1.0, 0.0], group_size=SAMPLED_GROUP, optimizer=kind(learning_rate=0.1))
    axes = {
        "learning_rate": rates,
        ("reference", "policy.logits"): {r: (x, x) for r, x in pairs(SAMPLED["reference"]).items()},
        "kl_coef": SAMPLED["beta"],
    }
    found = time_averages(config, axes, size, seed).drop_vars(["reference", "policy.logits"])
    return found.rename({"reference+policy.logits": "reference", "kl_coef": "beta"})


def coins(seed: int, size: Any) -> xr.DataArray:
    """Time averages at β = 1 where both answers flip a fair coin, or the better one's is better."""
    start = [0.35, 0.65]
    config = question([0.5, 0.5], group_size=SAMPLED_GROUP, start=start, noise=Bernoulli())
    axes = {
        "learning_rate": OPTIMIZERS["SGD"][1],
        "reference": pairs(SAMPLED["reference"]),
        "task.table": {"fair": [[0.5, 0.5]], COINS: [PAIRS[COINS]]},
    }
    return time_averages(config, axes, size, seed).rename({"task.table": "pair"})


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Exact ascent per group size, the solver, and sampled time averages."""
    groups = xr.Variable("group", list(size.groups))
    solver = [solved(group) for group in (LARGEST, math.inf)]
    return {
        "exact": xr.concat([trained(group) for group in size.groups], groups),
        "solver": xr.Dataset({"solved": xr.concat(solver, xr.Variable("group", [LARGEST, np.inf]))}),
        "coins": xr.Dataset({"average": coins(seed, size)}),
        **{name: xr.Dataset({"average": sampled(name, seed, size)}) for name in OPTIMIZERS},
    }


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """(15) and its bound for certain rewards; rewards of the same order; every other group size."""
    exact, solver = data["exact"], data["solver"].solved
    large = exact.sel(group=LARGEST)
    limit = tabulated(theory.stationary_large_group, reference=REFERENCES, beta=BETAS)
    bound = tabulated(
        lambda r, b: theory.lower_bound(r, b, group_size=math.inf), reference=REFERENCES, beta=BETAS
    )
    force, drive = limit.beta * (limit - limit.reference), np.sqrt(limit * (1 - limit))
    claim.requires("(15): β(π - π_ref) - √(π(1 - π))", worst(force, expected=drive, tolerance=1e-12))
    certain = solver.sel(pair=CERTAIN, drop=True)
    claim.requires(
        "solver of (11), G → ∞, - (15)", worst(certain.sel(group=np.inf), expected=limit, tolerance=1e-10)
    )
    claim.requires(
        f"solver of (11), G = {LARGEST}, - curve",
        worst(certain.sel(group=LARGEST), expected=large.curve, tolerance=1e-10),
    )
    claim.requires(
        f"exact ascent, G = {LARGEST}, - solver",
        worst(large.noisy, expected=solver.sel(group=LARGEST), tolerance=1e-6),
    )
    runs = data["coins"].average
    fair, _ = extrapolated(runs.sel(pair="fair"))
    claim.requires("placebo: sampled, extrapolated - π_ref", furthest(fair, fair.reference, tolerance=MARGIN))
    judge_certain(large, solver.sel(group=np.inf, drop=True), limit, bound, claim)
    judge_order(
        large, solver, runs, claim.also("It depends only on which answer's expected reward is larger.")
    )
    judge_groups(data, limit, claim)


def judge_certain(
    large: xr.Dataset, solved: xr.DataArray, limit: xr.DataArray, bound: xr.DataArray, claim: Claim
) -> None:
    """Policies trained in large groups, and the solver's, against (15) and its bound."""
    name = f"certain rewards, G = {LARGEST}"
    close = worst(large.trained, expected=limit, tolerance=MARGIN)
    claim.refutes(f"{name}: exact ascent - (15)", close)
    least = worst(large.trained, expected=bound, tolerance=MARGIN, relation="at least")
    claim.refutes(f"{name}: exact ascent - bound", least)
    found = {}
    for pair in PAIRS:
        if pair == CERTAIN:
            continue
        found[pair] = worst(large.noisy.sel(pair=pair, drop=True), expected=limit, tolerance=MARGIN)
        told = f"coins of {pair}, G = {LARGEST}: exact ascent - (15)"
        claim.qualifies(told, found[pair], only="for rewards without noise within an answer")
        limiting = worst(solved.sel(pair=pair, drop=True), expected=limit)
        claim.reports(f"coins of {pair}, G → ∞: π of (11) - (15)", limiting)
    claim.finds(
        f"With certain rewards (15) holds: groups of {LARGEST} end within {abs(close.value):.2g} of it.",
        when=[close, least],
    )
    off = max(abs(number.value) for number in found.values())
    claim.finds(
        f"With coin flips it does not: they end up to {off:.2f} from it.",
        when=all(number.holds is False for number in found.values()),
    )


def judge_order(large: xr.Dataset, solver: xr.DataArray, runs: xr.DataArray, row: Claim) -> None:
    """Whether rewards of the same order share a policy: trained, solved [pair, ...] and sampled."""
    row.requires(
        f"exact ascent, G = {LARGEST}, - solver",
        worst(large.noisy, expected=solver.sel(group=LARGEST), tolerance=1e-6),
    )
    row.refutes(f"certain rewards of any gap, G = {LARGEST}: π moves by", _range(large.trained, "start"))
    moved = _range(large.noisy, "pair")
    row.refutes(f"rewards of the same order, G = {LARGEST}: π moves by", moved)
    limit = _range(solver.sel(group=np.inf, drop=True), "pair")
    row.refutes("rewards of the same order, G → ∞: π of (11) moves by", limit)
    at_zero, _ = extrapolated(runs.sel(pair=COINS))
    aim = xr.DataArray(curve(at_zero.reference, 1.0, SAMPLED_GROUP), {"reference": at_zero.reference})
    row.reports(
        f"coins of {COINS}, β = 1, G = {SAMPLED_GROUP}: sampled, extrapolated - certain rewards",
        furthest(at_zero, aim, tolerance=MARGIN),
    )
    row.finds(
        "Rewards of the same order do not share a policy: noise within an answer enters the spread and "
        f"moves the policy by up to {moved.value:.2f}.",
        when=moved.holds is False and limit.holds is False,
    )


def _range(policies: xr.DataArray, over: str) -> Number:
    return worst(policies.max(over) - policies.min(over), tolerance=MARGIN)


def judge_groups(data: dict[str, xr.Dataset], limit: xr.DataArray, claim: Claim) -> None:
    """The curve of every group size, where it jumps, and sampled runs."""
    row = claim.ours(
        "With certain rewards every group size G has its own curve, β(π − π_ref) = φ_G(π), which rises with "
        "G to (15) and jumps at π_ref = 0 iff β < √(G − 1)."
    )
    exact = data["exact"]
    for group in exact.group.values:
        here = exact.sel(group=group)
        row.refutes(
            f"G = {group}: exact ascent - curve", worst(here.trained, expected=here.curve, tolerance=1e-6)
        )
    rising = xr.concat([exact.curve, limit.expand_dims(group=[np.inf])], "group").diff("group")
    row.refutes("curves rise with G and stay below (15)", worst(rising, relation="at least"))
    near, far = (
        float(
            abs(limit - tabulated(lambda r, b, g=g: curve(r, b, g), reference=REFERENCES, beta=BETAS)).max()
        )
        for g in (512, 4096)
    )
    exponent = Number(math.log(far / near) / math.log(8), expected=-0.5, relation="at most")
    row.refutes("(15) - curve, worst: exponent of G from 512 to 4096", exponent)
    below, above = exact.edge.sel(side=BELOW, drop=True), exact.edge.sel(side=ABOVE, drop=True)
    place = f"π_ref = {SMALL:g}, from π = {FIRST:g}"
    row.refutes(
        f"{place}: exact ascent / curve", worst(exact.edge / exact.edge_curve, expected=1.0, tolerance=1e-3)
    )
    up = worst(below / FIRST, expected=2.0, relation="at least")
    down = worst(above * (1 - 1 / ABOVE) / SMALL, expected=1.0, tolerance=0.1)
    row.refutes(f"{place}, β = {BELOW:g} √(G - 1): grows by a factor, less 2", up)
    row.refutes(f"{place}, β = {ABOVE:g} √(G - 1): π over π_ref/(1 - √(G - 1)/β)", down)
    bound = np.maximum(1 / (1 + (ABOVE**2) * (exact.group - 1)), SMALL)
    row.reports("finite G below the bound of (15): by up to", worst(bound - above, relation="at most"))
    aim = tabulated(lambda r, b: curve(r, b, SAMPLED_GROUP), **SAMPLED)
    for name in OPTIMIZERS:
        at_zero, slope = extrapolated(data[name].average)
        gap = furthest(at_zero, aim, tolerance=MARGIN)
        told = f"{name}, G = {SAMPLED_GROUP}: sampled, extrapolated - curve"
        row.refutes(told, gap) if name == "SGD" else row.qualifies(told, gap, only="under SGD")
        row.reports(f"{name}: steepest slope in the learning rate", worst(slope.mean("seed")))
    ends = {side: float(exact.edge.sel(side=side, group=LARGEST)) for side in (BELOW, ABOVE)}
    row.finds(
        f"At π_ref = {SMALL:g} a group of G trains up only if β < √(G − 1), whatever (15) says: from "
        f"{FIRST:g} a group of {LARGEST} goes up to {ends[BELOW]:.4f} at {BELOW:g} √(G − 1), and down to "
        f"{ends[ABOVE]:.5f} at {ABOVE:g} √(G − 1).",
        when=[up, down],
    )


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """Left: certain rewards, a curve for every group size up to (15). Right: what noise does to the limit."""
    figure.set_size_inches(7.0, 3.4)
    left, right = plotting.panels(figure, 1, 2, sharey=True)
    π = 1 / (1 + np.exp(-np.linspace(-9, 9, 400)))
    exact, beta = data["exact"], 2.0
    for group, color in plotting.shades(int(g) for g in exact.group).items():
        reference = π - np.asarray(theory.phi(π, group_size=group)) / beta
        _line(left, reference, π, color, f"{group}")
        here = exact.trained.sel(group=group, beta=beta).isel(start=0)
        left.plot(here.reference, here, "o", mfc="white", ms=4, color=color)
    if SAMPLED_GROUP in exact.group:
        runs = interval(extrapolated(data["SGD"].average.sel(beta=beta))[0])
        color = plotting.shades(int(g) for g in exact.group)[SAMPLED_GROUP]
        plotting.points(left, runs.reference, runs.value, runs.low, runs.high, color=color, marker="_")
    fine = np.linspace(0, 1, 200)
    left.plot(fine, theory.stationary_large_group(fine, beta), "--", color="black", label="∞, (15)")
    left.legend(title="G", loc="lower right")
    left.set_title("Certain rewards, β = 2: every G has its curve")
    for (name, (p, q)), color in zip(PAIRS.items(), plotting.COLORS, strict=False):
        chance = π * p + (1 - π) * q
        reference = π - (p - q) * π * (1 - π) / np.sqrt(chance * (1 - chance))
        _line(right, reference, π, color, f"{name} (certain)" if name == CERTAIN else name)
        here = exact.noisy.sel(group=LARGEST, pair=name, beta=1.0)
        right.plot(here.reference, here, "o", mfc="white", ms=4, color=color)
    right.legend(title="chance of reward 1,\nbetter and worse answer", loc="lower right")
    right.set_title("Noise moves it: G → ∞, β = 1")
    for axes in (left, right):
        axes.plot([0, 1], [0, 1], color="0.8", lw=0.8, zorder=0)
        axes.set(xlim=(0, 1), ylim=(0, 1.01), xlabel="π_ref of the better answer")
    left.set_ylabel("stationary π of the better answer")
    figure.supxlabel("rings: exact ascent (right: G = 256); bars: sampled at rate → 0", fontsize=7.5)


def _line(axes: Any, reference: np.ndarray, policy: np.ndarray, color: str, label: str) -> None:
    """The stable branch of a curve that is given as π_ref(π)."""
    there = (reference >= 0) & (reference <= 1)
    axes.plot(reference[there], policy[there], color=color, label=label)
