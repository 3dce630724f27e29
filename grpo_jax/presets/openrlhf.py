"""What OpenRLHF 0.11.2 computes: its advantage estimators, ``PolicyLoss`` and the KL in the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grpo_jax.parts.advantages import (
    Advantage,
    BatchMean,
    GroupMean,
    GroupSpread,
    LeaveOneOut,
    NoBaseline,
    Normalized,
)
from grpo_jax.parts.corrections import Correction
from grpo_jax.parts.gains import Clip, DualClip, Gain
from grpo_jax.parts.penalties import (
    K1,
    K2,
    K3,
    ClampedDivergence,
    Divergence,
    GradientWeight,
    Penalty,
    StraightThrough,
)
from grpo_jax.parts.ratios import FromSampler, Ratio, SequenceMean, Token
from grpo_jax.parts.reductions import NonEmpty, PerSequence, PerToken, Reduction
from grpo_jax.parts.returns import ClampedAdvantage, ReturnToGo, Whitened
from grpo_jax.parts.sampler import (
    BinaryKL,
    MismatchRatio,
    SamplerMask,
    SamplerMismatch,
    Statistic,
    TotalVariation,
)
from grpo_jax.parts.shaping import Overlong, Shaping, Sum
from grpo_jax.parts.truncation import TruncatedReward
from grpo_jax.presets.engines import Sampling, drawn
from grpo_jax.presets.options import NotModelled, choose, made, read, takes
from grpo_jax.surrogate import Method
from grpo_jax.types import Number

NOT_MODELLED = {"entropy_coef": None, "aux_loss_coef": 0, "lambd": 1}

FLAGS = {
    "algo.advantage.estimator": "estimator",
    "algo.advantage.gamma": "gamma",
    "algo.advantage.no_std_norm": "no_std_norm",
    "algo.advantage.is_correction_level": "is_correction_level",
    "algo.advantage.is_correction_mode": "is_correction_mode",
    "algo.advantage.is_correction_gating": "is_correction_gating",
    "algo.advantage.is_correction_threshold": "is_correction_threshold",
    "algo.kl.estimator": "kl_estimator",
    "algo.kl.unbiased_gradient": "unbiased_gradient",
    "actor.policy_loss_type": "policy_loss_type",
    "actor.dual_clip": "dual_clip",
    "reward.clip_range": "reward_clip_range",
    "reward.overlong_buffer_len": "overlong_buffer_len",
    "reward.overlong_penalty_factor": "overlong_penalty_factor",
    "reward.stop_properly_penalty_coef": "stop_properly_penalty_coef",
    "rollout.max_new_tokens": "max_new_tokens",
    "rollout.temperature": "temperature",
    "rollout.top_p": "top_p",
}
"""Command-line flag -> the name of the same value in OpenRLHF's own classes."""

DRAWING = frozenset(("temperature", "top_p", "top_k"))
"""Options that ``sampling`` reads, whatever the method reads."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The names of OpenRLHF's classes. ``kl_loss_coef``, ``kl_reward_coef``: ``algo.kl.init_coef`` with and
    without ``algo.kl.use_loss``. ``temperature`` to ``top_k`` say who samples: ``presets.sampling`` reads
    them."""

    policy_loss_type: str = "ppo"
    estimator: str = "group_norm"
    clip_eps_low: Number = 0.2
    clip_eps_high: Number = 0.2
    dual_clip: Number | None = None
    token_level_loss: bool = True
    gamma: Number = 1.0
    no_std_norm: bool = False
    reward_clip_range: tuple[float, float] = (-10.0, 10.0)
    kl_loss_coef: Number = 0.0
    kl_reward_coef: Number = 0.0
    kl_estimator: str = "k1"
    unbiased_gradient: bool = False
    is_correction_level: str = "off"
    is_correction_mode: str = "mask"
    is_correction_gating: str = "ratio"
    is_correction_threshold: Sequence[float] = (0.5, 5.0)
    overlong_buffer_len: Number | None = None
    overlong_penalty_factor: Number = 1.0
    stop_properly_penalty_coef: float | None = None
    max_new_tokens: Number | None = None
    temperature: Number = 1.0
    top_p: Number = 1.0
    top_k: Number = -1


def options(**given: Any) -> Options:
    """OpenRLHF's options as a record."""
    named = {FLAGS.get(name, name): value for name, value in given.items()}
    return read("openrlhf", Options, named, NOT_MODELLED)


def sampling(**given: Any) -> Sampling:
    """vLLM, which reports raw log-probabilities (its default) unless a correction is on."""
    o = options(**given)
    records = "raw" if o.is_correction_level == "off" else "processed"
    return drawn(o.temperature, top_k=o.top_k, top_p=o.top_p, records=records)


@takes(Options)
def openrlhf(**given: Any) -> Method:
    """The method that OpenRLHF 0.11.2 computes; names of its classes, or its command-line flags (``FLAGS``).

    >>> openrlhf(estimator="group_norm").advantage.inner.eps
    1e-09
    """
    return made("openrlhf", options(**given), method, elsewhere=DRAWING)


def method(o: Options) -> Method:
    """The method of these options."""
    choose("openrlhf", "policy_loss_type", o.policy_loss_type, {"ppo": None, "gspo": None})
    gspo = o.policy_loss_type == "gspo"
    return Method(
        shaping=shaping(o),
        advantage=advantage(o),
        ratio=sequence_ratio(o) if gspo else Token(clamp=20.0),
        gain=gain(o),
        corrections=() if gspo else corrections(o),
        penalty=Penalty(
            divergence=divergence(o),
            weight=GradientWeight(cap=10.0) if o.unbiased_gradient else None,
            coef=o.kl_loss_coef,
            reduce=PerToken(),
        ),
        reduction=reduction(o, not gspo and o.token_level_loss),
    )


def shaping(o: Options) -> Shaping:
    """DAPO's overlong punishment, then the stop-properly penalty, where asked for.

    The second is written from the source (``length_penalty.py``); no case of OpenRLHF's is recorded.
    """
    made: Shaping = Sum()
    if o.overlong_buffer_len is not None:
        if o.max_new_tokens is None:
            raise ValueError("openrlhf: overlong_buffer_len needs max_new_tokens")
        made = Overlong(
            limit=o.max_new_tokens, buffer=o.overlong_buffer_len, factor=o.overlong_penalty_factor
        )
    coef = o.stop_properly_penalty_coef
    if coef is None:
        return made
    if coef > 1:
        raise ValueError(f"openrlhf: stop_properly_penalty_coef is {coef}; it must be in [0, 1] or negative")
    return TruncatedReward(inner=made, scale=max(coef, 0.0), value=min(coef, 0.0))


def advantage(o: Options) -> Advantage:
    """Group baseline, bounded; returns with the KL in the reward; whitening for the REINFORCE family."""
    table = {
        "group_norm": Normalized(center=GroupMean(), scale=GroupSpread(ddof=1.0), eps=1e-9),
        "dr_grpo": Normalized(center=GroupMean(), scale=None),
        "reinforce_baseline": Normalized(center=GroupMean(), scale=None),
        "rloo": Normalized(center=LeaveOneOut(), scale=None),
        "reinforce": Normalized(center=NoBaseline(), scale=None),
        "flash_reinforce": Normalized(center=BatchMean(), scale=None),
    }
    if o.estimator == "gae":
        raise NotModelled("openrlhf: estimator='gae' needs a critic, which is not modelled")
    found: Advantage = choose("openrlhf", "estimator", o.estimator, table)
    found = ClampedAdvantage(inner=found, low=o.reward_clip_range[0], high=o.reward_clip_range[1])
    in_reward = not (isinstance(o.kl_reward_coef, (int, float)) and o.kl_reward_coef == 0)
    if o.estimator == "reinforce" or in_reward:
        kl = ClampedDivergence(inner=estimator(o), limit=10.0)
        discount = o.gamma if o.estimator == "reinforce" else 1.0
        found = ReturnToGo(
            inner=found, discount=discount, kl_coef=o.kl_reward_coef, divergence=kl, count_masked=True
        )
    if o.estimator in ("reinforce", "reinforce_baseline"):
        found = Whitened(inner=found, ddof=0.0, eps=0.0, floor=1e-8, scaled=not o.no_std_norm)
    return found


def sequence_ratio(o: Options) -> Ratio:
    """GSPO's ratio; under a correction its denominator is the sampler."""
    corrected = FromSampler(inner=SequenceMean())
    levels: dict[str, Ratio] = {"off": SequenceMean(), "token": corrected, "seq": corrected}
    return choose("openrlhf", "is_correction_level", o.is_correction_level, levels)


def gain(o: Options) -> Gain:
    """The clip, dual where asked for."""
    if o.dual_clip is None:
        return Clip(low=o.clip_eps_low, high=o.clip_eps_high)
    return DualClip(low=o.clip_eps_low, high=o.clip_eps_high, cap=o.dual_clip)


def corrections(o: Options) -> tuple[Correction, ...]:
    """Train/rollout mismatch: clamp the token ratio, or drop units whose statistic leaves the band."""
    units = {"off": None, "token": False, "seq": True}
    unit = choose("openrlhf", "is_correction_level", o.is_correction_level, units)
    if unit is None:
        return ()
    choose("openrlhf", "is_correction_mode", o.is_correction_mode, {"mask": None, "clip": None})
    band = tuple(o.is_correction_threshold)
    low, high = (0.0, *band) if len(band) == 1 else band
    if o.is_correction_mode == "clip":
        if unit or o.is_correction_gating != "ratio":
            raise ValueError("openrlhf: is_correction_mode='clip' takes token level and ratio gating only")
        return (SamplerMismatch(ratio=Token(), low=low, high=high),)
    gates: dict[str, Statistic] = {
        "ratio": MismatchRatio(ratio=SequenceMean() if unit else Token()),
        "binary_kl": BinaryKL(per_sequence=unit),
        "tv": TotalVariation(per_sequence=unit),
    }
    gate = choose("openrlhf", "is_correction_gating", o.is_correction_gating, gates)
    return (SamplerMask(ratio=Token(), statistic=gate, low=low, high=high),)


def estimator(o: Options) -> Divergence:
    """k1, k2 or k3."""
    return choose("openrlhf", "kl_estimator", o.kl_estimator, {"k1": K1(), "k2": K2(), "k3": K3()})


def divergence(o: Options) -> Divergence:
    """The estimator within ±10; if asked, with the reverse KL's gradient, off-policy weight at most 10."""
    value = ClampedDivergence(inner=estimator(o), limit=10.0)
    if not o.unbiased_gradient:
        return value
    return StraightThrough(value=value, gradient=K2())


def reduction(o: Options, by_token: bool) -> Reduction:
    """Token mean, or mean over non-empty sequences of their token means."""
    return PerToken() if by_token else NonEmpty(inner=PerSequence(eps=1e-8))
