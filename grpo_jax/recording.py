"""The named diagnostics that a run can record, each a function of one iteration's ``View``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax.numpy as jnp

from grpo_jax import diagnostics
from grpo_jax.config import Batch, Config, OwnStatistics, TrainState
from grpo_jax.part import nearest
from grpo_jax.types import Array, Tabular, support_of


class Inner(NamedTuple):
    """Averages over the inner steps of one iteration, each measured where its gradient was taken."""

    surrogate: Array
    grad_norm: Array
    update_norm: Array
    clip_high: Array
    clip_low: Array


class View(NamedTuple):
    """What a diagnostic may look at: the configuration, the state after the iteration, its batch, steps."""

    config: Config
    state: TrainState
    batch: Batch
    inner: Inner

    @property
    def logp(self) -> Array:
        """[P, N, T] log-probabilities of the batch under the parameters after the iteration."""
        assert self.config.expectation is not None
        return self.config.expectation.objective(self.config, self.batch, self.state.params)[1]

    @property
    def runs(self) -> bool:
        """Whether a trailing axis of runs is present."""
        return bool(self.state.seed.ndim)


def _expected_reward(view: View) -> Array:
    policy = view.config.policy
    return diagnostics.expected_reward(
        policy, view.config.task, view.state.params, diagnostics.all_prompts(policy)
    )


def _entropy(view: View) -> Array:
    policy = view.config.policy
    return diagnostics.entropy(policy, view.state.params, diagnostics.all_prompts(policy))


def _kl(view: View) -> Array:
    policy, state = view.config.policy, view.state
    return diagnostics.kl(policy, state.params, state.ref_params, diagnostics.all_prompts(policy))


def _kl_reverse(view: View) -> Array:
    policy, state = view.config.policy, view.state
    return diagnostics.kl(policy, state.ref_params, state.params, diagnostics.all_prompts(policy))


def _probabilities(view: View) -> Array:
    policy = view.config.policy
    return jnp.exp(diagnostics.log_support(policy, view.state.params, diagnostics.all_prompts(policy)))


def _finite(view: View) -> Array:
    policy = view.config.policy
    start = policy.logits if isinstance(policy, Tabular) else None
    return diagnostics.finite(view.state.params, runs=view.runs, start=start)


def clip_fractions(config: Config, batch: Batch, logp: Array) -> tuple[Array, Array]:
    """Share of the batch's tokens that the clip holds, above and below; an expectation may have its own."""
    if isinstance(config.expectation, OwnStatistics):
        return config.expectation.clip_fractions(config, batch, logp)
    return diagnostics.clip_fractions(config.method, batch.rollout, batch.advantages, logp)


def tied_share(config: Config, batch: Batch) -> Array:
    """Share of the batch's groups whose rewards all tie; an expectation may have its own."""
    if isinstance(config.expectation, OwnStatistics):
        return config.expectation.tied(config, batch)
    return diagnostics.tied_share(batch.rollout)


def _ratio(view: View) -> diagnostics.RatioStatistics:
    return diagnostics.ratio_statistics(view.config.method, view.batch.rollout, view.logp)


class Diagnostic(NamedTuple):
    """A measurement, the names of its own leading axes, and whether it lists the policy's outputs."""

    measure: Callable[[View], Array]
    dims: tuple[str, ...] = ()
    enumerates: bool = False
    about: str = ""


DIAGNOSTICS: dict[str, Diagnostic] = {
    "expected_reward": Diagnostic(_expected_reward, (), True, "J = mean over contexts of E[r], exact"),
    "entropy": Diagnostic(_entropy, (), True, "entropy of whole outputs, nats, exact"),
    "kl_ref": Diagnostic(_kl, (), True, "KL(policy || reference), nats, exact"),
    "kl_ref_reverse": Diagnostic(_kl_reverse, (), True, "KL(reference || policy), nats, exact"),
    "reward": Diagnostic(
        lambda v: diagnostics.batch_reward(v.batch.rollout), (), False, "mean sampled reward"
    ),
    "length": Diagnostic(
        lambda v: diagnostics.batch_length(v.batch.rollout), (), False, "mean sampled length"
    ),
    "surrogate": Diagnostic(lambda v: v.inner.surrogate, (), False, "surrogate J, mean over inner steps"),
    "grad_norm": Diagnostic(lambda v: v.inner.grad_norm, (), False, "gradient norm, mean over inner steps"),
    "update_norm": Diagnostic(lambda v: v.inner.update_norm, (), False, "update norm, mean over inner steps"),
    "clip_high": Diagnostic(
        lambda v: v.inner.clip_high, (), False, "share of tokens held above, mean over steps"
    ),
    "clip_low": Diagnostic(
        lambda v: v.inner.clip_low, (), False, "share of tokens held below, mean over steps"
    ),
    "ratio_min": Diagnostic(lambda v: _ratio(v).low, (), False, "least ratio after the last inner step"),
    "ratio_max": Diagnostic(lambda v: _ratio(v).high, (), False, "greatest ratio after the last inner step"),
    "ratio_quantiles": Diagnostic(
        lambda v: _ratio(v).quantiles,
        ("quantile",),
        False,
        "quantiles of the ratio after the last inner step",
    ),
    "tied": Diagnostic(lambda v: tied_share(v.config, v.batch), (), False, "share of tied groups"),
    "finite": Diagnostic(_finite, (), False, "all parameters are finite, but logits that start at -inf"),
    "probabilities": Diagnostic(_probabilities, ("context", "output"), True, "probability of every output"),
}
"""Name -> diagnostic."""

DEFAULT = (
    "expected_reward", "entropy", "kl_ref", "reward", "surrogate", "grad_norm", "update_norm",
    "clip_high", "clip_low", "tied", "finite",
)  # fmt: skip


def names(record: Iterable[str] | None, config: Config) -> tuple[str, ...]:
    """The diagnostics to record; None is ``DEFAULT`` less what needs a support that the policy lacks."""
    if isinstance(record, str):
        raise TypeError(f"record is {record!r}; it must be a list of names")
    if record is not None:
        record = tuple(record)
        for name in record:
            if name not in DIAGNOSTICS:
                raise ValueError(f"unknown diagnostic {name!r}; {nearest(name, DIAGNOSTICS)}")
        return tuple(dict.fromkeys([*record, "finite"]))
    listable = config.policy.contexts is not None and (
        support_of(config.policy, diagnostics.all_prompts(config.policy)) is not None
    )
    return tuple(name for name in DEFAULT if listable or not DIAGNOSTICS[name].enumerates)
