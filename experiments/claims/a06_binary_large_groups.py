"""Two reward levels, any group: from (14) to (15), if rewards are deterministic.

Claim A6 of arXiv:2502.18548: for large groups and b = beta, r = pi_ref,
pi = (2 b^2 r + 1 + sqrt(1 + 4 b^2 r (1 - r))) / (2 (1 + b^2)), at least max(1/(1 + b^2), r), whatever the
rewards but for their order. Ours: every group size has the curve beta (pi - pi_ref) = phi_G(pi), with a jump
at pi_ref = 0 iff beta < sqrt(G - 1). Refuted if (15) does not solve beta (pi - pi_ref) = sqrt(pi (1 - pi)),
the solver of (11) leaves a curve by 1e-10, exact ascent at G = 2..256 ends 1e-6 from it, the curves do not
approach (15), or sampled runs, extrapolated to learning rate zero, are not within 0.01. Qualified if noise
that keeps the order of the means moves the policy.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from matplotlib import colormaps
from numpy.typing import ArrayLike

from experiments.alignment import ascend, binary, furthest, intercepts, light, problem, sampled_binary
from experiments.grid import grid
from experiments.verdict import Number, judge, mean, worst
from grpo_jax.optimizers import SGD, AdamW
from grpo_jax.tasks import Bernoulli
from grpo_jax.theory import Rewards, lower_bound, stationary, stationary_binary, stationary_large_group

CLAIM = "A6"
PAPER = "A"
PRECISION = "float64"

GROUPS = np.array([2, 4, 8, 16, 64, 256])
REFERENCES = np.array([0.01, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9])
BETAS = np.array([0.25, 0.5, 1.0, 2.0, 5.0])
STARTS, GAPS = np.array([0.03, 0.5, 0.97]), np.array([1e-3, 1.0, 50.0])
"""Starts, and the difference of the rewards that goes with each."""
CRITICAL = np.array([0.7, 1.4])
"""beta / sqrt(G - 1) on either side of the jump."""
SMALL = 1e-4
"""pi_ref near the jump."""
PAIRS = {"1, 0": (1.0, 0.0), "0.95, 0.05": (0.95, 0.05), "0.7, 0.3": (0.7, 0.3), "0.55, 0.45": (0.55, 0.45)}
"""Success probabilities; the first pair is deterministic."""
NOISY_GROUP = 64
SAMPLED = {"pi_ref": np.array([0.05, 0.2, 0.5]), "beta": np.array([0.5, 1.0, 2.0])}
SAMPLED_GROUP = 8
RATES = {"SGD": np.array([0.05, 0.1, 0.2]), "AdamW": np.array([0.02, 0.04, 0.08])}
SIZES = {"smoke": (8, 2000, GROUPS[[0, 2]]), "quick": (48, 2000, GROUPS), "full": (256, 10000, GROUPS)}
"""Seeds and iterations of sampled runs, and groups trained exactly."""
MARGIN = 0.01


def trained(group_size: int) -> tuple[np.ndarray, np.ndarray]:
    """[pi_ref, beta, start] pi after exact ascent, and [side] pi at a small pi_ref beside the jump."""
    r, b, s = grid(REFERENCES, BETAS, STARTS)
    gap = np.broadcast_to(GAPS, (len(REFERENCES), len(BETAS), len(GAPS))).ravel()
    edge = CRITICAL * math.sqrt(group_size - 1)
    rate = np.append(3 / (1 + b), [12 / (1 + edge[0]), 0.1 / (SMALL * edge[1])])
    gap, b = np.append(gap, [1.0, 1.0]), np.append(b, edge)
    r, s = np.append(r, [SMALL, SMALL]), np.append(s, [0.02, SMALL])
    rewards = np.stack([2 + gap, np.full(gap.shape, 2.0)])
    options = {"start": binary(s), "optimizer": SGD(learning_rate=jnp.asarray(rate))}
    found = ascend(problem(binary(r), rewards, b, group_size=group_size, **options), r.size, iterations=600)[
        0
    ]
    return found[:-2].reshape(len(REFERENCES), len(BETAS), len(STARTS)), found[-2:]


def noisy() -> np.ndarray:
    """[pair, pi_ref, beta] pi after exact ascent on coin-flip rewards."""
    pair, r, b = grid(np.arange(len(PAIRS)), REFERENCES, BETAS)
    success = np.array(list(PAIRS.values()))[pair].T
    rate = 2.4 / (success[0] - success[1] + b)
    options = {"noise": Bernoulli(), "optimizer": SGD(learning_rate=jnp.asarray(rate))}
    config = problem(binary(r), success, b, group_size=NOISY_GROUP, **options)
    return ascend(config, r.size, iterations=600)[0].reshape(len(PAIRS), len(REFERENCES), len(BETAS))


@functools.partial(light, static_argnames="group_size")
def solve(reference: jax.Array, beta: jax.Array, success: jax.Array, *, group_size: float) -> jax.Array:
    """[R] pi of the general solver of (11), which knows nothing of the curves."""

    def one(r, b, chances):
        rewards = Rewards(jnp.array([0.0, 1.0]), jnp.stack([1 - chances, chances], 1))
        return stationary(jnp.stack([r, 1 - r]), rewards, b, group_size=group_size).policy[0]

    return jax.vmap(one)(reference, beta, success)


def solved() -> np.ndarray:
    """[group, pair, pi_ref, beta] pi of the solver, for a finite and an infinite group."""
    pair, r, b = grid(np.arange(len(PAIRS)), REFERENCES, BETAS)
    success = np.array(list(PAIRS.values()))[pair]
    found = [solve(r, b, success, group_size=group) for group in (NOISY_GROUP, math.inf)]
    return np.reshape(found, (2, len(PAIRS), len(REFERENCES), len(BETAS)))


def curve(reference: ArrayLike, beta: ArrayLike, group_size: float) -> np.ndarray:
    """The curve of a group size; calls of up to 200 points share a shape, and so a compiled program."""
    reference, beta = np.broadcast_arrays(np.asarray(reference, float), np.asarray(beta, float))
    points = 200 if group_size <= GROUPS.max() else reference.size
    padded = (np.resize(x.ravel(), points) for x in (reference, beta))
    return np.asarray(stationary_binary(*padded, group_size=group_size))[: reference.size].reshape(
        reference.shape
    )


def simulate(key: jax.Array, size: str) -> xr.Dataset:
    """Exact ascent per group size, on coin flips, sampled time averages, and the solver."""
    root = int(jax.random.key_data(key)[-1])
    seeds, iterations, groups = SIZES[size]
    ended, edges = zip(*(trained(int(group)) for group in groups), strict=True)
    averages = [
        sampled_binary(
            optimizer, RATES[name], SAMPLED, (seeds, iterations), root=root, group_size=SAMPLED_GROUP
        )
        for name, optimizer in (("SGD", SGD), ("AdamW", AdamW))
    ]
    return xr.Dataset(
        {
            "trained": (("group", "pi_ref", "beta", "start"), np.stack(ended)),
            "edge": (("group", "side"), np.stack(edges)),
            "noisy": (("pair", "pi_ref", "beta"), noisy()),
            "solved": (("solved_group", "pair", "pi_ref", "beta"), solved()),
            "average": (("optimizer", "rate", "setting", "seed"), np.stack(averages)),
        },
        coords={
            "group": groups, "pi_ref": REFERENCES, "beta": BETAS, "start": STARTS, "side": CRITICAL,
            "pair": list(PAIRS), "solved_group": [NOISY_GROUP, np.inf],
            "optimizer": list(RATES),
        },
    )  # fmt: skip


def check(data: xr.Dataset):
    """Curves for every group, (15) as their limit and its equation; jumps; sampled runs; noise."""
    r, b = np.meshgrid(REFERENCES, BETAS, indexing="ij")
    limit = np.asarray(stationary_large_group(r, b))
    spread = data.noisy.max("pair") - data.noisy.min("pair")
    numbers = {
        "(15): beta (pi - pi_ref) - sqrt(pi (1 - pi))": worst(
            b * (limit - r), expected=np.sqrt(limit * (1 - limit)), tolerance=1e-12
        ),
        "(15) - bound": worst(
            limit, expected=lower_bound(r, b, group_size=math.inf), tolerance=1e-12, relation="at least"
        ),
    }
    numbers |= _curve_numbers(data, r, b, limit) | _edge_numbers(data) | _sampled_numbers(data)
    noise = data.noisy.values - data.solved.sel(solved_group=NOISY_GROUP).values
    numbers["noise: exact ascent - solver"] = worst(noise, expected=0 * noise, tolerance=1e-6)
    qualifies = {
        "noise of the same order, same pi_ref and beta: pi moves by": "for deterministic rewards",
        "AdamW: sampled, extrapolated - curve": "under SGD, not under AdamW",
    }
    moved = Number(float(spread.max()), expected=0.0, tolerance=MARGIN)
    numbers["noise of the same order, same pi_ref and beta: pi moves by"] = moved
    judged = [name for name, number in numbers.items() if number.expected is not None]
    return judge(numbers, refutes=[name for name in judged if name not in qualifies], qualifies=qualifies)


def _curve_numbers(data: xr.Dataset, r: np.ndarray, b: np.ndarray, limit: np.ndarray) -> dict[str, Number]:
    curves = {int(g): curve(r, b, int(g)) for g in data.group.values}
    stack = np.stack(list(curves.values()))
    solver = [curve(r, b, group) for group in data.solved_group.values]
    numbers = {
        "solver of (11) - curve": worst(data.solved[:, 0], expected=np.stack(solver), tolerance=1e-10),
        "curves rise with G and stay below (15)": worst(
            np.diff(np.concatenate([stack, limit[None]]), axis=0), expected=0.0, relation="at least"
        ),
    }
    for group, line in curves.items():
        gap = data.trained.sel(group=group).values - line[..., None]
        numbers[f"G = {group}: exact ascent - curve"] = worst(gap, expected=0 * gap, tolerance=1e-6)
    largest = max(curves)
    distances = [float(abs(limit - curve(r, b, g)).max()) for g in (512, 4096)]
    numbers["(15) - curve, worst: exponent of G from 512 to 4096"] = Number(
        math.log(distances[1] / distances[0]) / math.log(8), expected=-0.5, tolerance=0.0, relation="at most"
    )
    numbers[f"(15) - curve of G = {largest}"] = Number(float(abs(limit - curves[largest]).max()))
    return numbers


def _edge_numbers(data: xr.Dataset) -> dict[str, Number]:
    critical = np.sqrt(data.group.values - 1)
    numbers = {}
    for side in CRITICAL:
        found, beta = data.edge.sel(side=side).values, side * critical
        curves = [float(curve(SMALL, x, int(g))) for x, g in zip(beta, data.group.values, strict=True)]
        numbers[f"pi_ref = 1e-4, beta = {side:g} sqrt(G - 1): exact ascent - curve"] = worst(
            found, expected=curves, tolerance=1e-6
        )
        number = (
            Number(float(found.min()), expected=30 * SMALL, relation="at least")
            if side < 1
            else Number(float(found.max()), expected=4 * SMALL, relation="at most")
        )
        name = f"pi_ref = 1e-4, beta = {side:g} sqrt(G - 1): {'least' if side < 1 else 'greatest'} trained pi"
        numbers[name] = number
    beta = 1.4 * critical
    short = np.maximum(1 / (1 + beta**2), SMALL) - data.edge.sel(side=1.4).values
    numbers["finite G below the bound of (15): by up to"] = Number(float(short.max()))
    return numbers


def _sampled_numbers(data: xr.Dataset) -> dict[str, Number]:
    r, b = grid(*SAMPLED.values())
    aim, numbers = curve(r, b, SAMPLED_GROUP), {}
    for name, rates in RATES.items():
        at_zero, slope = intercepts(rates, data.average.sel(optimizer=name))
        numbers[f"{name}: sampled, extrapolated - curve"] = furthest(at_zero, aim, tolerance=MARGIN)
        worst_at = int(np.argmax(abs(slope.mean(1))))
        where = f"pi_ref {r[worst_at]:g}, beta {b[worst_at]:g}"
        numbers[f"{name}: steepest slope, at {where}"] = mean(slope[worst_at])
    return numbers


def draw(figure, data: xr.Dataset) -> None:
    """Figure 2 of [A]; the curves between groups of two and large ones; what noise does."""
    figure.set_size_inches(12.5, 4.3)
    left, middle, right = figure.subplots(1, 3, sharey=True)
    _draw_limit(left, data)
    _draw_groups(middle, data)
    _draw_noise(right, data)
    for axes in (left, middle, right):
        axes.plot([0, 1], [0, 1], color="0.8", lw=0.8, zorder=0)
        axes.set(xlim=(0, 1), ylim=(0, 1.01), xlabel="π_ref")
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylabel("stationary π of the better answer")


FINE = np.concatenate([np.geomspace(1e-6, 0.01, 50), np.linspace(0.01, 0.999, 150)[1:]])


def _draw_limit(axes, data: xr.Dataset) -> None:
    largest = int(data.group.max())
    for color, b in zip(colormaps["viridis"](np.linspace(0, 0.9, len(BETAS))), BETAS, strict=True):
        axes.plot(FINE, stationary_large_group(FINE, b), color=color, lw=1.6, label=f"{b:g}")
        axes.plot(0, 1 / (1 + b**2), "o", ms=4.5, color=color, clip_on=False, zorder=5)
        trained = data.trained.sel(group=largest, beta=b).isel(start=0)
        axes.plot(REFERENCES, trained, "o", ms=4.5, mfc="white", color=color)
    axes.legend(title="β", frameon=False, fontsize=8, loc="lower right")
    axes.set_title(f"Equation (15), G → ∞. ○ exact ascent, G = {largest}", fontsize=9)


def _draw_groups(axes, data: xr.Dataset) -> None:
    groups = [int(g) for g in data.group.values]
    for color, group in zip(colormaps["plasma"](np.linspace(0, 0.85, len(groups))), groups, strict=True):
        axes.plot(FINE, curve(FINE, 2.0, group), color=color, lw=1.6, label=f"{group}")
        trained = data.trained.sel(group=group, beta=2.0).isel(start=0)
        axes.plot(REFERENCES, trained, "o", ms=4.5, mfc="white", color=color)
        if group == SAMPLED_GROUP:
            _draw_sampled(axes, data, color)
    axes.plot(FINE, stationary_large_group(FINE, 2.0), color="k", lw=1, ls="--", label="∞")
    axes.legend(title="G", frameon=False, fontsize=8, loc="lower right")
    axes.set_title("Every group has its curve (β = 2). ┿ sampled, rate → 0", fontsize=9)


def _draw_sampled(axes, data: xr.Dataset, color) -> None:
    at_zero, _ = intercepts(RATES["SGD"], data.average.sel(optimizer="SGD"))
    for r, b, values in zip(*grid(*SAMPLED.values()), at_zero, strict=True):
        if b == 2.0:
            number = mean(values)
            axes.plot([r, r], [number.low, number.high], color=color, lw=2.2)
            axes.plot(r, number.value, "_", ms=10, mew=1.6, color=color)


def _draw_noise(axes, data: xr.Dataset) -> None:
    runs = data.noisy.size
    fine = np.append(np.geomspace(1e-4, 0.05, 10), np.linspace(0.05, 0.999, runs // len(PAIRS) - 9)[1:])
    success = np.repeat(np.array(list(PAIRS.values())), len(fine), axis=0)
    lines = solve(np.tile(fine, len(PAIRS)), np.ones(runs), success, group_size=math.inf)
    colors = ("k", "#1b9e77", "#d95f02", "#7570b3")
    for color, name, line in zip(colors, PAIRS, np.reshape(lines, (len(PAIRS), -1)), strict=True):
        label = name if color != "k" else f"{name} (no noise)"
        axes.plot(fine, line, color=color, lw=1.6)
        trained = data.noisy.sel(pair=name, beta=1.0)
        axes.plot(REFERENCES, trained, "o", ms=4.5, mfc="white", color=color, label=label)
    axes.legend(title="P(reward = 1), better and worse", frameon=False, fontsize=8, loc="lower right")
    axes.set_title(f"Noise enters σ (β = 1). Lines G → ∞, ○ exact ascent, G = {NOISY_GROUP}", fontsize=9)
