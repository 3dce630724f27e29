"""Ours: TIC-GRPO's length-corrected reward r/|o| maximises reward per token, not reward.

[C], arXiv:2508.02833. We could read the abstracts (v2 of 2025, v5 of 23 March 2026) and the paper's beginning
only. They name no length correction; the reward r/|o| is what public reviews of its conference submission
say that the method takes. Sequences of one to four tokens that end at an end-of-sequence token, random graded
rewards, no clip, shift-only, groups of 4, exact expectations; and a task of two good answers, 1 for one token
and 2 for three, trained with SGD by exact expectation.

Refuted if the answer that pays 1 for one token ends below 0.9 from some start, or if on the median random
table the update's cosine to ∇J is above 0.99 (an angle of 8 degrees). Checks of the instrument, to 1e-10: the
update is (1 - 1/G) ∇E[r/|o|] at θ_old and at θ, and with the reward r itself (1 - 1/G) ∇J(θ); trained on r,
the answer that pays 1 ends below 0.1. What 1/|o| in GRPO's loss does is a row beside it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.harness.numbers import Number, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems import trees
from experiments.problems.estimands import cosine, made
from grpo_jax import plotting
from grpo_jax.exact import expected_gradient
from grpo_jax.exact import values as tree_values

PRECISION = "float64"
SIZES = sizes(tables=(50, 500, 5000))

GROUP = 4
SHRINK = 1 - 1 / GROUP
SPACE = gj.Sequences(vocab=3, horizon=4, eos=2)
FEW, CELLS = 8, 16
"""Tables on which the identities go through every group, and four rewards at four lengths."""
CHOICE = gj.Sequences(vocab=2, horizon=3, eos=1)
REWARDS = {"aaa": 2.0, "aa.": 2.0, "a.": 0.0, ".": 1.0}
"""Of every answer (. ends it): 2 at length 3, 0 at length 2, 1 at length 1."""
STEPS, RATE = 400, 1.0
STARTS = (0.05, 0.2, 0.4)
"""Chance of the short answer at the start."""
CORRECTED, PLAIN, LOSS = "TIC-GRPO, reward r/|o|", "TIC-GRPO, reward r", "GRPO, 1/|o| in the loss"
UPDATES = {
    CORRECTED: {"trajectory": 1.0, "loss_power": 0.0, "reward_power": 1.0},
    PLAIN: {"trajectory": 1.0, "loss_power": 0.0, "reward_power": 0.0},
    LOSS: {"trajectory": 0.0, "loss_power": 1.0, "reward_power": 0.0},
    "GRPO, constant weights": {"trajectory": 0.0, "loss_power": 0.0, "reward_power": 0.0},
}


@jax.jit
def formulas(policy: gj.TreePolicy, task: gj.SequenceTable, params: Any, old: Any) -> dict[str, jax.Array]:
    """Of ``UPDATES`` over 1 - 1/G, each [1, rows, V, R]: GRPO's at θ_old, TIC-GRPO's at θ."""
    length = policy.space.support[1].sum(1)[:, None]
    rewards = jnp.asarray(task.table)[0]

    def slope(point: Any, values: Any) -> jax.Array:
        return jax.grad(lambda p: jnp.sum(tree_values.expectation(policy, p, values)))(point)

    mean = tree_values.expectation(policy, old, rewards)
    return {
        LOSS: slope(old, rewards / length) - mean * slope(old, 1 / length),
        CORRECTED: slope(params, rewards / length),
        PLAIN: slope(params, rewards),
    }


def identities(root: int) -> xr.DataArray:
    """Largest deviation of the library's update from the formulas: GRPO's at θ_old, TIC-GRPO's also at θ."""
    given = trees.problem(root, SPACE, tables=FEW, kind="graded")
    policy, task = made(SPACE, given.logits, given.table)
    away = given.logits + 0.5 * np.cos(np.arange(given.logits.size)).reshape(given.logits.shape)
    places = [(LOSS, given.logits), (CORRECTED, given.logits), (CORRECTED, away), (PLAIN, away)]
    found = []
    for name, params in places:
        numbers = {key: np.full(FEW, value) for key, value in UPDATES[name].items()}
        config = gj.Config(
            policy=policy, task=task, method=trees.method(**numbers, low=np.inf, high=np.inf),
            loop=gj.Loop(group_size=GROUP), expectation=gj.Exact(cells=CELLS),
        )  # fmt: skip
        moved = expected_gradient(config, params[None], old=policy.logits)
        formula = formulas(policy, task, params[None], policy.logits)[name]
        found.append(np.abs(np.asarray(moved - SHRINK * formula)).max())
    names = [f"{name}, {'θ_old' if params is given.logits else 'θ'}" for name, params in places]
    return xr.DataArray(found, {"identity": names}, ("identity",))


def directions(root: int, tables: int) -> xr.DataArray:
    """Cosine to ∇J at θ_old of both updates with a length in them, on every table."""
    given = trees.problem(root, SPACE, tables=tables, kind="graded")
    policy, task = made(SPACE, given.logits, given.table)
    found = formulas(policy, task, policy.logits, policy.logits)
    each = [cosine(found[name], found[PLAIN]) for name in (CORRECTED, LOSS)]
    return xr.DataArray(each, {"update": [CORRECTED, LOSS]}, ("update", "table"))


def trained() -> xr.DataArray:
    """Probability of every answer on the task of two lengths, by exact expectation."""
    policy = gj.TreePolicy.uniform(CHOICE)
    logits = np.zeros(np.shape(policy.logits))
    starts = {start: logits + np.log(start / (1 - start)) * first_token(logits, 1) for start in STARTS}
    config = gj.Config(
        policy=policy, task=gj.SequenceTable(space=CHOICE, table=np.array([list(REWARDS.values())])),
        method=trees.method(trajectory=0.0, low=np.inf, high=np.inf), optimizer=gj.SGD(learning_rate=RATE),
        loop=gj.Loop(group_size=GROUP), expectation=gj.Exact(cells=0),
    )  # fmt: skip
    names = ("method.ratio.trajectory", "method.reduction.power", "method.shaping.power")
    updates = {
        name: (of["trajectory"], of["trajectory"] + of["loss_power"], of["reward_power"])
        for name, of in UPDATES.items()
    }
    data = gj.sweep(
        config, {names: updates, "policy.logits": starts}, iterations=STEPS, record=["probabilities"],
        record_start=True,
    )  # fmt: skip
    found = data.probabilities.isel(context=0, seed=0, drop=True).drop_vars(names)
    found = found.rename({"+".join(names): "update", "policy.logits": "start", "output": "answer"})
    return found.assign_coords(answer=list(REWARDS))


def first_token(logits: np.ndarray, token: int) -> np.ndarray:
    """1 at the logit of this token at the empty prefix, else 0."""
    found = np.zeros(logits.shape)
    found[0, 0, token] = 1
    return found


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Identities, cosines over random tables, and training on the task of two lengths."""
    return {
        "identities": xr.Dataset({"residual": identities(seed)}),
        "random": xr.Dataset({"cosine": directions(seed, size.tables)}),
        "training": xr.Dataset({"probability": trained()}),
    }


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """What the length correction maximises; and 1/|o| in GRPO's loss."""
    residual, cosines = data["identities"].residual, data["random"].cosine
    short = data["training"].probability.sel(answer=".").isel(iteration=-1)
    here = residual.sel(identity=[f"{CORRECTED}, θ_old", f"{CORRECTED}, θ"])
    claim.requires("reward r/|o|: update - (1 - 1/G) ∇E[r/|o|]", worst(here, tolerance=1e-10))
    plain = residual.sel(identity=f"{PLAIN}, θ")
    claim.requires("reward r: update - (1 - 1/G) ∇J(θ)", worst(plain, tolerance=1e-10))
    most = float(short.sel(update=PLAIN).max())
    claim.requires("reward r: answer that pays 1, trained", Number(most, 0.1, relation="at most"))
    end = float(short.sel(update=CORRECTED).min())
    learned = Number(end, 0.9, relation="at least")
    claim.refutes("reward r/|o|: answer that pays 1, trained", learned)
    middle = Number(float(cosines.sel(update=CORRECTED).median()), 0.99, relation="at most")
    claim.refutes("reward r/|o|: median cosine of the update to ∇J", middle)
    against = float((cosines.sel(update=CORRECTED) < 0).mean())
    claim.reports("share of tables where r/|o| opposes ∇J", Number(against))
    claim.finds(
        f"Between an answer of one token that pays 1 and one of three tokens that pays 2 it learns the first "
        f"(probability {end:.2f}).",
        when=learned,
    )
    claim.finds(
        f"On random tasks the update's median cosine to the gradient of the expected reward is "
        f"{middle.value:.2f}, and on {against:.0%} it points away.",
        when=middle,
    )
    row = claim.ours(
        "With 1/|o| in the loss GRPO's expected update at θ_old is (1 - 1/G) [∇E(r/|o|) - E[r] ∇E(1/|o|)]."
    )
    gap = worst(residual.sel(identity=f"{LOSS}, θ_old"), tolerance=1e-10)
    row.refutes("update - formula", gap)
    row.finds(
        "The same 1/|o| in the loss is milder: at a median cosine of "
        f"{float(cosines.sel(update=LOSS).median()):.2f} to the reward's gradient.",
        when=gap,
    )
    row.reports("median cosine to ∇J", Number(float(cosines.sel(update=LOSS).median())))
    row.reports("short answer, trained", Number(float(short.sel(update=LOSS).max())))


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """Training on the task of two lengths, and the angle on random tables that explains it."""
    figure.set_size_inches(7, 2.9)
    left, right = plotting.panels(figure, 1, 2, width_ratios=(1.25, 1))
    colors = dict(zip(UPDATES, (plotting.COLORS[1], "0.7", plotting.COLORS[0], "black"), strict=True))
    for name, color in colors.items():
        lines = data["training"].probability.sel(answer=".", update=name)
        wide, dash = (4, "-") if name == PLAIN else (1.4, ":" if name.endswith("weights") else "-")
        for start in STARTS:
            label = name if start == STARTS[0] else None
            left.plot(lines.iteration, lines.sel(start=start), dash, color=color, lw=wide, label=label)
    left.set(xlim=(0, 100), ylim=(-0.02, 1.02), xlabel="update (exact expectation)")
    left.set_ylabel("probability of the answer that pays 1")
    left.set_title("1 for one token or 2 for three tokens:\nhow much of the first is learned")
    for name in (LOSS, CORRECTED):
        values = data["random"].cosine.sel(update=name)
        label = f"{name}:\nmedian {float(values.median()):.2f}"
        right.hist(values, np.linspace(-0.4, 1, 43), color=colors[name], alpha=0.65, label=label)
    right.set(xlabel="cosine of the expected update to ∇J", ylabel="random tasks")
    right.set_title("random rewards, lengths 1 to 4")
    right.legend(loc="upper left")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
