"""What prime-rl 0.8.0 computes, and as ``type`` "masked_is" the loss of its version 0.4.0.

The ratio is always π_θ/π_sampling, uncapped: the library keeps no old policy. ``type`` "icepop" (its pull
request 3526, arXiv:2512.16144) and "kpop" (3283, ringtech.notion.site/kpop) are written from the published
formulas; no case of theirs is recorded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from grpo_jax.parts.advantages import Advantage, GroupLevel, GroupMean, LengthWeightedMean, Normalized
from grpo_jax.parts.corrections import Correction, Factor
from grpo_jax.parts.gains import Gain, Linear
from grpo_jax.parts.ratios import FromSampler, SequenceMean, Token, Trajectory
from grpo_jax.parts.reductions import PerSequence, PerToken
from grpo_jax.parts.sampler import (
    BothBinaryKL,
    MismatchRatio,
    OverSequence,
    Rise,
    SamplerPenalty,
    TrustRegion,
)
from grpo_jax.parts.shaping import LengthPenalty, Shaping, Sum
from grpo_jax.parts.soft_gains import LeashedScore
from grpo_jax.presets.engines import Sampling, drawn
from grpo_jax.presets.options import NotModelled, choose, read, takes
from grpo_jax.surrogate import Method
from grpo_jax.types import Number

LINEAR = {"num_output_tokens_weight": 0.25, "num_input_tokens_weight": 0.1, "num_turns_weight": 0.1}
"""The linear length penalty's weights."""
GREATEST_LOG_RATIO = 10.0
"""Where 0.4.0 caps a sequence's log-ratio."""
ELSEWHERE = {
    "rae": "keeps a baseline from batch to batch",
    "hierarchical_grpo": "compares agents of one episode",
    "opd": "is distillation",
    "opsd": "is distillation",
    "sft": "is supervised",
    "echo": "trains on tokens that nobody sampled",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """prime-rl's own names and defaults: ``trainer.loss`` (flat, or as ``loss={...}``) and the algorithm's.

    ``kl_tau`` None is 1e-3, and 0 with "masked_is". ``ratio_type`` to ``teacher_tau`` count with "masked_is"
    only. ``temperature`` and ``extra_body`` are those of ``sampling``: they say who samples, and
    ``presets.sampling`` reads them.
    """

    type: str = "default"
    algorithm: str = "grpo"
    dppo_mask_low: Number = 0.2
    dppo_mask_high: Number = 0.2
    ipo_threshold: Number = 0.1
    kpop_threshold: Number = 0.1
    ratio_low: Number = 0.2
    ratio_high: Number = 5.0
    adv_tau: Number = 1.0
    kl_tau: Number | None = None
    ratio_type: str = "token"
    token_mask_low: Number = 0.125
    token_mask_high: Number = 8.0
    geo_mask_low: Number = 0.1
    geo_mask_high: Number = 10.0
    sequence_mask_low: Number = 0.0
    sequence_mask_high: Number = 100.0
    sequence_clip_high: Number = 10.0
    teacher_tau: Number = 0.0
    length_weighted_mean: bool = False
    length_penalty: Mapping[str, Any] | None = None
    temperature: Number = 1.0
    extra_body: Mapping[str, Any] | None = None


def options(**given: Any) -> Options:
    """prime-rl's options as a record."""
    loss = given.pop("loss", None) or {}
    twice = sorted(set(loss) & set(given))
    if twice:
        raise ValueError(f"prime_rl: {twice[0]} is given twice, flat and in loss")
    return read("prime_rl", Options, {**loss, **given}, {"repetition_penalty": 1.0})


def sampling(**given: Any) -> Sampling:
    """vLLM with ``processed_logprobs``; ``extra_body`` holds top_p, top_k, min_p."""
    o = options(**given)
    body = dict(o.extra_body or {})
    found = {name: body.pop(name, None) for name in ("top_k", "top_p", "min_p")}
    if body:
        raise NotModelled(f"prime_rl: extra_body[{min(body)!r}] is not modelled; top_k, top_p and min_p are")
    return drawn(o.temperature, **found)


@takes(Options)
def prime_rl(**given: Any) -> Method:
    """The method that prime-rl 0.8.0 computes; ``presets.sampling("prime_rl", ...)`` says who samples.

    A prompt here is one turn, so that its length penalty's terms for turns and input tokens shift a group's
    rewards alike and change nothing.

    >>> prime_rl(type="ipo").corrections[0].high
    0.1
    """
    o = options(**given)
    if o.type == "masked_is":
        return _masked_is(o)
    leash = 1e-3 if o.kl_tau is None else o.kl_tau
    regions: dict[str, TrustRegion] = {
        "default": TrustRegion(statistic=Rise(), low=-o.dppo_mask_low, high=o.dppo_mask_high, one_sided=True),
        "ipo": TrustRegion(statistic=Rise(), low=-o.ipo_threshold, high=o.ipo_threshold),
        "kpop": TrustRegion(statistic=BothBinaryKL(), high=o.kpop_threshold),
        "icepop": TrustRegion(statistic=MismatchRatio(), low=o.ratio_low, high=o.ratio_high),
    }
    region: Correction = choose("prime_rl", "type", o.type, regions | {"masked_is": None})
    return Method(
        shaping=shaping(o),
        advantage=advantage(o),
        ratio=FromSampler(inner=Token(), correction=False),
        gain=Linear(),
        corrections=(region, Factor(value=o.adv_tau)),
        # kl_tau (log π_θ/π_sampling)², without the half of k2; IcePop has none.
        penalty=None if o.type == "icepop" else SamplerPenalty(coef=2 * leash),
        reduction=PerToken(),
    )


def shaping(o: Options) -> Shaping:
    """The reward, less its length penalty where there is one."""
    if o.length_penalty is None:
        return Sum()
    given = dict(o.length_penalty)
    if given.pop("type", "linear") != "linear":
        raise NotModelled("prime_rl: length_penalty is modelled with type='linear' only")
    for name in given:
        choose("prime_rl", "length_penalty", name, LINEAR)
    if o.algorithm != "grpo":
        raise ValueError(f"prime_rl: algorithm={o.algorithm!r} takes no length_penalty")
    return LengthPenalty(weight={**LINEAR, **given}["num_output_tokens_weight"])


def advantage(o: Options) -> Advantage:
    """R − R̄ without a spread; MaxRL divides by the group's mean."""
    if o.algorithm in ELSEWHERE:
        raise NotModelled(f"prime_rl: algorithm={o.algorithm!r} is not modelled; it {ELSEWHERE[o.algorithm]}")
    table: dict[str, Advantage] = {
        "grpo": Normalized(
            center=LengthWeightedMean() if o.length_weighted_mean else GroupMean(), scale=None
        ),
        "max_rl": Normalized(center=GroupMean(), scale=GroupLevel()),
    }
    return choose("prime_rl", "algorithm", o.algorithm, table)


def _masked_is(o: Options) -> Method:
    by_sequence = choose("prime_rl", "ratio_type", o.ratio_type, {"token": False, "sequence": True})
    cap = o.sequence_clip_high if by_sequence else math.inf
    if by_sequence and isinstance(cap, (int, float)) and cap > math.exp(GREATEST_LOG_RATIO):
        raise NotModelled("prime_rl: sequence_clip_high above e^10 is not modelled; the library clips there")
    leash = 0.0 if o.kl_tau is None else o.kl_tau
    scored: Gain = LeashedScore(cap=cap, scale=o.adv_tau, leash=leash, pull=o.teacher_tau)
    token = MismatchRatio(ratio=Token())
    masks: tuple[Correction, ...] = (
        TrustRegion(statistic=token, low=o.token_mask_low, high=o.token_mask_high),
        TrustRegion(statistic=MismatchRatio(ratio=SequenceMean()), low=o.geo_mask_low, high=o.geo_mask_high),
        TrustRegion(statistic=OverSequence(inner=token, how="min"), low=o.sequence_mask_low),
        TrustRegion(statistic=OverSequence(inner=token, how="max"), high=o.sequence_mask_high),
    )
    return Method(
        shaping=shaping(o),
        advantage=advantage(o),
        ratio=FromSampler(inner=Trajectory() if by_sequence else Token(), correction=False),
        gain=scored,
        corrections=masks,
        reduction=PerSequence() if by_sequence else PerToken(),
    )
