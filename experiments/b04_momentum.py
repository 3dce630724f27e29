"""Momentum carries the policy past the clip.

Claim B4 of arXiv:2601.05002 (Propositions 3, 7): once every gradient is exactly zero, Adam's updates go on
as C_{T,k} of the last live one, coordinate by coordinate, at eps = 0 and without weight decay, for any
history; late on they shrink by rho = b1/sqrt(b2) each and add up to rho/(1 - rho) live steps. Refuted if a
measured factor leaves C_{T,k} by more than 1e-9, or if plain SGD and RMSProp, the controls, move at all.
Qualified if the numbers that the paper prints for (0.9, 0.95) are not those of its formula, or if the drift
need not end (b1 > sqrt(b2)).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from experiments import tree_survival
from experiments.verdict import Number, judge, mean, worst
from grpo_jax import train
from grpo_jax.biases import coasted, inner_path, live_steps
from grpo_jax.config import Config, Loop
from grpo_jax.methods import grpo
from grpo_jax.optimizers import SGD, Adam, AdamW, HeavyBall, Lion, RMSProp
from grpo_jax.part import put_all
from grpo_jax.policies import ActionPolicy
from grpo_jax.tasks import Questions
from grpo_jax.theory.optimizer import coasting, coasting_rate, coasting_travel, heavy_ball_coasting

CLAIM = "B4"
PAPER = "B"
PRECISION = "float64"

DECAYS = [(0.9, 0.95), (0.9, 0.999), (0.8, 0.99), (0.95, 0.999), (0.0, 0.95), (0.99, 0.9)]
ONE_STEP, FIVE_STEPS = 0.923, 0.66
"""Printed for (0.9, 0.95)."""
COAST = 40
USERS = [(0.9, 0.999), (0.9, 0.95)]
PASSES = np.array([1, 2, 4, 8, 16, 64])
CLIPS = np.array([0.1, 0.2, 0.4])
SIZES = {"smoke": (16, 7), "quick": (128, 25), "full": (512, 49)}


def problem(**changes) -> Config:
    """One question with a right and a wrong answer, equally likely: both reach their clip together."""
    base = Config(
        policy=ActionPolicy(logits=np.zeros((1, 2))),
        task=Questions(table=np.array([[1.0, 0.0]])),
        method=dataclasses.replace(grpo, penalty=None),
        loop=Loop(group_size=8),
    )
    return dataclasses.replace(base, **changes)


def warmed(config: Config, seeds: np.ndarray, root: int, *, iterations: int = 12) -> train.TrainState:
    """After some on-policy iterations on fresh groups."""
    state = train.init(config, seeds, root=root)
    return train.run(config, state, iterations=iterations, record=())[0]


def tied(config: Config) -> Config:
    """The same question with equal rewards: every group ties and every gradient is zero."""
    return dataclasses.replace(config, task=Questions(table=np.ones((1, 2))))


def clipped_updates(
    config: Config, seed: np.ndarray, root: int, history: int
) -> tuple[np.ndarray, np.ndarray]:
    """[COAST, R] updates over the last live one, on a batch that ends up all clipped; [R] live steps."""
    state = warmed(config, seed, root, iterations=history)
    _, path = inner_path(config, state, steps=120)
    live = np.asarray(live_steps(path, runs=True))
    update = np.asarray(path.updates)[:, 0, 0]
    at = np.minimum(live + np.arange(COAST)[:, None], len(update) - 1)
    ratio = np.take_along_axis(update, at, 0) / np.take_along_axis(update, live[None] - 1, 0)
    return ratio, np.asarray(state.opt_state[0].count) + live


def tied_updates(config: Config, seed: np.ndarray, root: int, history: int) -> tuple[np.ndarray, np.ndarray]:
    """The same on batches where every group ties, after some live iterations."""
    before = warmed(config, seed, root, iterations=history)
    state, _ = train.run(config, before, iterations=1, record=())
    last = np.asarray(state.params - before.params)[0, 0]
    _, path = inner_path(tied(config), state, steps=COAST)
    return np.asarray(path.updates)[:, 0, 0] / last, np.asarray(state.opt_state[0].count)


def factors(root: int, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Measured and predicted C_{T,k} [history, k, decay, seed] in four histories."""
    runs = np.repeat(np.array(DECAYS), len(seeds), axis=0)
    optimizer = Adam(learning_rate=0.02, b1=jnp.asarray(runs[:, 0]), b2=jnp.asarray(runs[:, 1]), eps=0.0)
    config = problem(optimizer=optimizer, loop=Loop(group_size=64))
    seed = np.tile(seeds, len(DECAYS))
    histories = [clipped_updates(config, seed, root, n) for n in (1, 8)]
    histories += [tied_updates(config, seed, root, n) for n in (1, 20)]
    k = np.arange(COAST)[:, None]
    expected = [coasting(runs[:, 0], runs[:, 1], live=count, k=k) for _, count in histories]
    shape = (len(histories), COAST, len(DECAYS), len(seeds))
    return np.stack([ratio for ratio, _ in histories]).reshape(shape), np.stack(expected).reshape(shape)


OPTIMIZERS = {
    "SGD": SGD(learning_rate=0.05),
    "RMSProp": RMSProp(learning_rate=0.02),
    "heavy ball": HeavyBall(learning_rate=0.006),
    "Adam": Adam(learning_rate=0.02),
    "AdamW": AdamW(learning_rate=0.02, weight_decay=0.1),
    "Lion": Lion(learning_rate=0.02),
}


def through_the_clip(root: int, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[optimizer, step, seed] ratio of the right answer, and [optimizer, seed] travel in live steps.

    The travel is measured over the first COAST updates after the last live one.
    """
    ratios, travel = [], []
    for optimizer in OPTIMIZERS.values():
        config = problem(optimizer=optimizer, loop=Loop(group_size=64))
        _, path = inner_path(config, train.init(config, seeds, root=root), steps=100)
        ratios.append(np.exp(path.log_ratio[:, 0, 0, 0]))
        live = np.asarray(live_steps(path, runs=True)).min() + COAST
        cut = jax.tree.map(lambda leaf, end=live: leaf[:end], path)
        moved, last = coasted(cut, runs=True)
        travel.append(np.asarray(moved[0, 0] / last[0, 0]))
    return np.stack(ratios), np.stack(travel)


def users(root: int, seeds: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """[decay, rate, clip, passes, seed] ratio of the right answer after that many passes over one batch."""
    index, rate, clip, seed = (
        axis.ravel() for axis in np.meshgrid(range(len(USERS)), rates, CLIPS, seeds, indexing="ij")
    )
    b1, b2 = jnp.asarray(np.array(USERS)[index].T)
    config = problem(
        optimizer=AdamW(learning_rate=jnp.asarray(rate), b1=b1, b2=b2, weight_decay=0.01 + 0 * b1)
    )
    config = put_all(config, {"method.gain.low": clip, "method.gain.high": clip})
    _, path = inner_path(config, train.init(config, seed, root=root), steps=int(PASSES.max()) + 1)
    ratio = np.exp(np.asarray(path.log_ratio)[PASSES, 0, 0, 0])
    shape = (len(PASSES), len(USERS), len(rates), len(CLIPS), len(seeds))
    return np.moveaxis(ratio.reshape(shape), 0, 3)


def idle_batches(root: int, seeds: np.ndarray) -> np.ndarray:
    """[cause, batches, seed] total variation moved by tied batches: momentum, weight decay alone, SGD."""
    made = {
        "momentum": AdamW(learning_rate=0.02),
        "weight decay": AdamW(learning_rate=0.02, b1=0.0, weight_decay=0.1),
        "SGD": SGD(learning_rate=0.05),
    }
    moved = []
    for optimizer in made.values():
        config = problem(optimizer=optimizer, loop=Loop(group_size=64))
        _, path = inner_path(tied(config), warmed(config, seeds, root), steps=COAST + 1)
        right = np.asarray(jax.nn.softmax(path.params, axis=2))[:, 0, 0]
        moved.append(abs(right - right[0]))
    return np.stack(moved)


def simulate(key: jax.Array, size: str) -> xr.Dataset:
    """The factors, the way through the clip, what users meet, and batches where every group ties."""
    root = int(jax.random.key_data(key)[-1])
    count, points = SIZES[size]
    seeds, rates = np.arange(count), np.logspace(-6, 0, points)
    measured, expected = factors(root, seeds[:16])
    ratio, travel = through_the_clip(root, seeds)
    return xr.Dataset(
        {
            "measured": (("history", "k", "decay", "draw"), measured),
            "expected": (("history", "k", "decay", "draw"), expected),
            "ratio": (("optimizer", "step", "seed"), ratio),
            "travel": (("optimizer", "seed"), travel),
            "users": (("user", "rate", "clip", "passes", "seed"), users(root, seeds, rates)),
            "tree": ("variant", tree_survival.coasting_errors(root, seeds[:16])),
            "idle": (("cause", "batches", "seed"), idle_batches(root, seeds)),
        },
        coords={
            "history": ["clipped, 1", "clipped, 8", "tied, 1", "tied, 20"],
            "decay": [str(pair) for pair in DECAYS],
            "optimizer": list(OPTIMIZERS),
            "user": [str(pair) for pair in USERS],
            "rate": rates,
            "clip": CLIPS,
            "passes": PASSES,
            "variant": list(tree_survival.VARIANTS),
            "cause": ["momentum", "weight decay", "SGD"],
        },
    )


def check(data: xr.Dataset):
    """The factors, the printed numbers, the controls, and the answers to users' questions."""
    k = np.arange(COAST)
    adam = coasting(0.9, 0.999, live=_live_steps_to_clip(data), k=k).sum()
    numbers = {
        "measured / C_{T,k}": worst(data.measured, expected=data.expected, tolerance=1e-9),
        "C one step after the clip, late": Number(float(coasting_rate(0.9, 0.95)), ONE_STEP, 5e-4),
        "C five steps after the clip, late": Number(float(coasting_rate(0.9, 0.95) ** 5), FIVE_STEPS, 0.005),
        "C one step after the clip, T = 2": Number(float(coasting(0.9, 0.95, live=1, k=0))),
        "late travel at (0.9, 0.95)": Number(float(coasting_travel(0.9, 0.95))),
        "late travel at (0.9, 0.999)": Number(float(coasting_travel(0.9, 0.999))),
        "travel: SGD": worst(data.travel.sel(optimizer="SGD"), expected=0.0),
        "travel: RMSProp": worst(data.travel.sel(optimizer="RMSProp"), expected=0.0),
        "travel: heavy ball": mean(
            data.travel.sel(optimizer="heavy ball"),
            expected=float(heavy_ball_coasting(0.9, k=k).sum()),
            tolerance=1e-6,
        ),
        "travel: Adam": mean(data.travel.sel(optimizer="Adam"), expected=float(adam), tolerance=1e-3),
        "travel: AdamW": mean(data.travel.sel(optimizer="AdamW")),
        "travel: Lion": mean(data.travel.sel(optimizer="Lion"), expected=COAST, tolerance=1e-9),
        "greatest C at (0.99, 0.9)": Number(
            float(data.measured.sel(decay="(0.99, 0.9)").max()), expected=1.0, relation="at most"
        ),
    }
    for variant in data.variant.values:
        error = data.tree.sel(variant=variant)
        judged = None if variant == "weight decay" else 0.0
        numbers[f"tree, {variant}: measured - C_{{T,k}}"] = Number(float(error), judged, 1e-9)
    numbers |= _answers(data)
    qualifies = {
        "C five steps after the clip, late": "with 0.671 for the printed 0.66 (0.92 to the fifth)",
        "greatest C at (0.99, 0.9)": "as a decay where b1 <= sqrt(b2): beyond, Adam accelerates",
    }
    refutes = [
        name for name, number in numbers.items() if number.expected is not None and name not in qualifies
    ]
    return judge(numbers, refutes=refutes, qualifies=qualifies)


def _live_steps_to_clip(data: xr.Dataset) -> int:
    """Adam's live steps in `through_the_clip`: until the ratio first exceeds 1.2."""
    return int((data.ratio.sel(optimizer="Adam").isel(seed=0) > 1.2).values.argmax())


def _answers(data: xr.Dataset) -> dict[str, Number]:
    numbers = {}
    final = data.users.sel(clip=0.2)
    for user in data.user.values:
        at16 = final.sel(user=user, passes=16).mean("seed")
        numbers[f"{user}, 16 passes: greatest ratio over learning rates"] = Number(float(at16.max()))
        numbers[f"{user}, 16 passes: learning rate of that"] = Number(float(data.rate[int(at16.argmax())]))
        for rate in (1e-4, 1e-3, 1e-2):
            here = at16.sel(rate=rate, method="nearest")
            numbers[f"{user}, 16 passes: ratio at learning rate {rate:g}"] = Number(float(here))
        beyond = final.sel(user=user, passes=64).sel(rate=1e-2, method="nearest")
        numbers[f"{user}, 64 passes: ratio at learning rate 0.01"] = mean(beyond)
    for cause in ("momentum", "weight decay"):
        numbers[f"{COAST} tied batches: moved by {cause}"] = mean(data.idle.sel(cause=cause).isel(batches=-1))
    numbers[f"{COAST} tied batches: moved by SGD"] = worst(data.idle.sel(cause="SGD"), expected=0.0)
    return numbers


def draw(figure, data: xr.Dataset) -> None:
    """The factors, the way through the clip, and the ratio that users meet."""
    figure.set_size_inches(12.5, 4.0)
    axes = figure.subplots(1, 3, width_ratios=(1, 1, 1.15))
    _draw_factors(axes[0], data)
    _draw_paths(axes[1], data)
    _draw_users(axes[2], data)
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)


COLORS = ("#1b9e77", "#d95f02", "#7570b3", "#66a61e", "#a6761d", "#e7298a")


def _draw_factors(axes, data: xr.Dataset) -> None:
    shown = data.sel(history="clipped, 8").isel(draw=0)
    steps = np.arange(1, COAST + 1)
    for decay, color in zip(data.decay.values, COLORS, strict=True):
        axes.plot(steps, shown.expected.sel(decay=decay), color=color, lw=1.3)
        axes.plot(steps[::2], shown.measured.sel(decay=decay)[::2], "o", ms=3.5, mfc="white", color=color)
        axes.plot([], [], "o-", ms=3.5, mfc="white", color=color, label=decay)
    axes.plot([1, 5], [ONE_STEP, FIVE_STEPS], "k*", ms=9, label="printed for (0.9, 0.95)", zorder=5)
    axes.set(
        xlabel="updates on zero gradient",
        ylabel="update / last live update",
        xlim=(0, COAST),
        ylim=(-0.05, 2.6),
    )
    axes.set_title("Points: measured after the clip. Lines: $C_{T,k}$", fontsize=9)
    axes.legend(frameon=False, fontsize=8, title="$(β_1, β_2)$", title_fontsize=8)


def _draw_paths(axes, data: xr.Dataset) -> None:
    for name, color in zip(data.optimizer.values, ("0.3", "0.6", *COLORS), strict=False):
        ratio = data.ratio.sel(optimizer=name).mean("seed").values
        start = int((ratio > 1.2).argmax())
        steps = np.arange(len(ratio)) - start
        inside = (steps >= -8) & (steps <= 30)
        axes.plot(steps[inside], ratio[inside], color=color, lw=1.6)
        last = ratio[inside][-1]
        shift = {"SGD": 6, "RMSProp": -5, "AdamW": -8, "Adam": -1, "heavy ball": 7}.get(name, 0)
        axes.annotate(
            name, (30, last), (4, shift), textcoords="offset points", color=color, fontsize=8, va="center"
        )
    axes.axhline(1.2, color="k", lw=0.8, ls=":")
    axes.set(
        xlim=(-8, 41),
        xlabel="optimizer steps after the last live gradient",
        ylabel="ratio of the right answer",
    )
    axes.set_title("One batch, clip at 1.2: who stops?", fontsize=9)


def _draw_users(axes, data: xr.Dataset) -> None:
    for user, style in zip(data.user.values, ("-", "--"), strict=True):
        for passes, color in zip((1, 4, 16, 64), COLORS, strict=False):
            ratio = data.users.sel(user=user, clip=0.2, passes=passes).mean("seed")
            label = f"μ = {passes}" if style == "-" else None
            axes.plot(data.rate, ratio, style, color=color, lw=1.5, label=label)
        axes.plot([], [], style, color="k", label=user)
    axes.axhline(1.2, color="k", lw=0.8, ls=":")
    axes.set(
        xscale="log",
        xlabel="AdamW's learning rate (= log-ratio per step here)",
        ylabel="ratio after μ passes",
    )
    axes.set_xlim(1e-4, 0.4)
    axes.set_title("What the clip at 1.2 really holds", fontsize=9)
    axes.legend(frameon=False, fontsize=8)
