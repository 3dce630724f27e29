"""Direct KL penalty: log pooling with the group preference, and which of its roots training finds.

Claim A8 of arXiv:2502.18548: with D times the importance ratio pi ~ pi_ref exp(P_G / beta); for pairs NLHF's
policy at beta / 2, without a jump at pi_ref = 0; for large groups the roots of
h(x) = 1 / (beta sqrt(x (1 - x))) - logit x + logit pi_ref, falling up to x* and rising beyond, and for
large beta two values maximise. Refuted if a trained policy is 1e-6 from its formula (sampled: 0.01), a root
does not maximise the surrogate frozen at itself, h turns elsewhere than at x* or has other than two roots
just beyond the beta of which it is said, or exact ascent does not end on the attractor whose basin it starts
in (in large groups from above the upper value, which leads to certainty: does not rise by 1 in log odds).
Qualified if exact ascent in large groups, from 0.3 in log odds beside the upper value, does not come back.
"""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from matplotlib import colormaps

from experiments.alignment import (
    ascend,
    binary,
    furthest,
    intercepts,
    light,
    problem,
    sampled_binary,
    time_average,
)
from experiments.formulas.direct_phases import (
    COUNTED,
    GROUPS,
    PLACES,
    WEDGES,
    Diagram,
    born,
    counted,
    diagram,
    draws,
    lower_root,
    odds,
    sign_changes,
    wedges,
)
from experiments.grid import grid
from experiments.verdict import Number, judge, mean, share, worst
from grpo_jax.optimizers import SGD, AdamW
from grpo_jax.tasks import Bernoulli
from grpo_jax.theory import (
    bifurcations,
    direct_roots,
    drive,
    group_preference,
    nlhf,
    odds_velocity,
    pooled_point,
    preference_gap,
    reward_table,
    stationary_pair_direct,
)

CLAIM = "A8"
PAPER = "A"
PRECISION = "float64"

REFERENCES, STRENGTHS = (
    np.array([1e-9, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8]),
    np.array([0.25, 0.5, 1.0, 2.0, 5.0]),
)
"""pi_ref, and beta / gamma."""
PAIRS = {1.0: (1.0, 0.0), 0.4: (0.7, 0.3)}
"""gamma -> success probabilities of the two answers."""
SAMPLED = {"pi_ref": np.array([0.05, 0.2, 0.5]), "strength": np.array([0.5, 1.0, 2.0])}
RATES = {"SGD": np.array([0.05, 0.1, 0.2]), "AdamW": np.array([0.02, 0.04, 0.08])}
MANY = (4, 4)
"""Answers and group of the questions with more answers."""
NUDGE = 0.3
"""Log odds on either side of the middle root at which runs start."""
LARGE = 2048
"""A group so large that the upper root of infinite ones lies well inside what it can see: G (1 - x) > 5."""
BESIDE = {"pi_ref": np.array([0.05, 0.2, 0.5]), "beta": np.array([1.6, 2.0])}
"""Where exact ascent starts beside that root: settings in which large groups have two."""
SIZES = {"smoke": (48, 3000, 4), "quick": (48, 3000, 8), "full": (256, 12000, 64)}
"""Seeds, iterations of sampled runs, and questions with more answers."""
MARGIN = 0.01


def pairs() -> np.ndarray:
    """[gamma, pi_ref, strength, start] pi(a) after exact ascent on coin flips, groups of two."""
    gamma, r, b, beyond = grid(list(PAIRS), REFERENCES, STRENGTHS, [False, True])
    success = np.repeat(np.array(list(PAIRS.values())), gamma.size // len(PAIRS), axis=0).T
    first = r / (1 - r) * np.exp(beyond * (1 / b + 1))
    start = np.where(r < 1e-6, r, first / (1 + first))
    rate = np.where(r < 1e-6, 0.05 / (r * (1 + b)), 1.5 / b) / gamma
    options = {"direct": True, "start": binary(start), "optimizer": SGD(learning_rate=jnp.asarray(rate))}
    config = problem(binary(r), success, gamma * b, group_size=2, noise=Bernoulli(), **options)
    return ascend(config, r.size, iterations=2500)[0].reshape(len(PAIRS), len(REFERENCES), len(STRENGTHS), 2)


def many(count: int, root: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[Q] each: the solver's residual, its distance from exact ascent; for pairs, from NLHF at beta / 2."""
    answers, group = MANY
    rng = np.random.default_rng(root)
    reference = 0.8 * rng.dirichlet(np.ones(answers), count) + 0.2 / answers
    rewards, beta = rng.normal(size=(count, answers)), rng.uniform(0.5, 3.0, count)

    @light
    @jax.vmap
    def solve(r, b, values):
        table = reward_table(values)
        found = pooled_point(lambda policy: group_preference(policy, table, group_size=group), r, b)
        pair = pooled_point(lambda policy: group_preference(policy, table, group_size=2), r, b)
        wins = jnp.sign(values[:, None] - values[None, :])
        return found.policy, found.residual, jnp.max(abs(nlhf(r, wins, b / 2).policy - pair.policy))

    policy, residual, distance = (np.asarray(x) for x in solve(reference, beta, rewards))
    options = {"direct": True, "optimizer": SGD(learning_rate=jnp.asarray(3 / (1 + beta)))}
    ended = ascend(problem(reference.T, rewards.T, beta, group_size=group, **options), count, iterations=1500)
    return residual, abs(ended.T - policy).max(1), distance


def basins(group_size: int, told: Diagram) -> np.ndarray:
    """Log odds [S, 3 + 4 + 4] of roots, starts, and where exact ascent ends."""
    beta, z_ref, roots = told[:3]
    start = np.stack([roots[:, 0] - 2, roots[:, 1] - NUDGE, roots[:, 1] + NUDGE, roots[:, 2] + 1], 1)
    b, r = (np.repeat(x, 4) for x in (beta, z_ref))
    options = {"direct": True, "start": _pair(start.ravel()), "optimizer": SGD(learning_rate=4.0)}
    config = problem(_pair(r), np.array([1.0, 0.0]), b, group_size=group_size, **options)
    ended = ascend(config, b.size, iterations=6000)
    ended = (np.log(ended[0]) - np.log(ended[1])).reshape(start.shape)
    return np.concatenate([roots, start, ended], axis=1)


def _pair(z: np.ndarray) -> np.ndarray:
    return np.stack([odds(z), odds(-z)])


def stay(group_size: int, beta: float, z_ref: float, roots: np.ndarray, size: tuple[int, int], root: int):
    """[low or high, seed] log odds after sampled training that starts on either attractor."""
    seeds, iterations = size
    begin, seed = np.repeat(roots[[0, 2]], seeds), np.tile(np.arange(seeds), 2)
    rate = SGD(learning_rate=jnp.full(seed.shape, 0.02))
    options = {"direct": True, "start": _pair(begin), "optimizer": rate, "expectation": None}
    config = problem(
        _pair(np.full(seed.shape, z_ref)), np.array([1.0, 0.0]), beta, group_size=group_size, **options
    )
    ended = time_average(config, seed, root=root, iterations=iterations)
    return (np.log(ended[0]) - np.log(ended[1])).reshape(2, seeds)


def beside() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Exact ascent in groups of LARGE that starts beside the upper root of infinite groups, log odds each.

    Returns that root [S], where it ends [S, below or above], and the lower root of these groups [S].
    """
    r, b = grid(*BESIDE.values())
    upper = np.asarray(direct_roots(r, b, group_size=np.inf).log_odds)[:, 1]
    lower = np.array([lower_root(*pair, group_size=LARGE) for pair in zip(r, b, strict=True)])
    start = np.stack([upper - NUDGE, upper + NUDGE], 1)
    reference, beta = (np.repeat(x, 2) for x in (r, b))
    options = {"direct": True, "start": _pair(start.ravel()), "optimizer": SGD(learning_rate=1.5)}
    config = problem(binary(reference), np.array([1.0, 0.0]), beta, group_size=LARGE, **options)
    ended = ascend(config, beta.size, iterations=500)
    return upper, (np.log(ended[0]) - np.log(ended[1])).reshape(start.shape), lower


def simulate(key: jax.Array, size: str) -> xr.Dataset:
    """Pairs, more answers, basins, counts of roots, and the flow of large groups."""
    root = int(jax.random.key_data(key)[-1])
    seeds, iterations, count = SIZES[size]
    residual, distance, from_nlhf = many(count, root)
    r, b = draws(root)
    told: dict[float, Diagram] = {
        int(group): jax.tree.map(np.asarray, diagram(r, b, group_size=int(group))) for group in GROUPS
    }
    ended = [basins(int(group), here) for group, here in told.items()]
    beta, z_ref = ([getattr(here, name) for here in told.values()] for name in ("beta", "z_ref"))
    halfway = 1
    roots = ended[1][halfway, :3]
    kept = stay(int(GROUPS[1]), beta[1][halfway], z_ref[1][halfway], roots, (seeds, iterations), root)
    brute, solved = counted(r, b, told)
    upper, left, lower = beside()
    averages = [
        sampled_binary(
            optimizer, RATES[name], SAMPLED, (seeds, iterations), root=root, group_size=2, direct=True
        )
        for name, optimizer in (("SGD", SGD), ("AdamW", AdamW))
    ]
    return xr.Dataset(
        {
            "pair": (("gamma", "pi_ref", "strength", "start"), pairs()),
            "average": (("optimizer", "rate", "setting", "seed"), np.stack(averages)),
            "residual": ("question", residual),
            "distance": ("question", distance),
            "from_nlhf": ("question", from_nlhf),
            "beta": (("group", "place"), np.stack(beta)),
            "logit_reference": (("group", "place"), np.stack(z_ref)),
            "log_odds": (("group", "place", "what"), np.stack(ended)),
            "fold": (("group", "end", "place"), [here.fold[:2] for here in told.values()]),
            "kept": (("side", "seed"), kept),
            "kept_middle": roots[1],
            "brute": (("counted", "draw"), brute),
            "solved": (("counted", "draw"), solved),
            "upper": ("case", upper),
            "left": (("case", "nudge"), left),
            "lower": ("case", lower),
        }
        | wedges(),
        coords={
            "gamma": list(PAIRS), "pi_ref": REFERENCES, "strength": STRENGTHS, "optimizer": list(RATES),
            "group": GROUPS,
            "counted": list(COUNTED), "nudge": [-NUDGE, NUDGE], "wedge": WEDGES,
        },
    )  # fmt: skip


def check(data: xr.Dataset):
    """Formulas, basins, the two roots of large groups, and sampled runs."""
    curve = np.asarray(stationary_pair_direct(*np.meshgrid(REFERENCES, STRENGTHS, indexing="ij")))
    ratio = data.pair.sel(pi_ref=REFERENCES[0]) / REFERENCES[0]
    numbers = {
        "pairs: exact ascent - pi_ref e^(+-gamma/2beta)": worst(
            data.pair.values - curve[..., None], expected=0 * data.pair.values, tolerance=1e-6
        ),
        "pi_ref = 1e-9: exact ascent / (pi_ref e^(gamma/beta))": worst(
            ratio, expected=np.exp(1 / STRENGTHS)[:, None], tolerance=1e-4
        ),
        "more answers: residual of log pooling": worst(
            data.residual, expected=0 * data.residual, tolerance=1e-10
        ),
        "more answers: exact ascent - log pooling": worst(
            data.distance, expected=0 * data.distance, tolerance=1e-6
        ),
        "pairs - NLHF at beta / 2": worst(data.from_nlhf, expected=0 * data.from_nlhf, tolerance=1e-9),
    }
    numbers |= _sampled_numbers(data) | _shape_numbers() | _basin_numbers(data)
    numbers |= upper_root_numbers(data.upper.values, data.left.values, data.lower.values)
    words = "as a maximum of the surrogate frozen at it: training leaves the upper root on both sides"
    judged = [name for name, number in numbers.items() if number.expected is not None]
    qualifies = {STAYS: words, "AdamW: sampled, extrapolated - formula": "under SGD, not under AdamW"}
    return judge(numbers, refutes=[name for name in judged if name not in qualifies], qualifies=qualifies)


STAYS = f"upper root, G = {LARGE}: share of starts beside it that exact ascent brings back"


def upper_root_numbers(upper: np.ndarray, left: np.ndarray, lower: np.ndarray) -> dict[str, Number]:
    """Where training leads from beside the upper root; log odds [S], [S, below or above], [S]."""
    back = abs(left - upper[:, None]) < NUDGE
    return {
        STAYS: Number(float(back.mean()), expected=1.0, relation="at least"),
        f"G = {LARGE}, from below the upper root: exact ascent - lower root": worst(
            odds(left[:, 0]), expected=odds(lower), tolerance=1e-6
        ),
        f"G = {LARGE}, from above it: least rise of the log odds beyond it": worst(
            left[:, 1] - upper, expected=1.0, relation="at least"
        ),
    }


def _shape_numbers() -> dict[str, Number]:
    """h turns at x*, each root maximises its frozen surrogate, and from which beta on there are two."""
    beta = np.geomspace(0.1, 10, 25)
    turn = 0.5 * (1 + np.sqrt(1 - 1 / (1 + beta**2)))
    slope = light(jax.vmap(jax.grad(lambda x, b: odds_velocity(x, 0.3, b, group_size=np.inf))))
    share, repeated = grid(np.linspace(0.02, 0.98, 25), beta)
    turned = np.tile(turn, 25)
    below, above = (turned * share, repeated), (turned + (1 - turned) * share, repeated)
    r, b = (np.ravel(x) for x in np.meshgrid(odds(np.linspace(-8, 0, 9)), np.geomspace(1.6, 8, 8)))
    x = np.asarray(direct_roots(r, b, group_size=np.inf).log_odds)[:, :2]
    gap = np.asarray(preference_gap(odds(x), odds(-x), group_size=np.inf))
    best = np.log(r / (1 - r))[:, None] + gap / b[:, None]
    numbers = {
        "x* by h' = 0": worst(slope(turn, beta) * turn * (1 - turn), expected=0 * beta, tolerance=1e-9),
        "h' below x*": worst(slope(*below), expected=0.0, relation="at most"),
        "h' above x*": worst(slope(*above), expected=0.0, relation="at least"),
        "both roots - maximiser of the surrogate frozen there": worst(
            odds(best), expected=odds(x), tolerance=1e-10
        ),
    }
    rare = np.array([0.01, 0.1, 0.5, 0.9])
    first = np.array([born(p) for p in rare])
    for p, b in zip(rare, first, strict=True):
        numbers[f"large groups, pi_ref = {p:g}: two roots from beta"] = Number(float(b))
    found = [sign_changes(rare, first * beyond, group_size=np.inf) for beyond in (0.999, 1.001)]
    numbers["roots by brute force 0.1 % below and above that beta - 0 and 2"] = worst(
        np.stack(found), expected=np.array([[0], [2]])
    )
    return numbers


def _basin_numbers(data: xr.Dataset) -> dict[str, Number]:
    roots, ended = data.log_odds[:, :, :3].values, data.log_odds[:, :, 7:].values
    predicted = roots[:, :, [0, 0, 2, 2]]
    numbers = {
        "exact ascent - attractor of its basin, G = 8 and 32": worst(
            odds(ended), expected=odds(predicted), tolerance=1e-6
        ),
        "roots by brute force - by the solver": worst(data.brute, expected=data.solved),
    }
    for group in COUNTED:
        several = data.solved.sel(counted=group) > 1
        numbers[f"G = {group:g}: share of draws with several roots"] = Number(float(several.mean()))
    for group, top in zip(data.wedge.values, data.cusp.values, strict=True):
        numbers[f"G = {group}: beta above which there is one root"] = Number(float(top))
    on_side = (data.kept > data.kept_middle) == xr.DataArray([False, True], dims="side")
    numbers["sampled, G = 32: share of seeds still in the basin they start in"] = share(
        int(on_side.sum()), on_side.size
    )
    return numbers


def _sampled_numbers(data: xr.Dataset) -> dict[str, Number]:
    curve, numbers = np.asarray(stationary_pair_direct(*grid(*SAMPLED.values()))), {}
    for name, rates in RATES.items():
        at_zero, slope = intercepts(rates, data.average.sel(optimizer=name))
        numbers[f"{name}: sampled, extrapolated - formula"] = furthest(at_zero, curve, tolerance=MARGIN)
        numbers[f"{name}: steepest slope"] = mean(slope[np.argmax(abs(slope.mean(1)))])
    return numbers


def draw(figure, data: xr.Dataset) -> None:
    """Figure 3 of [A]; the phase diagram; roots, basins and trained policies."""
    figure.set_size_inches(12.5, 4.3)
    left, middle, right = figure.subplots(1, 3)
    _draw_pairs(left, data)
    _draw_phases(middle, data)
    _draw_basins(right, data)


def _draw_pairs(axes, data: xr.Dataset) -> None:
    fine = np.linspace(0, 1, 200)
    colors = dict(zip(STRENGTHS, colormaps["viridis"](np.linspace(0, 0.9, len(STRENGTHS))), strict=True))
    for b, color in colors.items():
        axes.plot(fine, stationary_pair_direct(fine, b), color=color, lw=1.6, label=f"{b:g}")
        axes.plot(
            REFERENCES, data.pair.sel(gamma=1.0, strength=b)[:, 0], "o", ms=4.5, mfc="white", color=color
        )
    at_zero, _ = intercepts(RATES["SGD"], data.average.sel(optimizer="SGD"))
    for r, b, values in zip(*grid(*SAMPLED.values()), at_zero, strict=True):
        number = mean(values)
        axes.plot([r, r], [number.low, number.high], color=colors[b], lw=2.2)
        axes.plot(r, number.value, "_", ms=10, mew=1.6, color=colors[b])
    axes.plot([0, 1], [0, 1], color="0.8", lw=0.8, zorder=0)
    axes.legend(title="β/γ", frameon=False, fontsize=8, loc="lower right")
    axes.set(xlim=(0, 1), ylim=(0, 1.01), xlabel="π_ref(a)", ylabel="stationary π(a)")
    axes.set_title("Direct penalty, pairs: no jump.\n○ exact ascent, ┿ sampled at rate → 0", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_phases(axes, data: xr.Dataset) -> None:
    for color, group in zip(("#4477aa", "#aa3377", "#ddaa33"), data.wedge.values, strict=True):
        here = data.sel(wedge=group)
        axes.fill(here.fold_beta, here.fold_reference, color=color, alpha=0.25, lw=0)
        axes.plot(here.fold_beta, here.fold_reference, color=color, lw=1.4, label=f"{group}")
    beta = np.linspace(0.1, 3, 300)
    edge = bifurcations(beta, group_size=np.inf).logit_reference_low
    axes.plot(beta, edge, color="k", lw=1.4, ls="--", label="∞: two below,\nnone above")
    axes.legend(title="G: three roots inside", frameon=False, fontsize=8, loc="lower right")
    axes.set(xlim=(0, 3), ylim=(-12, 3), xlabel="β", ylabel="log odds of π_ref")
    axes.set_title("How many roots. Finite groups: three inside a wedge,\none outside it", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_basins(axes, data: xr.Dataset) -> None:
    here = data.sel(group=GROUPS[1])
    beta = float(here.beta[0])
    ends = (-9.0, *here.fold[:, 0].values, 9.0)
    for k, style in enumerate(("-", "--", "-")):
        z = np.linspace(ends[k], ends[k + 1], 200)
        label = {0: "attracts", 1: "repels"}.get(k)
        axes.plot(
            z - drive(z, group_size=int(GROUPS[1])) / beta, z, style, color="#aa3377", lw=1.8, label=label
        )
    turn = float(bifurcations(beta, group_size=np.inf).z_low)
    for z, style in ((np.linspace(-9, turn, 200), "-"), (np.linspace(turn, 9, 200), "--")):
        label = "G → ∞" if style == "-" else None
        axes.plot(z - drive(z, group_size=np.inf) / beta, z, style, color="0.6", lw=1, label=label)
    for place in range(len(PLACES)):
        x, values = float(here.logit_reference[place]), here.log_odds[place].values
        for start, end in zip(values[3:7], values[7:], strict=True):
            arrow = {"arrowstyle": "-|>", "color": "#4477aa", "lw": 1.2, "shrinkA": 0, "shrinkB": 3}
            axes.annotate("", (x, end), (x, start), arrowprops=arrow)
            axes.plot(x, end, "o", ms=5, mfc="white", color="#4477aa", zorder=5)
    low, high = sorted(z - drive(z, group_size=int(GROUPS[1])) / beta for z in ends[1:3])
    axes.set(xlim=(low - 1.5, high + 1.5), ylim=(-4, 9), xlabel="log odds of π_ref", ylabel="log odds of π")
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    axes.set_title(f"Exact ascent (arrows, ○), G = {GROUPS[1]}, β = {beta:.2f}", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
