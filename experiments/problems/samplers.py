"""Trees whose groups another policy samples, with every handling of that a setting of numbers.

Used by the claims on top-p and temperature: one program trains all of their settings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.problems.trees import Blend, Groups, Problem, questions
from experiments.problems.weights import LengthPower
from grpo_jax import diagnostics
from grpo_jax.decoding import Decoding
from grpo_jax.measures import View
from grpo_jax.methods import SHIFT
from grpo_jax.parts.gains import Clip
from grpo_jax.parts.penalties import K2, Penalty
from grpo_jax.parts.sampler import SamplerMismatch
from grpo_jax.types import Array

INF = float("inf")
PATHS = ("proximal.weight", "clip_low", "clip_high", "corrections.0.ratio.trajectory", "corrections.0.low",
         "corrections.0.high")  # fmt: skip
"""What tells handlings in the trainer apart."""
NONE = (0.0, 1.0, INF, 0.0, 1.0, 1.0)
"""The sampler is taken for π_old."""
TOKEN = (0.0, 1.0, INF, 0.0, 0.0, 2.0)
"""Truncated importance sampling, token by token: min(π_old/q, 2)."""
SEQUENCE = (0.0, 1.0, INF, 1.0, 0.0, INF)
"""The product of these ratios, one weight for an output."""
SAMPLER_RATIO = (1.0, 0.2, 0.2, 0.0, 1.0, 1.0)
"""The sampler's log-probabilities are the ratio's denominator, under PPO's clip."""


def training(given: Problem, *, decoding: Decoding, records: str = "processed") -> gj.Config:
    """Shift-only GRPO, one step a batch, groups of 8; every table is a question trained as if alone."""
    logits, table = questions(given)
    method = gj.Method(
        advantage=SHIFT,
        gain=Clip(low=1.0, high=INF),
        corrections=(SamplerMismatch(ratio=Blend(), low=1.0, high=1.0),),
        penalty=Penalty(divergence=K2(), coef=0.0),
        reduction=LengthPower(apart=True),
    )
    return gj.Config(
        policy=gj.TreePolicy(space=given.space, logits=logits, decoding=decoding),
        task=gj.SequenceTable(space=given.space, table=table),
        method=method,
        optimizer=gj.SGD(learning_rate=1.0),
        loop=gj.Loop(group_size=8),
        expectation=Groups(exact=1.0),
        reference=np.zeros_like(logits),
        behavior=gj.Behavior(decoding=decoding, proximal=gj.Proximal(weight=0.0), records=records),
    )


def swept(
    config: gj.Config,
    paths: tuple[str, ...],
    settings: Mapping[float, Mapping[str, tuple[float, ...]]],
    name: str,
    axes: Mapping[Any, Any],
    **told: Any,
) -> xr.Dataset:
    """Training under every handling, values of the paths, along ``name``, what the sampler is set to."""
    found = [
        gj.sweep(config, {paths: dict(handlings), **axes}, progress=False, **told)
        .rename({"+".join(paths): "handling"})
        .drop_vars(paths)
        for handlings in settings.values()
    ]
    return xr.concat(found, xr.Variable(name, list(settings)))


def _undecoded(view: View) -> Any:
    """The policy without sampling parameters."""
    policy: Any = view.config.policy
    return dataclasses.replace(policy, decoding=None)


def _under(view: View, policy: Any) -> Array:
    return diagnostics.prompt_reward(policy, view.config.task, view.params, view.prompts)


@gj.measure("context", about="J of the softmax itself, at temperature 1 and without filters")
def plain(view: View) -> Array:
    """[context] what one deploys without sampling parameters."""
    return _under(view, _undecoded(view))


@gj.measure("context", about="J of the policy as the sampler decodes it")
def decoded(view: View) -> Array:
    """[context] what one deploys with the sampler's parameters."""
    behavior = view.config.behavior
    assert behavior is not None
    return _under(view, behavior.sampler(view.config.policy))


@gj.measure("context", about="probability of outputs that the sampler cannot draw")
def outside(view: View) -> Array:
    """[context] 1 − P(K) under the softmax itself."""
    policy, behavior = view.config.policy, view.config.behavior
    assert behavior is not None
    kept = diagnostics.log_support(behavior.sampler(policy), view.params, view.prompts) > -1e20
    chance = jnp.exp(diagnostics.log_support(_undecoded(view), view.params, view.prompts))
    return jnp.sum(jnp.where(kept, 0, chance), 1)


@gj.measure("context", "row", "token", per="step", mean=True, about="expected update of the logits")
def ascended(view: Any) -> Array:
    """[context, row, token] the gradient of the surrogate, each question's as if it were alone."""
    return -view.grads
