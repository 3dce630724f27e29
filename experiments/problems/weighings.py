"""How much advantages weigh prompts by their success rates: the library's update against sums in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.formulas import difficulty
from experiments.problems.updates import PLAIN, expected_update
from grpo_jax import presets
from grpo_jax.methods import SHIFT
from grpo_jax.parts.advantages import Normalized
from grpo_jax.tasks import Bernoulli

SPACE = gj.Sequences(vocab=3, horizon=2, eos=2)
REWARDS = np.array(
    [[1, 0, 0, 0, 0, 0, 0], [0, 1, 0, 1, 0, 1, 1], [0, 0, 0, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1.0]]
)
"""[P, S] of unequal prompts, the last one tied."""

CONVENTIONS: dict[str, tuple[Any, difficulty.Rule]] = {
    "r − r̄": (SHIFT, difficulty.centred),
    "paper": (Normalized(), difficulty.divided),
    "TRL": (presets.trl().advantage, partial(difficulty.divided, ddof=1, added=1e-4)),
    "verl": (presets.verl().advantage, partial(difficulty.divided, ddof=1, added=1e-6)),
    "OpenRLHF": (presets.openrlhf().advantage, partial(difficulty.divided, ddof=1, added=1e-9)),
}
"""What the library computes, and the same by hand."""
BY_HAND: dict[str, difficulty.Rule] = {
    "open-instruct": partial(difficulty.divided, added=1e-8),
    "NeMo-RL": difficulty.without_own,
}
"""From the recorded formulas (open-instruct 0.3.0 with its option on; NeMo-RL 0.6.0, leave-one-out)."""
TRIED = 4
"""Groups that are enumerated."""


def table(rules: Mapping[str, difficulty.Rule], groups: Iterable[int], rates: np.ndarray) -> xr.DataArray:
    """w by rule, group size and success rate."""
    sizes = list(groups)
    found = [[difficulty.weight_of(rule, rates, g) for g in sizes] for rule in rules.values()]
    return xr.DataArray(found, {"rule": list(rules), "group_size": sizes, "rate": rates})


def gap_to_groups(
    advantage: Any, rule: difficulty.Rule, *, group_size: int, seed: int, noise: Any = None
) -> float:
    """Largest gap of the library's update of random trees to the mean over all groups in NumPy."""
    logits = _logits(seed)
    moved = _moved(advantage, REWARDS, logits, group_size, noise)
    pairs = zip(logits, REWARDS, strict=True)
    by_hand = [difficulty.enumerated(SPACE, row, rewards, rule, group_size) for row, rewards in pairs]
    return float(abs(moved - by_hand).max())


def gap_to_weight(
    advantage: Any,
    weight: Callable[[float], Any],
    *,
    group_size: int,
    seed: int,
    flips: float = 0.0,
    noise: Any = None,
) -> float:
    """Largest gap of the library's update of random trees to w(p)∇p, with a verifier that errs so often.

    Args:
      advantage: the library's.
      weight: w of a success rate p, before the verifier errs.
      group_size, seed: of the groups, and of the trees.
      flips: chance that a right answer is called wrong, and a wrong one right.
      noise: of the rewards.
    """
    logits, gap = _logits(seed), 0.0
    moved = _moved(advantage, REWARDS + flips * (1 - 2 * REWARDS), logits, group_size, noise)
    for row, rewards, update in zip(logits, REWARDS, moved, strict=True):
        p, slope = difficulty.slope(SPACE, row, rewards)
        gap = max(gap, abs(update - weight(p) * slope).max())
    return float(gap)


def _logits(seed: int) -> np.ndarray:
    shape = (len(REWARDS), SPACE.offsets[-1], SPACE.vocab)
    return np.random.default_rng(seed).normal(size=shape)


def _moved(advantage: Any, rewards: np.ndarray, logits: np.ndarray, size: int, noise: Any) -> np.ndarray:
    method = replace(PLAIN, advantage=advantage)
    return len(rewards) * expected_update(method, SPACE, logits, rewards, group_size=size, noise=noise)


def identities(flips: float) -> xr.DataArray:
    """Largest gaps of every convention's update to all groups in NumPy, and to w(p)∇p; there also with a
    verifier that errs so often, either way."""
    told: dict[str, Any] = {"group_size": TRIED, "seed": 2, "noise": Bernoulli()}
    found = [
        [
            gap_to_weight(advantage, partial(_seen, rule), **told),
            gap_to_weight(advantage, partial(_seen, rule, flips=flips), flips=flips, **told),
            gap_to_groups(advantage, rule, **told),
        ]
        for advantage, rule in CONVENTIONS.values()
    ]
    against = ["w(p)∇p", "w(p)∇p, with errors", "all groups"]
    return xr.DataArray(found, {"rule": list(CONVENTIONS), "against": against})


def _seen(rule: difficulty.Rule, p: float, flips: float = 0.0) -> Any:
    """w by what a verifier sees of p; where all answers are right no group has a gradient."""
    rate = np.asarray(p + flips * (1 - 2 * p))
    return 0.0 if rate >= 1 - 1e-6 else (1 - 2 * flips) * difficulty.weight_of(rule, rate, TRIED)
