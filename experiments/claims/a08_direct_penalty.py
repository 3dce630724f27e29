"""With the KL penalty multiplied by the importance ratio the stationary policy is π ∝ π_ref exp(P_G(o|π)/β);
for pairs that is NLHF's at β/2, without a jump at π_ref = 0; in large groups with two answers the stationary
values are the zeros of h, which falls up to x* and rises beyond, and for large β two values maximise.

[A] (arXiv:2502.18548), Section 5 and Figure 3, with h(x) = 1/(β√(x(1 − x))) − logit x + logit π_ref and
x* = ½(1 + √(1 − 1/(1 + β²))). "Maximise" is taken as the paper takes it for every other stationary policy: as
where the objective leads. That each root maximises the surrogate frozen at itself is an identity, checked
apart.

Refuted if a trained policy is 1e-6 (sampled under SGD: 0.01) from its formula, if h turns elsewhere than at
x*, or if exact ascent that starts 0.3 in log odds beside one of the two roots does not come back to it: the
lower and the upper root, each from either side, in groups of 2048. Qualified if AdamW is not within 0.01.
The solver's residual, its counts of roots against brute force and NLHF's own solver check the instrument.
Ours: the phases of finite groups, with one or three roots, and which of them training finds.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.formulas.compiled import light
from experiments.formulas.direct_phases import (
    WEDGES,
    born,
    lower_root,
    number,
    odds,
    phases,
    sign_changes,
    wedges,
)
from experiments.harness.numbers import Number, extrapolated, furthest, share, tabulated, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems.answers import ended, logits, pairs, question, time_averages
from grpo_jax import plotting, theory
from grpo_jax.tasks import Bernoulli

PRECISION = "float64"
SIZES = sizes(seeds=(48, 48, 256), iterations=(3000, 3000, 12000), questions=(4, 8, 64))

REFERENCES = [0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8]
STRENGTHS = [0.25, 0.5, 1.0, 2.0, 5.0]
"""β/γ."""
STARTS = [0.1, 0.6]
PAIRS = {1.0: (1.0, 0.0), 0.4: (0.7, 0.3)}
"""γ -> success probabilities of the two answers."""
TINY = 1e-9
SAMPLED = {"reference": [0.05, 0.2, 0.5], "strength": [0.5, 1.0, 2.0]}
START = [0.35, 0.65]
"""Where sampled runs start: apart from every π_ref."""
OPTIMIZERS = {"SGD": (gj.SGD, [0.05, 0.1, 0.2]), "AdamW": (gj.AdamW, [0.02, 0.04, 0.08])}
MARGIN = 0.01
ANSWERS, GROUP = 4, 4
"""Of the questions with more answers."""
GROUPS = [8, 32]
"""Whose basins are tried."""
NUDGE = 0.3
"""Log odds beside a root at which runs start."""
LARGE = 2048
"""A group so large that the upper root of infinite ones lies well inside what it can see: G (1 − x) > 5."""
BESIDE = {"reference": [0.05, 0.2, 0.5], "beta": [1.6, 2.0]}
"""Settings in which large groups have two roots."""
COUNTED = [3, 8, 32, np.inf]
RARE = [0.01, 0.1, 0.5, 0.9]
"""π_ref of which it is said from which β on there are two roots."""


def settled(
    success: tuple[float, float], gap: float, axes: Any, rate: Callable[[float], float]
) -> xr.DataArray:
    """π(a) where exact ascent on a pair ends, over π_ref, β/γ and starts."""
    config = question(success, group_size=2, noise=Bernoulli(), direct=True)
    forces = {("kl_coef", "learning_rate"): {b: (gap * b, rate(b) / gap) for b in STRENGTHS}}
    found = ended(config, forces | axes, iterations=2500).drop_vars(["kl_coef", "learning_rate"])
    return found.rename({"kl_coef+learning_rate": "strength", "policy.logits": "start"})


def curves() -> xr.Dataset:
    """That by γ: away from π_ref = 0 from two starts, and next to it from π_ref."""
    inside = {"reference": pairs(REFERENCES), "policy.logits": pairs(STARTS)}
    beside = {"reference": pairs([TINY]), "policy.logits": pairs([TINY])}
    found = [settled(p, gap, inside, lambda b: 1.5 / b) for gap, p in PAIRS.items()]
    left = [settled(p, gap, beside, lambda b: 0.05 / (TINY * (1 + b))) for gap, p in PAIRS.items()]
    gaps = xr.Variable("gap", list(PAIRS))
    steep = xr.concat(left, gaps).squeeze(["reference", "start"], drop=True)
    return xr.Dataset({"curve": xr.concat(found, gaps), "left": steep})


def many(seed: int, size: Any) -> xr.Dataset:
    """Questions with more answers: the solver's residual and its distance from exact ascent and from NLHF."""
    rng, count = np.random.default_rng(seed), size.questions
    reference = 0.8 * rng.dirichlet(np.ones(ANSWERS), count) + 0.2 / ANSWERS
    rewards, beta = rng.normal(size=(count, ANSWERS)), rng.uniform(0.5, 3.0, count)

    @light
    @jax.vmap
    def solve(r: jax.Array, b: jax.Array, values: jax.Array) -> tuple[jax.Array, ...]:
        table = theory.reward_table(values)

        def pooled(group: int) -> Any:
            return theory.pooled_point(
                lambda policy: theory.group_preference(policy, table, group_size=group), r, b
            )

        found, wins = pooled(GROUP), jnp.sign(values[:, None] - values[None, :])
        return (
            found.policy,
            found.residual,
            jnp.max(abs(theory.nlhf(r, wins, b / 2).policy - pooled(2).policy)),
        )

    policy, residual, distance = (np.asarray(x) for x in solve(reference, beta, rewards))
    config = question(rewards[0], group_size=GROUP, direct=True)
    settings = {
        q: (rewards[q][None], logits(reference[q]), logits(reference[q]), beta[q], 3 / (1 + beta[q]))
        for q in range(count)
    }
    paths = ("task.table", "reference", "policy.logits", "kl_coef", "learning_rate")
    trained = gj.sweep(
        config,
        {paths: settings},
        iterations=1500,
        record_every=1500,
        record=["probabilities"],
        progress=False,
    )
    trained = trained.probabilities.isel(context=0, seed=0, iteration=0, drop=True).rename(
        {"+".join(paths): "question"}
    )
    solved = xr.DataArray(policy, dims=("question", "output"))
    return xr.Dataset({
        "residual": ("question", residual),
        "distance": abs(trained.drop_vars(trained.coords) - solved).max("output"),
        "from_nlhf": ("question", distance),
    })  # fmt: skip


def pair_logits(z: float) -> np.ndarray:
    """[1, 2] logits of two answers with these log odds."""
    return -np.logaddexp(0, [[-z, z]])


def climbed(settings: xr.Dataset, *, group_size: int, rate: float, iterations: int) -> xr.DataArray:
    """Log odds where exact ascent ends, for every β, logit π_ref and start."""
    z_ref, start, beta = xr.broadcast(settings.z_ref, settings.start, settings.beta)
    flat = xr.Dataset({"z_ref": z_ref, "start": start, "beta": beta}).stack(case=start.dims)
    rows = zip(flat.z_ref.values, flat.start.values, flat.beta.values, strict=True)
    axis = {i: (pair_logits(z), pair_logits(first), b) for i, (z, first, b) in enumerate(rows)}
    config = question([1.0, 0.0], group_size=group_size, direct=True, optimizer=gj.SGD(learning_rate=rate))
    data = gj.sweep(
        config, {("reference", "policy.logits", "kl_coef"): axis}, iterations=iterations,
        record_every=iterations, record=["probabilities"], progress=False,
    )  # fmt: skip
    found = np.log(data.probabilities.isel(context=0, seed=0, iteration=0, drop=True))
    return flat.start.copy(data=found.isel(output=0) - found.isel(output=1)).unstack("case")


def basins(group_size: int) -> xr.Dataset:
    """Roots of finite groups, and where exact ascent ends that starts on every side of them."""
    told = phases(group_size)
    low, middle, high = (told.root.sel(which=which, drop=True) for which in told.which.values)
    sides = xr.Variable("side", ["far below", "below the middle", "above the middle", "far above"])
    starts = xr.concat([low - 2, middle - NUDGE, middle + NUDGE, high + 1], sides)
    ends = climbed(told.assign(start=starts), group_size=group_size, rate=4.0, iterations=6000)
    return told.assign(start=starts, end=ends, expected=xr.concat([low, low, high, high], sides))


def beside() -> xr.Dataset:
    """Exact ascent in groups of LARGE that starts beside either root of infinite groups, in log odds."""
    told = {
        "lower": tabulated(np.vectorize(lambda r, b: lower_root(r, b, group_size=LARGE)), **BESIDE),
        "upper": tabulated(
            lambda r, b: theory.direct_roots(r, b, group_size=np.inf).log_odds[..., 1], **BESIDE
        ),
    }
    root = xr.concat(list(told.values()), xr.Variable("root", list(told)))
    start = root + xr.DataArray([-NUDGE, NUDGE], {"side": ["below", "above"]})
    anchor = np.log(root.reference / (1 - root.reference))
    settings = xr.Dataset({"z_ref": anchor, "start": start, "beta": root.beta})
    return xr.Dataset({
        "at": root, "end": climbed(settings, group_size=LARGE, rate=1.5, iterations=500)
    })  # fmt: skip


def kept(seed: int, size: Any, told: xr.Dataset) -> xr.DataArray:
    """Whether sampled training that starts on either attractor is still on its side of the middle root."""
    here = told.isel(level=0, place=1)
    low, middle, high = (float(here.root.sel(which=which)) for which in told.which.values)
    config = question(
        [1.0, 0.0], group_size=GROUPS[1], reference=odds(np.array([1, -1]) * float(here.z_ref)), direct=True,
        optimizer=gj.SGD(learning_rate=0.02),
    )  # fmt: skip
    axes = {
        "policy.logits": {"low": pair_logits(low), "high": pair_logits(high)},
        "kl_coef": [float(here.beta)],
    }
    average = time_averages(config, axes, size, seed).squeeze("kl_coef", drop=True)
    above = average > odds(middle)
    return above == xr.DataArray([False, True], {"policy.logits": ["low", "high"]})


def counts(seed: int) -> xr.Dataset:
    """Roots by brute force and by the solver over random β and π_ref."""
    rng = np.random.default_rng(seed)
    r, b = odds(rng.uniform(-16, 4, 300)), np.exp(rng.uniform(np.log(0.05), np.log(6), 300))
    found = [
        xr.Dataset({
            "brute": ("draw", np.asarray(sign_changes(r, b, group_size=group))),
            "solved": ("draw", np.asarray(number(r, b, group_size=group))),
        })
        for group in COUNTED
    ]  # fmt: skip
    return xr.concat(found, xr.Variable("group", COUNTED))


def births() -> xr.Dataset:
    """From which β on large groups have two roots, and how many there are 0.1 % below and above it."""
    first = np.array([born(p) for p in RARE])
    found = [np.asarray(sign_changes(np.array(RARE), first * by, group_size=np.inf)) for by in (0.999, 1.001)]
    at = {"reference": RARE, "beyond": [0.999, 1.001]}
    return xr.Dataset(
        {"beta": ("reference", first), "number": (("beyond", "reference"), np.stack(found))}, at
    )


def shape() -> tuple[xr.Dataset, xr.Dataset]:
    """The slope of h at x*, below and above it; and what maximises the surrogate frozen at each root."""
    slope = light(jax.vmap(jax.grad(lambda x, b: theory.odds_velocity(x, 0.3, b, group_size=np.inf))))

    def at(share: np.ndarray, beta: np.ndarray) -> np.ndarray:
        """The slope at a share of the way from 0 to x* (up to 1), or from x* to 1 (from 1 to 2)."""
        turn = 0.5 * (1 + np.sqrt(1 - 1 / (1 + beta**2)))
        x = np.where(share <= 1, turn * share, turn + (1 - turn) * (share - 1))
        return np.reshape(slope(x.ravel(), beta.ravel()), beta.shape) * x * (1 - x)

    def best(z: np.ndarray, beta: np.ndarray) -> np.ndarray:
        """Chance of the better answer that maximises the surrogate frozen at log odds z, a root of h."""
        anchor = z - theory.drive(z, group_size=np.inf) / beta
        return odds(anchor + np.asarray(theory.preference_gap(odds(z), odds(-z), group_size=np.inf)) / beta)

    inside = np.linspace(0.02, 0.98, 25)
    shares = [*inside, 1.0, *(1 + inside)]
    turns = tabulated(at, share=shares, beta=list(np.geomspace(0.1, 10, 25)))
    fixed = tabulated(best, z=list(np.linspace(-8, 12, 41)), beta=list(np.geomspace(0.5, 8, 8)))
    return xr.Dataset({"slope": turns}), xr.Dataset({"best": fixed})


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Pairs, more answers, roots and basins of finite groups, both roots of large ones, sampled runs."""
    averages = {}
    for name, (kind, rates) in OPTIMIZERS.items():
        config = question(
            [1.0, 0.0], group_size=2, start=START, direct=True, optimizer=kind(learning_rate=0.1)
        )
        axes = {
            "learning_rate": rates,
            "reference": pairs(SAMPLED["reference"]),
            "kl_coef": SAMPLED["strength"],
        }
        averages[name] = xr.Dataset(
            {"average": time_averages(config, axes, size, seed).rename(kl_coef="strength")}
        )
    finite = {group: basins(group) for group in GROUPS}
    slope, frozen = shape()
    return averages | {
        "pairs": curves(),
        "many": many(seed, size),
        "finite": xr.concat(list(finite.values()), xr.Variable("group", GROUPS)),
        "large": beside(),
        "kept": xr.Dataset({"kept": kept(seed, size, finite[GROUPS[1]])}),
        "counts": counts(seed),
        "births": births(),
        "slope": slope,
        "frozen": frozen,
        "wedges": wedges(),
    }


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """Formulas, the shape of h, both roots of large groups by themselves; and the phases of finite groups."""
    curve = tabulated(theory.stationary_pair_direct, reference=REFERENCES, strength=STRENGTHS)
    claim.requires("more answers: residual of log pooling", worst(data["many"].residual, tolerance=1e-10))
    claim.requires(
        "roots by brute force - by the solver", worst(data["counts"].brute, expected=data["counts"].solved)
    )
    fixed = data["frozen"].best
    claim.requires(
        "each root - maximiser of the surrogate frozen there",
        worst(fixed, expected=odds(fixed.z), tolerance=1e-10),
    )
    ends = data["pairs"].curve
    claim.refutes("pairs: exact ascent - π_ref e^(±γ/2β)", worst(ends, expected=curve, tolerance=1e-6))
    steep = data["pairs"].left / TINY
    claim.refutes(
        "π_ref = 1e-9: exact ascent / (π_ref e^(γ/β))",
        worst(steep / np.exp(1 / steep.strength), expected=1.0, tolerance=1e-4),
    )
    claim.refutes("more answers: exact ascent - log pooling", worst(data["many"].distance, tolerance=1e-6))
    claim.refutes("pairs: log pooling - NLHF at β/2", worst(data["many"].from_nlhf, tolerance=1e-9))
    for name in OPTIMIZERS:
        at_zero, slope = extrapolated(data[name].average)
        gap = furthest(at_zero, tabulated(theory.stationary_pair_direct, **SAMPLED), tolerance=MARGIN)
        told = f"{name}: sampled, extrapolated - formula"
        claim.refutes(told, gap) if name == "SGD" else claim.qualifies(told, gap, only="under SGD")
        claim.reports(f"{name}: steepest slope in the learning rate", worst(slope.mean("seed")))
    slope = data["slope"].slope
    claim.refutes("slope of h at x*", worst(slope.sel(share=1.0), tolerance=1e-9))
    claim.refutes("slope of h below x*", worst(slope.sel(share=slope.share < 1), relation="at most"))
    claim.refutes("slope of h above x*", worst(slope.sel(share=slope.share > 1), relation="at least"))
    judge_large(data["large"], claim)
    judge_phases(data, claim.ours(
        "Under the direct penalty finite groups have one or three stationary values, of which the outer two "
        "attract and the middle one repels; large groups have two or none, and the upper one repels."
    ))  # fmt: skip


def judge_large(large: xr.Dataset, claim: Claim) -> None:
    """Whether training comes back to each of the two roots, from either side."""
    back = {}
    for root in large.root.values:
        for side in large.side.values:
            here = large.sel(root=root, side=side)
            back[root, side] = worst(here.end, expected=here["at"], tolerance=NUDGE / 2)
            claim.refutes(f"{root} root, G = {LARGE}, from {side}: exact ascent - root", back[root, side])
    away = abs(large.end - large["at"]).sel(root="upper")
    leaves = worst(away, expected=2 * NUDGE, relation="at least")
    claim.finds(
        "For large β only the lower of the two values is where training ends. It leaves the upper one on "
        "both sides, down to the lower one or up towards certainty.",
        when=[leaves, *(back["lower", side] for side in large.side.values)],
    )


def judge_phases(data: dict[str, xr.Dataset], row: Claim) -> None:
    """Basins of finite groups, how many roots there are, and from which β on."""
    finite, large, solved = data["finite"], data["large"], data["counts"].solved
    ends = worst(odds(finite.end), expected=odds(finite.expected), tolerance=1e-6)
    row.refutes("G = 8 and 32: exact ascent - attractor of its basin", ends)
    lower, upper = large.sel(root="lower", drop=True), large.sel(root="upper", drop=True)
    below = worst(odds(upper.end.sel(side="below")), expected=odds(lower["at"]), tolerance=1e-6)
    row.refutes(f"G = {LARGE}, from below the upper root: exact ascent - lower root", below)
    rise = worst(upper.end.sel(side="above") - upper["at"], expected=1.0, relation="at least")
    row.refutes(f"G = {LARGE}, from above it: least rise of the log odds beyond it, less 1", rise)
    for group in COUNTED:
        here = solved.sel(group=group)
        allowed = (0, 2) if np.isinf(group) else (1, 3)
        other = Number(float((~here.isin(allowed)).mean()), expected=0.0)
        row.refutes(
            f"G = {group:g}: share of draws with other than {allowed[0]} or {allowed[1]} roots", other
        )
        row.reports(f"G = {group:g}: share of draws with several roots", Number(float((here > 1).mean())))
    births = data["births"]
    half = float(births.beta.sel(reference=0.5))
    many = xr.DataArray([0, 2], {"beyond": births.beyond})
    row.refutes("roots 0.1 % below and above the β of their birth", worst(births.number, expected=many))
    for p, beta in births.beta.to_series().items():
        row.reports(f"large groups, π_ref = {p:g}: two roots from β", Number(float(beta)))
    tops = data["wedges"].cusp
    for group, top in tops.to_series().items():
        row.reports(f"G = {group}: β above which there is one root", Number(float(top)))
    stay = data["kept"].kept
    row.reports(
        "sampled, G = 32: share of seeds still in the basin they start in", share(int(stay.sum()), stay.size)
    )
    row.finds(
        f"With π_ref = 0.5 large groups have two values from β = {half:.3f} on. "
        f"Groups of 8 can have three below β = {float(tops.sel(group=8)):.2f}, groups of 32 below "
        f"{float(tops.sel(group=32)):.2f}; above there is one.",
        when=[ends, below, rise],
    )


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """Where exact ascent goes beside the roots, and how many roots there are."""
    figure.set_size_inches(7, 3.6)
    left, right = plotting.panels(figure, 1, 2)
    draw_basins(left, data["finite"].sel(group=GROUPS[1]))
    for color, group in zip(plotting.COLORS, WEDGES, strict=False):
        here = data["wedges"].sel(group=group)
        right.fill(here.beta, here.z_ref, color=color, alpha=0.25, lw=0)
        right.plot(here.beta, here.z_ref, color=color, lw=1.3, label=f"{group}")
    beta = np.linspace(0.1, 3, 300)
    edge = theory.bifurcations(beta, group_size=np.inf).logit_reference_low
    right.plot(beta, edge, "k--", lw=1.3, label="∞: two below,\nnone above")
    right.legend(title="G: three roots inside", loc="lower right")
    right.set(xlim=(0, 3), ylim=(-12, 3), xlabel="β", ylabel="log odds of π_ref")
    right.set_title("Finite groups: three roots in a wedge, one outside")


def draw_basins(axes: Any, here: xr.Dataset) -> None:
    """The roots over π_ref for groups of 32 and large ones, and exact ascent as arrows."""
    here = here.isel(level=0)
    beta, group = float(here.beta), int(here.group)
    ends = (-9.0, *here.fold.values, 9.0)
    for k, style in enumerate(("-", "--", "-")):
        z = np.linspace(ends[k], ends[k + 1], 200)
        label = {0: "attracts", 1: "repels"}.get(k)
        x = z - theory.drive(z, group_size=group) / beta
        axes.plot(x, z, style, color=plotting.COLORS[3], lw=1.8, label=label)
    turn = float(theory.bifurcations(beta, group_size=np.inf).z_low)
    for first, last, style, label in ((-9, turn, "-", "G → ∞"), (turn, 9, "--", None)):
        z = np.linspace(first, last, 200)
        axes.plot(z - theory.drive(z, group_size=np.inf) / beta, z, style, color="0.6", lw=1, label=label)
    for place in here.place.values:
        at = float(here.z_ref.sel(place=place))
        for side in here.side.values:
            start, end = (float(here[name].sel(place=place, side=side)) for name in ("start", "end"))
            arrow = {"arrowstyle": "-|>", "color": plotting.COLORS[0], "lw": 1.2, "shrinkA": 0, "shrinkB": 3}
            axes.annotate("", (at, end), (at, start), arrowprops=arrow)
            axes.plot(at, end, "o", ms=5, mfc="white", color=plotting.COLORS[0], zorder=5)
    low, high = sorted(y - float(theory.drive(y, group_size=group)) / beta for y in ends[1:3])
    axes.set(xlim=(low - 1.5, high + 1.5), ylim=(-4, 9), xlabel="log odds of π_ref", ylabel="log odds of π")
    axes.legend(loc="upper left")
    axes.set_title(f"Exact ascent leaves the middle root (G = {group}, β = {beta:.2f})")
