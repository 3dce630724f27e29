"""The task on which length biases are measured: only the first token matters, the rest may be of any length.

Shared by the claims on weights (B2), on the surrogate's value (B5) and on the methods of Table 1 (B7). The
last two train with `table_runs`, whose programs are compiled once a machine for both.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.harness.scripts import sizes
from experiments.problems.optimizers import OPTIMIZER, adamw, named, sgd
from experiments.problems.weights import LengthPower
from grpo_jax import methods
from grpo_jax.measures import View
from grpo_jax.part import leaf_paths, put_all
from grpo_jax.policies import TreePolicy
from grpo_jax.policies.tree import share_rows
from grpo_jax.tasks import trees
from grpo_jax.types import Array

SPACE = trees.free_length(vocab=3, horizon=6)
TASK = trees.first_token(SPACE)
RIGHT = np.asarray(TASK.table[0] > 0)
"""[S] outputs whose first token is right."""
LENGTHS = SPACE.support[1].sum(1)
TAILS = float(SPACE.vocab) ** (1 - LENGTHS)
"""[S] probability of each output given its first token, in a uniform tail."""
MEAN_LENGTH = float((TAILS * LENGTHS)[RIGHT].sum())
"""L0, of right and of wrong outputs at the start."""
GROUP = 8
STEPS = 120
RATES = (0.1, 0.5, 0.9)
"""Success rates at the start."""
LEARNING = {"SGD": sgd(0.6), "AdamW": adamw(0.02)}
TABLE = ("grpo", "grpo_v32", "gspo", "gtpo", "dapo", "cppo", "dr_grpo", "gpg", "cispo", "gcpo")
"""Methods of Table 1 of [B]."""
SMOKE_TABLE = ("grpo", "gtpo", "dapo", "dr_grpo", "gcpo")
OPEN = "gtpo (open)"
"""GTPO with its entropy filter open: the printed one drops every output of this task."""
FREED = "grpo (no penalty)"
TABLE_SIZES = sizes(seeds=(64, 128, 1024), names=(SMOKE_TABLE, TABLE, TABLE))


WEIGHTED = dataclasses.replace(
    methods.grpo, penalty=None, reduction=LengthPower(power=1.0, length=MEAN_LENGTH)
)
"""GRPO without penalty; a sweep varies `reduction.power` and `advantage.power` (0 is shift-only)."""


def tied_tail() -> tuple[int, ...]:
    """Rows of a tail that cannot see the first token."""
    return share_rows(SPACE, lambda prefix: (len(prefix), prefix[1:]))


def logits(rate: float, *, blind: bool = False) -> np.ndarray:
    """[1, rows, V]: the first token is right with this probability, the tail is uniform."""
    rows = max(tied_tail()) + 1 if blind else SPACE.offsets[-1]
    found = np.zeros((1, rows, SPACE.vocab))
    found[0, 0, :2] = np.log(rate), np.log(1 - rate)
    return found


def problem(method: gj.Method, *, blind: bool = False, inner_steps: int = 1, **changes: Any) -> gj.Config:
    """The task from a success rate of one half on, with AdamW; in a `blind` policy the tail is tied."""
    rate, b1, eps = LEARNING["AdamW"]
    base: dict[str, Any] = {
        "policy": TreePolicy(
            space=SPACE, logits=logits(0.5, blind=blind), tie=tied_tail() if blind else None
        ),
        "task": TASK,
        "method": method,
        "optimizer": gj.AdamW(learning_rate=rate, b1=b1, eps=eps),
        "loop": gj.Loop(group_size=GROUP, inner_steps=inner_steps),
    }
    return gj.Config(**(base | changes))


@gj.measure("kind", labels={"kind": ["right", "wrong", "all"]}, about="expected length, tokens")
def lengths(view: View) -> Array:
    """[3(, R)] expected lengths of right, wrong and all outputs."""
    chance = view.probabilities[0]
    inside = jnp.stack([RIGHT, ~RIGHT, np.ones(len(RIGHT))]).astype(chance.dtype)
    tokens = jnp.tensordot(inside * LENGTHS, chance, 1)
    return tokens / jnp.tensordot(inside, chance, 1)


def table_methods(names: tuple[str, ...]) -> dict[str, gj.Method]:
    """Methods of Table 1; GTPO with its filter open, and GRPO without its penalty."""
    paths = [path for path in leaf_paths(methods.gtpo) if path.endswith("threshold")]
    return {name: methods.get(name) for name in names} | {
        OPEN: put_all(methods.gtpo, dict.fromkeys(paths, np.inf)),
        FREED: put_all(methods.grpo, {"penalty.coef": 0.0}),
    }


def table_runs(seed: int, size: Any, *, backwards: bool = False) -> xr.Dataset:
    """Every method with two passes a batch: `surrogate`, `reward`, `expected_reward` and `lengths`.

    One of two claims that run side by side goes `backwards`, so that each compiles half of the programs.
    """
    found = table_methods(size.names)
    ordered = dict(reversed(found.items())) if backwards else found
    data = gj.sweep(
        problem(methods.grpo, inner_steps=2),
        {"policy.logits": {rate: logits(rate) for rate in RATES}, OPTIMIZER: LEARNING},
        variants={"method": ordered},
        seeds=size.seeds, iterations=STEPS, root=seed,
        record=["surrogate", "reward", "expected_reward"], measure={"lengths": lengths},
    )  # fmt: skip
    return named(data, {"policy.logits": "rate", OPTIMIZER: "optimizer"})
