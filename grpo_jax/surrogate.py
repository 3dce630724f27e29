"""The only loss. Equation (1) of [B], with every method's differences in its seven slots:

    J(θ) = Σ_{p,i,t} w_{i,t} c_{i,t} gain(s_{i,t}, A_{i,t}) − Σ_{p,i,t} w'_{i,t} β D_{i,t}

w from the reduction, c from the corrections (detached), A from shaping and advantage (constants), s from the
ratio, β D from the penalty with its own weights w' or the gain's.
"""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp

from grpo_jax.kernels import materialize
from grpo_jax.part import part, subparts
from grpo_jax.parts.advantages import Advantage, Normalized
from grpo_jax.parts.corrections import Correction
from grpo_jax.parts.gains import Clip, Gain
from grpo_jax.parts.penalties import PenaltyTerm
from grpo_jax.parts.ratios import Ratio, Token
from grpo_jax.parts.reductions import PerSequence, Reduction
from grpo_jax.parts.sampler import AtTheta
from grpo_jax.parts.shaping import Shaping, Sum
from grpo_jax.types import Array, CorrectsSampler, Evaluation, Rollout, fits


@part
class Method:
    """A member of the GRPO family: one part in each of seven slots.

    >>> from grpo_jax.parts.advantages import GroupMean
    >>> shift_only = Method(advantage=Normalized(center=GroupMean(), scale=None))
    >>> shift_only.gain.high
    0.2
    """

    shaping: Shaping = Sum()
    advantage: Advantage = Normalized()
    ratio: Ratio = Token()
    gain: Gain = Clip()
    corrections: tuple[Correction, ...] = ()
    penalty: PenaltyTerm | None = None
    reduction: Reduction = PerSequence()


TAKES = {
    "shaping": "rollout",
    "advantage": "rollout, rewards",
    "ratio": "rollout, logp",
    "reduction": "rollout",
}
"""Slot -> the arguments that its part is called with; any other slot takes an ``Evaluation``."""


def check_slots(method: Method) -> None:
    """Raise TypeError unless every slot holds something that can be called as its slot calls it."""
    if not isinstance(method.corrections, tuple):
        raise TypeError(f"method.corrections is {method.corrections!r}; it must be a tuple of corrections")
    if method.penalty is not None and not hasattr(method.penalty, "reduce"):
        raise TypeError(
            f"method.penalty is {method.penalty!r}; it must be None or a Penalty(divergence=..., coef=...)"
        )
    slots = {name: getattr(method, name) for name in (*TAKES, "gain", "penalty")}
    slots |= {f"corrections.{i}": correction for i, correction in enumerate(method.corrections)}
    for name, held in slots.items():
        if held is None and name == "penalty":
            continue
        takes = TAKES.get(name, "evaluation")
        try:
            inspect.signature(held).bind(*takes.split(", "))
        except TypeError as error:
            raise TypeError(f"method.{name} is {held!r}; its slot calls a part with ({takes})") from error


def idle_corrections(method: Method, *, one_step: bool) -> list[str]:
    """Names of the parts that read who sampled (``rollout.sampling_logp``).

    Where the old policy samples, π_old/π_sampling is exactly 1, so that they correct nothing; of those
    ``AtTheta`` this holds only if θ takes one step from θ_old (``one_step``).
    """
    at_theta = [id(p) for held in subparts(method) if isinstance(held, AtTheta) for p in subparts(held)]
    read = [p for p in subparts(method) if isinstance(p, CorrectsSampler) and p.corrects_sampler]
    idle = [p for p in read if one_step or id(p) not in at_theta]
    return list(dict.fromkeys(type(p).__name__ for p in idle))


def _fitting(slot: str, value: Array, rollout: Rollout, axes: str) -> Array:
    """``value`` if its axes are the batch's, or of length one: a shape that merely broadcasts is refused."""
    lead, runs = rollout.mask.shape[: len(axes)], rollout.mask.ndim - 3
    if not fits(jnp.shape(value), lead, runs=runs):
        raise ValueError(
            f"{slot} gives shape {jnp.shape(value)}; it must be [{', '.join(axes)}] = {lead}, any of them 1"
            f"{', then runs' if runs else ''}"
        )
    return value


def sanitized(rollout: Rollout, logp: Array) -> tuple[Rollout, Array]:
    """Zeros where a token is masked or its entry absent, so that whatever stands there is never read.

    [P, N, T(, R)].
    """
    live = (rollout.mask > 0) & (rollout.multiplicity > 0)[:, :, None]

    def clean(x: Array) -> Array:
        return jnp.where(live, x, 0)

    cleaned = rollout._replace(
        sampling_logp=clean(rollout.sampling_logp),
        old_logp=clean(rollout.old_logp),
        ref_logp=clean(rollout.ref_logp),
        entropy=None if rollout.entropy is None else clean(rollout.entropy),
    )
    return cleaned, jnp.where(live, logp, 0)


def advantages(method: Method, rollout: Rollout) -> Array:
    """[P, N, 1 or T] advantages of a batch: computed once, where the rollout was collected; constants."""
    rollout, _ = sanitized(rollout, jnp.zeros(()))
    # Stored: computed again by each that reads them, equal rewards may differ in the last bit and not tie.
    rewards = materialize(_fitting("shaping", method.shaping(rollout), rollout, "PN"), everywhere=True)
    return jax.lax.stop_gradient(_fitting("advantage", method.advantage(rollout, rewards), rollout, "PNT"))


def objective_terms(method: Method, rollout: Rollout, advantage: Array, logp: Array) -> Array:
    """[P, N, T] contributions to the objective, to be maximised; exactly 0 at masked tokens."""
    rollout, logp = sanitized(rollout, logp)
    log_ratio = _fitting("ratio", method.ratio(rollout, logp), rollout, "PNT")
    at = Evaluation(rollout, logp, log_ratio, advantage)
    gain = _fitting("gain", method.gain(at), rollout, "PNT")
    for correction in method.corrections:
        factor = _fitting("correction", correction(at), rollout, "PNT")
        gain = gain * jax.lax.stop_gradient(factor)
    weights = _fitting("reduction", method.reduction(rollout), rollout, "PNT")
    terms = weights * gain
    if method.penalty is not None:
        if method.penalty.reduce is not None:
            weights = method.penalty.reduce(rollout)
        penalty = _fitting("penalty", method.penalty(at), rollout, "PNT")
        terms = terms - weights * penalty
    return terms


def objective(method: Method, rollout: Rollout, advantage: Array, logp: Array) -> Array:
    """J(θ): a scalar, or [R], one per run."""
    return jnp.sum(objective_terms(method, rollout, advantage, logp), (0, 1, 2))


def loss(method: Method, rollout: Rollout, logp: Array) -> Array:
    """−J(θ) of a whole batch: what a library minimises. logp [P, N, T(, R)]; a scalar, or [R]."""
    return -objective(method, rollout, advantages(method, rollout), logp)
