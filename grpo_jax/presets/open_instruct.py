"""What open-instruct 0.3.0 computes: the loss of ``grpo_fast.py`` and the advantages of its data loader.

``non_stop_penalty``, ``verification_reward`` and ``vllm_top_p`` are written from the source; no case of
theirs is recorded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from grpo_jax.bounds import is_concrete
from grpo_jax.parts.advantages import Advantage, GroupMean, GroupSpread, Normalized
from grpo_jax.parts.corrections import Correction
from grpo_jax.parts.gains import Clip, Gain, TruncatedScore
from grpo_jax.parts.penalties import K1, K2, K3, ClampedInput, Divergence, Penalty, RatioWeight
from grpo_jax.parts.ratios import FromSampler, Ratio, Score, SequenceMean, Token
from grpo_jax.parts.reductions import Divided, Informative, PerToken, Reduction, TokenSum
from grpo_jax.parts.rejection import WhereKept, Within
from grpo_jax.parts.sampler import (
    AtTheta,
    MismatchRatio,
    OverSequence,
    RatioDistance,
    SamplerMismatch,
    Statistic,
)
from grpo_jax.parts.shaping import Rescaled, Shaping, Sum
from grpo_jax.parts.truncation import MaskTruncated, OfFinished, TruncatedReward
from grpo_jax.presets.engines import Sampling, drawn
from grpo_jax.presets.options import NotModelled, choose, made, read, takes
from grpo_jax.surrogate import Method
from grpo_jax.types import Number

NOT_MODELLED = {
    "ref_policy_update_freq": None,
    "apply_r1_style_format_reward": False,
    "apply_evolving_rubric_reward": False,
}
BESIDE = frozenset(("temperature", "vllm_top_p", "num_mini_batches", "num_epochs"))
"""Options that ``sampling`` reads, or the loop, whatever the method reads."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The flags of ``grpo_fast.py`` with their defaults, but for ``verification_reward``.

    Rewards come as they are; on the command line a right answer earns 10. ``num_mini_batches`` and
    ``num_epochs`` are of the loop, too; where both are 1 the policy that is trained stands for the old one,
    so that every ratio is 1.
    ``temperature`` and ``vllm_top_p`` say who samples: ``presets.sampling`` reads them.
    """

    loss_fn: str = "dapo"
    clip_lower: Number = 0.2
    clip_higher: Number = 0.272
    beta: Number = 0.05
    kl_estimator: int = 2
    load_ref_policy: bool = True
    loss_denominator: Number | str = "token"
    advantage_normalization_type: str = "centered"
    filter_zero_std_samples: bool = True
    mask_truncated_completions: bool = False
    non_stop_penalty: bool = False
    non_stop_penalty_value: Number = 0.0
    verification_reward: Number = 1.0
    num_mini_batches: int = 1
    num_epochs: int = 1
    use_vllm_logprobs: bool = False
    use_rho_correction: bool = True
    rho_clamp_lower_bound: Number = 0.0
    rho_clamp_upper_bound: Number = 2.0
    rho_mask_lower_bound: Number = 0.0
    rho_mask_upper_bound: Number = 0.0
    rho_mask_sequence_level: bool = False
    rho_mask_tv_divergence: bool = False
    temperature: Number = 1.0
    vllm_top_p: Number = 1.0


def options(**given: Any) -> Options:
    """open-instruct's options as a record."""
    return read("open_instruct", Options, given, NOT_MODELLED)


def sampling(**given: Any) -> Sampling:
    """vLLM with processed log-probabilities; the trainer scores at its temperature, without the filter."""
    o = options(**given)
    return drawn(o.temperature, top_p=o.vllm_top_p)


@takes(Options)
def open_instruct(**given: Any) -> Method:
    """The method that open-instruct 0.3.0 computes; ``presets.sampling`` says who samples.

    ``mask_truncated_completions`` takes the vote from answers that were cut off, within their group. The
    library then forms groups anew by position, so that they mix prompts, and stops where the answers left are
    no multiple of the group; that is not modelled. Nor does it clamp tokens at e^±10 within the mean of a
    sequence here.

    >>> open_instruct(beta=0.01).penalty.coef
    0.01
    """
    return made("open_instruct", options(**given), method, elsewhere=BESIDE)


def method(o: Options) -> Method:
    """The method of these options."""
    if not o.load_ref_policy and not (isinstance(o.beta, (int, float)) and o.beta == 0):
        raise ValueError("open_instruct: load_ref_policy=False needs beta=0, as in the library")
    return Method(
        shaping=shaping(o),
        advantage=advantage(o),
        ratio=ratio(o),
        gain=gain(o),
        corrections=corrections(o),
        penalty=penalty(o),
        reduction=reduction(o),
    )


def _on_policy(o: Options) -> bool:
    """Whether the batch has one step, for which the library computes no old policy."""
    return o.num_mini_batches == 1 and o.num_epochs == 1 and not o.use_vllm_logprobs


def shaping(o: Options) -> Shaping:
    """The verifier's reward times what it is worth; another for answers that were cut off."""
    found: Shaping = Sum()
    if not (isinstance(o.verification_reward, (int, float)) and o.verification_reward == 1):
        found = Rescaled(inner=found, scale=o.verification_reward)
    if o.non_stop_penalty:
        found = TruncatedReward(inner=found, scale=0.0, value=o.non_stop_penalty_value)
    return found


def advantage(o: Options) -> Advantage:
    """r − r̄, over σ (ddof 0) where asked for; answers that were cut off have none where they are masked."""
    table = {
        "centered": Normalized(center=GroupMean(), scale=None),
        "standard": Normalized(center=GroupMean(), scale=GroupSpread(ddof=0.0), eps=1e-8),
    }
    kind = o.advantage_normalization_type
    found: Advantage = choose("open_instruct", "advantage_normalization_type", kind, table)
    return OfFinished(inner=found) if o.mask_truncated_completions else found


def ratio(o: Options) -> Ratio:
    """π_θ/π_old of tokens, 1 where the batch has one step; over the sampler with ``use_vllm_logprobs``."""
    if o.use_vllm_logprobs:
        return FromSampler(inner=Token(), correction=False)
    return Score() if _on_policy(o) else Token()


def gain(o: Options) -> Gain:
    """DAPO's clip, or CISPO's without a lower bound."""
    table: dict[str, Any] = {
        "dapo": lambda: Clip(low=o.clip_lower, high=o.clip_higher),
        "cispo": lambda: TruncatedScore(low=1.0, high=o.clip_higher),
    }
    return choose("open_instruct", "loss_fn", o.loss_fn, table)()


def corrections(o: Options) -> tuple[Correction, ...]:
    """ρ = π_old/π_sampling clamped, 0 outside a band; of tokens, or an answer's geometric mean for all."""
    if not o.use_rho_correction:
        return ()
    if o.use_vllm_logprobs:
        raise ValueError("open_instruct: use_vllm_logprobs needs use_rho_correction=False, as in the library")
    _check_bounds(o)
    token = Token(clamp=10.0)
    unit: Ratio = SequenceMean() if o.rho_mask_sequence_level else token
    found: Correction = SamplerMismatch(
        ratio=unit, low=o.rho_clamp_lower_bound, high=_bound(o.rho_clamp_upper_bound)
    )
    statistic: Statistic = MismatchRatio(ratio=unit)
    if o.rho_mask_tv_divergence:
        statistic = OverSequence(inner=RatioDistance(ratio=token), how="mean")
    if not (_off(o.rho_mask_lower_bound) and _off(o.rho_mask_upper_bound)):
        keep = Within(statistic=statistic, low=o.rho_mask_lower_bound, high=_bound(o.rho_mask_upper_bound))
        found = WhereKept(inner=found, keep=keep, one_sided=o.rho_mask_tv_divergence)
    elif o.rho_mask_tv_divergence:
        raise NotModelled("open_instruct: rho_mask_tv_divergence=True changes nothing without a bound")
    return (AtTheta(inner=found) if _on_policy(o) else found,)


def _check_bounds(o: Options) -> None:
    """ValueError for bounds of ρ that the library refuses; those that are traced are not looked at."""
    for name in ("rho_clamp_lower_bound", "rho_mask_lower_bound"):
        value = getattr(o, name)
        if is_concrete(value) and not np.all((np.asarray(value) >= 0) & (np.asarray(value) < 1)):
            raise ValueError(f"open_instruct: {name}={value!r}; allowed is 0, for none, or between 0 and 1")
    for name in ("rho_clamp_upper_bound", "rho_mask_upper_bound"):
        value = getattr(o, name)
        if is_concrete(value) and not np.all((np.asarray(value) == 0) | (np.asarray(value) > 1)):
            raise ValueError(f"open_instruct: {name}={value!r}; allowed is 0, for none, or above 1")


def _off(bound: Number) -> bool:
    return isinstance(bound, (int, float)) and bound == 0


def _bound(bound: Number) -> Number:
    """An upper bound as the library has it: 0 is none."""
    return math.inf if _off(bound) else bound


def penalty(o: Options) -> Penalty:
    """k1, k2, k3, or k1 times the ratio, of a log-ratio within ±40."""
    table: dict[Any, Divergence] = {0: K1(), 1: K2(), 2: K3(), 3: K1()}
    kind = choose("open_instruct", "kl_estimator", o.kl_estimator, table)
    return Penalty(
        divergence=ClampedInput(inner=kind, limit=40.0),
        weight=RatioWeight(ratio=ratio(o)) if o.kl_estimator == 3 else None,
        coef=o.beta,
    )


def reduction(o: Options) -> Reduction:
    """The step's tokens, or one constant; tied groups and masked answers count in neither."""
    found: Reduction = PerToken()
    if o.loss_denominator != "token":
        found = Divided(inner=TokenSum(), by=_denominator(o.loss_denominator))
    if o.mask_truncated_completions:
        found = MaskTruncated(inner=found)
    if o.filter_zero_std_samples and o.non_stop_penalty:
        raise NotModelled(
            "open_instruct: filter_zero_std_samples=True drops groups that tie after non_stop_penalty; "
            "here it would drop those that tie before it; give filter_zero_std_samples=False"
        )
    return Informative(inner=found) if o.filter_zero_std_samples else found


def _denominator(given: Number | str) -> Number:
    """The constant, which the command line gives as text."""
    try:
        return float(given) if isinstance(given, str) else given
    except ValueError:
        raise ValueError(
            f"open_instruct: loss_denominator={given!r}; it must be 'token' or a number above 0"
        ) from None
