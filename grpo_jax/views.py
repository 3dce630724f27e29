"""What measures look at: an optimizer step, and an iteration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from grpo_jax import diagnostics
from grpo_jax.config import Batch, Config, OwnStatistics, TrainState
from grpo_jax.parts.gains import ClipMask, clip_mask
from grpo_jax.surrogate import sanitized
from grpo_jax.types import Array, Params


def clip_fractions(config: Config, batch: Batch, logp: Array) -> tuple[Array, Array]:
    """Share of the batch's tokens that the clip holds, above and below; an expectation may have its own.

    logp [P, N, T(, R)]; two scalars, or [R].
    """
    if isinstance(config.expectation, OwnStatistics):
        return config.expectation.clip_fractions(config, batch, logp)
    return diagnostics.clip_fractions(config.method, batch.rollout, batch.advantages, logp)


class StepView(NamedTuple):
    """What a measure per optimizer step may look at, all where the step's gradient was taken."""

    config: Config
    batch: Batch
    """What the step was taken on: the whole batch, or its minibatch."""
    params: Params
    """Before the step."""
    logp: Array
    """[P, N, T(, R)] log-probabilities of the batch's tokens."""
    surrogate: Array
    """J, a scalar or [R]."""
    grads: Params
    """Gradient of the loss −J."""
    updates: Params
    """What the optimizer adds to the parameters."""
    runs: bool
    """Whether a trailing axis of runs is present."""

    @property
    def log_ratio(self) -> Array:
        """[P, N, T(, R)] the method's log ratio; 0 where masked."""
        rollout, logp = sanitized(self.batch.rollout, self.logp)
        return self.config.method.ratio(rollout, logp)

    @property
    def token_weight(self) -> Array:
        """[P, N, T(, R or 1)] how many tokens of the batch each one stands for: 0 where there is none."""
        return diagnostics.token_weight(self.batch.rollout)

    @property
    def clip_mask(self) -> ClipMask:
        """Where the clip holds a token's gain; ValueError where groups are summed over, not drawn."""
        if isinstance(self.config.expectation, OwnStatistics):
            name = type(self.config.expectation).__name__
            raise ValueError(f"{name}() sums over groups, so no token has one clip mask; use clip fractions")
        return clip_mask(self.config.method.gain, self.log_ratio, self.batch.advantages)

    @property
    def clip_fractions(self) -> tuple[Array, Array]:
        """Share of the tokens that the clip holds, above and below."""
        return clip_fractions(self.config, self.batch, self.logp)


class View(NamedTuple):
    """What a measure may look at after an iteration."""

    config: Config
    state: TrainState
    """After the iteration."""
    batch: Batch
    """What the iteration was trained on; at iteration 0 what the first one will be."""
    steps: Mapping[str, Array]
    """Measures per step that were asked for, each [μ·minibatches, ...(, R)]; NaN at iteration 0."""

    @property
    def logp(self) -> Array:
        """[P, N, T(, R)] log-probabilities of the batch under the parameters after the iteration."""
        assert self.config.expectation is not None
        return self.config.expectation.objective(self.config, self.batch, self.state.params)[1]

    @property
    def params(self) -> Params:
        """The parameters after the iteration."""
        return self.state.params

    @property
    def prompts(self) -> Any:
        """Every context once."""
        return diagnostics.all_prompts(self.config.policy)

    @property
    def probabilities(self) -> Array:
        """[C, S(, R)] probability of every output; ValueError where outputs cannot be listed."""
        return jnp.exp(diagnostics.log_support(self.config.policy, self.params, self.prompts))

    @property
    def runs(self) -> bool:
        """Whether a trailing axis of runs is present."""
        return bool(self.state.seed.ndim)
