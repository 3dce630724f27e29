"""A group of two is a comparison: only the order of rewards counts.

Claim A1 of arXiv:2502.18548: for G = 2 an advantage is sign(r_i - r_j), the preference is
E[P(o > o') - P(o' > o)] over o ~ pi, o' ~ pi_old, and no increasing transform of the rewards changes it; it
is 2 E[P] - 1 iff ties count one half. Ours: for G >= 3 the invariance fails as soon as there are three levels
(with two, every increasing map is affine). Refuted if an identity fails by 1e-12, a transform changes sampled
training with pairs, or leaves larger groups on three levels alone, or moves any group on two.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from matplotlib import colormaps

from experiments.alignment import ascend, follow, grid, light, method, problem, steady_rate
from experiments.formulas.step_noise import ask, rest
from experiments.verdict import Number, judge, worst
from grpo_jax.exact import Exact, expected_preference
from grpo_jax.optimizers import SGD, AdamW
from grpo_jax.surrogate import advantages
from grpo_jax.tasks import Bernoulli
from grpo_jax.theory import Rewards, reward_table, stationary
from grpo_jax.theory.counts import number_of_histograms
from grpo_jax.types import Rollout

CLAIM = "A1"
PAPER = "A"
PRECISION = "float64"

GROUPS = (2, 3, 8)
MIDDLES = np.array([0.02, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.98])
"""Where the middle of three rewards lies is all that increasing maps can change, up to affine ones."""
REFERENCE = np.array([0.15, 0.35, 0.5])
BETA = 0.7
TRANSFORMS = {
    "r": lambda r: r,
    "r³": lambda r: r**3,
    "e^5r": lambda r: np.exp(5 * r),
    "-1/(r + 0.01)": lambda r: -1 / (r + 0.01),
    "1e6 r + 3": lambda r: 1e6 * r + 3,
}
SIZES = {"smoke": (4, 60), "quick": (64, 300), "full": (512, 1000)}
"""Seeds and iterations of sampled runs."""


def comparisons(root: int) -> np.ndarray:
    """Greatest |A_i - sign(r_i - r_j)| at magnitudes from 1e-30 to 1e30, ties included."""
    rng = np.random.default_rng(root)
    size = 10.0 ** rng.integers(-30, 31, (400, 1))
    rewards = rng.integers(-3, 4, (400, 2)) * size
    empty = np.zeros((400, 2, 1))
    zeros = np.zeros(400, int), np.zeros((400, 2, 1), int)
    fields = (*zeros, empty + 1, rewards[:, :, None], np.ones((400, 2)), *(empty,) * 3)
    rollout = Rollout(*(jnp.asarray(field) for field in fields))
    found = np.asarray(light(advantages)(method(0.0), rollout))[:, :, 0]
    return abs(found - np.sign(rewards - rewards[:, ::-1])).max()


def preferences(root: int) -> np.ndarray:
    """[table, measure] the engine's preference of pi over pi_old, and three others by brute force.

    Even tables are deterministic with ties, odd ones coin flips.
    """
    rng, found = np.random.default_rng(root + 1), []
    for table in range(20):
        pi, old = rng.dirichlet(np.ones(4), 2)
        values = rng.integers(0, 3, 4) / 2.0 if table % 2 == 0 else rng.uniform(size=4)
        noise = None if table % 2 == 0 else Bernoulli()
        config = problem(old, values, 0.0, group_size=2, noise=noise, expectation=Exact(cells=0))
        engine = float(pi @ np.asarray(expected_preference(config, np.log(old)[None]))[0])
        laws = [[(v, 1.0)] if noise is None else [(1.0, v), (0.0, 1 - v)] for v in values]
        wins = ties = 0.0
        for a, b in itertools.product(range(4), repeat=2):
            for (x, p), (y, q) in itertools.product(laws[a], laws[b]):
                wins += pi[a] * old[b] * p * q * (x > y)
                ties += pi[a] * old[b] * p * q * (x == y)
        losses = 1 - wins - ties
        found.append([engine, wins - losses, 2 * (wins + ties / 2) - 1, 2 * wins - 1])
    return np.array(found)


def trained(group_size: int) -> np.ndarray:
    """[K, middle] policies after exact ascent; then, with a reward shared by two answers, [K, transform]."""
    levels = np.stack([np.ones(len(MIDDLES)), MIDDLES, np.zeros(len(MIDDLES))])
    tied = np.stack([f(np.array([0.8, 0.8, 0.3])) for f in TRANSFORMS.values()], 1)
    rewards = np.concatenate([levels, tied], 1)
    runs = rewards.shape[1]
    reference = np.repeat(REFERENCE[:, None], runs, 1)
    options = {"optimizer": steady_rate(np.full(runs, BETA))}
    config = problem(reference, rewards, np.full(runs, BETA), group_size=group_size, **options)
    return ascend(config, runs, iterations=400)


def sampled(optimizer, group_size: int, size: tuple, root: int) -> np.ndarray:
    """[iteration, K, transform, seed] policies in sampled training from a common start, with common draws."""
    t, seed = (axis.astype(int) for axis in grid(range(len(TRANSFORMS)), range(size[0])))
    rewards = np.stack([f(np.array([1.0, 0.5, 0.0])) for f in TRANSFORMS.values()], 1)[:, t]
    reference = np.repeat(REFERENCE[:, None], t.size, 1)
    options = {"optimizer": optimizer, "expectation": None}
    config = problem(reference, rewards, np.full(t.size, BETA), group_size=group_size, **options)
    policies = follow(config, seed, root=root, iterations=size[1], every=size[1] // 20)
    return policies.reshape(-1, 3, len(TRANSFORMS), size[0])


def simulate(key: jax.Array, size: str) -> xr.Dataset:
    """Signs, preferences by brute force, exact ascent over middle rewards, sampled training of transforms."""
    root, chosen = int(jax.random.key_data(key)[-1]), SIZES[size]
    optimizers = {"SGD": SGD(learning_rate=0.1), "AdamW": AdamW(learning_rate=0.02)}
    pairs = np.stack([sampled(made, 2, chosen, root) for made in optimizers.values()])
    larger = sampled(optimizers["SGD"], 8, chosen, root)
    ended = np.stack([trained(group) for group in GROUPS])
    path = ("iteration", "action", "transform", "seed")
    return xr.Dataset(
        {
            "sign_error": comparisons(root),
            "preference": (("table", "measure"), preferences(root)),
            "trained": (("group", "action", "middle"), ended[:, :, : len(MIDDLES)]),
            "two_levels": (("group", "action", "transform"), ended[:, :, len(MIDDLES) :]),
            "pairs": (("optimizer", *path), pairs),
            "larger": (path, larger),
        },
        coords={
            "group": list(GROUPS), "middle": MIDDLES, "transform": list(TRANSFORMS),
            "optimizer": list(optimizers), "iteration": (1 + np.arange(len(larger))) * (chosen[1] // 20),
            "measure": ["engine", "P(>) - P(<)", "ties half", "ties lost"],
        },
    )  # fmt: skip


@light
def limit(table: Rewards) -> jax.Array:
    """[K] the solver's policy for large groups."""
    return stationary(REFERENCE, table, BETA, group_size=math.inf).policy


@functools.cache
def curve(group_size: float) -> tuple[np.ndarray, np.ndarray]:
    """Middle rewards and the solver's policies there, [K, middle]."""
    middles = np.union1d(np.linspace(0.005, 0.995, 23), MIDDLES)
    levels = np.stack([np.ones(middles.size), middles, np.zeros(middles.size)], 1)
    if math.isinf(group_size):
        found = [limit(reward_table(values)) for values in levels]
    else:
        rows = number_of_histograms(max(GROUPS), len(REFERENCE))
        found = [rest(ask(values, REFERENCE, BETA, int(group_size), rows=rows)) for values in levels]
    return middles, np.array(found).T


def check(data: xr.Dataset):
    """Signs and preferences; transforms of pairs, of two levels and of three."""
    measure = {name: data.preference.sel(measure=name).values for name in data.measure.values}
    numbers = {
        "pairs: A - sign(r_i - r_j)": Number(float(data.sign_error), expected=0.0, tolerance=1e-12),
        "preference - (P(>) - P(<))": worst(
            measure["engine"], expected=measure["P(>) - P(<)"], tolerance=1e-12
        ),
        "preference - (2 E[P] - 1), ties one half": worst(
            measure["engine"], expected=measure["ties half"], tolerance=1e-12
        ),
        "preference - (2 E[P] - 1), ties lost: greatest": Number(
            float(abs(measure["engine"] - measure["ties lost"]).max()), expected=0.1, relation="at least"
        ),
    }
    for optimizer in data.optimizer.values:
        paths = data.pairs.sel(optimizer=optimizer)
        change = float(abs(paths - paths.isel(transform=0)).max())
        name = f"pairs, sampled, {optimizer}: a transform changes pi by"
        numbers[name] = Number(change, expected=0.0, tolerance=1e-12)
    last = data.larger.isel(iteration=-1)
    moved = abs(last - last.isel(transform=0)).mean("seed").max()
    numbers["G = 8, sampled, SGD: a transform changes pi by"] = Number(
        float(moved), 0.02, relation="at least"
    )
    spread = (data.two_levels.max("transform") - data.two_levels.min("transform")).max()
    numbers["two levels, any G, exact: a transform changes pi by"] = Number(
        float(spread), 0.0, tolerance=1e-9
    )
    for group in GROUPS:
        ended = data.trained.sel(group=group)
        theirs = curve(group)[1][:, np.isin(curve(group)[0], MIDDLES)]
        numbers[f"G = {group}: exact ascent - solver"] = worst(ended, expected=theirs, tolerance=1e-6)
        moved = float((ended.max("middle") - ended.min("middle")).max())
        name = f"G = {group}: the middle reward moves pi by"
        numbers[name] = Number(moved, 0.02, relation="at least")
        if group == 2:
            numbers[name] = Number(moved, expected=0.0, tolerance=1e-12)
    return judge(numbers, refutes=list(numbers))


def draw(figure, data: xr.Dataset) -> None:
    """Trained policies over the middle reward, a curve per group size; sampled paths under transforms."""
    figure.set_size_inches(11.0, 4.1)
    left, *rest = figure.subplots(1, 3, width_ratios=(1.3, 1, 1))
    sizes = (*GROUPS, math.inf)
    colors = colormaps["viridis"](np.linspace(0.0, 0.88, len(sizes)))
    for group, color in zip(sizes, colors, strict=True):
        middles, policies = curve(group)
        left.plot(middles, policies[0], color=color, lw=1.4, label=f"G = {'∞' if group > 99 else group}")
        if group in GROUPS:
            left.plot(MIDDLES, data.trained.sel(group=group, action=0), "o", ms=4.5, mfc="white", color=color)
    left.set(xlabel="middle reward m of 1, m, 0", ylabel="trained π(best)", xlim=(0, 1))
    left.set_title("Only pairs ignore sizes (points: exact ascent)", fontsize=10)
    left.legend(frameon=False, fontsize=8, loc="lower left")
    panels = {"G = 2": data.pairs.sel(optimizer="SGD"), "G = 8": data.larger}
    shades = ("#111827", "#c2410c", "#1d4ed8", "#0f766e", "#a16207")
    for axes, (title, paths) in zip(rest, panels.items(), strict=True):
        for name, color, width in zip(TRANSFORMS, shades, (6, 4.6, 3.2, 1.8, 0.8), strict=True):
            path = paths.sel(transform=name).isel(action=0).mean("seed")
            axes.plot(data.iteration, path, color=color, lw=width, label=name)
        axes.set(xlabel="iteration", ylim=(0.1, 0.75))
        axes.set_title(f"{title}, sampled, rewards transformed", fontsize=10)
    rest[0].set_ylabel("mean π(best)")
    rest[0].legend(frameon=False, fontsize=8, loc="upper left")
    for axes in (left, *rest):
        axes.spines[["top", "right"]].set_visible(False)
