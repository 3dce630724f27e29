"""Prompts of many difficulties that share one decision: how long to go on.

A sequence is a number of tokens, one to `SPACE.horizon`, and a policy is a decision to stop or not before
each of them. It does not see the prompt. An answer of n tokens to a prompt of ability a is right with
probability a·(1 − (1 − x)²), x = (n − 1)/(T − 1): one that stops at once is always wrong, and the last tokens
add little. Used by the claim on phantom advantages (E5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.formulas import difficulty
from experiments.problems import updates
from experiments.problems.optimizers import OPTIMIZER, adamw, named, sgd
from grpo_jax.methods import SHIFT
from grpo_jax.part import part, static
from grpo_jax.parts.advantages import Advantage, GroupSpread, Normalized
from grpo_jax.parts.returns import MixedOnly
from grpo_jax.parts.shaping import NormalizedSum, OnSuccess, Shaping, WithLength
from grpo_jax.policies import TreePolicy
from grpo_jax.tasks import Bernoulli
from grpo_jax.types import Array

ABILITIES = np.array([0.05, 0.35, 0.65, 0.85, 0.95, 0.98, 0.99, 1.0])
ABLE, HARD, FLAT = "able", "a fifth as able", "length does not matter"
GROUP = 8
OPTIMIZERS = {"SGD": sgd(1.0), "AdamW": adamw(0.05)}
LENGTH = WithLength(weight=0.1, limit=10.0)
NONE, GATE, RIGHT, PLAIN, SPLIT = "σ", "outcome gate", "right answers only", "no σ", "normalised apart"
TRIED = gj.Sequences(vocab=3, horizon=3, eos=2)
"""Where updates are enumerated, in groups of three."""


def stops(horizon: int) -> gj.Sequences:
    """All lengths from 1 to the horizon: token 0 goes on, token 1 stops; the last token stops."""
    return gj.Sequences(vocab=2, horizon=horizon, eos=1, forbidden=((horizon - 1, 0),))


def lengths_of(space: gj.Sequences) -> np.ndarray:
    """[S] tokens of every output."""
    return space.support[1].sum(1)


@part
class Blind(TreePolicy):
    """A tree that `prompts` prompts share: one table of logits, [1, rows, V], whatever the prompt."""

    prompts: int = static(1)

    @property
    def contexts(self) -> int:
        """The number of prompts."""
        return self.prompts

    def log_probabilities(self, params: Array, prompts: Array) -> Array:
        """As in ``TreePolicy``, of the one table."""
        return super().log_probabilities(params, prompts * 0)


def start(space: gj.Sequences, *, mean: float = 0.8, spread: float = 0.15) -> np.ndarray:
    """[1, T, 2] logits of lengths that are nearly normal about `mean`·T with `spread`·T."""
    horizon = space.horizon
    chance = np.exp(-0.5 * ((np.arange(1, horizon + 1) / horizon - mean) / spread) ** 2)
    left = chance[::-1].cumsum()[::-1]
    stop = chance / left
    found = np.zeros((1, horizon, 2))
    found[0, :-1, 1] = np.log(stop[:-1]) - np.log1p(-stop[:-1])
    return found


def success(space: gj.Sequences) -> dict[str, np.ndarray]:
    """[prompts, S] probability that an answer is right, by kind of prompts."""
    x = (lengths_of(space) - 1) / (space.horizon - 1)
    grown = ABILITIES[:, None] * (1 - (1 - x) ** 2)
    return {ABLE: grown, HARD: grown / 5, FLAT: ABILITIES[:, None] * np.full_like(x, 0.95)}


def method(shaping: Shaping, advantage: Advantage | None = None) -> gj.Method:
    """One plain step a batch, without a length bias of its own."""
    return replace(updates.PLAIN, shaping=shaping, advantage=advantage or Normalized())


def apart(dose: float) -> gj.Method:
    """Outcome and length normalised each by itself within its group, then summed with weights 1 and λ."""
    length = WithLength(inner=NormalizedSum(weights=(1.0, dose), ddof=0.0, eps=0.0), weight=1.0, limit=10.0)
    return method(length, SHIFT)


ARMS: dict[str, Any] = {
    NONE: method(LENGTH),
    GATE: method(LENGTH, MixedOnly(inner=Normalized())),
    RIGHT: method(OnSuccess(inner=LENGTH)),
    PLAIN: method(LENGTH, SHIFT),
    SPLIT: apart,
}
"""What is made of a length in the reward: a method, or a function from λ to methods."""


def config(given: gj.Method, *, horizon: int = 10, kind: str = ABLE, **changes: Any) -> gj.Config:
    """Groups of eight for every prompt."""
    space = stops(horizon)
    base: dict[str, Any] = {
        "policy": Blind(space=space, logits=start(space), prompts=len(ABILITIES)),
        "task": gj.SequenceTable(space=space, table=success(space)[kind], noise=Bernoulli()),
        "method": given,
        "optimizer": gj.AdamW(learning_rate=0.05),
        "loop": gj.Loop(group_size=GROUP),
        "expectation": gj.Sampled(),
    }
    return gj.Config(**(base | changes))


def trained(given: Any, doses: list[float], size: Any, seed: int, **setting: Any) -> xr.Dataset:
    """`expected_reward` by optimizer, dose and iteration.

    Args:
      given: a method in which one part has the dose as its `weight`, or a function from doses to methods.
      doses: weights of the length.
      size: its seeds and iterations.
      seed: the root.
      **setting: as in `config`.
    """
    varied = callable(given)
    labelled = {f"{dose:g}": dose for dose in doses}
    axes = {OPTIMIZER: OPTIMIZERS} if varied else {"weight": labelled, OPTIMIZER: OPTIMIZERS}
    data = gj.sweep(
        config(given(doses[0]) if varied else given, **setting), axes,
        variants={"method": {name: given(dose) for name, dose in labelled.items()}} if varied else None,
        seeds=size.seeds, iterations=size.iterations, root=seed, record=["expected_reward"],
        record_start=True, record_every=size.iterations // 20,
    )  # fmt: skip
    return named(data, {"algorithm" if varied else "weight": "dose", OPTIMIZER: "optimizer"})


def identities(doses: Sequence[float]) -> xr.DataArray:
    """Largest gap, by normalisation and λ, of what groups with one outcome add to the update, to NumPy's."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, TRIED.offsets[-1], TRIED.vocab))
    table = rng.integers(0, 2, size=(2, TRIED.size)).astype(float)
    given = {"σ": (1.0, 0.0), "σ + .01": (1.0, 0.01), "no σ": (0.0, 0.0)}
    found = np.zeros((len(given), len(doses)))
    for i, (power, eps) in enumerate(given.values()):
        whole = Normalized(scale=GroupSpread() if power else None, eps=eps)
        for j, dose in enumerate(doses):
            shaping = WithLength(weight=dose, limit=3.0)
            both, gated = (
                updates.expected_update(method(shaping, advantage), TRIED, logits, table, group_size=3)
                for advantage in (whole, MixedOnly(inner=whole))
            )
            hand = of_one_outcome(logits, table, power=power, eps=eps / dose if power else 0.0)
            found[i, j] = abs(both - gated - (1.0 if power else dose) * hand).max()
    return xr.DataArray(found, {"spread": list(given), "dose": list(doses)})


def of_one_outcome(logits: np.ndarray, table: np.ndarray, *, power: float, eps: float) -> np.ndarray:
    """What groups of three with one outcome add to the update at λ = 1, by enumeration, [P, rows, V]."""
    cost = -lengths_of(TRIED) / 3

    def advantages(outcomes: np.ndarray, picked: np.ndarray) -> np.ndarray:
        if np.ptp(outcomes[picked]) > 0 or np.ptp(cost[picked]) == 0:
            return np.zeros(len(picked))
        return difficulty.centred(cost[picked]) / (cost[picked].std() + eps) ** power

    found = [
        difficulty.enumerated(TRIED, row, np.arange(TRIED.size), partial(advantages, outcomes), 3)
        for row, outcomes in zip(logits, table, strict=True)
    ]
    return np.array(found) / len(logits)
