"""What verl 0.9.1 computes: its policy losses, outcome advantage estimators and KL penalties."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grpo_jax.decoding import TRANSFORMERS, VLLM
from grpo_jax.parts.advantages import (
    Advantage,
    BestOfGroup,
    External,
    GroupMean,
    GroupSpread,
    LeaveOneOut,
    LengthWeightedMean,
    NoBaseline,
    Normalized,
)
from grpo_jax.parts.corrections import Correction
from grpo_jax.parts.gains import Clip, DualClip, Gain, LogLikelihood, TruncatedScore
from grpo_jax.parts.penalties import (
    K1,
    K2,
    K3,
    ClampedDivergence,
    Distance,
    Divergence,
    Penalty,
    StraightThrough,
)
from grpo_jax.parts.ratios import Ratio, SequenceMeanToken, Token, Trajectory
from grpo_jax.parts.reductions import Constant, NonEmpty, PerSequence, PerToken, Reduction, TokenSum
from grpo_jax.parts.rejection import Every, RatioOfKept, ReductionOfKept, Rejection, Within
from grpo_jax.parts.returns import PerNonzero, ReturnToGo, Whitened
from grpo_jax.parts.sampler import (
    MeanOne,
    MismatchDivergence,
    MismatchRatio,
    OverSequence,
    SamplerMask,
    SamplerMismatch,
    SequenceGeometricMean,
    Statistic,
)
from grpo_jax.parts.shaping import KLInReward, NormalizedSum, Overlong, Shaping, Sum
from grpo_jax.parts.soft_gains import (
    BinaryKLRegion,
    CovarianceClip,
    CovariancePenalty,
    GeometricMean,
    QuadraticLogLikelihood,
    Sapo,
    VariationRegion,
)
from grpo_jax.presets.engines import Sampling, drawn, sglang
from grpo_jax.presets.options import NotModelled, choose, read, takes
from grpo_jax.surrogate import Method
from grpo_jax.types import Number

ADDED = 1e-6
"""What verl adds to the group's standard deviation (ddof 1)."""

BY_REWARD = ("grpo", "grpo_vectorized", "grpo_passk", "rloo", "rloo_vectorized", "remax")
"""Estimators whose advantages do not read the mask."""

NOT_MODELLED = {
    "entropy_coeff": 0,
    "lam": 1.0,
    "do_sample": True,
    "repetition_penalty": 1.0,
    "ignore_eos": False,
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """verl's own names and defaults: those of the actor, of its policy loss, of the algorithm and its rollout
    correction. ``clip_ratio`` counts only where low or high are None, as in verl. ``temperature`` to
    ``logprobs_mode`` are those of ``actor_rollout_ref.rollout`` (or with ``rollout.`` in front): they say who
    samples, and ``presets.sampling`` reads them. ``calculate_log_probs`` keeps what the engine reports; the
    record here always holds it. ``overlong_buffer_len`` and ``overlong_penalty_factor`` are those of the
    DAPO reward manager's ``overlong_buffer`` where it is enabled, up to ``max_response_length``: from verl's
    source, no recorded case."""

    loss_mode: str = "vanilla"
    adv_estimator: str = "grpo"
    loss_agg_mode: str = "token-mean"
    loss_scale_factor: Number | None = None
    clip_ratio: Number = 0.2
    clip_ratio_low: Number | None = 0.2
    clip_ratio_high: Number | None = 0.2
    clip_ratio_c: Number = 3.0
    tau_pos: Number = 1.0
    tau_neg: Number = 1.05
    clip_cov_ratio: float = 0.0002
    clip_cov_lb: Number = 1.0
    clip_cov_ub: Number = 5.0
    kl_cov_ratio: Number = 0.0002
    ppo_kl_coef: Number = 0.1
    dro_beta: Number | None = None
    use_kl_loss: bool = False
    kl_loss_coef: Number = 0.001
    kl_loss_type: str = "low_var_kl"
    use_kl_in_reward: bool = False
    kl_coef: Number = 0.001
    kl_penalty: str = "kl"
    norm_adv_by_std_in_grpo: bool = True
    gamma: Number = 1.0
    gdpo_reward_weights: Sequence[float] | None = None
    rollout_is: str | None = None
    rollout_is_threshold: Number | str = 2.0
    rollout_is_batch_normalize: bool = False
    rollout_rs: str | None = None
    rollout_rs_threshold: float | str | None = None
    temperature: Number = 1.0
    top_p: Number = 1.0
    top_k: Number = -1
    name: str = "vllm"
    logprobs_mode: str = "processed_logprobs"
    calculate_log_probs: bool = False
    overlong_buffer_len: Number | None = None
    overlong_penalty_factor: Number = 1.0
    max_response_length: Number | None = None


def options(**given: Any) -> Options:
    """verl's options as a record."""
    named = {name.removeprefix("actor_rollout_ref.").removeprefix("rollout."): v for name, v in given.items()}
    return read("verl", Options, named, NOT_MODELLED)


def sampling(**given: Any) -> Sampling:
    """vLLM, SGLang or transformers ("hf") as the rollout engine; the actor scores at its temperature."""
    o = options(**given)
    if o.name == "sglang":
        return sglang(o.temperature, top_k=o.top_k, top_p=o.top_p)
    modes = {"processed_logprobs": "processed", "raw_logprobs": "raw"}
    return drawn(
        o.temperature,
        top_k=o.top_k,
        top_p=o.top_p,
        order=choose("verl", "name", o.name, {"vllm": VLLM, "hf": TRANSFORMERS, "sglang": None}),
        records=choose("verl", "logprobs_mode", o.logprobs_mode, modes),
    )


@takes(Options)
def verl(**given: Any) -> Method:
    """The method that verl 0.9.1 computes on one batch.

    Groups of one, which verl leaves unnormalised, get advantage 0 here.

    >>> verl(loss_mode="vanilla").gain.cap
    3.0
    """
    o = options(**given)
    return Method(
        shaping=shaping(o),
        advantage=advantage(o),
        ratio=ratio(o),
        gain=gain(o),
        corrections=corrections(o),
        penalty=penalty(o),
        reduction=reduction(o),
    )


def shaping(o: Options) -> Shaping:
    """Sum of rewards, less the overlong punishment; one by one for GDPO; with the KL where asked for."""
    made: Shaping = Sum()
    if o.overlong_buffer_len is not None:
        if o.max_response_length is None or o.adv_estimator == "gdpo":
            raise ValueError("verl: overlong_buffer_len needs max_response_length, and no gdpo")
        made = Overlong(
            limit=o.max_response_length, buffer=o.overlong_buffer_len, factor=o.overlong_penalty_factor
        )
    if o.adv_estimator == "gdpo":
        weights = tuple(o.gdpo_reward_weights or ())
        made = NormalizedSum(weights=weights, ddof=1.0, eps=ADDED, scaled=o.norm_adv_by_std_in_grpo)
    if o.use_kl_in_reward and o.adv_estimator != "reinforce_plus_plus":
        if o.adv_estimator in ("gdpo", "remax"):
            raise NotModelled(f"verl: use_kl_in_reward is not modelled with {o.adv_estimator!r}")
        made = KLInReward(inner=made, coef=o.kl_coef, divergence=divergence(o.kl_penalty))
    return made


def advantage(o: Options) -> Advantage:
    """The outcome advantage estimators."""
    spread = GroupSpread(ddof=1.0) if o.norm_adv_by_std_in_grpo else None
    eps = ADDED if o.norm_adv_by_std_in_grpo else 0.0
    shifted = Normalized(center=GroupMean(), scale=None)
    in_reward = o.kl_coef if o.use_kl_in_reward else 0.0
    returns = ReturnToGo(discount=o.gamma, kl_coef=in_reward, divergence=divergence(o.kl_penalty))
    table: dict[str, Advantage] = {
        **dict.fromkeys(("grpo", "grpo_vectorized"), Normalized(center=GroupMean(), scale=spread, eps=eps)),
        **dict.fromkeys(("rloo", "rloo_vectorized"), Normalized(center=LeaveOneOut(), scale=None)),
        "grpo_passk": Normalized(center=BestOfGroup(), scale=spread, eps=eps),
        "opo": Normalized(center=LengthWeightedMean(), scale=None),
        "remax": Normalized(center=External(), scale=None),
        "reinforce_plus_plus": Whitened(inner=returns),
        "reinforce_plus_plus_baseline": Whitened(inner=shifted),
        "gdpo": Whitened(inner=Normalized(center=NoBaseline(), scale=None)),
        "gpg": PerNonzero(inner=shifted),
    }
    if o.adv_estimator in ("gae", "optimal_token_baseline", "tir_optimal_token_baseline"):
        raise NotModelled(f"verl: adv_estimator={o.adv_estimator!r} is not modelled")
    return choose("verl", "adv_estimator", o.adv_estimator, table)


def ratio(o: Options) -> Ratio:
    """Token ratios clamped to ±20 where verl clamps; GSPO's token form."""
    if o.loss_mode == "gspo":
        keep, whole = rejection(o), SequenceMeanToken(cap=10.0)
        return whole if keep is None else RatioOfKept(keep=keep, inner=whole)
    return Token() if o.loss_mode in ("clip_cov", "kl_cov", "geo_mean", "gpg", "dro") else Token(clamp=20.0)


def gain(o: Options) -> Gain:
    """The policy losses, with their sign turned."""
    low = o.clip_ratio if o.clip_ratio_low is None else o.clip_ratio_low
    high = o.clip_ratio if o.clip_ratio_high is None else o.clip_ratio_high
    if o.loss_mode == "clip_cov" and not o.clip_cov_ratio >= 1:
        raise NotModelled("verl: clip_cov_ratio below 1 takes a random subset of tokens; only 1 is modelled")
    beta = 0.0 if o.dro_beta is None else o.dro_beta
    if o.loss_mode == "dro" and o.dro_beta is None:
        raise ValueError("verl: loss_mode='dro' needs dro_beta")
    table = {
        "vanilla": lambda: DualClip(low=low, high=high, cap=o.clip_ratio_c),
        "gspo": lambda: Clip(low=low, high=high),
        "sapo": lambda: Sapo(tau_pos=o.tau_pos, tau_neg=o.tau_neg),
        "gpg": LogLikelihood,
        "clip_cov": lambda: CovarianceClip(
            inner=Clip(low=low, high=high), lower=o.clip_cov_lb, upper=o.clip_cov_ub
        ),
        "kl_cov": lambda: CovariancePenalty(share=o.kl_cov_ratio, coef=o.ppo_kl_coef),
        "geo_mean": lambda: GeometricMean(low=low, high=high, eps=1e-8),
        "dro": lambda: QuadraticLogLikelihood(beta=beta),
        "cispo": lambda: TruncatedScore(low=low, high=high),
        "dppo_tv": lambda: VariationRegion(low=low, high=high, cap=o.clip_ratio_c),
        "dppo_kl": lambda: BinaryKLRegion(low=low, high=high, cap=o.clip_ratio_c),
    }
    return choose("verl", "loss_mode", o.loss_mode, table)()


def corrections(o: Options) -> tuple[Correction, ...]:
    """Rollout correction: truncated (one bound) or masked ("low_high") importance weights."""
    if o.rollout_is is None:
        return ()
    units = {"token": Token(clamp=20.0), "sequence": Trajectory(clamp_sum=20.0)}
    unit = choose("verl", "rollout_is", o.rollout_is, units)
    spec = o.rollout_is_threshold
    bounds = [float(b) for b in spec.strip().split("_", 1)] if isinstance(spec, str) else [spec]
    made: Correction = SamplerMismatch(ratio=unit, low=0.0, high=bounds[-1])
    if len(bounds) == 2:
        made = SamplerMask(ratio=unit, statistic=MismatchRatio(ratio=unit), low=bounds[0], high=bounds[1])
    if o.rollout_is_batch_normalize:
        made = MeanOne(inner=made, by_sequence=o.rollout_is == "sequence")
    return (SequenceGeometricMean(inner=made),) if o.loss_mode == "geo_mean" else (made,)


def rejection(o: Options) -> Rejection | None:
    """Rejected tokens leave the response mask, after the advantages: from verl's source, no recorded case.

    k1 is −log(π_old/π_rollout), held between the logarithms of both thresholds, so that "lower_upper" bounds
    π_rollout/π_old.
    """
    if o.rollout_rs is None:
        return None
    if o.loss_mode in ("geo_mean", "clip_cov", "kl_cov") or o.adv_estimator not in BY_REWARD:
        raise NotModelled(
            f"verl: rollout_rs is not modelled with loss_mode={o.loss_mode!r} and "
            f"adv_estimator={o.adv_estimator!r}, which read the mask elsewhere, too"
        )
    if o.rollout_rs_threshold is None:
        raise ValueError("verl: rollout_rs needs rollout_rs_threshold")
    names = list(dict.fromkeys(name.strip() for name in o.rollout_rs.split(",")))
    bounds = [bound.strip() for bound in str(o.rollout_rs_threshold).split(",")]
    if len(bounds) not in (1, len(names)):
        raise ValueError(f"verl: rollout_rs_threshold has {len(bounds)} entries for {len(names)} options")
    rules = zip(names, bounds * len(names) if len(bounds) == 1 else bounds, strict=True)
    return Every(rules=tuple(_rule(name, bound) for name, bound in rules))


def _rule(name: str, bound: str) -> Rejection:
    kinds: dict[str, Divergence] = {"k1": K1(), "k2": K2(), "k3": K3(clamp=20.0)}
    units = ("token", "seq_sum", "seq_mean", "seq_max")
    table = {f"{unit}_{kind}": (unit, kind) for unit in units for kind in kinds}
    del table["seq_max_k1"]
    unit, kind = choose("verl", "rollout_rs", name, table)
    statistic: Statistic = MismatchDivergence(divergence=kinds[kind], reverse=True)
    if unit != "token":
        statistic = OverSequence(inner=statistic, how=unit.removeprefix("seq_"))
    edges = [float(edge) for edge in bound.split("_", 1)]
    if min(edges) <= 0 or (kind != "k1" and len(edges) == 2):
        raise ValueError(
            f"verl: rollout_rs_threshold={bound!r} for {name}; a threshold is positive, and k1's may be "
            "lower_upper"
        )
    if kind != "k1":
        return Within(statistic=statistic, low=-math.inf, high=edges[0])
    low, high = edges if len(edges) == 2 else (1 / edges[0], edges[0])
    return Within(statistic=statistic, low=math.log(low), high=math.log(high))


def divergence(kind: str) -> Divergence:
    """verl's kl_penalty: k1 (kl), abs, k2 (mse), k3 (low_var_kl); "+" takes k2's gradient."""
    k3 = ClampedDivergence(inner=K3(clamp=20.0), limit=10.0)
    table = {"kl": K1(), "k1": K1(), "abs": Distance(), "mse": K2(), "k2": K2(), "low_var_kl": k3, "k3": k3}
    value = choose("verl", "kl_penalty", kind.removesuffix("+"), table)
    return StraightThrough(value=value, gradient=K2()) if kind.endswith("+") else value


def penalty(o: Options) -> Penalty:
    """The KL loss, always aggregated as ``loss_agg_mode`` says."""
    coef = o.kl_loss_coef if o.use_kl_loss else 0.0
    return Penalty(divergence=divergence(o.kl_loss_type), coef=coef, reduce=aggregation(o))


def aggregation(o: Options) -> Reduction:
    """verl's agg_loss; sequences without a valid token do not count, nor do rejected tokens."""
    table: dict[str, Reduction] = {
        "token-mean": PerToken(),
        "token-sum": TokenSum(),
        "seq-mean-token-sum": NonEmpty(inner=Constant(length=1.0)),
        "seq-mean-token-sum-norm": NonEmpty(inner=Constant(length=o.loss_scale_factor)),
        "seq-mean-token-mean": NonEmpty(inner=PerSequence(eps=1e-8)),
    }
    return _kept(o, choose("verl", "loss_agg_mode", o.loss_agg_mode, table))


def _kept(o: Options, inner: Reduction) -> Reduction:
    keep = rejection(o)
    return inner if keep is None else ReductionOfKept(keep=keep, inner=inner)


def reduction(o: Options) -> Reduction:
    """geo_mean and sapo have their own and ignore ``loss_agg_mode``."""
    if o.loss_mode == "geo_mean":
        return PerSequence()
    return _kept(o, NonEmpty(inner=PerSequence(eps=1e-8))) if o.loss_mode == "sapo" else aggregation(o)
