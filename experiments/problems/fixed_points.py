"""Random questions of several kinds, ascended exactly from all over the simplex, and (11) of [A] there."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.problems.answers import logits, question, steady_rate
from experiments.problems.dice import CIRCLE, Dice
from grpo_jax import theory
from grpo_jax.tasks import Bernoulli

CASES = {
    "3 answers, G = 8": (3, 8, "fixed"),
    "3 dice, G = 2": (3, 2, "dice"),
    "8 coin flips, G = 6": (8, 6, "coins"),
    "8 answers, G = 3": (8, 3, "fixed"),
}
"""Answers, group size, and what rewards are."""
STEPS = 3000
MEASURED = {
    "root": ("question", "output"),
    "root_gap": ("question",),
    "gap": ("question", "start"),
    "slack": ("question", "start"),
}
"""Dimensions of what `verified` finds."""


def random_questions(case: str, count: int, seed: int) -> dict[str, np.ndarray]:
    """References, penalties, rewards (success probabilities of coins) and learning rates."""
    answers, _, rewards = CASES[case]
    rng = np.random.default_rng([seed, list(CASES).index(case)])
    reference = 0.9 * rng.dirichlet(np.ones(answers), count) + 0.1 / answers
    table = rng.uniform(size=(count, answers)) if rewards == "coins" else rng.normal(size=(count, answers))
    beta = np.exp(rng.uniform(np.log(0.2), np.log(3.0), count))
    return {"reference": reference, "beta": beta, "table": table, "rate": steady_rate(beta)}


def around(answers: int) -> dict[int, np.ndarray]:
    """Starts close to the corners and the sides of the simplex."""
    eye = np.eye(answers)
    corners = np.concatenate([eye, 1 - eye[:3], eye[:3] + 2 * np.roll(eye, 1, 0)[:3]])
    return dict(enumerate(0.94 * corners / corners.sum(1, keepdims=True) + 0.06 / answers))


def ascended(
    case: str, count: int, seed: int, *, last: dict[str, Any] | None = None, every: int = STEPS
) -> tuple[xr.Dataset, xr.DataArray]:
    """Where exact ascent ends from all starts, what `verified` says of it, and the paths.

    Args:
      case: of `CASES`.
      count: random questions.
      seed: of the questions.
      last: one more question.
      every: iterations from one policy of a path to the next.
    """
    answers, group, rewards = CASES[case]
    asked = random_questions(case, count, seed)
    if last is not None:
        asked = {name: np.concatenate([asked[name], [last[name]]]) for name in asked}
    columns = {
        "reference": [logits(reference) for reference in asked["reference"]],
        "kl_coef": asked["beta"],
        "learning_rate": asked["rate"],
    }
    if rewards == "dice":
        config = question(np.zeros(answers), group_size=group, task=Dice(faces=CIRCLE))
    else:
        noise = Bernoulli() if rewards == "coins" else None
        config = question(np.full(answers, 0.5), group_size=group, noise=noise)
        columns["task.table"] = asked["table"][:, None]
    axes = {
        tuple(columns): dict(enumerate(zip(*columns.values(), strict=True))),
        "policy.logits": {name: logits(start) for name, start in around(answers).items()},
    }
    data = gj.sweep(
        config, axes, iterations=STEPS, record_every=every, record_start=True, record=["probabilities"]
    )
    paths = data.probabilities.squeeze(["context", "seed"], drop=True).drop_vars(columns, errors="ignore")
    paths = paths.rename({"+".join(columns): "question", "policy.logits": "start"})
    paths = paths.transpose("question", "start", "iteration", "output")
    ended = paths.isel(iteration=-1, drop=True)
    found = verified(ended.values, asked["reference"], asked["beta"], asked["table"], case=case)
    labelled = {name: (MEASURED[name], np.asarray(found[name])) for name in MEASURED}
    return xr.Dataset(labelled, ended.coords).assign(ended=ended), paths


@partial(jax.jit, static_argnames="case")
def verified(
    ended: jax.Array, reference: jax.Array, beta: jax.Array, table: jax.Array, *, case: str
) -> dict[str, jax.Array]:
    """The solver's root [Q, K]; by how much (11) fails there [Q] and where training ended [Q, S]; the least
    slack of the bound there [Q, S]."""
    _, group, rewards = CASES[case]

    def one(policies: jax.Array, r: jax.Array, b: jax.Array, values: jax.Array) -> dict[str, jax.Array]:
        law = {
            "fixed": lambda: theory.reward_table(values),
            "coins": lambda: theory.Rewards(jnp.array([0.0, 1.0]), jnp.stack([1 - values, values], 1)),
            "dice": lambda: theory.reward_table(np.array(CIRCLE), np.full((3, 3), 1 / 3)),
        }[rewards]()

        def misses(policy: jax.Array) -> tuple[jax.Array, jax.Array]:
            preference = theory.group_preference(policy, law, group_size=group)
            surplus = preference - policy @ preference
            return jnp.max(abs((1 - surplus / b) * policy - r)), jnp.min(b - surplus)

        root = theory.stationary(r, law, b, group_size=group).policy
        gap, slack = jax.vmap(misses)(policies)
        return {"root": root, "root_gap": misses(root)[0], "gap": gap, "slack": slack}

    return jax.vmap(one)(ended, reference, beta, table)
