"""Two answers, groups of two: training settles on the closed form (14).

Claim A5 of arXiv:2502.18548: with gamma = P(a > b) - P(b > a) > 0 the stationary policy is
pi(a) = (1 - beta/gamma + sqrt((1 - beta/gamma)^2 + 4 (beta/gamma) pi_ref(a))) / 2; pi_ref for a tie;
at least max(1 - beta/gamma, pi_ref(a)); sqrt(pi_ref(a)) at beta = gamma; with a jump at pi_ref(a) = 0 iff
beta < gamma. Refuted if the general solver of (11) leaves the curve by 1e-10, exact ascent ends 1e-6 from it,
or a sampled run's time average, extrapolated to learning rate zero, is not within 0.01 (99.9 % intervals of
every setting). Qualified if that needs SGD: AdamW is judged with the same margin. All training starts apart
from pi_ref: a penalty that pulls to the start or to the sampling policy instead, which a run that starts at
pi_ref and has no reason to leave it (equal rewards) would not show, ends elsewhere.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.colors import ListedColormap

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
from experiments.grid import grid
from experiments.verdict import Number, judge, mean, worst
from grpo_jax.optimizers import SGD, AdamW
from grpo_jax.tasks import Bernoulli
from grpo_jax.theory import (
    Rewards,
    frozen_surrogate,
    lower_bound,
    stationary,
    stationary_pair,
    surrogate_curvature,
)

CLAIM = "A5"
PAPER = "A"
PRECISION = "float64"

REFERENCES = np.array([0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9])
STRENGTHS = np.array([0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 3.0, 10.0])
"""beta / gamma."""
STARTS = np.array([0.02, 0.3, 0.7, 0.98])
PAIRS = {"1": (1.0, 0.0), "0.4": (0.7, 0.3), "0.1": (0.95, 0.85), "0": (0.6, 0.6), "0, no noise": (1.0, 1.0)}
"""gamma -> success probabilities of the two answers; the last two are ties, where beta = strength."""
GAMMAS = np.array([1.0, 0.4, 0.1])
SAMPLED = {"pi_ref": np.array([0.05, 0.2, 0.5, 0.8]), "strength": np.array([0.25, 0.5, 1.0, 3.0])}
RATES = {"SGD": np.array([0.05, 0.1, 0.2]), "AdamW": np.array([0.02, 0.04, 0.08])}
START = 0.35
"""Where sampled runs start: apart from every pi_ref."""
SIZES = {"smoke": (64, 3000), "quick": (64, 3000), "full": (256, 12000)}
"""Seeds and iterations of sampled runs."""
MARGIN = 0.01
TINY = 1e-9


def settle(reference: np.ndarray, strength: np.ndarray, start: np.ndarray, success: np.ndarray) -> np.ndarray:
    """[R] pi(a) where exact ascent ends; all [R], but success probabilities [2, R] of coin-flip rewards."""
    gamma = success[0] - success[1]
    beta = np.where(gamma > 0, gamma, 1) * strength
    rate = SGD(learning_rate=jnp.asarray(3 / (gamma + beta)))
    options = {"start": binary(start), "noise": Bernoulli(), "optimizer": rate}
    config = problem(binary(reference), success, beta, group_size=2, **options)
    return ascend(config, len(beta), iterations=800)[0]


def trained() -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Exact ascent for every pair of answers, and at the left end: pi_ref(a) = 1e-9, and exactly 0."""
    r, b, s = grid(REFERENCES, STRENGTHS, STARTS)
    below = STRENGTHS[STRENGTHS < 1]
    end = np.concatenate([np.full(below.shape, TINY), np.zeros(below.shape)])
    first = np.concatenate([np.full(below.shape, 0.5), np.zeros(below.shape)])
    success = np.repeat(np.array(list(PAIRS.values())).T, r.size, axis=1)
    found = settle(
        np.concatenate([np.tile(r, len(PAIRS)), end]),
        np.concatenate([np.tile(b, len(PAIRS)), below, below]),
        np.concatenate([np.tile(s, len(PAIRS)), first]),
        np.concatenate([success, np.tile([[1.0], [0.0]], (1, end.size))], axis=1),
    )
    main, (above, at) = found[: -end.size], np.split(found[-end.size :], 2)
    main = main.reshape(len(PAIRS), len(REFERENCES), len(STRENGTHS), len(STARTS))
    return {
        "trained": (("pair", "pi_ref", "strength", "start"), main),
        "above_zero": (("below_one",), above),
        "at_zero": (("below_one",), at),
    }


def solved(references: np.ndarray) -> np.ndarray:
    """[gamma, pi_ref, strength] pi(a) of the general solver of (11), which knows nothing of (14)."""
    r, b = grid(references, STRENGTHS)

    @light
    @jax.vmap
    def solve(reference, beta, success):
        rewards = Rewards(jnp.array([0.0, 1.0]), jnp.stack([1 - success, success], 1))
        reference = jnp.stack([reference, 1 - reference])
        return stationary(reference, rewards, beta, group_size=2).policy[0]

    pairs = list(PAIRS.values())[: len(GAMMAS)]
    found = [
        solve(r, b * gamma, np.tile(pair, (r.size, 1))) for gamma, pair in zip(GAMMAS, pairs, strict=True)
    ]
    return np.stack(found).reshape(len(GAMMAS), len(references), len(STRENGTHS))


def sampled(optimizer: str, seeds: int, iterations: int, root: int) -> np.ndarray:
    """[rate, setting, seed] time averages of pi(a), which start apart from pi_ref."""
    made, rates, size = {"SGD": SGD, "AdamW": AdamW}[optimizer], RATES[optimizer], (seeds, iterations)
    return sampled_binary(made, rates, SAMPLED, size, root=root, group_size=2, start=binary(START))


def placebo(seeds: int, iterations: int, root: int) -> np.ndarray:
    """[rate, pi_ref, seed] time averages of pi(a) under rewards that are a fair coin for both answers.

    They start apart from pi_ref; beta = 1 brings them there well within the burn-in at every rate.
    """
    rates, references = RATES["SGD"], SAMPLED["pi_ref"]
    rate, r, seed = grid(rates, references, np.arange(seeds))
    options = {"noise": Bernoulli(), "optimizer": SGD(learning_rate=jnp.asarray(rate)), "expectation": None}
    options["start"] = binary(np.full(rate.size, START))
    config = problem(binary(r), np.array([0.5, 0.5]), 1.0, group_size=2, **options)
    average = time_average(config, seed.astype(int), root=root, iterations=iterations)[0]
    return average.reshape(len(rates), len(references), seeds)


@functools.partial(jax.jit, static_argnames="points")
def optimality(reference: jax.Array, strength: jax.Array, *, points: int = 400):
    """Curvature [S] of each stationary point's own surrogate there, and how much more it offers elsewhere."""

    def one(r, b):
        ref, pi = jnp.stack([r, 1 - r]), stationary_pair(r, b)
        policy = jnp.stack([pi, 1 - pi])
        preference = jnp.stack([1 - pi, -pi])
        y = jax.nn.sigmoid(jnp.linspace(-14.0, 14.0, points))
        elsewhere = frozen_surrogate(jnp.stack([y, 1 - y], 1), policy, preference, ref, b)
        here = frozen_surrogate(policy, policy, preference, ref, b)
        return surrogate_curvature(policy, ref), jnp.max(elsewhere) - here

    return jax.vmap(one)(reference, strength)


def rank(reference: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """0 where the stationary point maximises its own surrogate, 1 where only locally, 2 where not even so."""
    curvature, gain = (np.asarray(x) for x in optimality(np.ravel(reference), np.ravel(strength)))
    return np.where(curvature > 0, 2, np.where(gain > 1e-9, 1, 0)).reshape(np.shape(reference))


def simulate(key: jax.Array, size: str) -> xr.Dataset:
    """Exact ascent, sampled time averages, the solver, the ends of the curve, and who maximises what."""
    root = int(jax.random.key_data(key)[-1])
    seeds, iterations = SIZES[size]
    averages = [sampled(name, seeds, iterations, root) for name in RATES]
    r, b = np.meshgrid(np.geomspace(1e-4, 0.99, 160), np.linspace(0.025, 4, 160), indexing="ij")
    setting = np.array(["/".join(map(str, pair)) for pair in zip(*grid(*SAMPLED.values()), strict=True)])
    found = solved(np.append(TINY, REFERENCES))
    return xr.Dataset(
        {
            "solved": (("gamma", "pi_ref", "strength"), found[:, 1:]),
            "solved_left": (("gamma", "strength"), found[:, 0]),
            "average": (("optimizer", "rate", "setting", "seed"), np.stack(averages)),
            "placebo": (("rate", "sampled_pi_ref", "seed"), placebo(seeds, iterations, root)),
            "rank": (("map_pi_ref", "map_strength"), rank(r, b)),
        }
        | trained(),
        coords={
            "pair": list(PAIRS), "gamma": GAMMAS, "pi_ref": REFERENCES, "strength": STRENGTHS,
            "start": STARTS, "below_one": STRENGTHS[STRENGTHS < 1], "optimizer": list(RATES),
            "setting": setting, "sampled_pi_ref": SAMPLED["pi_ref"],
            "map_pi_ref": r[:, 0], "map_strength": b[0],
        },
    )  # fmt: skip


def check(data: xr.Dataset):
    """The curve, its ends, ties and bounds; sampled runs; what maximises its surrogate."""
    r, b = np.meshgrid(REFERENCES, STRENGTHS, indexing="ij")
    curve, bound = np.asarray(stationary_pair(r, b)), np.asarray(lower_bound(r, b, group_size=2))
    solved, won = data.solved.values, data.trained[: len(GAMMAS)].values
    tied = data.trained[len(GAMMAS) :].values
    numbers = {
        "solver of (11) - (14)": worst(solved - curve, expected=0 * solved, tolerance=1e-10),
        "exact ascent - (14)": worst(won - curve[..., None], expected=0 * won, tolerance=1e-6),
        "exact ascent - bound": worst(
            won - bound[..., None], expected=0 * won, tolerance=1e-6, relation="at least"
        ),
        "exact ascent at beta = gamma, - sqrt(pi_ref)": worst(
            won[:, :, STRENGTHS == 1], expected=np.sqrt(REFERENCES)[:, None, None], tolerance=1e-6
        ),
        "tied: exact ascent - pi_ref": worst(tied, expected=r[..., None], tolerance=1e-6),
        "pi_ref = 1e-9: exact ascent - (1 - beta/gamma)": worst(
            data.above_zero, expected=1 - data.below_one, tolerance=1e-6
        ),
        "pi_ref = 1e-9, beta < gamma: solver - (1 - beta/gamma)": worst(
            data.solved_left[:, STRENGTHS < 1], expected=1 - data.below_one.values, tolerance=1e-6
        ),
        "pi_ref = 1e-9, beta >= gamma: solver, no jump": worst(
            data.solved_left[:, STRENGTHS >= 1], expected=0.0, tolerance=1e-4
        ),
        "pi_ref = 0: exact ascent": worst(data.at_zero, expected=0 * data.below_one),
    }
    numbers |= _sampled_numbers(data)
    refutes = [name for name in numbers if numbers[name].expected is not None and "AdamW" not in name]
    numbers |= _optimality_numbers(data["rank"])
    return judge(numbers, refutes=refutes, qualifies={_sampled_name("AdamW"): "under SGD, not under AdamW"})


def _optimality_numbers(kind: xr.DataArray) -> dict[str, Number]:
    """Below which pi_ref some stationary points are no maximiser of their own surrogate."""
    found = {}
    for least, words in ((1, "no global maximum"), (2, "not even a local maximum")):
        rows, columns = np.nonzero(kind.values >= least)
        found[f"{words} of its surrogate: greatest pi_ref"] = Number(float(kind.map_pi_ref[rows.max()]))
        for end, pick in (("least", min), ("greatest", max)):
            at = float(kind.map_strength[pick(columns)])
            found[f"{words} of its surrogate: {end} beta/gamma, of 0.025 to 4"] = Number(at)
    return found


def _sampled_name(optimizer: str) -> str:
    return f"{optimizer}: sampled, extrapolated - (14)"


def _sampled_numbers(data: xr.Dataset) -> dict[str, Number]:
    r, b = grid(*SAMPLED.values())
    curve, numbers = np.asarray(stationary_pair(r, b)), {}
    for name, rates in RATES.items():
        at_zero, slope = intercepts(rates, data.average.sel(optimizer=name))
        numbers[_sampled_name(name)] = furthest(at_zero, curve, tolerance=MARGIN)
        steepest = int(np.argmax(abs(slope.mean(1))))
        numbers[f"{name}: steepest slope, at pi_ref {r[steepest]:g}, beta/gamma {b[steepest]:g}"] = mean(
            slope[steepest]
        )
    numbers["placebo: sampled, extrapolated - pi_ref"] = placebo_number(data.placebo)
    return numbers


def placebo_number(average: xr.DataArray) -> Number:
    """Of the pi_ref to which equal rewards [rate, pi_ref, seed] should lead, the one missed by most."""
    at_zero, _ = intercepts(RATES["SGD"], average.values)
    return furthest(at_zero, SAMPLED["pi_ref"], tolerance=MARGIN)


def draw(figure, data: xr.Dataset) -> None:
    """Figure 1 of [A] with trained points, and where its points maximise their own surrogate."""
    figure.set_size_inches(10.5, 4.6)
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    _draw_curves(left, data)
    _draw_map(right, data)


def _draw_curves(axes, data: xr.Dataset) -> None:
    colors = colormaps["viridis"](np.linspace(0, 0.92, len(STRENGTHS)))
    r = np.concatenate([np.geomspace(1e-6, 0.01, 60), np.linspace(0.01, 1, 240)[1:-1]])
    for color, b in zip(colors, STRENGTHS, strict=True):
        curve, kind = np.asarray(stationary_pair(r, b)), rank(r, np.full(r.shape, b))
        axes.plot(r, np.where(kind == 0, curve, np.nan), color=color, lw=1.6)
        axes.plot(r, np.where(kind > 0, curve, np.nan), color=color, lw=1.6, ls=(0, (1, 1.2)))
        axes.plot(
            REFERENCES, data.trained.sel(pair="0.4", strength=b)[:, 0], "o", ms=4.5, mfc="white", color=color
        )
        if b < 1:
            axes.plot(0, 1 - b, "o", ms=4.5, color=color, clip_on=False, zorder=5)
    _draw_sampled(axes, data, dict(zip(STRENGTHS, colors, strict=True)))
    _label_curves(axes, colors)
    axes.plot([0, 1], [0, 1], color="0.75", lw=0.8, zorder=0)
    axes.set(xlim=(0, 1), ylim=(0, 1.01), xlabel="π_ref(a)", ylabel="stationary π(a)")
    axes.set_title("Equation (14). ○ exact ascent, ┿ sampled at learning rate → 0", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_sampled(axes, data: xr.Dataset, colors: dict) -> None:
    r, b = grid(*SAMPLED.values())
    at_zero, _ = intercepts(RATES["SGD"], data.average.sel(optimizer="SGD"))
    for reference, strength, values in zip(r, b, at_zero, strict=True):
        number, color = mean(values), colors[strength]
        axes.plot([reference] * 2, [number.low, number.high], color=color, lw=2.2)
        axes.plot(reference, number.value, "_", ms=9, mew=1.6, color=color)


def _label_curves(axes, colors) -> None:
    for color, b in zip(colors, STRENGTHS, strict=True):
        axes.plot([], [], color=color, lw=2, label=f"{b:g}")
    axes.plot([], [], color="0.3", ls=(0, (1, 1.2)), label="no maximiser\nof its own\nsurrogate")
    axes.legend(title="β/γ", frameon=False, fontsize=8, title_fontsize=8, loc="lower right")


def _draw_map(axes, data: xr.Dataset) -> None:
    shades = ListedColormap(["#f4f1ea", "#f2c083", "#c8553d"])
    kind = data["rank"]
    axes.pcolormesh(data.map_strength, data.map_pi_ref, kind, cmap=shades, vmin=0, vmax=2, rasterized=True)
    words = {
        (2.0, 0.3): "maximises its own surrogate",
        (3.05, 0.003): "local maximum,\nbeaten elsewhere",
        (1.3, 0.001): "local minimum\nof its own\nsurrogate",
    }
    for (x, y), text in words.items():
        axes.text(x, y, text, fontsize=9, ha="center", va="center")
    axes.set(xlabel="β/γ", ylabel="π_ref(a)", yscale="log")
    axes.set_title("What the stationary point is to its own surrogate", fontsize=9)
