"""GRPO's stationary policies solve the fixed point (11), and one step a batch gets there.

Claim A4 of arXiv:2502.18548: on the support [1 - (P_G(o) - E P_G)/beta] pi(o) = pi_ref(o), and so
P_G(o) < E P_G + beta. Refuted if the solver's policy leaves (11) by 1e-10 on any of many random questions
(3 to 8 answers, groups of 2 to 8, coin flips, dice that beat each other in a circle), exact ascent from
starts all over the simplex ends 1e-6 from it, sampled SGD or Adam (b2 from 0.99), extrapolated to learning
rate zero, is not within 0.01, or Adam with b2 = 0.9 or weight decay not within 0.01 of where it is predicted
to rest. Qualified if weight decay leaves (11). Reported, as the claim takes one step: many inner steps.
"""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from matplotlib import colormaps

from experiments.alignment import ascend, follow, furthest, intercepts, light, problem, time_average
from experiments.grid import grid
from experiments.formulas.inner_steps import TRAVEL, map_axes, multiplier, swings
from experiments.formulas.step_noise import adam_limit, ask, rest, sgd_slope
from experiments.verdict import Number, judge, mean, worst
from grpo_jax.optimizers import SGD, AdamW
from grpo_jax.part import part, static
from grpo_jax.tasks import Bernoulli
from grpo_jax.theory import group_preference, reward_table, stationary
from grpo_jax.theory.counts import number_of_histograms
from grpo_jax.types import Levels

CLAIM = "A4"
PAPER = "A"
PRECISION = "float64"

DICE = ((2.0, 4.0, 9.0), (1.0, 6.0, 8.0), (3.0, 5.0, 7.0))
"""Each die beats the next with probability 5/9."""
CASES = {
    "3 dice, G 2": (3, 2, "dice"),
    "8 answers, G 3": (8, 3, None),
    "3 answers, G 8": (3, 8, None),
    "4 coin flips, G 6": (4, 6, "coins"),
}
REWARDS, REFERENCE, BETA = np.array([1.0, 0.5, 0.0]), np.array([0.05, 0.25, 0.7]), 0.5
"""The question of the sampled runs."""
GROUPS = np.array([2, 8, 32])
SGD_RATES, ADAM_RATES = np.array([0.05, 0.1, 0.2, 0.4]), np.array([0.02, 0.04, 0.08])
ADAM = [(0.9, 0.0), (0.99, 0.0), (0.999, 0.0), (0.99, 0.03), (0.99, 0.1), (0.99, 0.3)]
"""(b2, weight decay)."""
SIZES = {"smoke": (2, 2, 48, 3000, 6), "quick": (5, 8, 48, 3000, 15), "full": (5, 64, 256, 12000, 30)}
"""Cases and questions a case, seeds and iterations of sampled runs, points along an axis of the map."""
MARGIN = 0.01


@part
class Dice:
    """Answer k's reward is a face of its die, all equally likely."""

    faces: tuple[tuple[float, ...], ...] = static()
    contexts: ClassVar[int] = 1

    def prompts(self, uniforms):
        """The one question."""
        return jnp.zeros(uniforms.shape, int)

    def rewards(self, prompts, tokens, mask, uniforms):
        """[P, N, 1]."""
        faces = jnp.array(self.faces)
        face = jnp.minimum((uniforms * faces.shape[1]).astype(int), faces.shape[1] - 1)
        return faces[tokens[:, :, 0], face][:, :, None]

    def levels(self, prompts, tokens, mask) -> Levels:
        """The faces of every answer's die."""
        values = jnp.moveaxis(jnp.array(self.faces)[jnp.asarray(tokens)[:, :, 0]], -1, 2)
        return Levels(values=values, probabilities=jnp.full(values.shape, 1 / len(self.faces[0])))


def questions(case: str, count: int, rng: np.random.Generator):
    """Random references [Q, K], penalties [Q] and rewards [Q, K] (success probabilities of coins)."""
    answers, _, noise = CASES[case]
    reference = 0.9 * rng.dirichlet(np.ones(answers), count) + 0.1 / answers
    rewards = rng.uniform(size=(count, answers)) if noise == "coins" else rng.normal(size=(count, answers))
    return reference, np.exp(rng.uniform(np.log(0.2), np.log(3.0), count)), rewards


@functools.partial(light, static_argnames="case")
def solve(reference: jax.Array, beta: jax.Array, rewards: jax.Array, *, case: str):
    """Policies [Q, K] of the solver, by how much (11) fails [Q] and least beta + E P_G - P_G(o) [Q]."""
    answers, group, noise = CASES[case]

    def one(r, b, values):
        pairs = jnp.stack([jnp.zeros(answers), jnp.ones(answers)], 1)
        table = {
            None: lambda: reward_table(values),
            "coins": lambda: reward_table(pairs, jnp.stack([1 - values, values], 1)),
            "dice": lambda: reward_table(np.array(DICE), np.full((3, 3), 1 / 3)),
        }[noise]()
        policy = stationary(r, table, b, group_size=group).policy
        preference = group_preference(policy, table, group_size=group)
        surplus = preference - policy @ preference
        return policy, jnp.max(abs((1 - surplus / b) * policy - r)), jnp.min(b - surplus)

    return jax.vmap(one)(reference, beta, rewards)


def settled(
    case: str, count: int, root: int, *, starts: int = 4
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[Q, starts] greatest distance of exact ascent from the solver; residuals and support margins [Q]."""
    answers, group, noise = CASES[case]
    rng = np.random.default_rng([root, list(CASES).index(case)])
    reference, beta, rewards = questions(case, count, rng)
    policy, residual, margin = (np.asarray(x) for x in solve(reference, beta, rewards, case=case))
    start = 0.99 * rng.dirichlet(np.full(answers, 0.4), count * starts) + 0.01 / answers
    many = [np.repeat(x, starts, axis=0) for x in (reference, beta, rewards)]
    task = Dice(faces=DICE) if noise == "dice" else many[2].T
    options = {"noise": Bernoulli() if noise == "coins" else None, "start": start.T}
    rate = SGD(learning_rate=jnp.asarray(3 / (1 + many[1])))
    config = problem(many[0].T, task, many[1], group_size=group, optimizer=rate, **options)
    ended = ascend(config, count * starts, iterations=3000).T.reshape(count, starts, answers)
    return abs(ended - policy[:, None]).max(2), residual, margin


def sampled(group_size: int, optimizer, seeds: int, iterations: int, root: int) -> np.ndarray:
    """[K, R] time averages for an optimizer whose numbers are [R / seeds]."""
    made = jax.tree.map(lambda x: np.repeat(x, seeds) if np.ndim(x) else x, optimizer)
    runs = np.tile(np.arange(seeds), np.size(optimizer.learning_rate))
    options = {"optimizer": made, "expectation": None}
    config = problem(REFERENCE, REWARDS, BETA, group_size=group_size, **options)
    return time_average(config, runs, root=root, iterations=iterations)


def averages(seeds: int, iterations: int, root: int) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Sampled runs under SGD for every group size, and under AdamW for every setting, with G = 2."""
    sgd = [
        sampled(int(group), SGD(learning_rate=jnp.asarray(SGD_RATES)), seeds, iterations, root)
        for group in GROUPS
    ]
    rate, setting = grid(ADAM_RATES, np.arange(len(ADAM)))
    b2, decay = jnp.asarray(np.array(ADAM)[setting].T)
    adamw = sampled(
        2, AdamW(learning_rate=jnp.asarray(rate), b2=b2, weight_decay=decay), seeds, iterations, root
    )
    return {
        "sgd": (("group", "answer", "sgd_rate", "seed"), np.reshape(sgd, (len(GROUPS), 3, -1, seeds))),
        "adamw": (("answer", "adam_rate", "adam", "seed"), adamw.reshape(3, len(ADAM_RATES), -1, seeds)),
    }


def predictions() -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """The solver's policies, SGD's slopes, and Adam's resting points."""
    rows = number_of_histograms(int(GROUPS.max()), len(REWARDS))
    asked = [ask(REWARDS, REFERENCE, BETA, int(g), rows=rows) for g in GROUPS]
    policy = [np.asarray(rest(question)) for question in asked]
    slope = [sgd_slope(question, pi) for question, pi in zip(asked, policy, strict=True)]
    limit = [adam_limit(asked[0], policy[0], b1=0.9, b2=b2, weight_decay=decay) for b2, decay in ADAM]
    return {
        "policy": (("group", "answer"), np.stack(policy)),
        "slope": (("group", "answer"), np.stack(slope)),
        "rest": (("adam", "answer"), np.stack(limit)),
    }


def paths() -> np.ndarray:
    """[start, K, time] exact ascent from starts around the simplex, groups of eight."""
    corners = np.concatenate([np.eye(3), 1 - np.eye(3), np.roll(np.eye(3), 1, 0) * 2 + np.eye(3)])
    start = 0.94 * (corners / corners.sum(1, keepdims=True)) + 0.02
    config = problem(
        REFERENCE[:, None] * np.ones(len(start)),
        REWARDS,
        BETA,
        group_size=8,
        start=start.T,
        optimizer=SGD(learning_rate=0.25),
    )
    path = follow(config, np.zeros(len(start), int), iterations=400, every=2)
    return np.concatenate([start.T[None], path]).transpose(2, 1, 0)


def simulate(key: jax.Array, size: str) -> xr.Dataset:
    """The solver and exact ascent on random questions, sampled runs and their predictions, the map."""
    root = int(jax.random.key_data(key)[-1])
    kinds, count, seeds, iterations, points = SIZES[size]
    cases = list(CASES)[:kinds]
    distance, residual, margin = zip(*(settled(case, count, root) for case in cases), strict=True)
    references, strengths = map_axes(points)
    return xr.Dataset(
        {
            "distance": (("case", "question", "start"), np.stack(distance)),
            "residual": (("case", "question"), np.stack(residual)),
            "margin": (("case", "question"), np.stack(margin)),
            "swing": (("travel", "pi_ref", "strength"), swings(points)),
            "path": (("path_start", "answer", "time"), paths()),
        }
        | averages(seeds, iterations, root)
        | predictions(),
        coords={
            "case": cases, "group": GROUPS, "sgd_rate": SGD_RATES, "adam_rate": ADAM_RATES,
            "adam": [f"b2 {b2:g}, decay {decay:g}" for b2, decay in ADAM],
            "travel": TRAVEL, "pi_ref": references, "strength": strengths,
        },
    )  # fmt: skip


def check(data: xr.Dataset):
    """Residuals, the support's bound, exact ascent, sampled runs, and where training never settles."""
    numbers = {
        "solver: (11), left side - right side": worst(
            data.residual, expected=0 * data.residual, tolerance=1e-10
        ),
        "beta + E P_G - P_G(o) on the support": worst(
            data.margin, expected=0 * data.margin, relation="at least"
        ),
    }
    for case in data.case.values:
        gap = data.distance.sel(case=case)
        numbers[f"{case}: exact ascent - solver"] = worst(gap, expected=0 * gap, tolerance=1e-6)
    numbers |= _sgd_numbers(data) | _adam_numbers(data)
    refutes = [
        name for name, number in numbers.items() if number.expected is not None and "slope" not in name
    ]
    qualifies = {f"AdamW, {data.adam.values[-1]}: sampled - (11)": "without weight decay"}
    numbers |= _map_numbers(data)
    return judge(numbers, refutes=[name for name in refutes if name not in qualifies], qualifies=qualifies)


def _sgd_numbers(data: xr.Dataset) -> dict[str, Number]:
    numbers = {}
    for group in data.group.values:
        here = data.sel(group=group)
        at_zero, slope = intercepts(SGD_RATES, here.sgd.transpose("sgd_rate", "answer", "seed"))
        numbers[f"SGD, G = {group}: sampled - (11)"] = furthest(at_zero, here.policy, tolerance=MARGIN)
        predicted = float(here.slope[0])
        numbers[f"SGD, G = {group}: slope of the best answer"] = mean(
            slope[0], expected=predicted, tolerance=0.5 * abs(predicted)
        )
    return numbers


def _adam_numbers(data: xr.Dataset) -> dict[str, Number]:
    numbers, point = {}, data.policy.sel(group=2).values
    at_zero, _ = intercepts(ADAM_RATES, data.adamw.transpose("adam_rate", "adam", "answer", "seed"))
    for name, found, settles, (b2, decay) in zip(
        data.adam.values, at_zero, data.rest.values, ADAM, strict=True
    ):
        far = furthest(found, point, tolerance=MARGIN)
        judged = decay == ADAM[-1][1] or (decay == 0 and b2 > 0.9)
        numbers[f"AdamW, {name}: sampled - (11)"] = far if judged else _unjudged(far)
        if decay or b2 == 0.9:
            numbers[f"AdamW, {name}: sampled - predicted"] = furthest(found, settles, tolerance=MARGIN)
        numbers[f"AdamW, {name}: predicted - (11), best answer"] = Number(float(settles[0] - point[0]))
    return numbers


def _unjudged(number: Number) -> Number:
    return Number(number.value, low=number.low, high=number.high)


def _map_numbers(data: xr.Dataset) -> dict[str, Number]:
    r, b = np.meshgrid(data.pi_ref, data.strength, indexing="ij")
    numbers = {}
    for travel in data.travel.values:
        moving = data.swing.sel(travel=travel).values > 1e-3
        unstable = multiplier(r, b, travel) < -1
        name = f"{travel:g} / rate inner steps: share of the map that never settles"
        numbers[name] = Number(float(moving.mean()))
        numbers[f"{travel:g} / rate inner steps: agreement with the predicted map"] = Number(
            float((moving == unstable).mean())
        )
    return numbers


def draw(figure, data: xr.Dataset) -> None:
    """Exact ascent on the simplex, sampled biases of SGD and Adam, and the map of many inner steps."""
    figure.set_size_inches(11.0, 8.2)
    (simplex, sgd), (adam, stability) = figure.subplots(2, 2)
    _draw_simplex(simplex, data)
    _draw_sgd(sgd, data)
    _draw_adam(adam, data)
    _draw_map(stability, data)


def _draw_simplex(axes, data: xr.Dataset) -> None:
    corners = np.array([[0.5, np.sqrt(3) / 2], [0.0, 0.0], [1.0, 0.0]])
    axes.fill(*corners.T, fill=False, ec="0.3", lw=1)
    for path in data.path.transpose("path_start", "time", "answer").values:
        x, y = (path @ corners).T
        axes.plot(x, y, color="#4477aa", lw=1.1)
        axes.plot(x[0], y[0], "o", ms=3.5, color="#4477aa")
        middle = int(np.argmax(np.cumsum(np.hypot(np.diff(x), np.diff(y))) > 0.12))
        axes.annotate(
            "", (x[middle + 1], y[middle + 1]), (x[middle], y[middle]),
            arrowprops={"arrowstyle": "-|>", "color": "#4477aa", "lw": 1},
        )  # fmt: skip
    axes.plot(*(REFERENCE @ corners), "s", ms=7, color="k", label="π_ref")
    axes.plot(*(data.policy.sel(group=8).values @ corners), "*", ms=15, color="#cc3311", label="root of (11)")
    for (x, y), (dx, dy), reward in zip(corners, ((0, 7), (-4, -12), (4, -12)), REWARDS, strict=True):
        text = f"reward {reward:g}"
        axes.annotate(text, (x, y), (dx, dy), textcoords="offset points", ha="center", fontsize=9)
    axes.set(aspect="equal", ylim=(-0.09, 0.95))
    axes.set_axis_off()
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    axes.set_title("Exact ascent, three answers, G = 8, β = 0.5", fontsize=10)


def _draw_sgd(axes, data: xr.Dataset) -> None:
    line = np.linspace(0, SGD_RATES.max() * 1.05, 2)
    for color, group in zip(("#332288", "#cc6677", "#ddaa33"), data.group.values, strict=True):
        here = data.sel(group=group, answer=0)
        axes.plot(line, float(here.slope) * line, color=color, lw=1.5, label=f"G = {group}")
        for rate in SGD_RATES:
            number = mean(here.sgd.sel(sgd_rate=rate) - float(here.policy))
            axes.plot([rate, rate], [number.low, number.high], color=color, lw=1.5)
            axes.plot(rate, number.value, "o", ms=5, mfc="white", color=color)
    axes.axhline(0, color="0.6", lw=0.8)
    axes.set(xlabel="learning rate", ylabel="time average of π(best) minus root of (11)", xlim=(0, line[-1]))
    axes.legend(frameon=False, fontsize=9)
    axes.set_title("SGD: the bias is O(rate). Lines: predicted from the noise of a group", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_adam(axes, data: xr.Dataset) -> None:
    at_zero, _ = intercepts(ADAM_RATES, data.adamw.transpose("adam_rate", "adam", "answer", "seed"))
    point, rows = data.policy.sel(group=2).values, np.arange(len(ADAM))[::-1]
    for answer, color in enumerate(("#117733", "#88ccee", "#aa4499")):
        shift = 0.22 * (1 - answer)
        for row, values in zip(rows, at_zero[:, answer], strict=True):
            number = mean(values - point[answer])
            axes.plot([number.low, number.high], [row + shift] * 2, color=color, lw=2.5)
        rest = data.rest[:, answer] - point[answer]
        label = f"reward {REWARDS[answer]:g}"
        axes.plot(rest, rows + shift, "o", ms=6, mfc="white", color=color, label=label)
    axes.axvline(0, color="0.6", lw=0.8)
    axes.set_yticks(rows, [f"β₂ = {b2:g}" + (f", decay {d:g}" if d else "") for b2, d in ADAM], fontsize=9)
    axes.set(xlabel="π minus root of (11), learning rate → 0")
    axes.legend(frameon=False, fontsize=9, loc="upper right")
    axes.set_title("AdamW, G = 2: bars sampled (99.9 %), ○ predicted", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_map(axes, data: xr.Dataset) -> None:
    r, b = np.meshgrid(np.geomspace(0.0015, 0.95, 150), np.linspace(0.03, 3.1, 150), indexing="ij")
    endless = np.maximum(multiplier(r, b, np.inf), -1e9)
    axes.contourf(b, r, endless, [-1e10, -1], colors=["#f3e3da"])
    axes.fill([], [], color="#f3e3da", label="endless")
    colors = colormaps["copper"](np.linspace(0.8, 0.1, len(TRAVEL)))
    for travel, color in zip(data.travel.values, colors, strict=True):
        factor = multiplier(r, b, travel)
        axes.contour(b, r, factor, [-1], colors=[color], linewidths=1.6, linestyles="solid")
        axes.plot(
            [], [], color=color, lw=1.6, label=f"{travel:g}" + ("" if factor.min() < -1 else ", nowhere")
        )
    moving = data.swing.sel(travel=TRAVEL[-1]).stack(point=("pi_ref", "strength"))
    swing = np.where(moving > 1e-3, moving, np.nan)
    shades = axes.scatter(
        moving.strength, moving.pi_ref, c=swing, s=22, cmap="Reds", vmin=0, vmax=0.6, ec="0.3", lw=0.3
    )
    still = moving[moving <= 1e-3]
    axes.plot(still.strength, still.pi_ref, ".", ms=3, color="0.6")
    axes.figure.colorbar(shades, ax=axes, label="swing of π(a), last ten batches", pad=0.02)
    axes.set(yscale="log", xlabel="β/γ", ylabel="π_ref(a)")
    axes.legend(
        title="predicted to cycle\nat μη =", fontsize=8, title_fontsize=8, loc="upper right",
        framealpha=1, edgecolor="w",
    )  # fmt: skip
    axes.set_title("μ inner steps of rate η a batch; points trained at μη = 64", fontsize=10)
