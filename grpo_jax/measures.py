"""What a run records: named diagnostics and measures of a user's own, each a function of a ``View``.

A measure of one's own is three lines, and names its axes:

    @gj.measure("context", "answer")
    def policy(view):
        return view.probabilities

    gj.sweep(config, iterations=100, measure={"policy": policy})

Own axes come first, runs last. A measure ``per="step"`` looks at one optimizer step (``StepView``) and is
recorded along the dimension ``inner_step``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from grpo_jax import diagnostics
from grpo_jax.bounds import whole
from grpo_jax.config import OwnStatistics, prompt_count
from grpo_jax.diagnostics import QUANTILES
from grpo_jax.kernels import exponential
from grpo_jax.part import nearest, subparts
from grpo_jax.surrogate import sanitized
from grpo_jax.types import Array, HasHeldOut, LimitsWeights, Params, Tabular
from grpo_jax.views import StepView, View

TOKENS = ("prompt", "entry", "token")
STEP = "inner_step"
"""The dimension of what is recorded per optimizer step."""


@dataclasses.dataclass(frozen=True)
class Measure:
    """A function of a view, its own axes by name, their labels, and when it is taken."""

    function: Callable[[Any], Array]
    """``View`` (``StepView`` where ``per`` is "step") -> [own axes...(, R)]."""
    dims: tuple[str, ...] | None = None
    """Names of its own axes; None names them after the measure."""
    labels: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    """(dimension, a label for each of its places)."""
    about: str = ""
    """What it is, in a few words; with its unit."""
    per: Literal["iteration", "step"] = "iteration"
    mean: bool = False
    """Of a measure per step: recorded as the mean over the iteration's steps."""
    enumerates: bool = False
    """Whether it lists the policy's outputs."""
    averaged: bool = True
    """Whether ``average_from`` averages it; otherwise it is kept as it is in the end."""

    def __call__(self, view: Any) -> Array:
        return self.function(view)

    @property
    def stacked(self) -> bool:
        """Whether it is recorded along ``inner_step``."""
        return self.per == "step" and not self.mean


def measure(
    *dims: str,
    labels: Mapping[str, Sequence[Any]] | None = None,
    about: str = "",
    per: Literal["iteration", "step"] = "iteration",
    mean: bool = False,
) -> Callable[[Callable[[Any], Array]], Measure]:
    """A decorator that makes a function of a view a measure with named axes.

    >>> @measure("context", labels={"context": ["easy", "hard"]}, about="largest logit")
    ... def peak(view):
    ...     return jnp.max(view.state.params, 1)
    >>> peak.dims
    ('context',)

    Args:
      dims: names of the function's own axes, in order; none for one number a run.
      labels: dimension -> a label for each of its places.
      about: what it is, for the dataset's metadata.
      per: "iteration" (the function takes a ``View``) or "step" (a ``StepView``, once an optimizer step).
      mean: of a measure per step, record the mean over the iteration's steps.
    """
    if per not in ("iteration", "step"):
        raise ValueError(f"per is {per!r}; it must be 'iteration' or 'step'")
    if mean and per != "step":
        raise ValueError("mean=True is for measures per step; average_from= averages over iterations")
    for name in dims:
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"the axis {name!r} of a measure must be a name, such as 'context'")
    if len(set(dims)) < len(dims):
        raise ValueError(f"the axes {dims} of a measure repeat a name")
    for name in labels or {}:
        if name not in dims:
            raise ValueError(
                f"labels are given for {name!r}, which is none of the axes; {nearest(name, dims)}"
            )
    fixed = tuple((name, tuple(values)) for name, values in (labels or {}).items())
    return lambda function: Measure(function, dims, fixed, about, per, mean)


def held_out(prompts: int = 256) -> Measure:
    """Share of held-out problems that the policy answers right, one sampled answer to each.

    >>> held_out(1024).about
    'share of 1024 held-out problems answered right, sampled'

    Args:
      prompts: how many are asked at each recorded iteration, drawn anew; the standard error is √(p(1 − p)/n).
    """
    whole("prompts", prompts)
    return Measure(
        _HeldOut(prompts), (), about=f"share of {prompts} held-out problems answered right, sampled"
    )


@dataclasses.dataclass(frozen=True)
class _HeldOut:
    """Equal ones are one program."""

    prompts: int

    def __call__(self, view: View) -> Array:
        policy, task, state = view.config.policy, view.config.task, view.state
        if not isinstance(task, HasHeldOut):
            raise ValueError(f"{type(task).__name__} holds no problems out (no ``held_out_prompts``)")

        def one(params: Params, seed: Array) -> Array:
            at = (state.root, seed, state.step)
            return diagnostics.held_out_accuracy(policy, task, params, at, self.prompts)

        return (
            jax.vmap(one, in_axes=-1)(view.params, state.seed) if view.runs else one(view.params, state.seed)
        )


def _tied(view: View) -> Array:
    if isinstance(view.config.expectation, OwnStatistics):
        return view.config.expectation.tied(view.config, view.batch)
    return diagnostics.tied_share(view.batch.rollout)


def _prompt_reward(view: View) -> Array:
    policy, task = view.config.policy, view.config.task
    return diagnostics.prompt_reward(policy, task, view.state.params, view.prompts)


def _kl(view: View) -> Array:
    state = view.state
    return diagnostics.kl(view.config.policy, state.params, state.ref_params, view.prompts)


def _kl_reverse(view: View) -> Array:
    state = view.state
    return diagnostics.kl(view.config.policy, state.ref_params, state.params, view.prompts)


def _ratio(view: View) -> diagnostics.RatioStatistics:
    return diagnostics.ratio_statistics(view.config.method, view.batch.rollout, view.logp)


def _mismatch(view: View) -> diagnostics.MismatchStatistics:
    rollout, origin = view.batch.rollout, view.batch.origin
    if origin is not None and origin.trainer_logp is not None:
        rollout = rollout._replace(old_logp=origin.trainer_logp)
    return diagnostics.mismatch_statistics(rollout)


def _age(view: View) -> Array:
    """No policy is older than the run."""
    behavior, origin = view.config.behavior, view.batch.origin
    age = jnp.zeros(()) if behavior is None or behavior.age is None else jnp.asarray(behavior.age.lag)
    if origin is not None and origin.age is not None:
        age = origin.age
    done = jnp.maximum(view.state.step, 1) - 1
    return diagnostics.over_answers(view.batch.rollout, jnp.minimum(age, done.astype(float)))


def _kept_mass(view: View) -> Array:
    origin, rollout = view.batch.origin, view.batch.rollout
    kept = jnp.ones_like(rollout.old_logp) if origin is None or origin.kept is None else origin.kept
    return diagnostics.over_tokens(rollout, kept)


def _limited(view: View) -> Array:
    rollout, _ = sanitized(view.batch.rollout, jnp.zeros(()))
    parts = [p for p in subparts(view.config.method) if isinstance(p, LimitsWeights)]
    anywhere = sum((p.limited(rollout) for p in parts), jnp.zeros(rollout.old_logp.shape, bool))
    return diagnostics.over_tokens(rollout, anywhere.astype(float))


def _arrived(view: View) -> Array:
    drawn = view.config.loop.group_size * prompt_count(view.config)
    return jnp.sum(view.batch.rollout.multiplicity, (0, 1)) / drawn


def _samples_drawn(view: View) -> Array:
    drawn = view.batch.drawn
    if drawn is None:
        drawn = jnp.ones_like(view.batch.rollout.multiplicity[:, 0])
    return view.config.loop.group_size * jnp.sum(drawn, 0)


def _finite(view: View) -> Array:
    start = view.config.policy.logits if isinstance(view.config.policy, Tabular) else None
    return diagnostics.finite(view.state.params, runs=view.runs, start=start)


def _live(view: StepView, values: Array) -> Array:
    """[P, N, T] values, NaN where no token of the batch is: masked, or of an output that was not drawn."""
    return jnp.where(view.token_weight > 0, values, jnp.nan)


def _ratio_now(view: StepView) -> Array:
    return _live(view, exponential(view.log_ratio))


def _held(view: StepView) -> Array:
    mask = view.clip_mask
    return _live(view, mask.high.astype(float) - mask.low.astype(float))


def _iteration(
    function: Callable[[View], Array], about: str, *dims: str, enumerates: bool = False
) -> Measure:
    return Measure(function, dims, about=about, enumerates=enumerates)


STEPS: dict[str, Measure] = {
    "surrogate": Measure(lambda v: v.surrogate, (), about="surrogate J", per="step"),
    "grad_norm": Measure(
        lambda v: diagnostics.norm(v.grads, runs=v.runs), (), about="gradient norm", per="step"
    ),
    "update_norm": Measure(
        lambda v: diagnostics.norm(v.updates, runs=v.runs), (), about="update norm", per="step"
    ),
    "clip_fraction_high": Measure(
        lambda v: v.clip_fractions[0],
        (),
        about="share of tokens that the clip holds above, as the gain's clip_mask says",
        per="step",
    ),
    "clip_fraction_low": Measure(
        lambda v: v.clip_fractions[1],
        (),
        about="share of tokens that the clip holds below, as the gain's clip_mask says",
        per="step",
    ),
}
"""Recorded as means over an iteration's optimizer steps, and one by one as ``step_...``."""

DIAGNOSTICS: dict[str, Measure] = {
    "expected_reward": _iteration(
        lambda v: diagnostics.expected_reward(v.config.policy, v.config.task, v.state.params, v.prompts),
        "J = mean over contexts of E[r], exact",
        enumerates=True,
    ),
    "entropy": _iteration(
        lambda v: diagnostics.entropy(v.config.policy, v.params, v.prompts),
        "entropy of whole outputs, nats, exact",
        enumerates=True,
    ),
    "kl_ref": _iteration(_kl, "KL(policy || reference), nats, exact", enumerates=True),
    "kl_ref_reverse": _iteration(_kl_reverse, "KL(reference || policy), nats, exact", enumerates=True),
    "prompt_reward": _iteration(_prompt_reward, "E[r] of every context, exact", "context", enumerates=True),
    "reward": _iteration(lambda v: diagnostics.batch_reward(v.batch.rollout), "mean sampled reward"),
    "length": _iteration(lambda v: diagnostics.batch_length(v.batch.rollout), "mean sampled length, tokens"),
    "length_right": _iteration(
        lambda v: diagnostics.length_where(v.batch.rollout, right=True),
        "mean sampled length of outputs with positive reward, tokens; NaN without any",
    ),
    "length_wrong": _iteration(
        lambda v: diagnostics.length_where(v.batch.rollout, right=False),
        "mean sampled length of outputs without positive reward, tokens; NaN without any",
    ),
    **{
        name: dataclasses.replace(made, about=f"{made.about}, mean over inner steps", mean=True)
        for name, made in STEPS.items()
    },
    **{
        f"step_{name}": dataclasses.replace(made, about=f"{made.about}, per step")
        for name, made in STEPS.items()
    },
    "step_ratio": Measure(
        _ratio_now,
        TOKENS,
        about="ratio where each step's gradient was taken; NaN where no token is",
        per="step",
    ),
    "step_clip_mask": Measure(
        _held,
        TOKENS,
        about="1 held above, -1 held below by the clip, else 0; NaN where no token is",
        per="step",
    ),
    "step_weight": Measure(
        lambda v: v.token_weight,
        TOKENS,
        about="how many tokens of the batch each place stands for: 0 where none is, counts under Counts()",
        per="step",
    ),
    "ratio_min": _iteration(lambda v: _ratio(v).low, "least ratio after the last inner step"),
    "ratio_max": _iteration(lambda v: _ratio(v).high, "greatest ratio after the last inner step"),
    "ratio_quantiles": Measure(
        lambda v: _ratio(v).quantiles,
        ("quantile",),
        (("quantile", QUANTILES),),
        "quantiles of the ratio after the last inner step",
    ),
    "mismatch": _iteration(lambda v: _mismatch(v).mean, "π_old over the sampler, mean over sampled tokens"),
    "mismatch_min": _iteration(lambda v: _mismatch(v).low, "least π_old over the sampler of a sampled token"),
    "mismatch_max": _iteration(
        lambda v: _mismatch(v).high, "greatest π_old over the sampler of a sampled token"
    ),
    "mismatch_sequence": _iteration(
        lambda v: _mismatch(v).sequence, "π_old over the sampler of whole outputs, mean over samples"
    ),
    "effective_sample_size": _iteration(
        lambda v: _mismatch(v).effective,
        "effective share of the samples under weights π_old over the sampler",
    ),
    "kl_sampler": _iteration(
        lambda v: _mismatch(v).kl, "mean of log sampler − log π_old over sampled outputs, nats"
    ),
    "kept_mass": _iteration(
        _kept_mass, "mass that the sampler's filters keep, mean over the states of sampled tokens"
    ),
    "weights_limited": _iteration(
        _limited, "share of sampled tokens whose weight a sampler correction truncates or masks"
    ),
    "age": _iteration(_age, "age of the sampler's weights, iterations, mean over answers"),
    "arrived": _iteration(_arrived, "share of the answers that are not lost for their age"),
    "samples_drawn": _iteration(
        _samples_drawn, "answers drawn for the batch, those of groups that were drawn anew included"
    ),
    "tied": _iteration(_tied, "share of tied groups"),
    "finite": Measure(_finite, (), about="parameters are finite (or -inf as at the start)", averaged=False),
    "probabilities": _iteration(
        lambda v: v.probabilities,
        "probability of every output",
        "context",
        "output",
        enumerates=True,
    ),
}
"""Name -> diagnostic."""

DEFAULT = (
    "expected_reward", "entropy", "kl_ref", "reward", "surrogate", "grad_norm", "update_norm",
    "clip_fraction_high", "clip_fraction_low", "tied", "finite",
)  # fmt: skip
