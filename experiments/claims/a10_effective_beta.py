"""Dividing by the spread is a penalty of beta sigma(pi), which concentration need not lower.

Claim A10 of arXiv:2502.18548: in large groups the penalty acts on shift-only advantages with weight
beta sigma(pi), so concentrated policies are regularised less. Refuted if the weight, measured from expected
gradients, leaves beta sigma by 2 % anywhere on three paths that start at the uniform policy, if training
without the spread at the weight taken at GRPO's trained policy ends 1e-6 elsewhere (sampled, extrapolated to
learning rate zero: not within 0.01), or if the weight grows while an answer of a certain reward that has half
of the probability gets more. Qualified if it grows on the way to that half, or while a policy
concentrates on the best and the worst of three answers, or on an answer whose reward is a coin flip.
Reported: how far it leaves beta sigma where an answer is rare; in a finite group it stays above
beta gap sqrt(G - 1) / G.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from matplotlib import colormaps

from experiments.alignment import ascend, binary, furthest, intercepts, method, problem, time_average
from experiments.grid import grid
from experiments.verdict import Number, judge, mean, worst
from grpo_jax.exact import expected_gradient
from grpo_jax.optimizers import SGD
from grpo_jax.parts.advantages import Normalized
from grpo_jax.tasks import Bernoulli
from grpo_jax.theory import effective_penalty_binary

CLAIM = "A10"
PAPER = "A"
PRECISION = "float64"

CERTAIN = "one certain answer"
PATHS = {
    CERTAIN: ([1.0, 0.0, 0.0], [0.98, 0.01, 0.01], False, 1024),
    "best and worst of three": ([1.0, 0.5, 0.0], [0.495, 0.01, 0.495], False, 64),
    "a coin flip": ([1.0, 0.5, 1.0], [0.01, 0.98, 0.01], True, 1024),
}
"""Rewards or success chances; where the path from the uniform policy ends; whether coin flips; group size."""
ALONG = np.linspace(0, 1, 11)
GROUPS = (4, 16, 64)
RARE = np.logspace(-5, np.log10(0.5), 18)
GROUP, REFERENCE = 64, 0.2
BETAS = np.array([0.15, 0.3, 0.6, 1.2, 2.5])
FLIPS = {"certain": (1.0, 0.0), "coin flips": (0.8, 0.3)}
"""Success chances of the two answers that are trained."""
SAMPLED_BETAS, RATES = BETAS[[1, 3]], np.array([0.05, 0.1, 0.2])
SIZES = {"smoke": (400, 4, 200), "quick": (2500, 48, 2000), "full": (10000, 256, 10000)}
"""Iterations of exact ascent; seeds and iterations of sampled runs."""
MARGIN = 0.01


def divided(power, beta=0.0):
    """GRPO with the spread to this power: 1, or 0 for none."""
    return dataclasses.replace(method(beta), advantage=Normalized(power=jnp.asarray(power, float)))


def weight(policies: np.ndarray, rewards, group_size: int, *, flips: bool = False) -> tuple[np.ndarray, ...]:
    """[R] the penalty's weight over beta at policies [K, R], and the cosine of the two gradients.

    The weight is by how much the expected gradient without the spread exceeds that with it.
    """
    runs = policies.shape[1]
    both = np.concatenate([policies, policies], 1)
    config = problem(
        both, np.asarray(rewards), 0.0, group_size=group_size, noise=Bernoulli() if flips else None,
        method=divided(np.repeat([1.0, 0.0], runs)),
    )  # fmt: skip
    gradient = np.asarray(expected_gradient(config, np.log(both)[None]))[0]
    scaled, plain = gradient[:, :runs], gradient[:, runs:]
    inner = (scaled * plain).sum(0)
    norms = (scaled**2).sum(0), (plain**2).sum(0)
    return inner / norms[0] / (1 - 1 / group_size), inner / np.sqrt(norms[0] * norms[1])


def path(name: str) -> np.ndarray:
    """[K, along] policies from the uniform one to a concentrated one."""
    end = np.array(PATHS[name][1])[:, None]
    return (1 - ALONG) / 3 + ALONG * end


def spread(name: str) -> np.ndarray:
    """[along] sigma(pi), noise within an answer included."""
    rewards, _, flips, _ = PATHS[name]
    mean = rewards @ path(name)
    square = (rewards if flips else np.square(rewards)) @ path(name)
    return np.sqrt(square - mean**2)


def trained(iterations: int, flips: bool) -> np.ndarray:
    """[trainer, beta] pi(a): GRPO, without the spread at GRPO's weight, and without it at beta itself."""
    chances = np.array(FLIPS["coin flips" if flips else "certain"])
    reference = binary(np.full(len(BETAS), REFERENCE))

    def end(power: float, beta: np.ndarray) -> np.ndarray:
        rate = SGD(learning_rate=jnp.asarray(3 / (1 + beta)))
        options = {"method": divided(np.full(len(BETAS), power), beta), "optimizer": rate}
        options["noise"] = Bernoulli() if flips else None
        config = problem(reference, chances, beta, group_size=GROUP, **options)
        return ascend(config, len(BETAS), iterations=iterations)[0]

    ours = end(1.0, BETAS)
    success = ours * chances[0] + (1 - ours) * chances[1]
    same = np.asarray(effective_penalty_binary(BETAS, success, group_size=GROUP))
    return np.stack([ours, end(0.0, same), end(0.0, BETAS)])


def sampled(ended: np.ndarray, seeds: int, iterations: int, root: int) -> np.ndarray:
    """[rate, trainer x beta, seed] time averages of pi(a): GRPO, and without the spread at GRPO's weight.

    `ended` [beta] is where GRPO's exact ascent ends, and where all runs start.
    """
    rate, power, place, seed = grid(RATES, [1.0, 0.0], np.arange(len(SAMPLED_BETAS)), np.arange(seeds))
    place = place.astype(int)
    same = np.asarray(effective_penalty_binary(SAMPLED_BETAS, ended, group_size=GROUP))
    beta = np.where(power == 1, SAMPLED_BETAS[place], same[place])
    options = {"method": divided(power, beta), "optimizer": SGD(learning_rate=jnp.asarray(rate))}
    options |= {"start": binary(ended[place]), "expectation": None}
    reference = binary(np.full(rate.size, REFERENCE))
    config = problem(reference, np.array(FLIPS["certain"]), beta, group_size=GROUP, **options)
    average = time_average(config, seed.astype(int), root=root, iterations=iterations)[0]
    return average.reshape(len(RATES), -1, seeds)


def simulate(key: jax.Array, size: str) -> xr.Dataset:
    """Weights along paths and for rare answers, and policies trained with and without the spread."""
    root, (steps, seeds, iterations) = int(jax.random.key_data(key)[-1]), SIZES[size]
    found = []
    for name, (rewards, _, flips, group) in PATHS.items():
        found.append(weight(path(name), rewards, group, flips=flips))
    rare = [weight(binary(RARE), [1.0, 0.0], group)[0] for group in GROUPS]
    ended = [trained(steps, name == "coin flips") for name in FLIPS]
    grpo = ended[0][0][np.isin(BETAS, SAMPLED_BETAS)]
    average = sampled(grpo, seeds, iterations, root)
    return xr.Dataset(
        {
            "weight": (("path", "along"), np.stack([pair[0] for pair in found])),
            "cosine": (("path", "along"), np.stack([pair[1] for pair in found])),
            "rare": (("group", "p"), np.stack(rare)),
            "trained": (("rewards", "trainer", "beta"), np.stack(ended)),
            "average": (("rate", "setting", "seed"), average),
        },
        coords={
            "path": list(PATHS), "along": ALONG, "group": list(GROUPS), "p": RARE, "rewards": list(FLIPS),
            "trainer": ["GRPO", "shift-only at its weight", "shift-only at beta"], "beta": BETAS,
        },
    )  # fmt: skip


def weight_numbers(data: xr.Dataset) -> dict[str, Number]:
    """The weight against sigma at every point of every path, and how the two gradients align."""
    numbers = {}
    for name in PATHS:
        ratio = data.weight.sel(path=name).values / spread(name)
        numbers[f"{name}: weight / sigma"] = worst(ratio, expected=np.ones(ratio.shape), tolerance=0.02)
        numbers[f"{name}: least cosine of the gradients"] = Number(float(data.cosine.sel(path=name).min()))
    return numbers


def check(data: xr.Dataset):
    """beta sigma; the same trained policy; where concentration lowers the weight and where it does not."""
    numbers = weight_numbers(data)
    for rewards in FLIPS:
        ended = data.trained.sel(rewards=rewards)
        same, plain = ended.sel(trainer="shift-only at its weight"), ended.sel(trainer="shift-only at beta")
        name = f"{rewards}: GRPO - shift-only at its weight"
        numbers[name] = worst(same, expected=ended.sel(trainer="GRPO"), tolerance=1e-6)
        apart = float(abs(plain - ended.sel(trainer="GRPO")).max())
        numbers[f"{rewards}: distance from shift-only at beta"] = Number(apart, 0.05, relation="at least")
    at_zero, _ = intercepts(RATES, data.average)
    aim = data.trained.sel(rewards="certain", trainer="GRPO", beta=SAMPLED_BETAS).values
    for name, values in zip(("GRPO", "shift-only at its weight"), np.split(at_zero, 2), strict=True):
        numbers[f"{name}: sampled, extrapolated - GRPO's exact ascent"] = furthest(
            values, aim, tolerance=MARGIN
        )
    theory = [effective_penalty_binary(1.0, RARE, group_size=group) for group in GROUPS]
    measured = data.rare.values * (1 - 1 / data.group.values[:, None])
    numbers["rare answers: weight - theory"] = worst(measured, expected=np.array(theory), tolerance=1e-10)
    refutes = [name for name, number in numbers.items() if number.expected is not None]
    rises = {name: np.diff(data.weight.sel(path=name)) for name in PATHS if name != CERTAIN}
    above = path(CERTAIN)[0, :-1] >= 0.5
    change = np.diff(data.weight.sel(path=CERTAIN))
    rises |= {f"{CERTAIN}, up to one half": change[~above], f"{CERTAIN}, from there": change[above]}
    for name, change in rises.items():
        number = Number(float(change.max()), expected=0.0, relation="at most")
        numbers[f"to {name}: greatest rise of the weight"] = number
    refutes.append(f"to {CERTAIN}, from there: greatest rise of the weight")
    floor = measured * data.group.values[:, None] / np.sqrt(data.group.values[:, None] - 1)
    numbers["rare answers: least weight over sqrt(G - 1) / G"] = worst(
        floor, expected=np.ones(floor.shape), relation="at least"
    )
    refutes.append("rare answers: least weight over sqrt(G - 1) / G")
    rarest = float(data.rare.sel(group=GROUPS[-1]).isel(p=0) / np.sqrt(RARE[0]))
    numbers[f"G = {GROUPS[-1]}, p = 1e-5: weight / sigma"] = Number(rarest)
    return judge(numbers, refutes=refutes, qualifies=CONDITIONS)


CONDITIONS = {
    f"to {CERTAIN}, up to one half: greatest rise of the weight": "once one answer has half the probability",
    "to best and worst of three: greatest rise of the weight": "where the policy concentrates on one answer",
    "to a coin flip: greatest rise of the weight": "where that answer's reward is certain",
}
COLORS = dict(zip(PATHS, ("#1d4ed8", "#c2410c", "#0f766e"), strict=True))


def draw(figure, data: xr.Dataset) -> None:
    """Weights along three ways to concentrate; their floor in finite groups; trained policies."""
    figure.set_size_inches(11.8, 4.0)
    left, middle, right = figure.subplots(1, 3)
    for name, color in COLORS.items():
        left.plot(ALONG, spread(name), color=color, lw=1.4)
        left.plot(ALONG, data.weight.sel(path=name), "o", ms=5, mfc="white", color=color, label=name)
    left.set(xlabel="uniform → concentrated", ylim=(0, 0.62), ylabel="penalty's weight over β")
    left.set_title("Concentration on… (lines: σ)")
    left.legend(frameon=False, fontsize=8, loc="lower left")
    colors = colormaps["viridis"](np.linspace(0.0, 0.85, len(GROUPS)))
    for group, color in zip(GROUPS, colors, strict=True):
        middle.plot(
            RARE,
            data.rare.sel(group=group) * (1 - 1 / group),
            "o-",
            ms=4,
            lw=1,
            color=color,
            label=f"G = {group}",
        )
        middle.axhline(np.sqrt(group - 1) / group, color=color, lw=0.8, ls=":")
    middle.plot(RARE, np.sqrt(RARE * (1 - RARE)), color="0.1", lw=1.3, label="σ")
    middle.set(xscale="log", yscale="log", xlabel="p of the rare answer", ylabel="penalty's weight over β")
    middle.set_title("A group of G cannot see p < 1/G (dotted: √(G−1)/G)")
    middle.legend(frameon=False, fontsize=8)
    for rewards, color in zip(FLIPS, ("#1d4ed8", "#0f766e"), strict=True):
        ended = data.trained.sel(rewards=rewards)
        right.plot(BETAS, ended.sel(trainer="GRPO"), "-", color=color, lw=1.4, label=f"GRPO, {rewards}")
        same = ended.sel(trainer="shift-only at its weight")
        right.plot(BETAS, same, "o", ms=6, mfc="white", color=color, label="shift-only at its weight")
        plain = ended.sel(trainer="shift-only at beta")
        right.plot(BETAS, plain, "x--", ms=5, lw=0.8, color=color, label="shift-only at β")
    at_zero, _ = intercepts(RATES, data.average)
    for beta, values in zip(np.tile(SAMPLED_BETAS, 2) * np.repeat([0.95, 1.05], 2), at_zero, strict=True):
        number = mean(values)
        right.plot([beta, beta], [number.low, number.high], color="#1d4ed8", lw=2.2)
        right.plot(beta, number.value, "_", ms=9, mew=1.6, color="#1d4ed8")
    right.plot([], [], "+", ms=8, mew=1.6, color="#1d4ed8", label="both sampled, certain, rate → 0")
    right.set(xscale="log", xlabel="β", ylabel="trained π(a)", ylim=(-0.18, 1.03))
    right.set_xticks(BETAS, [f"{beta:g}" for beta in BETAS])
    right.set_xticks([], minor=True)
    right.set_title(f"The same policy at β times the weight, G = {GROUP}")
    right.legend(frameon=False, fontsize=7.5)
    for axes in (left, middle, right):
        axes.title.set_fontsize(10)
        axes.spines[["top", "right"]].set_visible(False)
