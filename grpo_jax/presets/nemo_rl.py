"""What NeMo-RL 0.6.0 computes: ``ClippedPGLossFn``, its advantage estimators, and what its GRPO loop drops.

``reward_scaling``, ``reward_weights`` and the sampler's mask "icepop" are written from the library's source;
no case of theirs is recorded. Weights that are not finite, which it drops, are held at the largest number
here. The loss takes ``positive_example_nll_weight`` where it is handed rewards, as by the library's PPO loop.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from grpo_jax.bounds import check_bound, is_concrete
from grpo_jax.parts.advantages import (
    Advantage,
    GroupMean,
    GroupSpread,
    LeaveOneOut,
    NoBaseline,
    Normalized,
)
from grpo_jax.parts.corrections import Correction
from grpo_jax.parts.gains import Clip, DualClip, Gain, LogLikelihood, TruncatedScore
from grpo_jax.parts.others import Apart, Others
from grpo_jax.parts.penalties import (
    K1,
    K2,
    K3,
    BoundedRatioWeight,
    ClampedDivergence,
    ClampedInput,
    Divergence,
    Likelihood,
    Penalty,
    PenaltyTerm,
)
from grpo_jax.parts.ratios import FromSampler, Ratio, Score, SequenceMean, Token, Trajectory
from grpo_jax.parts.reductions import Informative, NonEmpty, PerSequence, PerToken, Reduction, Rewarded
from grpo_jax.parts.rejection import ReductionOfKept, Within
from grpo_jax.parts.returns import ClampedAdvantage, LessDivergence, Standardized, Whitened
from grpo_jax.parts.sampler import (
    AtTheta,
    MismatchRatio,
    OverSequence,
    RatioFactor,
    SamplerMask,
    SamplerMismatch,
)
from grpo_jax.parts.shaping import ClampedReward, NormalizedSum, Overlong, Rescaled, Shaping, Sum
from grpo_jax.parts.truncation import MaskTruncated, TruncatedReward
from grpo_jax.presets.nemo_rl_options import Options, Scaled, Shaped, options, sampling
from grpo_jax.presets.options import NotModelled, choose, made, read, takes
from grpo_jax.surrogate import Method

__all__ = ["Options", "method", "nemo_rl", "options", "sampling"]

ADDED = 1e-6
"""What NeMo-RL adds to the standard deviation (ddof 1)."""
DRAWING = frozenset(("temperature", "top_p", "top_k", "logprobs_mode"))
"""Options that ``sampling`` reads, whatever the method reads."""
ELSEWHERE = {
    "gae": "needs a critic",
    "opd": "is distillation from a teacher",
}
WHITENED = ("reinforce_plus_plus", "raw_reward")
"""Estimators whose statistics are those of the tokens that the loss keeps."""


@takes(Options)
def nemo_rl(**given: Any) -> Method:
    """The method that NeMo-RL 0.6.0 computes; ``presets.sampling("nemo_rl", ...)`` says who samples.

    By default baseline and spread are those of the other answers of a group (``Others``).

    >>> nemo_rl(use_leave_one_out_baseline=False, ratio_clip_max=0.28).gain.high
    0.28
    """
    return made("nemo_rl", options(**given), method, elsewhere=DRAWING)


def method(o: Options) -> Method:
    """The method of these options."""
    _check(o)
    return Method(
        shaping=shaping(o),
        advantage=advantage(o),
        ratio=ratio(o),
        gain=gain(o),
        corrections=corrections(o),
        penalty=penalty(o),
        reduction=reduction(o),
    )


def _check(o: Options) -> None:
    """What the library refuses, and what no part computes."""
    if o.adv_estimator in ELSEWHERE:
        why = ELSEWHERE[o.adv_estimator]
        raise NotModelled(f"nemo_rl: adv_estimator={o.adv_estimator!r} {why}, which is not modelled")
    if o.sequence_level_importance_ratios and o.token_level_loss:
        raise ValueError("nemo_rl: sequence_level_importance_ratios needs token_level_loss=False, as there")
    if o.use_cispo:
        for name in ("disable_ppo_ratio", "force_on_policy_ratio", "sequence_level_importance_ratios"):
            if getattr(o, name):
                raise ValueError(f"nemo_rl: use_cispo and {name} exclude each other, as in the library")
        if o.ratio_clip_c is not None or not o.token_level_loss:
            raise ValueError("nemo_rl: use_cispo takes token_level_loss=True and no ratio_clip_c, as there")
    if o.disable_ppo_ratio and o.ratio_clip_c is not None:
        raise NotModelled("nemo_rl: ratio_clip_c is not modelled with disable_ppo_ratio")
    if o.use_dynamic_sampling and o.use_leave_one_out_baseline:
        raise NotModelled(
            "nemo_rl: use_dynamic_sampling is modelled with use_leave_one_out_baseline=False only; with it "
            "the library drops rows one by one, a group's only success among them"
        )
    if o.adv_estimator in WHITENED and (o.overlong_filtering or o.seq_logprob_error_threshold is not None):
        name = "overlong_filtering" if o.overlong_filtering else "seq_logprob_error_threshold"
        raise NotModelled(
            f"nemo_rl: {name} is not modelled with adv_estimator={o.adv_estimator!r}, which whitens over the "
            "tokens that are left"
        )


def shaping(o: Options) -> Shaping:
    """The sum of rewards, scaled, then less the overlong penalty, or a share of it for what was cut off."""
    scaled = read("nemo_rl.reward_scaling", Scaled, o.reward_scaling or {}, {})
    shaped = read("nemo_rl.reward_shaping", Shaped, o.reward_shaping or {}, {})
    if o.adv_estimator == "gdpo":
        if scaled.enabled or shaped.enabled:
            name = "reward_scaling" if scaled.enabled else "reward_shaping"
            raise NotModelled(f"nemo_rl: {name} is not modelled with adv_estimator='gdpo'")
        return _by_reward(o)
    found: Shaping = Sum()
    if scaled.enabled:
        width, wanted = scaled.source_max - scaled.source_min, scaled.target_max - scaled.target_min
        if width <= 0 or wanted == 0:
            raise ValueError("nemo_rl: reward_scaling maps one interval onto another; one of them is empty")
        found = Rescaled(
            inner=ClampedReward(inner=found, low=scaled.source_min, high=scaled.source_max),
            bias=scaled.target_min * width / wanted - scaled.source_min,
            scale=wanted / width,
        )
    return _shaped(shaped, found) if shaped.enabled else found


def _shaped(given: Shaped, inner: Shaping) -> Shaping:
    """As the library has it, the share of cut-off answers goes before the overlong penalty."""
    coef = given.stop_properly_penalty_coef
    if coef is not None:
        if is_concrete(coef):
            check_bound("nemo_rl.reward_shaping: stop_properly_penalty_coef", coef, low=0.0, high=1.0)
        return TruncatedReward(inner=inner, scale=coef)
    limit, buffer = given.max_response_length, given.overlong_buffer_length
    if limit is None or buffer is None or given.overlong_buffer_penalty is None:
        raise ValueError(
            "nemo_rl: reward_shaping needs overlong_buffer_length, overlong_buffer_penalty and "
            "max_response_length, or stop_properly_penalty_coef"
        )
    return Overlong(
        inner=inner, limit=limit, buffer=buffer, factor=given.overlong_buffer_penalty, capped=False
    )


def _by_reward(o: Options) -> Shaping:
    """GDPO's sum of rewards that are normalised one by one."""
    weights = tuple(o.reward_weights or ())
    if o.use_leave_one_out_baseline:
        return Apart(inner=_alone(o), weights=weights)
    return NormalizedSum(weights=weights, ddof=1.0, eps=ADDED, scaled=o.normalize_rewards)


def _alone(o: Options) -> Advantage:
    """A reward less its baseline, divided where asked for."""
    if o.use_leave_one_out_baseline:
        return Others(eps=ADDED) if o.normalize_rewards else Normalized(center=LeaveOneOut(), scale=None)
    return Normalized(
        center=GroupMean(),
        scale=GroupSpread(ddof=1.0) if o.normalize_rewards else None,
        eps=ADDED if o.normalize_rewards else 0.0,
    )


def advantage(o: Options) -> Advantage:
    """The estimator's, within the bounds where there are any."""
    raw = Normalized(center=NoBaseline(), scale=None)
    table = {
        "grpo": lambda: _alone(o),
        "gdpo": lambda: Standardized(inner=raw, ddof=1.0, eps=0.0),
        "reinforce_plus_plus": lambda: _plus_plus(o),
        "raw_reward": lambda: _whitened(raw) if o.normalize_advantages else raw,
    }
    found: Advantage = choose("nemo_rl", "adv_estimator", o.adv_estimator, table)()
    low, high = o.advantage_clip_low, o.advantage_clip_high
    if low is None and high is None:
        return found
    return ClampedAdvantage(
        inner=found, low=-math.inf if low is None else low, high=math.inf if high is None else high
    )


def _whitened(inner: Advantage) -> Advantage:
    return Whitened(inner=inner, ddof=0.0, eps=0.0, floor=1e-8)


def _plus_plus(o: Options) -> Advantage:
    """REINFORCE++: the KL is taken off token by token, without what follows."""
    inner: Advantage = Normalized(center=GroupMean() if o.minus_baseline else NoBaseline(), scale=None)
    if o.use_kl_in_reward:
        kl = ClampedDivergence(inner=ClampedInput(inner=_kind(o), limit=20.0), limit=10.0)
        inner = LessDivergence(inner=inner, coef=o.reference_policy_kl_penalty, divergence=kl)
    return _whitened(inner)


def ratio(o: Options) -> Ratio:
    """π_θ/π_old of tokens, or an answer's geometric mean; 1 where it is forced."""
    if o.force_on_policy_ratio:
        return Score()
    return SequenceMean() if o.sequence_level_importance_ratios else Token()


def gain(o: Options) -> Gain:
    """The clip, dual where asked for; CISPO's, on both sides; the likelihood without a ratio.

    Where the ratio is forced to 1 no clip ever acts.
    """
    if o.use_cispo:
        return TruncatedScore(low=o.ratio_clip_min, high=o.ratio_clip_max)
    if o.disable_ppo_ratio and not o.force_on_policy_ratio:
        return LogLikelihood()
    if o.ratio_clip_c is None:
        return Clip(low=o.ratio_clip_min, high=o.ratio_clip_max)
    return DualClip(low=o.ratio_clip_min, high=o.ratio_clip_max, cap=o.ratio_clip_c)


def corrections(o: Options) -> tuple[Correction, ...]:
    """π_old/π_sampling of tokens; beside a ratio of answers that of answers, their product."""
    kind = o.truncated_importance_sampling_type
    if kind is None and o.truncated_importance_sampling_ratio is not None:
        raise ValueError(
            "nemo_rl: truncated_importance_sampling_ratio needs truncated_importance_sampling_type: tis, "
            "icepop or seq-mask-tis"
        )
    if not o.use_importance_sampling_correction:
        if kind is not None:
            raise ValueError(
                "nemo_rl: truncated_importance_sampling_type needs use_importance_sampling_correction, as in "
                "the library"
            )
        return ()
    unit: Ratio = Trajectory() if o.sequence_level_importance_ratios else Token()
    found = SamplerMismatch(ratio=unit, high=math.inf) if kind is None else _bounded(o, kind, unit)
    return (AtTheta(inner=found) if o.force_on_policy_ratio else found,)


def _bounded(o: Options, kind: str, unit: Ratio) -> Correction:
    """The weight clamped, or 0 where it, or its geometric mean over an answer, leaves a band."""
    high, low = o.truncated_importance_sampling_ratio, o.truncated_importance_sampling_ratio_min
    if high is None or (kind != "tis" and low is None):
        name = "truncated_importance_sampling_ratio" + ("_min" if high is not None else "")
        raise ValueError(f"nemo_rl: truncated_importance_sampling_type={kind!r} needs {name}")
    if is_concrete(low) and is_concrete(high) and np.any(np.asarray(low) > np.asarray(high)):
        raise ValueError(
            f"nemo_rl: truncated_importance_sampling_ratio_min={low!r}; it must be at most "
            f"truncated_importance_sampling_ratio={high!r}"
        )
    if kind == "seq-mask-tis" and o.sequence_level_importance_ratios:
        raise ValueError(
            "nemo_rl: seq-mask-tis and sequence_level_importance_ratios exclude each other, as in the library"
        )
    least = 0.0 if low is None else low
    whole = MismatchRatio(ratio=SequenceMean())
    table: dict[str, Correction] = {
        "tis": SamplerMismatch(ratio=unit, low=least, high=high),
        "icepop": SamplerMask(ratio=unit, statistic=MismatchRatio(ratio=unit), low=least, high=high),
        "seq-mask-tis": SamplerMask(ratio=unit, statistic=whole, low=least, high=high),
    }
    return choose("nemo_rl", "truncated_importance_sampling_type", kind, table)


def _kind(o: Options) -> Divergence:
    table: dict[str, Divergence] = {"k1": K1(), "k2": K2(), "k3": K3()}
    return choose("nemo_rl", "reference_policy_kl_type", o.reference_policy_kl_type, table)


def penalty(o: Options) -> PenaltyTerm:
    """The KL in the loss times a differentiated ratio whose value is 1, or π_θ/π_sampling; or VAPO's term.

    With ``use_kl_in_reward`` there is none in the loss, whichever the estimator.
    """
    positive = o.positive_example_nll_weight
    if not (isinstance(positive, (int, float)) and positive == 0):
        if not _no_kl(o):
            raise NotModelled("nemo_rl: positive_example_nll_weight is modelled with no KL in the loss only")
        return Likelihood(coef=positive, reduce=Rewarded(inner=PerToken()))
    if o.use_kl_in_reward:
        return Penalty(divergence=K3(), coef=0.0)
    reach, limit = o.kl_input_clamp_value, o.kl_output_clamp_value
    kind = _kind(o)
    onto = FromSampler(inner=Token(), correction=False) if o.use_on_policy_kl_approximation else Score()
    weight = BoundedRatioWeight(
        ratio=onto, reach=math.inf if reach is None else reach, limit=math.inf if limit is None else limit
    )
    return Penalty(
        divergence=kind if reach is None else ClampedInput(inner=kind, limit=reach),
        weight=weight,
        coef=o.reference_policy_kl_penalty,
    )


def _no_kl(o: Options) -> bool:
    coef = o.reference_policy_kl_penalty
    return o.use_kl_in_reward or (isinstance(coef, (int, float)) and coef == 0)


def reduction(o: Options) -> Reduction:
    """Token mean, or mean over answers; what is filtered leaves denominators, and votes."""
    found: Reduction = PerToken() if o.token_level_loss else NonEmpty(inner=PerSequence(eps=1e-8))
    if o.seq_logprob_error_threshold is not None:
        statistic = OverSequence(inner=RatioFactor(), how="mean")
        found = ReductionOfKept(
            keep=Within(statistic=statistic, high=o.seq_logprob_error_threshold), inner=found
        )
    if o.overlong_filtering:
        found = MaskTruncated(inner=found)
    return Informative(inner=found) if o.use_dynamic_sampling else found
