"""Estimators of the divergence from the reference; numbers choose one, so that a program serves all."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.problems.answers import method
from grpo_jax.exact import divergences, expected_gradient
from grpo_jax.part import put
from grpo_jax.parts.penalties import K1, K2, K3, Penalty, RatioWeight
from grpo_jax.parts.reductions import Constant, Reduction
from grpo_jax.types import Array, Evaluation

ESTIMATORS = {
    "k1": Penalty(divergence=K1(), coef=1.0),
    "k2": Penalty(divergence=K2(), coef=1.0),
    "k3": Penalty(divergence=K3(), coef=1.0),
    "ratio x k3": Penalty(divergence=K3(), weight=RatioWeight(), coef=1.0),
}


@gj.part
class Chosen:
    """A weighted sum of the estimators, so that one program serves all of them."""

    weights: Any = gj.number(rank=1)
    coef: Any = gj.number(0.0)
    reduce: Reduction | None = None

    def __call__(self, at: Evaluation) -> Array:
        values = [penalty(at) for penalty in ESTIMATORS.values()]
        chosen = sum((w * value for w, value in zip(self.weights, values, strict=True)), jnp.zeros(()))
        return self.coef * chosen


def weights(names: Iterable[str]) -> dict[str, np.ndarray]:
    """Estimators as an axis of a sweep."""
    return {name: np.array([float(name == other) for other in ESTIMATORS]) for name in names}


def penalized(**changes: Any) -> gj.Method:
    """[A]'s method with a penalty that a sweep, or runs, choose."""
    chosen: dict[str, Any] = {"weights": np.zeros(len(ESTIMATORS)), "coef": 1.0} | changes
    return dataclasses.replace(method(), penalty=Chosen(**chosen))


def missed_on_trees(horizons: Iterable[int], trees: int, seed: int) -> xr.DataArray:
    """By how much token-wise k2 and k3 miss gradients of divergences, over the norm of the sequences' one.

    Args:
      horizons: tokens in a sequence over three symbols.
      trees: random pairs of π and π_ref.
      seed: of the pairs.
    """
    found = []
    for horizon in horizons:
        space = gj.Sequences(vocab=3, horizon=horizon)
        nodes = space.offsets[-1]
        now, anchor = np.random.default_rng(seed + horizon).normal(size=(2, 1, nodes, 3, trees))
        config = gj.Config(
            policy=gj.TreePolicy.uniform(space),
            task=gj.SequenceTable(space=space, table=np.zeros((1, 3**horizon))),
            method=dataclasses.replace(penalized(), reduction=Constant(length=1.0)),
            optimizer=gj.SGD(),
            loop=gj.Loop(group_size=2),
            expectation=gj.Exact(),
        )
        aims = jax.jit(divergences.divergence_gradients)(config.policy, now, anchor)
        for name, whole in (("k2", divergences.FORWARD), ("k3", divergences.BACKWARD)):
            chosen = put(config, "method.penalty.weights", weights([name])[name])
            gradient = -np.asarray(expected_gradient(chosen, now, reference=anchor))
            held_at = {"prefix": divergences.TOKENWISE.format(whole), "sequence": whole}
            for held, aim in held_at.items():
                gap, norm = gradient - aims[aim], np.linalg.norm(aims[whole], axis=(1, 2))
                missed = np.linalg.norm(gap, axis=(1, 2)) / norm
                place = {"horizon": [horizon], "estimator": [name], "held": [held]}
                found.append(xr.DataArray(missed[None, None], place, (*place, "tree")))
    return xr.combine_by_coords([each.to_dataset(name="missed") for each in found]).missed
