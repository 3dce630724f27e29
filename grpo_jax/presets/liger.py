"""What Liger-Kernel 0.8.5 computes: the loss of ``LigerFusedLinearGRPOLoss``, with TRL's advantages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from grpo_jax.presets import trl
from grpo_jax.presets.engines import Sampling
from grpo_jax.presets.options import NotModelled, choose, made, read, takes
from grpo_jax.surrogate import Method
from grpo_jax.types import Number

NOT_MODELLED = {"use_ref_model": True, "compiled": True, "chunk_size": 1}

LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")
"""The losses that Liger has; TRL's trainers of other names have none there."""


@dataclass(frozen=True, kw_only=True)
class Options(trl.Options):
    """Liger's own names and defaults; those of the advantages and of the vLLM correction are TRL's."""

    beta: Number | None = 0.04
    epsilon_low: Number = 0.2
    epsilon_high: Number | None = 0.2
    use_bias_correction_kl: bool = False


def options(**given: Any) -> Options:
    """Liger's options as a record."""
    return read("liger", Options, given, NOT_MODELLED | trl.NOT_MODELLED)


def sampling(**given: Any) -> Sampling:
    """As TRL's, which calls it."""
    return trl.sampled(options(**given))


@takes(Options)
def liger(**given: Any) -> Method:
    """The method that Liger-Kernel 0.8.5 computes: ``trl`` with an unweighted k3 by default.

    Its LUSPO averages over padded places unless the ratio is the sequence's and there is no penalty; only
    this is modelled.

    >>> liger(loss_type="grpo", beta=0.04).penalty.coef
    0.04
    """
    o = options(**given)
    choose("liger", "loss_type", o.loss_type, dict.fromkeys(LOSSES))
    if o.epsilon is not None:
        raise NotModelled("liger: epsilon is not modelled; did you mean epsilon_low?")
    if o.importance_sampling_level == "sequence" and o.loss_type in ("cispo", "sapo", "vespo"):
        raise ValueError(f"liger: loss_type={o.loss_type!r} takes importance_sampling_level='token' only")
    unpadded = o.importance_sampling_level == "sequence" and isinstance(o.beta, (int, float)) and o.beta == 0
    unpadded = unpadded and not (trl.sampler(o) is not None and "token" in o.vllm_importance_sampling_mode)
    if o.loss_type == "luspo" and not unpadded:
        raise NotModelled("liger: luspo reads padding unless importance_sampling_level='sequence' and beta=0")
    names = {"epsilon": "epsilon_low"}
    return made("liger", o, trl.method, elsewhere=trl.DRAWING, names=names)
