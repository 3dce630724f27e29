"""Prompts of many difficulties that share one decision: how long to go on.

A sequence is a number of tokens, one to `SPACE.horizon`, and a policy is a decision to stop or not before
each of them. It does not see the prompt. An answer of n tokens to a prompt of ability a is right with
probability a·(1 − (1 − x)²), x = (n − 1)/(T − 1): one that stops at once is always wrong, and the last tokens
add little. Used by the claim on phantom advantages (E5).
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.problems.lengths import named as renamed
from grpo_jax.measures import View
from grpo_jax.part import part, static
from grpo_jax.parts.advantages import Advantage, Normalized
from grpo_jax.parts.gains import Linear
from grpo_jax.parts.ratios import Score
from grpo_jax.parts.reductions import Constant
from grpo_jax.parts.shaping import Shaping
from grpo_jax.policies import TreePolicy
from grpo_jax.tasks import Bernoulli
from grpo_jax.types import Array

ABILITIES = np.array([0.05, 0.35, 0.65, 0.85, 0.95, 0.98, 0.99, 1.0])
ABLE, HARD, FLAT = "able", "a fifth as able", "length does not matter"
GROUP = 8
OPTIMIZER = ("optimizer.learning_rate", "optimizer.b1", "optimizer.eps")
OPTIMIZERS = {"SGD": (1e9, 0.0, 1e9), "AdamW": (0.05, 0.9, 1e-8)}
"""Both in one program: SGD at 1 is AdamW without momentum whose eps and learning rate are as great."""


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
    given = Normalized() if advantage is None else advantage
    return gj.Method(
        shaping=shaping, advantage=given, ratio=Score(), gain=Linear(), reduction=Constant(length=1.0)
    )


def config(
    given: gj.Method, *, horizon: int = 10, shared: bool = True, kind: str = ABLE, **changes: Any
) -> gj.Config:
    """Groups of eight for every prompt; without `shared` each prompt has a policy of its own."""
    space = stops(horizon)
    count = len(ABILITIES)
    policy = (
        Blind(space=space, logits=start(space), prompts=count)
        if shared
        else TreePolicy(space=space, logits=np.repeat(start(space), count, 0))
    )
    base: dict[str, Any] = {
        "policy": policy,
        "task": gj.SequenceTable(space=space, table=success(space)[kind], noise=Bernoulli()),
        "method": given,
        "optimizer": gj.AdamW(learning_rate=0.05),
        "loop": gj.Loop(group_size=GROUP),
        "expectation": gj.Sampled(),
    }
    return gj.Config(**(base | changes))


@gj.measure("context", about="mean length of the policy's answers, tokens")
def own_length(view: View) -> Array:
    """[C(, R)]."""
    policy: Any = view.config.policy
    tokens = jnp.asarray(lengths_of(policy.space))
    return jnp.sum(view.probabilities * tokens.reshape((1, -1) + (1,) * (view.probabilities.ndim - 2)), 1)


def trained(given: Any, doses: list[float], size: Any, seed: int, **setting: Any) -> xr.Dataset:
    """`expected_reward` and mean `tokens` by optimizer, dose and iteration.

    Args:
      given: a method in which one part has the dose as its `weight`, or a function from doses to methods.
      doses: weights of the length.
      size: its seeds and iterations.
      seed: the root.
      **setting: as in `config`.
    """
    varied = callable(given)
    named = {f"{dose:g}": dose for dose in doses}
    axes = {OPTIMIZER: OPTIMIZERS} if varied else {"weight": named, OPTIMIZER: OPTIMIZERS}
    data = gj.sweep(
        config(given(doses[0]) if varied else given, **setting), axes,
        variants={"method": {name: given(dose) for name, dose in named.items()}} if varied else None,
        seeds=size.seeds, iterations=size.iterations, root=seed, record=["expected_reward"],
        measure={"tokens": own_length}, record_start=True, record_every=size.iterations // 20,
    )  # fmt: skip
    return renamed(data, {"algorithm" if varied else "weight": "dose", OPTIMIZER: "optimizer"})
