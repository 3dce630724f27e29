"""What AReaL 1.0.4 computes: its actor's loss, rejection sampling, normalisation and KL in the reward.

The mean is always over tokens. ``rejection_sampling`` with the metric "binary_kl" (KPop, its pull request
1405) came after 1.0.4; it is written from the published formula, and no case of it is recorded. Probabilities
are kept 1e-6 away from 0 and 1 there, as ``BinaryKL`` has it; AReaL keeps them 1e-8 away.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from grpo_jax.parts.advantages import Advantage, NoBaseline, Normalized
from grpo_jax.parts.centring import CentredScaled, NoEosIsZero
from grpo_jax.parts.corrections import Correction
from grpo_jax.parts.gains import Clip, DualClip, Gain
from grpo_jax.parts.penalties import K1, K2, K3, ClampedDivergence
from grpo_jax.parts.ratios import FromSampler, Ratio, SequenceMean, Token, Trajectory
from grpo_jax.parts.reductions import PerToken
from grpo_jax.parts.rejection import (
    Every,
    RatioOfKept,
    ReductionOfKept,
    Rejection,
    SecondMoment,
    SequenceAdvantage,
    Within,
)
from grpo_jax.parts.returns import ReturnToGo
from grpo_jax.parts.sampler import (
    BothBinaryKL,
    MismatchDivergence,
    MismatchRatio,
    OverSequence,
    SamplerMask,
    SamplerMismatch,
    Statistic,
)
from grpo_jax.parts.shaping import ClampedReward, Overlong, Rescaled, Shaping, Sum
from grpo_jax.parts.soft_gains import Sapo
from grpo_jax.presets.engines import Sampling, drawn, sglang
from grpo_jax.presets.options import NotModelled, choose, read, takes
from grpo_jax.surrogate import Method
from grpo_jax.types import Number

NOT_MODELLED = {"use_cispo_loss": False, "entropy_coeff": 0.0}
ALL_TOKENS = 1e8
"""The ``top_k`` that AReaL takes for no filter."""


@dataclass(frozen=True, kw_only=True)
class Norm:
    """``NormConfig``. ``group_size`` is the loop's; groups here are what they are."""

    mean_level: str | None = "batch"
    mean_leave1out: bool = False
    std_level: str | None = "batch"
    std_unbiased: bool = True
    eps: Number = 1e-5
    group_size: int = 1


@dataclass(frozen=True, kw_only=True)
class Rejecting:
    """``RejectionSamplingConfig``."""

    level: str = "token"
    action: str = "mask"
    metric: str = "ratio"
    agg: str = "mean"
    upper: Number = 5.0
    lower: Number | None = None


@dataclass(frozen=True, kw_only=True)
class Generation:
    """``GenerationHyperparameters``, as far as they say what is drawn."""

    temperature: Number = 1.0
    top_p: Number = 1.0
    top_k: Number = ALL_TOKENS


@dataclass(frozen=True, kw_only=True)
class Options:
    """The names of ``PPOActorConfig``, with its defaults.

    ``temperature`` is the actor's own, ``gconfig`` the engine's (a dictionary), ``backend`` "sglang" or
    "vllm": they say who samples, and ``presets.sampling`` reads them.
    """

    use_decoupled_loss: bool = False
    recompute_logprob: bool = False
    prox_logp_method: str = "recompute"
    importance_sampling_level: str = "token"
    eps_clip: Number = 0.2
    eps_clip_higher: Number | None = None
    c_clip: Number | None = None
    m2_threshold: Number | None = None
    rejection_sampling: Mapping[str, Any] | None = None
    use_sapo_loss: bool = False
    sapo_tau_pos: Number = 1.0
    sapo_tau_neg: Number = 1.05
    reward_norm: Mapping[str, Any] | None = None
    reward_scaling: Number = 1.0
    reward_bias: Number = 0.0
    reward_clip: Number = 20.0
    overlong_reward_penalty: bool = False
    overlong_tokens: Number | None = None
    overlong_penalty_factor: Number | None = None
    max_new_tokens: Number = 1024
    mask_no_eos_with_zero: bool = False
    discount: Number = 1.0
    gae_lambda: Number = 1.0
    adv_norm: Mapping[str, Any] | None = None
    kl_ctl: Number = 0.1
    kl_estimator: str = "k1"
    temperature: Number = 1.0
    gconfig: Mapping[str, Any] | None = None
    backend: str = "sglang"


def options(**given: Any) -> Options:
    """AReaL's options as a record."""
    named = {name.removeprefix("actor."): value for name, value in given.items()}
    return read("areal", Options, named, NOT_MODELLED)


def sampling(**given: Any) -> Sampling:
    """SGLang, or vLLM with its default's raw log-probabilities; the actor has a temperature of its own."""
    o = options(**given)
    unused = {"greedy": False, "frequency_penalty": 0.0, "use_beam_search": False, "ignore_eos": False}
    g = read("areal.gconfig", Generation, o.gconfig or {}, unused)
    top_k = -1 if isinstance(g.top_k, (int, float)) and g.top_k >= ALL_TOKENS else g.top_k
    if choose("areal", "backend", o.backend, {"sglang": True, "vllm": False}):
        return sglang(o.temperature, engine=g.temperature, top_k=top_k, top_p=g.top_p)
    return drawn(o.temperature, engine=g.temperature, top_k=top_k, top_p=g.top_p, records="raw")


@takes(Options)
def areal(**given: Any) -> Method:
    """The method that AReaL 1.0.4 computes; ``presets.sampling("areal", ...)`` says who samples.

    Its default recomputes nothing: the sampler is the ratio's denominator. An overlong answer is punished up
    to ``max_new_tokens``, beyond which there is none.

    >>> areal(recompute_logprob=True, eps_clip_higher=0.28).gain.high
    0.28
    """
    o = options(**given)
    _check(o)
    stale = None
    if o.use_decoupled_loss and o.m2_threshold is not None:
        stale = SecondMoment(threshold=o.m2_threshold)
    rules = tuple(rule for rule in (stale, rejection(o)) if rule is not None)
    keep = Every(rules=rules) if rules else None
    # A rejected token stays in the denominator, one that M2PO drops does not.
    mean = PerToken()
    return Method(
        shaping=shaping(o),
        advantage=advantage(o),
        ratio=ratio(o, keep),
        gain=gain(o, keep),
        corrections=corrections(o),
        reduction=mean if stale is None else ReductionOfKept(keep=stale, inner=mean),
    )


def _check(o: Options) -> None:
    if o.prox_logp_method not in ("recompute", "metrics"):
        raise NotModelled(
            f"areal: prox_logp_method={o.prox_logp_method!r} is not modelled; a rollout here records no "
            "version of the weights by token"
        )
    if o.use_sapo_loss and o.use_decoupled_loss:
        raise ValueError("areal: use_sapo_loss needs use_decoupled_loss=False, as in the library")


def shaping(o: Options) -> Shaping:
    """clip((r + bias)·scaling, ±reward_clip), the overlong penalty before."""
    made: Shaping = Sum()
    if o.overlong_reward_penalty:
        if o.overlong_tokens is None or o.overlong_penalty_factor is None:
            raise ValueError(
                "areal: overlong_reward_penalty needs overlong_tokens and overlong_penalty_factor"
            )
        made = Overlong(
            inner=made, limit=o.max_new_tokens, buffer=o.overlong_tokens, factor=o.overlong_penalty_factor
        )
    made = Rescaled(inner=made, bias=o.reward_bias, scale=o.reward_scaling)
    return ClampedReward(inner=made, low=-o.reward_clip, high=o.reward_clip)


def normalised(
    option: str, given: Mapping[str, Any] | None, inner: Advantage, *, by_token: bool
) -> Advantage:
    """An inner advantage as a ``NormConfig`` normalises it; None leaves it."""
    if given is None:
        return inner
    norm = read(f"areal.{option}", Norm, given, {})
    levels = {"group": "group", "batch": "batch", None: "none"}
    return CentredScaled(
        inner=inner,
        center=choose("areal", f"{option}.mean_level", norm.mean_level, levels),
        leave_one_out=norm.mean_leave1out,
        scale=choose("areal", f"{option}.std_level", norm.std_level, levels),
        by_token=by_token,
        ddof=1.0 if norm.std_unbiased else 0.0,
        eps=norm.eps,
    )


def advantage(o: Options) -> Advantage:
    """Normalised reward; returns without a critic, with the KL in the reward; normalised by tokens."""
    made: Advantage = Normalized(center=NoBaseline(), scale=None)
    made = normalised("reward_norm", o.reward_norm, made, by_token=False)
    if o.mask_no_eos_with_zero:
        made = NoEosIsZero(inner=made)
    if _by_token(o):
        kl = choose("areal", "kl_estimator", o.kl_estimator, {"k1": K1(), "k2": K2(), "k3": K3()})
        made = ReturnToGo(
            inner=made,
            discount=o.discount * o.gae_lambda,
            kl_coef=o.kl_ctl,
            divergence=ClampedDivergence(inner=kl, limit=10.0),
            from_sampler=o.use_decoupled_loss or not o.recompute_logprob,
        )
    return normalised("adv_norm", o.adv_norm, made, by_token=True)


def _by_token(o: Options) -> bool:
    """Whether an output's tokens may have different advantages."""
    plain = all(isinstance(x, (int, float)) for x in (o.kl_ctl, o.discount, o.gae_lambda))
    return not (plain and o.kl_ctl == 0 and o.discount * o.gae_lambda == 1)


def _sequences(o: Options) -> bool:
    levels = {"token": False, "sequence": True}
    return choose("areal", "importance_sampling_level", o.importance_sampling_level, levels)


def ratio(o: Options, keep: Rejection | None) -> Ratio:
    """π_θ over the recomputed policy, else over the sampler; of sequences the mean over kept tokens."""
    made: Ratio = SequenceMean() if _sequences(o) else Token()
    if _sequences(o) and keep is not None:
        made = RatioOfKept(keep=keep, inner=made)
    recomputed = o.use_decoupled_loss or o.recompute_logprob
    return made if recomputed else FromSampler(inner=made, correction=False)


def gain(o: Options, keep: Rejection | None) -> Gain:
    """The clip, dual where asked for, or SAPO's gate."""
    high = o.eps_clip if o.eps_clip_higher is None else o.eps_clip_higher
    made: Gain = Clip(low=o.eps_clip, high=high)
    if o.use_sapo_loss:
        made = Sapo(tau_pos=o.sapo_tau_pos, tau_neg=o.sapo_tau_neg)
    elif o.c_clip is not None:
        made = DualClip(low=o.eps_clip, high=high, cap=o.c_clip)
    return SequenceAdvantage(inner=made, keep=keep) if _sequences(o) and _by_token(o) else made


def _rules(o: Options) -> tuple[Rejecting, Ratio, Statistic, Number]:
    """The options, the behaviour weight, the statistic that decides, and its lower bound."""
    r = read("areal.rejection_sampling", Rejecting, o.rejection_sampling or {}, {})
    whole = choose("areal", "level", r.level, {"token": False, "sequence": True})
    choose("areal", "agg", r.agg, {"mean": None, "sum": None, "max": None})
    if whole and o.m2_threshold is not None:
        raise NotModelled("areal: m2_threshold is modelled with rejection_sampling.level='token' only")
    token = MismatchRatio(ratio=Token())
    if r.metric == "ratio":
        by_sequence: dict[str, Statistic] = {
            "mean": MismatchRatio(ratio=SequenceMean()),
            "sum": MismatchRatio(ratio=Trajectory()),
            "max": OverSequence(inner=token, how="max"),
        }
        low = 0.0 if r.lower is None else r.lower
        weight: Ratio = SequenceMean() if whole else Token()
        return r, weight, by_sequence[r.agg] if whole else token, low
    metrics: dict[str, Statistic] = {
        "kl_k1": MismatchDivergence(divergence=K1()),
        "kl_k2": MismatchDivergence(divergence=K2()),
        "kl_k3": MismatchDivergence(divergence=K3()),
        "binary_kl": BothBinaryKL(),
    }
    metric = choose("areal", "metric", r.metric, metrics | {"ratio": None})
    statistic = OverSequence(inner=metric, how=r.agg) if whole else metric
    return r, Token(), statistic, -math.inf if r.lower is None else r.lower


def rejection(o: Options) -> Rejection | None:
    """The tokens that ``rejection_sampling`` leaves in sequence ratios; None where it leaves all."""
    if o.rejection_sampling is None or not o.use_decoupled_loss:
        return None
    r, _, statistic, low = _rules(o)
    if r.action != "mask":
        return None
    return Within(statistic=statistic, low=low, high=r.upper)


def corrections(o: Options) -> tuple[Correction, ...]:
    """The behaviour weight π_prox/π_sampling, unbounded on the tokens that are kept, or clamped."""
    if o.rejection_sampling is None or not o.use_decoupled_loss:
        return ()
    r, weight, statistic, low = _rules(o)
    if choose("areal", "action", r.action, {"mask": False, "clamp": True}):
        if r.metric != "ratio":
            raise ValueError("areal: action='clamp' takes metric='ratio' only, as in the library")
        # A sum within bounds about 1 has its mean within them, so that agg decides nothing but for "max".
        if r.level == "sequence" and r.agg == "max":
            raise NotModelled("areal: action='clamp' on sequences is not modelled with agg='max'")
        return (SamplerMismatch(ratio=weight, low=low, high=r.upper),)
    return (SamplerMask(ratio=weight, statistic=statistic, low=low, high=r.upper),)
