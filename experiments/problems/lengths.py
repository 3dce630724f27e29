"""The task on which length biases are measured: only the first token matters, the rest may be of any length.

Shared by the claims of [B] on sequence trees.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.grid import grid
from grpo_jax import methods, train
from grpo_jax.biases import length_moments
from grpo_jax.config import Config, Loop
from grpo_jax.diagnostics import log_support
from grpo_jax.optimizers import AdamW
from grpo_jax.part import leaf_paths, number, part, put, put_all
from grpo_jax.policies import TreePolicy
from grpo_jax.policies.tree import share_rows
from grpo_jax.statistics import divide
from grpo_jax.surrogate import Method
from grpo_jax.tasks import Bernoulli, SequenceTable, trees
from grpo_jax.types import Array, Number, Rollout

SPACE = trees.free_length(vocab=3, horizon=6)
TASK = trees.first_token(SPACE)
RIGHT = np.asarray(TASK.table[0] > 0)
"""[S] outputs whose first token is right."""
GROUP = 8
PROMPTS: Any = np.arange(1)
"""The one context."""
STEPS = 120
RATES = np.array([0.1, 0.5, 0.9])
"""Success rates at the start."""
LEARNING = {"SGD": 0.6, "AdamW": 0.02}
"""Learning rates."""
TABLE = ("grpo", "grpo_v32", "gspo", "gtpo", "dapo", "cppo", "dr_grpo", "gpg", "cispo", "gcpo")
"""Methods of Table 1 of [B]."""
SMOKE_TABLE = ("grpo", "gtpo", "dapo", "dr_grpo")
"""Those that a smoke run trains."""
OPEN = "gtpo (open)"


@part
class LengthPower:
    """α = (L0/|o_i|)^power / G: power 0 is constant, 1 is GRPO's 1/len with its mean kept."""

    power: Number = number(1.0)
    length: Number = number(1.0)

    def __call__(self, rollout: Rollout) -> Array:
        lengths = jnp.sum(rollout.mask, 2, keepdims=True)
        counted = rollout.mask * rollout.multiplicity[:, :, None]
        entries = jnp.sum(rollout.multiplicity, (0, 1), keepdims=True)[:, :, None]
        return divide(counted * (self.length / jnp.maximum(lengths, 1)) ** self.power, entries)


def policy(rate: np.ndarray, *, blind: bool = False) -> TreePolicy:
    """First token right with probability rate [R], a uniform tail; ``blind``: the tail does not see it."""
    tie = share_rows(SPACE, lambda prefix: (len(prefix), prefix[1:])) if blind else None
    logits = np.zeros((1, (max(tie) + 1) if tie else SPACE.offsets[-1], SPACE.vocab, len(rate)))
    logits[0, 0, 0], logits[0, 0, 1] = np.log(rate), np.log(1 - rate)
    return TreePolicy(space=SPACE, logits=logits, tie=tie)


@functools.cache
def mean_length() -> float:
    """L0: under a uniform tail."""
    start = policy(np.array([0.5]))
    probability = np.exp(np.asarray(log_support(start, jnp.asarray(start.logits), PROMPTS)))[0, :, 0]
    return float(probability @ SPACE.support[1].sum(1))


def weighted(power: np.ndarray, normalized: np.ndarray) -> Method:
    """GRPO without penalty at numbers [R]: the power of 1/len, and whether the spread divides advantages."""
    reduction = LengthPower(power=jnp.asarray(power, float), length=mean_length())
    method = dataclasses.replace(methods.grpo, penalty=None, reduction=reduction)
    return put(method, "advantage.power", jnp.asarray(normalized, float))


def optimizer(adam: np.ndarray | float) -> AdamW:
    """AdamW in runs where adam is 1, SGD where it is 0, in one program.

    SGD is AdamW without momentum whose eps is so great that second moments do not count, with a learning rate
    as great.
    """
    chosen, free = jnp.asarray(adam) > 0, 1e9
    return AdamW(
        learning_rate=jnp.where(chosen, LEARNING["AdamW"], LEARNING["SGD"] * free),
        b1=jnp.where(chosen, 0.9, 0.0),
        eps=jnp.where(chosen, 1e-8, free),
    )


def problem(
    rate: np.ndarray, method: Method, adam: np.ndarray | float = 0.0, *, inner_steps: int = 1, **changes
) -> Config:
    """The task from a success rate [R] on."""
    loop = Loop(group_size=GROUP, inner_steps=inner_steps)
    base = Config(policy=policy(rate), task=TASK, method=method, optimizer=optimizer(adam), loop=loop)
    return dataclasses.replace(base, **changes)


def coin(rate: np.ndarray, placebo: np.ndarray) -> SequenceTable:
    """The task in runs where placebo is 0; where it is 1, a coin with the first success rate decides."""
    right = RIGHT.astype(float)[None, :, None]
    return SequenceTable(space=SPACE, table=np.where(placebo > 0, rate, right), noise=Bernoulli())


@functools.partial(jax.jit, static_argnames=("steps", "every"))
def _watched(config: Config, state: train.TrainState, *, steps: int, every: int) -> dict[str, Array]:
    def lengths(params: Array) -> Array:
        both = length_moments(config.policy, params, PROMPTS, 1 - RIGHT.astype(int))
        return jnp.concatenate([both, length_moments(config.policy, params, PROMPTS, 0 * RIGHT.astype(int))])

    def one(state: train.TrainState, _: None) -> tuple[train.TrainState, dict[str, Array]]:
        return train.step(config, state, record=("surrogate", "expected_reward", "reward"))

    def stretch(state: train.TrainState, _: None):
        state, info = jax.lax.scan(one, state, length=every)
        return state, (info, lengths(state.params))

    _, (info, seen) = jax.lax.scan(stretch, state, length=steps // every)
    found = {name: value.reshape(steps, -1) for name, value in info.items()}
    return found | {"length": jnp.concatenate([lengths(state.params)[None], seen])}


def watched(
    config: Config, seeds: np.ndarray, root: int, *, steps: int, every: int = 10
) -> dict[str, np.ndarray]:
    """Train and watch: ``length`` [steps/every + 1, 3, R], expected lengths of right, wrong and all outputs;
    ``surrogate``, ``expected_reward`` and ``reward`` (of the batch) [steps, R].
    """  # fmt: skip
    found = _watched(config, train.init(config, seeds, root=root), steps=steps, every=every)
    return {name: np.asarray(value) for name, value in found.items()}


def table_methods(size: str) -> dict[str, Method]:
    """The methods of Table 1, and GTPO with its entropy filter open: the printed one drops every output."""
    found = {name: methods.get(name) for name in (SMOKE_TABLE if size == "smoke" else TABLE)}
    paths = [path for path in leaf_paths(methods.gtpo) if path.endswith("threshold")]
    return found | {OPEN: put_all(methods.gtpo, dict.fromkeys(paths, np.inf))}


def table_runs(root: int, seeds: np.ndarray, size: str) -> dict[str, dict[str, np.ndarray]]:
    """Every method of Table 1 with two passes: method -> ``watched``, runs as [optimizer, rate, seed]."""
    adam, rate, seed = grid(np.arange(len(LEARNING)), RATES, seeds)
    found = {}
    for name, method in table_methods(size).items():
        seen = watched(problem(rate, method, adam, inner_steps=2), seed, root, steps=STEPS)
        shape = (len(LEARNING), len(RATES), len(seeds))
        found[name] = {k: v.reshape(*v.shape[:-1], *shape) for k, v in seen.items()}
    return found


def correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's, along the first axis; NaN where one of them does not vary."""
    a, b = a - a.mean(0), b - b.mean(0)
    scale = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    return np.where(scale > 1e-13, (a * b).sum(0) / np.where(scale > 1e-13, scale, 1), np.nan)
