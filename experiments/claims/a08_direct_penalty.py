"""With the KL penalty multiplied by the importance ratio the stationary policy is π ∝ π_ref exp(P_G(o|π)/β);
for pairs that is NLHF's at β/2, without a jump at π_ref = 0; in large groups with two answers the stationary
values are the zeros of h, which falls up to x* and rises beyond.

[A] (arXiv:2502.18548v3), on the direct penalty, and Figure 3, with
h(x) = 1/(β√(x(1 − x))) − logit x + logit π_ref and x* = ½(1 + √(1 − 1/(1 + β²))); a pair's two weights are
e^(±γ/2β).

Refuted if a trained policy is 1e-6 (sampled under SGD: 0.01) from its formula, if h turns elsewhere than at
x*, or if exact ascent in groups of 2048 that starts 0.3 in log odds beside the lower zero of h does not come
back to it. Qualified if AdamW is not within 0.01. The solver's residual, its counts of roots against brute
force and NLHF's own solver check the instrument.

The paper's sentence that for large β two values maximise the objective is a row of its own. "The objective"
is the surrogate whose old policy is the value itself: the row falls if either of the two zeros does not
maximise the surrogate frozen at it (to 1e-8), or if there are not two above the β of their birth. It is
qualified if exact ascent beside the upper zero, in groups of 2048 at two β where two exist, does not come
back to it: there it maximises nothing that training climbs. Ours: the phases of finite groups, with one or
three roots, and which of them training finds.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from scipy import optimize

import grpo_jax as gj
from experiments.formulas.compiled import light
from experiments.formulas.direct_phases import (
    WEDGES,
    born,
    number,
    odds,
    sign_changes,
    wedges,
)
from experiments.harness.numbers import Number, extrapolated, furthest, share, tabulated, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems import answers
from experiments.problems.answers import ended, logits, pairs, question, time_averages
from experiments.problems.basins import BESIDE, GROUPS, LARGE, NUDGE, basins, beside, kept
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
COUNTED = [3, 8, 32, np.inf]
RARE = [0.01, 0.1, 0.5, 0.9]
"""π_ref of which it is said from which β on there are two roots."""
BEYOND = [1.05, 1.5, 3.0]
"""β over that of their birth, where each root's frozen surrogate is maximised."""


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
    trained = answers.settled(config, {paths: settings}, iterations=1500)
    trained = trained.rename({"+".join(paths): "question"})
    solved = xr.DataArray(policy, dims=("question", "output"))
    return xr.Dataset({
        "residual": ("question", residual),
        "distance": abs(trained.drop_vars(trained.coords) - solved).max("output"),
        "from_nlhf": ("question", distance),
    })  # fmt: skip


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


def frozen() -> xr.Dataset:
    """The two roots of large groups by the solver, and what maximises the surrogate frozen at each.

    Frozen at x the surrogate of the better answer's chance y is (y − x) / √(x(1 − x)) less β times the
    divergence of y from π_ref; it is concave in y, and its slope is zero at one y.
    """

    def maximiser(x: float, beta: float, p: float) -> float:
        def slope(z: float) -> float:
            return 1 / np.sqrt(x * (1 - x)) - beta * (z - np.log(p / (1 - p)))

        return odds(optimize.brentq(slope, -200.0, 200.0, xtol=1e-13))

    first = xr.DataArray([born(p) for p in RARE], {"reference": RARE})
    beta = first * xr.DataArray(BEYOND, {"beyond": BEYOND})
    roots = theory.direct_roots(beta.reference.values[:, None], beta.values, group_size=np.inf).log_odds
    at = odds(xr.DataArray(np.asarray(roots)[..., :2], {**beta.coords, "root": ["lower", "upper"]}))
    best = xr.apply_ufunc(np.vectorize(maximiser, otypes=[float]), at, beta, beta.reference)
    return xr.Dataset({"at": at, "best": best})


def shape() -> xr.Dataset:
    """The slope of h at x*, below and above it."""
    slope = light(jax.vmap(jax.grad(lambda x, b: theory.odds_velocity(x, 0.3, b, group_size=np.inf))))

    def at(share: np.ndarray, beta: np.ndarray) -> np.ndarray:
        """The slope at a share of the way from 0 to x* (up to 1), or from x* to 1 (from 1 to 2)."""
        turn = 0.5 * (1 + np.sqrt(1 - 1 / (1 + beta**2)))
        x = np.where(share <= 1, turn * share, turn + (1 - turn) * (share - 1))
        return np.reshape(slope(x.ravel(), beta.ravel()), beta.shape) * x * (1 - x)

    inside = np.linspace(0.02, 0.98, 25)
    shares = [*inside, 1.0, *(1 + inside)]
    turns = tabulated(at, share=shares, beta=list(np.geomspace(0.1, 10, 25)))
    return xr.Dataset({"slope": turns})


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
    return averages | {
        "pairs": curves(),
        "many": many(seed, size),
        "finite": xr.concat(list(finite.values()), xr.Variable("group", GROUPS)),
        "large": beside(),
        "kept": xr.Dataset({"kept": kept(seed, size, finite[GROUPS[1]])}),
        "counts": counts(seed),
        "births": births(),
        "slope": shape(),
        "frozen": frozen(),
        "wedges": wedges(),
    }


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """Formulas, the shape of h, both roots of large groups by themselves; and the phases of finite groups."""
    curve = tabulated(theory.stationary_pair_direct, reference=REFERENCES, strength=STRENGTHS)
    claim.requires("more answers: residual of log pooling", worst(data["many"].residual, tolerance=1e-10))
    claim.requires(
        "roots by brute force - by the solver", worst(data["counts"].brute, expected=data["counts"].solved)
    )
    ends = data["pairs"].curve
    claim.refutes("pairs: exact ascent - π_ref e^(±γ/2β)", worst(ends, expected=curve, tolerance=1e-6))
    steep = data["pairs"].left / TINY
    smooth = worst(steep / np.exp(1 / steep.strength), expected=1.0, tolerance=1e-4)
    claim.refutes(f"π_ref = {TINY:g}: exact ascent / (π_ref e^(γ/β))", smooth)
    claim.finds(f"A pair does not jump: from π_ref = {TINY:g} it trains to π_ref e^(γ/β).", when=smooth)
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
    judge_lower(data["large"], claim)
    judge_large(
        data["large"],
        data["frozen"],
        data["births"],
        claim.also("For large β two values maximise the objective."),
    )
    judge_phases(data, claim.ours(
        "Under the direct penalty finite groups have one or three stationary values, of which the outer two "
        "attract and the middle one repels; large groups have two or none, and the upper one repels."
    ))  # fmt: skip


def judge_lower(large: xr.Dataset, claim: Claim) -> None:
    """Whether training beside the lower zero of h comes back to it."""
    lower = large.sel(root="lower", drop=True)
    for side in lower.side.values:
        back = worst(lower.end.sel(side=side), expected=lower["at"], tolerance=NUDGE / 2)
        claim.refutes(f"lower zero of h, G = {LARGE}, from {side}: exact ascent - zero", back)


def judge_large(large: xr.Dataset, frozen: xr.Dataset, births: xr.Dataset, row: Claim) -> None:
    """Whether each root maximises the surrogate frozen at it, and training comes back to the upper one."""
    for root in frozen.root.values:
        here = frozen.sel(root=root, drop=True)
        told = f"{root} value: maximiser of the surrogate frozen at it - value"
        row.refutes(told, worst(here.best, expected=here["at"], tolerance=1e-8))
    two = births.number.sel(beyond=1.001, drop=True)
    row.refutes("values 0.1 % above the β of their birth, less 2", worst(two, expected=2))
    upper = large.sel(root="upper", drop=True)
    for side in upper.side.values:
        row.qualifies(
            f"upper value, G = {LARGE}, from {side}: exact ascent - value",
            worst(upper.end.sel(side=side), expected=upper["at"], tolerance=NUDGE / 2),
            only="of the surrogate frozen at each; training leaves the upper one",
        )
    below, rise = leaving(large)
    corner = np.log(large.reference / (1 - large.reference)) + np.sqrt(LARGE - 1) / large.beta
    row.finds(
        f"Where two values exist (β = {' and '.join(f'{b:g}' for b in BESIDE['beta'])} here) training leaves "
        "the upper one on both sides: down to the lower one, or up towards certainty, where a group of "
        f"{LARGE} has a third value, at log odds of {float(corner.min()):.1f} to {float(corner.max()):.1f}.",
        when=[below, rise],
    )


def leaving(large: xr.Dataset) -> tuple[Number, Number]:
    """Whether runs from below the upper root end at the lower one, and by how much those from above rise."""
    lower, upper = large.sel(root="lower", drop=True), large.sel(root="upper", drop=True)
    below = worst(odds(upper.end.sel(side="below")), expected=odds(lower["at"]), tolerance=1e-6)
    return below, worst(upper.end.sel(side="above") - upper["at"], expected=1.0, relation="at least")


def judge_phases(data: dict[str, xr.Dataset], row: Claim) -> None:
    """Basins of finite groups, how many roots there are, and from which β on."""
    finite, large, solved = data["finite"], data["large"], data["counts"].solved
    ends = worst(odds(finite.end), expected=odds(finite.expected), tolerance=1e-6)
    row.refutes("G = 8 and 32: exact ascent - attractor of its basin", ends)
    below, rise = leaving(large)
    row.refutes(f"G = {LARGE}, from below the upper root: exact ascent - lower root", below)
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
    """Where exact ascent goes beside the two values of large groups, and how many finite groups have."""
    figure.set_size_inches(7, 3.6)
    left, right = plotting.panels(figure, 1, 2)
    draw_beside(left, data["large"].sel(beta=BESIDE["beta"][-1]))
    for color, group in reversed(list(zip(plotting.COLORS, WEDGES, strict=False))):
        here = data["wedges"].sel(group=group)  # small groups' wedges lie on top of large ones'
        right.fill(here.beta, here.z_ref, color="white", lw=0)
        right.fill(here.beta, here.z_ref, color=color, alpha=0.35, lw=0)
        right.plot(here.beta, here.z_ref, color=color, lw=1, label=f"{group}")
    beta = np.linspace(0.1, 3, 300)
    edge = theory.bifurcations(beta, group_size=np.inf).logit_reference_low
    right.plot(beta, edge, "k--", lw=1.3, label="∞: two below,\nnone above")
    right.legend(title="G: three inside,\none outside", loc="lower right")
    right.set(xscale="log", xlim=(0.1, 3), ylim=(-16, 3), xlabel="β", ylabel="log odds of π_ref")
    right.set_xticks([0.1, 0.3, 1, 3], ["0.1", "0.3", "1", "3"])
    right.set_xticks([], minor=True)
    right.set_title("Finite groups: three in a wedge")


def draw_beside(axes: Any, here: xr.Dataset) -> None:
    """The two values over π_ref in the limit, and exact ascent in groups of LARGE as arrows."""
    beta, color = float(here.beta), plotting.COLORS[0]
    turn = 2 * np.arcsinh(beta)
    for first, last, style, label in ((-5, turn, "-", "lower value"), (turn, 14, "--", "upper value")):
        z = np.linspace(first, last, 200)
        axes.plot(
            z - theory.drive(z, group_size=np.inf) / beta, z, style, color=plotting.COLORS[3], label=label
        )
    for p in here.reference.values:
        at = np.log(p / (1 - p))
        one = here.sel(reference=p, root="upper")
        for side in here.side.values:
            start = float(one["at"]) + (NUDGE if side == "above" else -NUDGE)
            arrow = {"arrowstyle": "-|>", "color": color, "lw": 1.2, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", (at, float(one.end.sel(side=side))), (at, start), arrowprops=arrow)
            axes.plot(at, start, "o", ms=4, mfc="white", color=color, zorder=5)
    axes.plot([], [], "o", ms=4, mfc="white", color=color, label="start of exact ascent")
    axes.set(xlim=(-4, 1), ylim=(-3, 17), xlabel="log odds of π_ref", ylabel="log odds of π")
    axes.legend(loc="upper left")
    axes.set_title(f"Training leaves the upper one (G = {LARGE}, β = {beta:g})")
