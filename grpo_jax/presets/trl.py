"""What TRL 1.16.0 computes: the GRPO trainer, and as ``loss_type`` "rloo" and "gmpo" those trainers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_jax.decoding import TRANSFORMERS, VLLM
from grpo_jax.part import nearest
from grpo_jax.parts.advantages import (
    Advantage,
    BatchMean,
    BatchSpread,
    GroupMean,
    GroupSpread,
    LeaveOneOut,
    Normalized,
)
from grpo_jax.parts.corrections import Correction, OffPolicyMask, TopEntropy
from grpo_jax.parts.gains import Clip, Gain, TruncatedScore, TwoSided
from grpo_jax.parts.penalties import K3, Penalty, RatioWeight
from grpo_jax.parts.ratios import Ratio, SequenceMean, Token, Trajectory
from grpo_jax.parts.reductions import Constant, MicroBatches, PerSequence, PerToken, Reduction
from grpo_jax.parts.returns import Standardized
from grpo_jax.parts.sampler import MismatchRatio, SamplerMask, SamplerMismatch
from grpo_jax.parts.shaping import ClampedReward, KLInReward, NormalizedSum, Shaping, Sum, WeightedSum
from grpo_jax.parts.soft_gains import GeometricMean, Sapo, Vespo
from grpo_jax.parts.truncation import MaskTruncated
from grpo_jax.presets.engines import Sampling, drawn
from grpo_jax.presets.options import NotModelled, choose, made, read, takes
from grpo_jax.surrogate import Method
from grpo_jax.types import Number

ADDED = 1e-4
"""What TRL adds to every standard deviation (ddof 1)."""

NOT_MODELLED = {
    "entropy_coef": 0.0,
    "use_adaptive_entropy": False,
    "router_aux_loss_coef": 0.0,
    "use_liger_kernel": False,
    "repetition_penalty": 1.0,
}

DRAWING = frozenset(("use_vllm", "temperature", "top_p", "top_k", "min_p", "generation_kwargs"))
"""Options that ``sampling`` reads, whatever the method reads."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """TRL's own names and defaults. ``beta`` and ``epsilon`` None: the default of the trainer in question.

    ``gradient_accumulation_steps`` acts in "bnpo" alone: micro-batches of whole groups, times the processes.

    ``temperature`` to ``generation_kwargs`` say who samples: ``presets.sampling`` reads them.
    """

    loss_type: str = "dapo"
    beta: Number | None = None
    epsilon: Number | None = None
    epsilon_high: Number | None = None
    delta: Number | None = None
    importance_sampling_level: str = "token"
    use_bias_correction_kl: bool = True
    scale_rewards: str | bool = "group"
    multi_objective_aggregation: str = "sum_then_normalize"
    reward_weights: Sequence[float] | None = None
    max_completion_length: Number = 256
    gradient_accumulation_steps: int = 1
    mask_truncated_completions: bool = False
    sapo_temperature_pos: Number = 1.0
    sapo_temperature_neg: Number = 1.05
    vespo_k_pos: Number = 2.0
    vespo_lambda_pos: Number = 3.0
    vespo_k_neg: Number = 3.0
    vespo_lambda_neg: Number = 2.0
    top_entropy_quantile: Number = 1.0
    off_policy_mask_threshold: Number | None = None
    use_vllm: bool = False
    vllm_importance_sampling_correction: bool = True
    vllm_importance_sampling_mode: str = "sequence_mask"
    vllm_importance_sampling_clip_max: Number | None = 3.0
    vllm_importance_sampling_clip_min: Number | None = None
    normalize_advantages: bool = False
    reward_clip_range: tuple[float, float] | None = None
    temperature: Number = 1.0
    top_p: Number = 1.0
    top_k: Number = 0
    min_p: Number | None = None
    generation_kwargs: Mapping[str, Any] | None = None


def options(**given: Any) -> Options:
    """TRL's options as a record."""
    return read("trl", Options, given, NOT_MODELLED)


def sampled(o: Options) -> Sampling:
    """vLLM with ``processed_logprobs`` where ``use_vllm``, transformers' generate otherwise.

    ``generation_kwargs`` change the engine only: the trainer keeps its temperature.
    """
    drawing = {"temperature": o.temperature, "top_p": o.top_p, "top_k": o.top_k, "min_p": o.min_p}
    for name, value in (o.generation_kwargs or {}).items():
        if name not in drawing:
            raise NotModelled(f"trl: generation_kwargs[{name!r}] is not modelled; {nearest(name, drawing)}")
        drawing[name] = value
    return drawn(
        o.temperature,
        engine=drawing["temperature"],
        top_k=drawing["top_k"],
        top_p=drawing["top_p"],
        min_p=drawing["min_p"],
        order=VLLM if o.use_vllm else TRANSFORMERS,
    )


def sampling(**given: Any) -> Sampling:
    """Who samples."""
    return sampled(options(**given))


@takes(Options)
def trl(**given: Any) -> Method:
    """The method that TRL 1.16.0 computes with these options of its configuration classes.

    ``loss_type`` "rloo" and "gmpo" stand for the trainers of those names. ``use_vllm`` says that
    ``rollout.sampling_logp`` are the inference engine's own; ``presets.sampling("trl", ...)`` takes the same
    options and says who samples.

    Raises:
      NotModelled: for an option, or a value, that no part computes.
      ValueError: for an option that belongs to the optimizer or the loop.

    >>> trl(loss_type="dapo", epsilon_high=0.28).gain.high
    0.28
    """
    return made("trl", options(**given), method, elsewhere=DRAWING)


def method(o: Options) -> Method:
    """The method of these options."""
    if o.loss_type in ("rloo", "gmpo") and o.mask_truncated_completions:
        raise NotModelled(f"trl: mask_truncated_completions is not modelled with loss_type={o.loss_type!r}")
    if o.loss_type == "rloo":
        return _rloo(o)
    if o.loss_type == "gmpo":
        return _gmpo(o)
    return Method(
        shaping=shaping(o),
        advantage=advantage(o),
        ratio=Trajectory(clamp=20.0) if o.loss_type == "vespo" else level(o.importance_sampling_level),
        gain=gain(o),
        corrections=corrections(o),
        penalty=penalty(o, 0.0),
        reduction=reduction(o),
    )


def shaping(o: Options) -> Shaping:
    """How several rewards become one."""
    weights = () if o.reward_weights is None else tuple(o.reward_weights)
    if o.multi_objective_aggregation == "normalize_then_sum":
        return NormalizedSum(weights=weights, ddof=1.0, eps=ADDED)
    choose("trl", "multi_objective_aggregation", o.multi_objective_aggregation, {"sum_then_normalize": None})
    return WeightedSum(weights=weights) if weights else Sum()


def advantage(o: Options) -> Advantage:
    """(r − r̄_group)/(σ + 1e-4), σ of the group, of the batch, or not at all."""
    if o.multi_objective_aggregation == "normalize_then_sum":
        return Normalized(center=BatchMean(), scale=BatchSpread(ddof=1.0), eps=ADDED)
    group, batch = GroupSpread(ddof=1.0), BatchSpread(ddof=1.0)
    spreads = {"group": group, True: group, "batch": batch, "none": None, False: None}
    scale = choose("trl", "scale_rewards", o.scale_rewards, spreads)
    return Normalized(center=GroupMean(), scale=scale, eps=ADDED if scale is not None else 0.0)


def level(name: str) -> Ratio:
    """The importance ratio of a level."""
    return choose("trl", "importance_sampling_level", name, {"token": Token(), "sequence": SequenceMean()})


def bounds(o: Options, default: float = 0.2) -> tuple[Number, Number]:
    """(epsilon, epsilon_high)."""
    return default if o.epsilon is None else o.epsilon, upper(o, default)


def upper(o: Options, default: float = 0.2) -> Number:
    """epsilon_high, or where it is None epsilon."""
    if o.epsilon_high is not None:
        return o.epsilon_high
    return default if o.epsilon is None else o.epsilon


def gain(o: Options) -> Gain:
    """The per-token loss of each loss type, with its sign turned."""
    if o.loss_type == "cispo":
        return TruncatedScore(low=1.0, high=upper(o) - 1)
    if o.loss_type == "sapo":
        return Sapo(tau_pos=o.sapo_temperature_pos, tau_neg=o.sapo_temperature_neg)
    if o.loss_type == "vespo":
        return Vespo(
            k_pos=o.vespo_k_pos,
            lambda_pos=o.vespo_lambda_pos,
            k_neg=o.vespo_k_neg,
            lambda_neg=o.vespo_lambda_neg,
            sampler=sampler(o),
        )
    low, high = bounds(o)
    if o.delta is not None:
        return TwoSided(low=low, high=high, delta=o.delta)
    return Clip(low=low, high=high)


def sampler(o: Options) -> Correction | None:
    """The correction for vLLM's log-probabilities."""
    if not (o.use_vllm and o.vllm_importance_sampling_correction):
        return None
    ratios = {"token": Token(), "sequence": Trajectory()}
    modes = {f"{unit}_{act}": (ratios[unit], act) for unit in ratios for act in ("truncate", "mask")}
    ratio, act = choose("trl", "vllm_importance_sampling_mode", o.vllm_importance_sampling_mode, modes)
    low = 0.0 if o.vllm_importance_sampling_clip_min is None else o.vllm_importance_sampling_clip_min
    high = math.inf if o.vllm_importance_sampling_clip_max is None else o.vllm_importance_sampling_clip_max
    if o.loss_type == "vespo" and isinstance(ratio, Trajectory):
        raise ValueError("trl: vespo takes vllm_importance_sampling_mode token_truncate or token_mask")
    if act == "truncate":
        return SamplerMismatch(ratio=ratio, low=low, high=high)
    return SamplerMask(ratio=ratio, statistic=MismatchRatio(ratio=ratio), low=low, high=high)


def corrections(o: Options) -> tuple[Correction, ...]:
    """Off-policy mask, entropy mask, vLLM correction: on the policy term alone, never on the KL."""
    out: list[Correction] = []
    if o.off_policy_mask_threshold is not None:
        from_sampler = o.use_vllm and o.vllm_importance_sampling_correction
        out.append(OffPolicyMask(threshold=o.off_policy_mask_threshold, from_sampler=from_sampler))
    if _narrows(o.top_entropy_quantile):
        out.append(TopEntropy(share=o.top_entropy_quantile, single=True))
    correction = sampler(o)
    if correction is not None and o.loss_type != "vespo":
        out.append(correction)
    return tuple(out)


def _narrows(share: Number) -> bool:
    return not isinstance(share, (int, float)) or share < 1


def penalty(o: Options, default: float) -> Penalty:
    """beta times k3, times the differentiable ratio of the importance sampling level unless switched off."""
    weight = RatioWeight(ratio=level(o.importance_sampling_level)) if o.use_bias_correction_kl else None
    return Penalty(divergence=K3(), weight=weight, coef=default if o.beta is None else o.beta)


def reduction(o: Options) -> Reduction:
    """The denominator of each loss type; "bnpo" divides every micro-batch by its own tokens."""
    if o.loss_type == "bnpo" and o.gradient_accumulation_steps != 1:
        return MicroBatches(inner=PerToken(), count=o.gradient_accumulation_steps)
    table: dict[str, Reduction] = dict.fromkeys(("grpo", "sapo"), PerSequence())
    table |= dict.fromkeys(("bnpo", "dapo", "cispo", "vespo"), PerToken())
    length = o.max_completion_length if o.loss_type == "dr_grpo" else 1.0
    table |= {"dr_grpo": Constant(length=length), "luspo": Constant(length=1.0)}
    return masked(o, choose("trl", "loss_type", o.loss_type, table))


def masked(o: Options, inner: Reduction) -> Reduction:
    """Without the tokens of truncated completions, where asked for; their rewards count in the group's.

    Written from the source of 1.10 (``grpo_trainer.py``); no case is recorded.
    """
    if not o.mask_truncated_completions:
        return inner
    if _narrows(o.top_entropy_quantile):
        raise NotModelled(
            "trl: top_entropy_quantile below 1 of the tokens that mask_truncated_completions keeps"
        )
    return MaskTruncated(inner=inner)


def _rloo(o: Options) -> Method:
    low, high = bounds(o)
    shaped: Shaping = shaping(o)
    if o.reward_clip_range is not None:
        shaped = ClampedReward(inner=shaped, low=o.reward_clip_range[0], high=o.reward_clip_range[1])
    leave_one_out: Advantage = Normalized(center=LeaveOneOut(), scale=None)
    if o.normalize_advantages:
        leave_one_out = Standardized(inner=leave_one_out, ddof=1.0, eps=ADDED)
    return Method(
        shaping=KLInReward(inner=shaped, coef=0.05 if o.beta is None else o.beta),
        advantage=leave_one_out,
        ratio=Trajectory(),
        gain=Clip(low=low, high=high),
        reduction=PerSequence(),
    )


def _gmpo(o: Options) -> Method:
    low, high = bounds(o, 0.4)
    keep = TopEntropy(share=o.top_entropy_quantile, single=True) if _narrows(o.top_entropy_quantile) else None
    if sampler(o) is not None or o.off_policy_mask_threshold is not None:
        raise NotModelled("trl: the GMPO trainer ignores the vLLM correction and off_policy_mask_threshold")
    return Method(
        shaping=shaping(o),
        advantage=advantage(o),
        ratio=Token(),
        gain=GeometricMean(low=low, high=high, keep=keep),
        penalty=Penalty(divergence=K3(), coef=0.0 if o.beta is None else o.beta),
        reduction=PerSequence(),
    )
