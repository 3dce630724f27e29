"""TIC-GRPO's length-corrected reward maximises reward per token, not reward.

Claim C6 of arXiv:2508.02833, whose full text was not available. With an end-of-sequence token the expected
update at θ_old is (1 - 1/G) [∇E(r/len) - E[r] ∇E(1/len)] for GRPO with 1/len in the loss, and at any θ it is
(1 - 1/G) ∇E_θ[r/len] for TIC-GRPO with rewards r/len. Refuted if either identity fails by 1e-10; or if, on a
task that pays 1 at length 1 and 2 at length 3, exact training with r/len does not settle on the short answer
while training with r settles on the long one; or if rewards per token point along ∇J on random trees.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from experiments.problems import trees
from experiments.problems.estimands import cosine, made
from experiments.grid import grid
from experiments.verdict import Number, judge, worst
from grpo_jax import diagnostics, train
from grpo_jax.config import Config, Loop
from grpo_jax.exact import Exact, expected_gradient
from grpo_jax.exact import values as tree_values
from grpo_jax.optimizers import SGD
from grpo_jax.part import aligned
from grpo_jax.sequences import Sequences

CLAIM = "C6"
PAPER = "C"
PRECISION = "float64"

INF = np.inf
GROUP = 4
SHRINK = 1 - 1 / GROUP
SPACE = Sequences(vocab=3, horizon=4, eos=2)
FEW = 8
"""Tables on which the identities go through every group of the tree's outcomes."""
CHOICE = Sequences(vocab=2, horizon=3, eos=1)
REWARDS = np.array([2.0, 2.0, 0.0, 1.0])
"""Of aaa, aa·, a·, · (· ends): 2 at length 3, 0 at length 2, 1 at length 1."""
STEPS, RATE = 400, 1.0
UPDATES = {
    "GRPO, 1/len in the loss": {"trajectory": 0.0, "loss_power": 1.0, "reward_power": 0.0},
    "GRPO, constant weights": {"trajectory": 0.0, "loss_power": 0.0, "reward_power": 0.0},
    "TIC-GRPO, reward r/len": {"trajectory": 1.0, "loss_power": 0.0, "reward_power": 1.0},
    "TIC-GRPO, reward r": {"trajectory": 1.0, "loss_power": 0.0, "reward_power": 0.0},
}
STYLES = dict(
    zip(
        UPDATES,
        (("#d95f02", 1.6, "-"), ("#bdbdbd", 4, "-"), ("#2166ac", 1.6, "-"), ("#111111", 1.2, "--")),
        strict=True,
    )
)
"""Colour, width, dashes; constant weights and TIC-GRPO's plain reward coincide at one step a batch."""
STARTS = np.array([0.05, 0.2, 0.4])
"""Chance of the short answer at the start."""
SIZES = {"smoke": 50, "quick": 500, "full": 5000}


def method(names, which: np.ndarray):
    """Shift-only and unclipped, the named update in each run."""
    numbers = {key: np.array([UPDATES[n][key] for n in names])[which] for key in UPDATES[next(iter(UPDATES))]}
    return trees.method(**numbers, low=INF, high=INF)


@jax.jit
def corrected(policy, task, params, old) -> dict[str, jax.Array]:
    """The formulas, each [1, rows, V, R]: GRPO's at θ_old, TIC-GRPO's at θ; and ∇J at θ_old."""
    length = policy.space.support[1].sum(1)[:, None]
    rewards = jnp.asarray(task.table)[0]

    def slope(point, values):
        return jax.grad(lambda p: jnp.sum(tree_values.expectation(policy, p, values)))(point)

    mean = tree_values.expectation(policy, old, rewards)
    return {
        "GRPO": slope(old, rewards / length) - mean * slope(old, 1 / length),
        "TIC": slope(params, rewards / length),
        "J": slope(old, rewards),
    }


def identities(root: int) -> np.ndarray:
    """Largest deviation from the formulas: GRPO with 1/len at θ_old; TIC-GRPO with r/len at and off θ_old."""
    given = trees.problem(root, SPACE, tables=FEW, kind="graded")
    policy, task = made(SPACE, given.logits, given.table)
    away = given.logits + 0.5 * np.cos(np.arange(given.logits.size)).reshape(given.logits.shape)
    found = []
    for name, params in ((0, given.logits), (2, given.logits), (2, away)):
        config = Config(
            policy=policy, task=task, method=method(list(UPDATES), np.full(FEW, name)),
            loop=Loop(group_size=GROUP), expectation=Exact(cells=0),
        )  # fmt: skip
        moved = expected_gradient(config, params[None], old=policy.logits)
        formula = corrected(policy, task, params[None], policy.logits)[("GRPO", "", "TIC")[name]]
        found.append(np.abs(np.asarray(moved - SHRINK * formula)).max())
    return np.array(found)


def directions(root: int, tables: int) -> np.ndarray:
    """[formula, table] cosine to ∇J at θ_old of GRPO's and of TIC-GRPO's length-corrected update."""
    given = trees.problem(root, SPACE, tables=tables, kind="graded")
    policy, task = made(SPACE, given.logits, given.table)
    found = corrected(policy, task, policy.logits, policy.logits)
    return np.stack([cosine(found[name], found["J"]) for name in ("GRPO", "TIC")])


@functools.partial(jax.jit, static_argnames="steps")
def watched(config: Config, state: train.TrainState, *, steps: int) -> jax.Array:
    """[steps + 1, S, R] probability of every answer under exact training."""
    config = aligned(config)

    def look(state: train.TrainState) -> jax.Array:
        prompts = diagnostics.all_prompts(config.policy)
        return jnp.exp(diagnostics.log_support(config.policy, state.params, prompts))[0]

    def body(state: train.TrainState, _: None):
        return train.step(config, state, record=())[0], look(state)

    state, seen = jax.lax.scan(body, state, length=steps)
    return jnp.concatenate([seen, look(state)[None]])


def trained() -> np.ndarray:
    """[time, answer, update, start] probabilities on the task of two lengths, by exact expectation."""
    which, start = grid(np.arange(len(UPDATES)), STARTS)
    runs = len(which)
    logits = np.zeros((3, 2, runs))
    logits[0, 1] = np.log(start / (1 - start))
    policy, task = made(CHOICE, logits, np.repeat(REWARDS[:, None], runs, 1))
    config = Config(
        policy=policy, task=task, method=method(list(UPDATES), which), optimizer=SGD(learning_rate=RATE),
        loop=Loop(group_size=GROUP), expectation=Exact(cells=0),
    )  # fmt: skip
    seen = watched(config, train.init(config, np.arange(runs)), steps=STEPS)
    return np.asarray(seen).reshape(STEPS + 1, len(REWARDS), len(UPDATES), len(STARTS))


def simulate(key: jax.Array, size: str) -> xr.Dataset:
    """Identities, cosines over random tables, and training on the task of two lengths."""
    root = int(jax.random.key_data(key)[-1])
    return xr.Dataset(
        {
            "residual": ("identity", identities(root)),
            "cosine": (("formula", "table"), directions(root, SIZES[size])),
            "probability": (("time", "answer", "update", "start"), trained()),
        },
        {
            "identity": ["GRPO at θ_old", "TIC-GRPO at θ_old", "TIC-GRPO at θ"],
            "formula": ["GRPO, 1/len in the loss", "TIC-GRPO, reward r/len"],
            "answer": ["aaa", "aa.", "a.", "."],
            "update": list(UPDATES),
            "start": STARTS,
        },
    )


def check(data: xr.Dataset):
    """Every number here refutes."""
    short = data.probability.isel(time=-1).sel(answer=".")
    numbers = {
        "identities": worst(data.residual, expected=0, tolerance=1e-10),
        "short answer under r/len": Number(
            float(short.sel(update="TIC-GRPO, reward r/len").min()), expected=0.9, relation="at least"
        ),
        "short answer under r": Number(
            float(short.sel(update="TIC-GRPO, reward r").max()), expected=0.1, relation="at most"
        ),
        "median cosine of r/len to ∇J": Number(
            float(data.cosine.isel(formula=1).median()), expected=0.99, relation="at most"
        ),
        "median cosine of 1/len in the loss to ∇J": Number(float(data.cosine.isel(formula=0).median())),
        "tables where r/len opposes ∇J": Number(float((data.cosine.isel(formula=1) < 0).mean())),
        "short answer under GRPO with 1/len": Number(float(short.isel(update=0).max())),
    }
    return judge(numbers, refutes=list(numbers)[:4])


def draw(figure, data: xr.Dataset) -> None:
    """Reward in training, the short answer's share, and cosines to ∇J."""
    figure.set_size_inches(11, 4.1)
    left, middle, right = figure.subplots(1, 3)
    reward = (data.probability * xr.DataArray(REWARDS, dims="answer")).sum("answer")
    _draw_training(left, reward)
    left.set(ylabel="expected reward", ylim=(0.95, 2.05))
    left.set_title("two good answers: 1 at length 1, 2 at length 3", fontsize=9)
    _draw_training(middle, data.probability.sel(answer="."))
    middle.set(ylabel="probability of the short answer", ylim=(-0.02, 1.02))
    middle.set_title("only r/len learns the one that pays less", fontsize=9)
    _draw_cosines(right, data.cosine)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8.5, loc="outside lower center", ncols=4)


def _draw_training(axis, values: xr.DataArray) -> None:
    for name, (color, width, style) in STYLES.items():
        for place, start in enumerate(STARTS):
            label = name if place == 0 else None
            axis.plot(values.sel(update=name, start=start), style, color=color, lw=width, label=label)
    axis.set(xlabel="update (exact expectation)", xscale="symlog", xlim=(0, STEPS))


def _draw_cosines(axis, cosine: xr.DataArray) -> None:
    bins = np.linspace(-0.4, 1, 57)
    for name in ("TIC-GRPO, reward r/len", "GRPO, 1/len in the loss"):
        values = cosine.sel(formula=name)
        label = f"{name.split(',')[1].strip()}: median {float(values.median()):.2f}"
        axis.hist(values, bins, color=STYLES[name][0], alpha=0.65, label=label)
    axis.set(xlabel="cosine of the expected update to ∇J at θ$_{old}$", ylabel="random tables")
    axis.set_title("random rewards, lengths 1 to 4", fontsize=9)
    axis.legend(frameon=False, fontsize=8, loc="upper left")
