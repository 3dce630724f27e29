"""Momentum carries the policy past the clip.

Claim B4 of arXiv:2601.05002 (Propositions 3, 7): once every gradient is exactly zero, Adam's updates go on
as C_{T,k} of the last live one, coordinate by coordinate, at eps = 0 and without weight decay, for any
history; late on they shrink by rho = b1/sqrt(b2) each and add up to rho/(1 - rho) live steps. Refuted if a
measured factor leaves C_{T,k} by more than 1e-9, or if plain SGD and RMSProp, the controls, move at all.
Qualified if the numbers that the paper prints for (0.9, 0.95) are not those of its formula, or if the drift
need not end (b1 > sqrt(b2)). Reported, for practitioners: how far past 1 +- eps the ratio really goes, for a
pair of answers and for a network, over learning rates, passes, (b1, b2) and Adam's eps.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from matplotlib.patches import Rectangle

from experiments.problems import tree_survival
from experiments.problems.past_the_clip import MEASURES, OTHERS, RATES, USERS, in_words, networks
from experiments.problems.past_the_clip import PASSES as NETWORK_PASSES
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
COAST, LONG = 40, 120
"""Updates on zero gradient that are looked at, and steps on a batch, for all of them alike."""
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
    for _ in range(iterations):  # one program, however many there are
        state, _ = train.run(config, state, iterations=1, record=())
    return state


def tied(config: Config) -> Config:
    """The same question with equal rewards: every group ties and every gradient is zero."""
    return dataclasses.replace(config, task=Questions(table=np.ones((1, 2))))


def clipped_updates(
    config: Config, seed: np.ndarray, root: int, history: int
) -> tuple[np.ndarray, np.ndarray]:
    """[COAST, R] updates over the last live one, on a batch that ends up all clipped; [R] live steps."""
    state = warmed(config, seed, root, iterations=history)
    _, path = inner_path(config, state, steps=LONG)
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
    _, path = inner_path(tied(config), state, steps=LONG)
    return np.asarray(path.updates)[:COAST, 0, 0] / last, np.asarray(state.opt_state[0].count)


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
    "Adam": AdamW(learning_rate=0.02, weight_decay=0.0),
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
        _, path = inner_path(config, train.init(config, seeds, root=root), steps=LONG)
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


IDLE = {
    **{f"momentum {pair}": AdamW(learning_rate=0.02, b1=pair[0], b2=pair[1]) for pair in USERS},
    "weight decay": AdamW(learning_rate=0.02, b1=0.0, weight_decay=0.1),
    "SGD": SGD(learning_rate=0.05),
}


def idle_batches(root: int, seeds: np.ndarray) -> np.ndarray:
    """[cause, batches, seed] total variation moved by tied batches: momentum, weight decay alone, SGD."""
    moved = []
    for optimizer in IDLE.values():
        config = problem(optimizer=optimizer, loop=Loop(group_size=64))
        _, path = inner_path(tied(config), warmed(config, seeds, root), steps=LONG)
        right = np.asarray(jax.nn.softmax(path.params[: COAST + 1], axis=2))[:, 0, 0]
        moved.append(abs(right - right[0]))
    return np.stack(moved)


def simulate(key: jax.Array, size: str) -> xr.Dataset:
    """The factors, the way through the clip, what users meet, and batches where every group ties."""
    root = int(jax.random.key_data(key)[-1])
    count, points = SIZES[size]
    seeds, rates = np.arange(count), np.logspace(-6, 0, points)
    measured, expected = factors(root, seeds[:16])
    ratio, travel = through_the_clip(root, seeds)
    with jax.enable_x64(False):
        network, others = networks(root, seeds)
    return xr.Dataset(
        {
            "measured": (("history", "k", "decay", "draw"), measured),
            "expected": (("history", "k", "decay", "draw"), expected),
            "ratio": (("optimizer", "step", "seed"), ratio),
            "travel": (("optimizer", "seed"), travel),
            "users": (("user", "rate", "clip", "passes", "seed"), users(root, seeds, rates)),
            "network": (("measure", "mu", "user", "lr", "seed"), network),
            "others": (("measure", "mu", "setting", "seed"), others),
            "tree": ("variant", tree_survival.coasting_errors(root, seeds[:16])),
            "idle": (("cause", "batches", "seed"), idle_batches(root, seeds)),
        },
        coords={
            "history": ["clipped, 1", "clipped, 8", "tied, 1", "tied, 20"],
            "decay": [str(pair) for pair in DECAYS], "optimizer": list(OPTIMIZERS),
            "user": [str(pair) for pair in USERS], "rate": rates, "clip": CLIPS, "passes": PASSES,
            "setting": [in_words(*setting) for setting in OTHERS], "measure": list(MEASURES),
            "mu": list(NETWORK_PASSES), "lr": RATES,
            "variant": list(tree_survival.VARIANTS), "cause": list(IDLE),
        },
    )  # fmt: skip


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
    numbers |= _answers(data) | _network(data)
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
    """A pair of answers, and batches where every group ties."""
    numbers = {}
    final = data.users.sel(clip=0.2)
    for user in data.user.values:
        for passes in (16, 64):
            here = final.sel(user=user, passes=passes)
            most = int(here.mean("seed").values.argmax())
            start = f"pair, {user}, {passes} passes"
            numbers[f"{start}: greatest ratio over learning rates"] = mean(here.isel(rate=most))
            numbers[f"{start}: learning rate of that"] = Number(float(data.rate[most]))
            for rate in (1e-3, 1e-2, 1e-1):
                ratio = mean(here.sel(rate=rate, method="nearest"))
                numbers[f"{start}: ratio at learning rate {rate:g}"] = ratio
    for cause in data.cause.values:
        moved = data.idle.sel(cause=cause).isel(batches=-1)
        text = f"{COAST} tied batches: moved by {cause}"
        numbers[text] = worst(moved, expected=0.0) if cause == "SGD" else mean(moved)
    return numbers


def _network(data: xr.Dataset) -> dict[str, Number]:
    """The map: how far the ratios of a batch go, over learning rates and passes."""
    numbers, last = {}, int(data.mu[-1])

    def ends(start: str, here: xr.DataArray) -> None:
        for measure, words in (("loser", "least ratio"), ("held", "share held")):
            numbers[f"{start}, {last} passes: {words}"] = mean(here.sel(measure=measure, mu=last))

    for user, lr in itertools.product(data.user.values, data.lr.values):
        here, start = data.network.sel(user=user, lr=lr), f"network, {user}, lr {lr:.0e}"
        for mu in data.mu.values:
            numbers[f"{start}, {mu} passes: greatest ratio"] = mean(here.sel(measure="winner", mu=mu))
        ends(start, here)
        numbers[f"{start}: log-ratio of one step"] = mean(here.sel(measure="step", mu=last))
    for setting in data.setting.values:
        here, start = data.others.sel(setting=setting), f"network, {setting}, lr {data.lr.values[-1]:.0e}"
        numbers[f"{start}, {last} passes: greatest ratio"] = mean(here.sel(measure="winner", mu=last))
        ends(start, here)
    return numbers


def draw(figure, data: xr.Dataset) -> None:
    """The factors, the way through the clip, and the ratio that users meet: a pair of answers, a network."""
    figure.set_size_inches(11.5, 8.2)
    above, below = figure.subfigures(2, 1)
    left, right = above.subplots(1, 2)
    _draw_factors(left, data)
    _draw_paths(right, data)
    panels = below.subplots(1, 3, width_ratios=(1.5, 1, 1))
    _draw_users(panels[0], data)
    for panel, user in zip(panels[1:], data.user.values, strict=True):
        _draw_map(panel, data, user)
    for panel in (left, right, panels[0]):
        panel.spines[["top", "right"]].set_visible(False)


def _draw_map(axes, data: xr.Dataset, user: str) -> None:
    shown = data.network.sel(user=user, measure="winner")
    values = np.array([[shown.sel(lr=lr, mu=mu).mean() for mu in data.mu] for lr in data.lr])
    axes.imshow(np.log(values), cmap="Oranges", vmin=0, vmax=0.9, aspect="auto")
    for (row, lr), (column, mu) in itertools.product(enumerate(data.lr.values), enumerate(data.mu.values)):
        number = mean(shown.sel(lr=lr, mu=mu))
        reach = (number.high or number.value) - number.value
        digits = int(np.clip(np.ceil(-np.log10(max(reach, 1e-9))), 2, 4))
        text = f"{number.value:.{digits}f}\n±{reach:.{digits}f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=7.5)
        if number.value > 1.2:
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, lw=1.6))
    axes.set_xticks(range(data.mu.size), data.mu.values)
    axes.set_yticks(range(data.lr.size), [f"{lr:.0e}" for lr in data.lr.values], fontsize=8)
    axes.set(xlabel="passes, μ", ylabel="AdamW's learning rate")
    axes.set_title(f"A network, {user}: greatest\nratio of a winner, ± 99.9 % of its mean", fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


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
            here = data.users.sel(user=user, clip=0.2, passes=passes)
            found = [mean(here.sel(rate=rate)) for rate in data.rate]
            axes.fill_between(
                data.rate, [n.low for n in found], [n.high for n in found], color=color, alpha=0.2
            )
            label = f"μ = {passes}" if style == "-" else None
            axes.plot(data.rate, [n.value for n in found], style, color=color, lw=1.5, label=label)
        axes.plot([], [], style, color="k", label=user)
    axes.axhline(1.2, color="k", lw=0.8, ls=":")
    axes.set(
        xscale="log",
        xlabel="AdamW's learning rate (= log-ratio per step here)",
        ylabel="ratio after μ passes",
    )
    axes.set_xlim(1e-4, 0.4)
    axes.set_title("A pair of answers: what the clip at 1.2 really holds", fontsize=9)
    axes.legend(frameon=False, fontsize=8)
