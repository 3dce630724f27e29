"""Means over the tokens of a sequence, a prompt, a batch or a micro-batch: the library's weights and updates.

They are held against loops in NumPy (``formulas.denominators``).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from experiments.formulas import denominators
from experiments.problems.updates import PLAIN
from grpo_jax import surrogate
from grpo_jax.parts.reductions import Constant, MicroBatches, PerGroupToken, PerSequence, PerToken, Reduction
from grpo_jax.types import Rollout

PARTS = 4
"""Micro-batches of a batch."""
MEANS: dict[str, Reduction] = {
    "sequence": PerSequence(),
    "prompt": PerGroupToken(),
    "batch": PerToken(),
    "micro-batches": MicroBatches(inner=PerToken(), count=PARTS),
    "constant": Constant(length=1.0),
}
GROUP = 8
CHANCE, PAIR = np.array([0.3, 0.6]), np.array([3, 6])
"""Success rates and tokens of two prompts whose every joint batch is enumerated."""


def batch(lengths: np.ndarray, rewards: Any = None) -> Rollout:
    """A batch of answers of these lengths [P, N]."""
    mask = (np.arange(int(lengths.max())) < lengths[:, :, None]).astype(float)
    shape = lengths.shape
    one = np.zeros(shape) if rewards is None else rewards
    blank = jnp.zeros(mask.shape)
    return Rollout(
        prompts=jnp.arange(shape[0]), tokens=blank.astype(int), mask=jnp.asarray(mask),
        rewards=jnp.asarray(one)[:, :, None], multiplicity=jnp.ones(shape), sampling_logp=blank,
        old_logp=blank, ref_logp=blank,
    )  # fmt: skip


def weights(lengths: np.ndarray, reduction: Reduction) -> np.ndarray:
    """[P, N] the library's weight of an answer's tokens, which all have the same."""
    return np.asarray(reduction(batch(lengths))).max(2)


def weights_of_prompts(lengths: Sequence[int], mean: str) -> np.ndarray:
    """[P] the library's weight of the tokens of prompts all of whose answers have these lengths."""
    return weights(np.repeat(np.array(lengths)[:, None], GROUP, 1), MEANS[mean])[:, 0]


def updates(chance: np.ndarray, lengths: np.ndarray, mean: str) -> np.ndarray:
    """[P] the library's expected update of the first token's log-odds, over every joint batch of pairs."""
    reduction = MicroBatches(count=len(chance)) if mean == "micro-batches" else MEANS[mean]
    method = replace(PLAIN, reduction=reduction)
    whole = np.repeat(lengths[:, None], 2, 1)
    drawn = np.array(list(itertools.product((0.0, 1.0), repeat=whole.size))).reshape(-1, *whole.shape)
    law = np.where(drawn > 0, chance[:, None], 1 - chance[:, None]).prod((1, 2))

    def value(odds: jax.Array, right: jax.Array) -> jax.Array:
        rollout = batch(whole, right)
        sign = jnp.where(right > 0, 1.0, -1.0)
        logp = jnp.zeros(rollout.mask.shape).at[:, :, 0].set(jax.nn.log_sigmoid(sign * odds[:, None]))
        return surrogate.objective(method, rollout, surrogate.advantages(method, rollout), logp)

    slopes = jax.jit(jax.vmap(jax.grad(value), (None, 0)))(jnp.log(chance / (1 - chance)), drawn)
    return law @ np.asarray(slopes)


def identities(orders: Mapping[str, Sequence[int]]) -> xr.Dataset:
    """By mean the gaps of token weights and expected updates to NumPy's; the weight of ∇J of two prompts in
    the update; how many times the smallest weight the greatest is, for prompts of these lengths, in order;
    the gap of a sequence mean in micro-batches; and the tokens of the longer prompt over the other's."""
    ragged = np.random.default_rng(4).integers(1, 9, (8, 6))
    by_hand = [denominators.token_weights(ragged, mean, parts=PARTS) for mean in MEANS]
    gaps = [abs(weights(ragged, MEANS[m]) - told).max() for m, told in zip(MEANS, by_hand, strict=True)]
    moved = np.array([updates(CHANCE, PAIR, mean) for mean in MEANS])
    told = [denominators.expected_update(CHANCE, PAIR, mean, group_size=2, parts=2) for mean in MEANS]
    folds = [[np.ptp(np.log(weights_of_prompts(row, mean))) for row in orders.values()] for mean in MEANS]
    nested = weights(ragged, MicroBatches(inner=PerSequence(), count=PARTS)) - weights(ragged, PerSequence())
    tokens = weights_of_prompts(PAIR.tolist(), "batch") * PAIR
    return xr.Dataset({
        "weights": xr.DataArray(gaps, {"mean": list(MEANS)}),
        "updates": xr.DataArray(abs(moved - told).max(1), {"mean": list(MEANS)}),
        "gradient": xr.DataArray(moved / (CHANCE * (1 - CHANCE)), {"mean": list(MEANS), "tokens": PAIR}),
        "fold": xr.DataArray(np.exp(folds), {"mean": list(MEANS), "order": list(orders)}),
        "nested": abs(nested).max(),
        "pair": tokens[1] / tokens[0],
    })  # fmt: skip
