"""GRPO does not pool logarithmically: no e^r, and the reward's size does not count.

Claim A7 of arXiv:2502.18548: RLHF gives pi ~ pi_ref e^(r / beta), (4), and NLHF
pi ~ pi_ref e^(E P(o > o') / beta); GRPO gives pi = pi_ref / (1 - P_G(o | pi) / beta). One loop trains them:
Dr. GRPO is GRPO without the spread, NLHF pairs with the direct penalty 2 beta, RLHF pairs without the spread
and with beta / 2. Refuted if exact ascent ends 1e-6 from a prediction, sampled runs, extrapolated to learning
rate zero, are not within 0.01 of it, GRPO's answer feels the reward's scale, or some pooling e^h(r) could be
GRPO's: then pi(a) pi_ref(b) / (pi(b) pi_ref(a)) would not feel pi_ref. Ours: sizes beyond the scale, such
as where a middle reward lies, count for every group but a pair.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D

from experiments.alignment import ascend, furthest, grid, intercepts, light, method, problem, time_average
from experiments.verdict import Number, judge, worst
from grpo_jax import theory
from grpo_jax.config import Config
from grpo_jax.exact import expected_gradient
from grpo_jax.optimizers import SGD
from grpo_jax.parts.advantages import Normalized

CLAIM = "A7"
PAPER = "A"
PRECISION = "float64"

OBJECTIVES = {"GRPO": (False, 1.0), "Dr. GRPO": (False, 0.0), "NLHF": (True, 1.0), "RLHF": (True, 0.0)}
"""Whether pairs with the direct penalty train it, and the power of the spread that divides advantages."""
POWERS = np.array([1.0, 0.0])
GROUP = 8
REWARDS = np.array([1.0, 0.5, 0.0])
REFERENCE, BETA = np.array([0.15, 0.35, 0.5]), 1.0
"""What is drawn."""
REFERENCES = np.array([REFERENCE, [0.6, 0.3, 0.1], [0.1, 0.1, 0.8], [1 / 3, 1 / 3, 1 / 3]])
BETAS = np.array([1.0, 2.0, 4.0])
TABLES = {
    "x 1/4": REWARDS / 4, "x 1": REWARDS, "x 4": REWARDS * 4,
    "middle 0.1": np.array([1.0, 0.1, 0.0]), "middle 0.9": np.array([1.0, 0.9, 0.0]),
}  # fmt: skip
SHOWN = ("x 1", "x 4")
STARTS = np.array([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]])
RATES = np.array([0.02, 0.04, 0.08])
SIZES = {"smoke": (48, 4000, 24), "quick": (48, 4000, 96), "full": (128, 10000, 160)}
"""Seeds and iterations of sampled runs, and the side of the flow's grid."""
MARGIN = 0.01
HEIGHT = math.sqrt(3) / 2
CORNERS = np.array([[0.5, HEIGHT], [0.0, 0.0], [1.0, 0.0]])
"""Where the best, the middle and the worst answer lie."""


def setting(direct: bool, power, reference: np.ndarray, rewards: np.ndarray, beta, **changes) -> Config:
    """Two objectives as one training configuration, told apart by the power [R]; arrays [K, R]."""
    coef = beta * np.where(power > 0, 2.0, 0.5) if direct else beta
    made = dataclasses.replace(method(coef, direct=direct), advantage=Normalized(power=jnp.asarray(power)))
    return problem(reference, rewards, coef, group_size=2 if direct else GROUP, method=made, **changes)


@light
def _pair(reference: jax.Array, table: theory.Rewards, beta: jax.Array) -> jax.Array:
    """NLHF's policy [K]."""
    return theory.nlhf(reference, theory.pairwise_payoffs(table), beta).policy


@light
def _group(reference: jax.Array, table: theory.Rewards, beta: jax.Array, power: jax.Array) -> jax.Array:
    """The root of (11) [K], advantages divided by this power of the spread."""
    convention = theory.Convention(power=power)
    return theory.stationary(reference, table, beta, group_size=GROUP, convention=convention).policy


def predicted(objective: str, reference, rewards, beta) -> np.ndarray:
    """[K] the policy that the objective's theory names."""
    table = theory.reward_table(rewards)
    if objective == "RLHF":
        return np.asarray(theory.rlhf(reference, rewards, beta))
    if objective == "NLHF":
        return np.asarray(_pair(reference, table, beta))
    return np.asarray(_group(reference, table, beta, OBJECTIVES[objective][1]))


def trained(direct: bool) -> np.ndarray:
    """[power, K, reference, beta, table, start] policies after exact ascent."""
    shape = (len(POWERS), len(REFERENCES), len(BETAS), len(TABLES), len(STARTS))
    power, r, b, t, s = grid(POWERS, np.arange(shape[1]), BETAS, np.arange(shape[3]), np.arange(shape[4]))
    rewards = np.array(list(TABLES.values()))[t].T
    drive, weight = np.where(power > 0, 1.0, rewards[0]), np.where(direct & (power > 0), 2.0, 1.0)
    rate = 3 / (drive + weight * b) * np.where(direct & (power == 0), 2.0, 1.0)
    options = {"start": STARTS[s].T, "optimizer": SGD(learning_rate=jnp.asarray(rate))}
    config = setting(direct, power, REFERENCES[r].T, rewards, b, **options)
    found = ascend(config, power.size, iterations=4000 if direct else 1500)
    return found.reshape(3, *shape).swapaxes(0, 1)


def sampled(direct: bool, size: tuple, root: int) -> np.ndarray:
    """[power, rate, K x shown, seed] time averages at the drawn setting."""
    power, rate, t, seed = grid(POWERS, RATES, np.arange(len(SHOWN)), np.arange(size[0]))
    pair = [name for name, (kind, _) in OBJECTIVES.items() if kind == direct]
    aims = np.array([[predicted(name, REFERENCE, TABLES[x], BETA) for x in SHOWN] for name in pair])
    start = aims[(power == 0).astype(int), t.astype(int)].T
    reference, beta = np.repeat(REFERENCE[:, None], rate.size, 1), np.full(rate.size, BETA)
    rewards = np.array([TABLES[name] for name in SHOWN])[t.astype(int)].T
    options = {"optimizer": SGD(learning_rate=jnp.asarray(rate)), "start": start}
    config = setting(direct, power, reference, rewards, beta, expectation=None, **options)
    average = time_average(config, seed.astype(int), root=root, iterations=size[1])
    average = average.reshape(3, len(POWERS), len(RATES), len(SHOWN), size[0])
    return np.moveaxis(average, 0, 2).reshape(len(POWERS), len(RATES), -1, size[0])


def plane(side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, y of a grid over the triangle, and [K, y, x] the policies there; NaN outside."""
    x, y = np.linspace(0, 1, side), np.linspace(0, HEIGHT, side)
    first = y[:, None] / HEIGHT + 0 * x
    last = x[None, :] - first / 2
    policies = np.stack([first, 1 - first - last, last])
    return x, y, np.where((policies > 1e-3).all(0), policies, np.nan)


def flow(direct: bool, policies: np.ndarray) -> np.ndarray:
    """[power, shown, 2, y, x] velocity in the plane of ascent on the expected gradient in logits."""
    inside = np.isfinite(policies[0])
    here = policies[:, inside]
    power, t, which = grid(POWERS, np.arange(len(SHOWN)), np.arange(here.shape[1]))
    pi, reference = here[:, which.astype(int)], np.repeat(REFERENCE[:, None], power.size, 1)
    rewards = np.array([TABLES[name] for name in SHOWN])[t.astype(int)].T
    config = setting(direct, power, reference, rewards, np.full(power.size, BETA), optimizer=SGD())
    force = expected_gradient(config, np.log(pi)[None], reference=np.log(reference)[None])
    force = np.asarray(force)[0]
    velocity = np.full((2, len(POWERS), len(SHOWN), *inside.shape), np.nan)
    moved = CORNERS.T @ (pi * (force - (pi * force).sum(0)))
    velocity[..., inside] = moved.reshape(2, len(POWERS), len(SHOWN), -1)
    return np.moveaxis(velocity, 0, 2)


def simulate(key: jax.Array, size: str) -> xr.Dataset:
    """Exact ascent, flow fields and sampled time averages of the four objectives."""
    root, chosen = int(jax.random.key_data(key)[-1]), SIZES[size]
    x, y, policies = plane(chosen[2])
    kinds = (False, True)
    ended = ("objective", "action", "reference", "beta", "table", "start")
    return xr.Dataset(
        {
            "trained": (ended, np.concatenate([trained(kind) for kind in kinds])),
            "average": (
                ("objective", "rate", "entry", "seed"),
                np.concatenate([sampled(kind, chosen, root) for kind in kinds]),
            ),
            "flow": (
                ("objective", "shown", "axis", "y", "x"),
                np.concatenate([flow(kind, policies) for kind in kinds]),
            ),
        },
        coords={
            "objective": list(OBJECTIVES), "beta": BETAS, "table": list(TABLES), "shown": list(SHOWN),
            "x": x, "y": y, "rate": RATES, "axis": ["x", "y"],
        },
    )  # fmt: skip


def check(data: xr.Dataset):
    """Predictions; the shape 1 / (1 - x); the reward's scale; whether any e^h(r) could be it."""
    numbers, ended = {}, data.trained.isel(start=0)
    for objective in OBJECTIVES:
        pi, still = ended.sel(objective=objective), objective in ("GRPO", "NLHF")
        tables = TABLES.values()
        aim = np.array([[[predicted(objective, r, t, b) for t in tables] for b in BETAS] for r in REFERENCES])
        gap = data.trained.sel(objective=objective).values - np.moveaxis(aim, -1, 0)[..., None]
        numbers[f"{objective}: exact ascent - theory"] = worst(gap, expected=0 * gap, tolerance=1e-6)
        drawn = aim[0, 0, [list(TABLES).index(name) for name in SHOWN]].T.ravel()
        values, _ = intercepts(RATES, data.average.sel(objective=objective).values)
        name = f"{objective}: sampled, extrapolated - theory"
        numbers[name] = furthest(values, drawn, tolerance=MARGIN)
        numbers[f"{objective}: rewards x 1/4 to x 4, pi moves by"] = _moves(pi[:, :, :, :3], still=still)
        name = f"{objective}: middle reward 0.1 to 0.9, pi moves by"
        numbers[name] = _moves(pi[:, :, :, 3:], still=objective == "NLHF")
        odds = np.log(pi.isel(action=0) / pi.isel(action=2)).sel(table="x 1").values
        odds -= np.log(REFERENCES[:, 0] / REFERENCES[:, 2])[:, None]
        spread = xr.DataArray(odds, dims=("table", "beta"))
        name = f"{objective}: log odds that the best gains on the worst, spread over pi_ref"
        numbers[name] = _moves(spread, still=objective == "RLHF")
    numbers |= _shape_numbers(ended.sel(objective="GRPO", table="x 1"))
    judged = [name for name, number in numbers.items() if number.expected is not None]
    return judge(numbers, refutes=judged)


def _moves(values: xr.DataArray, *, still: bool) -> Number:
    """The greatest range over tables."""
    found = float((values.max("table") - values.min("table")).max())
    if still:
        return Number(found, expected=0.0, tolerance=1e-6)
    return Number(found, expected=0.1, relation="at least")


def _shape_numbers(pi: xr.DataArray) -> dict[str, Number]:
    """Each answer's share of its reference against its own preference, and the nearest RLHF."""
    table, gaps, tilts, nearest = theory.reward_table(REWARDS), [], [], []
    for r, reference in enumerate(REFERENCES):
        pools = np.asarray(theory.rlhf(reference, REWARDS, np.logspace(-2, 2, 4001)))
        for b, beta in enumerate(BETAS):
            policy = pi.isel(reference=r, beta=b).values
            x = np.asarray(theory.group_preference(policy, table, group_size=GROUP)) / beta
            tilted = reference * np.exp(x)
            gaps.append(policy / reference - 1 / (1 - x))
            tilts.append(abs(policy - tilted / tilted.sum()).max())
            nearest.append(abs(pools - policy).max(-1).min())
    return {
        "GRPO: pi / pi_ref - 1 / (1 - P / beta)": worst(gaps, expected=np.zeros_like(gaps), tolerance=1e-6),
        "GRPO: greatest distance from pi_ref e^(P / beta) / Z": Number(
            max(tilts), expected=0.05, relation="at least"
        ),
        "GRPO: greatest distance from RLHF at whatever beta is nearest": Number(max(nearest)),
    }


def draw(figure, data: xr.Dataset) -> None:
    """Four objectives by two sizes of the same rewards: flows, fixed points, and their paths over beta."""
    figure.set_size_inches(12.4, 6.3)
    figure.get_layout_engine().set(h_pad=0.1, hspace=0.0)
    panels = figure.subplots(len(SHOWN), len(PANELS))
    for row, name in enumerate(SHOWN):
        for axes, objective in zip(panels[row], PANELS, strict=True):
            _draw_flow(axes, data.flow.sel(objective=objective, shown=name), COLORS[objective])
            path = [predicted(objective, REFERENCE, TABLES[name], beta) for beta in np.logspace(2, -2, 60)]
            _draw_points(axes, data.trained.sel(objective=objective), path, name, COLORS[objective])
            _draw_corners(axes, TABLES[name])
    for axes, objective in zip(panels[0], PANELS, strict=True):
        axes.set_title(objective, fontsize=16, weight="bold", color=COLORS[objective], pad=30)
        above = {"xy": (0.5, 1.0), "xycoords": "axes fraction", "xytext": (0, 11)}
        axes.annotate(FORMULAS[objective], textcoords="offset points", ha="center", fontsize=11, **above)
    for axes, words in zip(panels[:, 0], ("rewards 1, ½, 0", "the same rewards × 4"), strict=True):
        axes.text(-0.2, HEIGHT / 2, words, rotation=90, fontsize=12, ha="center", va="center")
    handles = [
        Line2D([], [], marker="D", ms=7, mfc="white", mec="0.1", mew=1.4, ls="", label="reference policy"),
        Line2D([], [], marker="o", ms=10, color="0.35", ls="", label=f"trained, β = {BETA:g}"),
        Line2D([], [], color="0.1", lw=1.1, ls=(0, (4, 2)), label="fixed points from β = ∞ to β = 0"),
        Line2D([], [], marker="o", ms=8, mfc="white", mec="0.35", mew=1.8, ls="", label="where it was above"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=11)


PANELS = ("GRPO", "NLHF", "Dr. GRPO", "RLHF")
FORMULAS = {
    "GRPO": r"$\pi=\pi_{\rm ref}\,/\,(1-P_G/\beta)$",
    "NLHF": r"$\pi\propto\pi_{\rm ref}\,e^{P(o\succ\pi)/\beta}$",
    "Dr. GRPO": r"$\pi=\pi_{\rm ref}\,/\,(1-\frac{G-1}{G}(r-\bar r)/\beta)$",
    "RLHF": r"$\pi\propto\pi_{\rm ref}\,e^{r/\beta}$",
}
COLORS = {"GRPO": "#c2410c", "NLHF": "#7c3aed", "Dr. GRPO": "#0f766e", "RLHF": "#1d4ed8"}


def _draw_flow(axes, velocity: xr.DataArray, color: str) -> None:
    u, v = velocity.values
    speed = np.hypot(u, v)
    width = 0.25 + 1.5 * np.nan_to_num(speed / np.nanmax(speed)) ** 0.5
    axes.fill(*CORNERS.T, color=color, alpha=0.07, lw=0)
    lines = {"density": 0.55, "arrowsize": 0.8, "linewidth": width, "broken_streamlines": False}
    axes.streamplot(velocity.x.values, velocity.y.values, u, v, color=_pale(color), zorder=1, **lines)
    axes.fill(*CORNERS.T, fill=False, edgecolor="0.25", lw=1.2, joinstyle="round", zorder=3)
    axes.set(aspect="equal", xlim=(-0.22, 1.12), ylim=(-0.11, HEIGHT + 0.08))
    axes.axis("off")


def _pale(color: str) -> tuple[float, ...]:
    return tuple(0.45 + 0.55 * np.array(to_rgb(color)))


def _draw_points(axes, trained: xr.DataArray, path: list, table: str, color: str) -> None:
    axes.plot(*(np.array(path) @ CORNERS).T, color="0.1", lw=1.1, ls=(0, (4, 2)), zorder=4)
    ended = trained.isel(reference=0).sel(beta=BETA)
    here, before = (ended.sel(table=name).values.T @ CORNERS for name in (table, SHOWN[0]))
    if abs(here - before).max() > 0.01:
        style = {
            "arrowstyle": "-|>",
            "color": color,
            "lw": 2.2,
            "mutation_scale": 16,
            "shrinkA": 5,
            "shrinkB": 7,
        }
        axes.annotate("", here[0], before[0], arrowprops=style, zorder=6)
        axes.plot(*before[0], "o", ms=8, mfc="white", mec=color, mew=1.8, zorder=5)
    axes.plot(*here.T, "o", ms=11, mfc=color, mec="white", mew=1.5, zorder=7)
    axes.plot(*(REFERENCE @ CORNERS), "D", ms=7, mfc="white", mec="0.1", mew=1.4, zorder=6)


def _draw_corners(axes, rewards: np.ndarray) -> None:
    for corner, reward, (dx, dy) in zip(CORNERS, rewards, ((0, 9), (-4, -13), (4, -13)), strict=True):
        options = {"textcoords": "offset points", "ha": "center", "va": "center", "fontsize": 10}
        axes.annotate(f"r = {reward:g}", corner, (dx, dy), **options)
