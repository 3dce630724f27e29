"""How a sampled gradient and a sampled optimizer step scatter, exactly; one run at a time."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from grpo_jax import optimizers
from grpo_jax.collectors import draw_prompts, with_entropy
from grpo_jax.config import Config
from grpo_jax.exact.expectation import Enumeration, Exact, enumeration, every_score, expect
from grpo_jax.exact.gradient import decided, points, state_of
from grpo_jax.exact.groups import MAX_GROUPS, require_couplings
from grpo_jax.exact.outcomes import outcomes
from grpo_jax.surrogate import advantages, objective_terms
from grpo_jax.types import Array, Params, Rollout, evaluated_at_old


class Law(NamedTuple):
    """Mean and covariance of a random vector over the flattened parameters (``ravel_pytree``)."""

    mean: Array
    """[D]."""
    covariance: Array
    """[D, D]."""

    @property
    def signal_to_noise(self) -> Array:
        """‖mean‖²/tr(covariance)."""
        return jnp.sum(self.mean**2) / jnp.trace(self.covariance)


def gradient_law(
    config: Config, params: Params, *, old: Params | None = None, reference: Params | None = None
) -> Law:
    """Mean and covariance of ∇J(θ) over groups: prompts are independent, so their covariances add.

    [D] and [D, D] over the D flattened parameters.

    Arguments are those of ``expected_gradient``, for one run. Cells do not serve here: it matters which
    outcomes of a cell are drawn. ValueError for more than ``MAX_GROUPS`` histograms.
    """
    return _gradient_law(_histograms(config), *_evaluated(config, params, old, reference))


def step_law(
    config: Config,
    params: Params,
    opt_state: Any = None,
    *,
    old: Params | None = None,
    reference: Params | None = None,
) -> Law:
    """Mean and covariance of θ after one optimizer step on one batch of sampled groups (μ = 1).

    The groups of all prompts are enumerated jointly, since an optimizer is not linear: ValueError for more
    than ``MAX_GROUPS`` combinations. For SGD the law is θ + lr·E[∇J] and lr²·Cov[∇J], by ``gradient_law``.

    Args:
      config: its optimizer takes the step.
      params: θ, of one run.
      opt_state: the optimizer's state; None is a fresh one.
      old: θ_old; None is θ.
      reference: θ_ref; None is ``config.reference``, and θ_old where that is None, too.
    """
    at, old, reference = _evaluated(config, params, old, reference)
    params = points(config, params, old, reference)[0]
    if opt_state is None:
        opt_state = optimizers.init(config.optimizer, params, runs=False)
    return _step_law(_histograms(config), params, opt_state, at, old, reference)


def _histograms(config: Config) -> Config:
    return decided(dataclasses.replace(config, expectation=Exact(cells=0)))


def _evaluated(config: Config, params: Params, old: Params | None, reference: Params | None) -> Any:
    params, old, reference = points(config, params, old, reference)
    return (old if evaluated_at_old(config.method.ratio) else params), old, reference


class _Scatter(NamedTuple):
    """Every histogram's derivative in log-probabilities, and the way from there to parameters."""

    every: Enumeration
    jacobian: Array
    """[P, N·T, D] of log-probabilities."""
    logp: Array
    rollout: Rollout

    def cotangent(self, config: Config, group: Rollout, advantage: Array) -> Array:
        """[P, N·T] ∂J/∂log π of a group."""
        group = group._replace(entropy=self.rollout.entropy)

        def total(logp: Array) -> Array:
            return jnp.sum(objective_terms(config.method, group, advantage, logp))

        return jax.grad(total)(self.logp).reshape(self.logp.shape[0], -1)


def _scatter(config: Config, params: Params, old: Params, reference: Params) -> _Scatter:
    config, state = state_of(config, old, reference)
    if state.seed.ndim:
        raise ValueError("the law of a gradient takes one run at a time; use jax.vmap")
    prompts = draw_prompts(config, state)
    require_couplings(config.method, len(prompts))
    rollout, origin = outcomes(config, state, prompts)
    lost = None if origin is None else origin.lost
    flat, restore = ravel_pytree(params)
    scores = every_score(config, rollout, params)

    def log_probabilities(x: Array) -> Array:
        logp = every_score(config, rollout, restore(x)).logp
        return jnp.where(rollout.multiplicity[:, :, None] > 0, logp, 0).reshape(logp.shape[0], -1)

    return _Scatter(
        every=enumeration(config, rollout, group_size=config.loop.group_size, cells=0, lost=lost),
        jacobian=jax.jacobian(log_probabilities)(flat),
        logp=scores.logp,
        rollout=with_entropy(rollout, scores),
    )


@jax.jit
def _gradient_law(config: Config, params: Params, old: Params, reference: Params) -> Law:
    here = _scatter(config, params, old, reference)
    slope = expect(config, here.every, lambda group, a: here.cotangent(config, group, a))

    def outer(group: Rollout, advantage: Array) -> Array:
        away = here.cotangent(config, group, advantage) - slope
        return away[:, :, None] * away[:, None]

    spread = expect(config, here.every, outer)
    covariance = jnp.einsum("pid,pij,pje->de", here.jacobian, spread, here.jacobian)
    return Law(mean=jnp.einsum("pi,pid->d", slope, here.jacobian), covariance=covariance)


@jax.jit
def _step_law(
    config: Config, params: Params, opt_state: Any, at: Params, old: Params, reference: Params
) -> Law:
    here = _scatter(config, at, old, reference)
    prompts, count = here.jacobian.shape[0], len(here.every.counts)
    if count**prompts > MAX_GROUPS:
        raise ValueError(
            f"{count**prompts} joint groups of {prompts} prompts, more than {MAX_GROUPS}; use fewer prompts, "
            "a smaller group, or gradient_law where the optimizer is SGD"
        )

    def one(counts: Array) -> tuple[Array, Array]:
        group = here.every.group(counts)
        slope = here.cotangent(config, group, advantages(config.method, group))
        return jnp.einsum("pi,pid->pd", slope, here.jacobian), here.every.weights(counts)

    slopes, weights = jax.vmap(one)(jnp.asarray(here.every.counts))
    joint = np.array(list(itertools.product(range(count), repeat=prompts)))
    rows = np.arange(prompts)
    flat, restore = ravel_pytree(params)

    def step(choice: Array) -> tuple[Array, Array]:
        grads = restore(-jnp.sum(slopes[choice, rows], 0))
        update = optimizers.step(config.optimizer, grads, opt_state, params, runs=False)[2]
        return ravel_pytree(update)[0], jnp.prod(weights[choice, rows])

    updates, chance = jax.vmap(step)(jnp.asarray(joint))
    mean = jnp.sum(chance[:, None] * jnp.where(chance[:, None] > 0, updates, 0), 0)
    away = jnp.where(chance[:, None] > 0, updates - mean, 0)
    return Law(mean=flat + mean, covariance=jnp.einsum("h,hd,he->de", chance, away, away))
