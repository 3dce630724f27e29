"""What a method's parts amount to, read off them: what the sentences of ``consequences`` depend on.

Each function takes a method and gives None where the method holds a part that it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from grpo_jax.part import subparts
from grpo_jax.parts.advantages import (
    BatchMean,
    BatchSpread,
    GroupLevel,
    GroupMean,
    GroupSpread,
    LeaveOneOut,
    Normalized,
)
from grpo_jax.parts.centring import CentredScaled
from grpo_jax.parts.others import Others
from grpo_jax.parts.penalties import (
    K1,
    K2,
    K3,
    BoundedRatioWeight,
    Penalty,
    RatioWeight,
    StraightThrough,
)
from grpo_jax.parts.ratios import SequenceMean, SequenceMeanToken, Token, Trajectory
from grpo_jax.parts.reductions import Constant, PerSequence, PerToken, TokenSum
from grpo_jax.parts.returns import LessDivergence, ReturnToGo, Standardized, Whitened
from grpo_jax.parts.shaping import KLInReward
from grpo_jax.surrogate import Method
from grpo_jax.types import CorrectsSampler


def find(tree: Any, *kinds: type) -> Any:
    """The first part of one of these kinds, or None."""
    return next((part for part in subparts(tree) if isinstance(part, kinds)), None)


def scalar(value: Any) -> float | None:
    """A single number as a float; None for one value per run."""
    return float(value) if np.ndim(value) == 0 else None


def nested(method: Method) -> list[CentredScaled]:
    """AReaL's normalisations, the last one first."""
    return [part for part in subparts(method.advantage) if isinstance(part, CentredScaled)]


def divisor(method: Method) -> str | None:
    """What advantages are divided by: group, others, level, batch, nothing; None for something else."""
    if find(method.advantage, Whitened, Standardized):
        return "batch"
    if find(method.advantage, Others):
        return "others"
    given = find(method.advantage, Normalized)
    if given is None:
        return None
    scales = [p.scale for p in nested(method)]
    if scales:
        return next((scale for scale in ("group", "batch") if scale in scales), "nothing")
    if given.scale is None or scalar(given.power) == 0:
        return "nothing"
    kinds: Mapping[type, str] = {GroupSpread: "group", GroupLevel: "level", BatchSpread: "batch"}
    return kinds.get(type(given.scale)) if scalar(given.power) == 1 else None


def convention(method: Method) -> tuple[float, float] | None:
    """(ddof, added constant) of the group's σ that advantages are divided by; None where they are not."""
    own = (p for p in nested(method) if p.scale == "group")
    given = next(own, None) or find(method.advantage, Normalized)
    if divisor(method) != "group" or given is None:
        return None
    spread = given if isinstance(given, CentredScaled) else given.scale
    ddof, added = scalar(spread.ddof), scalar(given.eps)
    return None if ddof is None or added is None else (ddof, added)


def centre(method: Method) -> str | None:
    """What is subtracted from rewards: the mean of the group, of the others in it, or of the batch."""
    if find(method.advantage, Others):
        return "others"
    inner = next((p for p in nested(method) if p.center == "group"), None)
    if inner is not None:
        return "others" if inner.leave_one_out else "group"
    given = find(method.advantage, Normalized)
    kinds: Mapping[type, str] = {GroupMean: "group", LeaveOneOut: "others", BatchMean: "batch"}
    return None if given is None else kinds.get(type(given.center))


def denominator(method: Method) -> str | None:
    """Name of the reduction: PerSequence, PerToken, Constant or TokenSum."""
    given = find(method.reduction, PerSequence, PerToken, Constant, TokenSum)
    return None if given is None else type(given).__name__


def kl(method: Method) -> tuple[str, type | None, float, tuple[float, float] | None] | None:
    """(where, divergence, β, ddof and constant of the σ beside it or None).

    "reward": in what is normalised; "returns": taken from advantages, token by token; "advantage": so, but
    of each token alone; "loss"; "ratio": in the loss, times the ratio; "none".
    """
    inside, outside = find(method.shaping, KLInReward), method.penalty
    if inside is not None and scalar(inside.coef):
        return "reward", estimator(inside.divergence), float(inside.coef), None
    returns, alone = find(method.advantage, ReturnToGo), find(method.advantage, LessDivergence)
    if returns is not None and scalar(returns.kl_coef):
        return "returns", estimator(returns.divergence), float(returns.kl_coef), convention(method)
    if alone is not None and scalar(alone.coef):
        return "advantage", estimator(alone.divergence), float(alone.coef), convention(method)
    if outside is not None and not isinstance(outside, Penalty):
        return None
    if outside is None or not scalar(outside.coef):
        return "none", None, 0.0, None
    place = "ratio" if isinstance(outside.weight, (RatioWeight, BoundedRatioWeight)) else "loss"
    return place, estimator(outside.divergence), float(outside.coef), convention(method)


def estimator(divergence: Any) -> type:
    """Whose gradient it is, within its clamp."""
    given = divergence.gradient if isinstance(divergence, StraightThrough) else divergence
    return type(find(given, K1, K2, K3) or given)


def level(method: Method) -> str | None:
    """The ratio's unit: a token, an answer's geometric mean, or its product ("whole")."""
    given = find(method.ratio, Trajectory, SequenceMean, SequenceMeanToken, Token)
    kinds = {Trajectory: "whole", SequenceMean: "mean", SequenceMeanToken: "mean", Token: "token"}
    return None if given is None else kinds[type(given)]


def corrects_sampler(method: Method) -> bool:
    """Whether a part weighs or masks by who sampled."""
    return any(isinstance(p, CorrectsSampler) and p.corrects_sampler for p in subparts(method))
