"""NeMo-RL 0.6.0's options, with its defaults, and who samples by them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_jax.presets.engines import Sampling, drawn
from grpo_jax.presets.options import choose, read
from grpo_jax.types import Number

NOT_MODELLED = {
    "invalid_tool_call_advantage": None,
    "malformed_thinking_advantage": None,
    "skip_reference_policy_logprobs_calculation": False,
}


@dataclass(frozen=True, kw_only=True)
class Shaped:
    """``RewardShapingConfig``."""

    enabled: bool = False
    overlong_buffer_length: Number | None = None
    overlong_buffer_penalty: Number | None = None
    max_response_length: Number | None = None
    stop_properly_penalty_coef: Number | None = None


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """``RewardScalingConfig``."""

    enabled: bool = False
    source_min: float = 0.0
    source_max: float = 1.0
    target_min: float = 0.0
    target_max: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """The names and defaults of ``ClippedPGLossConfig``, ``GRPOConfig`` and ``AdvEstimatorConfig``.

    ``adv_estimator`` is the estimator's name. ``reward_shaping`` and ``reward_scaling`` are dictionaries that
    act where they are ``enabled``. ``temperature`` to ``logprobs_mode`` are those of ``policy.generation``:
    they say who samples, and ``presets.sampling`` reads them.
    """

    adv_estimator: str = "grpo"
    normalize_rewards: bool = True
    use_leave_one_out_baseline: bool = True
    minus_baseline: bool = True
    reward_weights: Sequence[float] | None = None
    normalize_advantages: bool = True
    advantage_clip_low: Number | None = None
    advantage_clip_high: Number | None = None
    reward_shaping: Mapping[str, Any] | None = None
    reward_scaling: Mapping[str, Any] | None = None
    overlong_filtering: bool = False
    use_dynamic_sampling: bool = False
    seq_logprob_error_threshold: Number | None = None
    disable_ppo_ratio: bool = False
    force_on_policy_ratio: bool = False
    sequence_level_importance_ratios: bool = False
    token_level_loss: bool = True
    use_cispo: bool = False
    ratio_clip_min: Number = 0.2
    ratio_clip_max: Number = 0.2
    ratio_clip_c: Number | None = None
    reference_policy_kl_penalty: Number = 0.01
    reference_policy_kl_type: str = "k3"
    kl_input_clamp_value: Number | None = 20.0
    kl_output_clamp_value: Number | None = 10.0
    use_kl_in_reward: bool = False
    use_on_policy_kl_approximation: bool = False
    use_importance_sampling_correction: bool = False
    truncated_importance_sampling_type: str | None = None
    truncated_importance_sampling_ratio: Number | None = None
    truncated_importance_sampling_ratio_min: Number | None = None
    positive_example_nll_weight: Number = 0.0
    temperature: Number = 1.0
    top_p: Number = 1.0
    top_k: Number | None = None
    logprobs_mode: str = "processed_logprobs"


def options(**given: Any) -> Options:
    """NeMo-RL's options as a record; ``loss_fn.`` and ``grpo.`` may stand in front."""
    named = {name.removeprefix("loss_fn.").removeprefix("grpo."): value for name, value in given.items()}
    return read("nemo_rl", Options, named, NOT_MODELLED)


def sampling(**given: Any) -> Sampling:
    """vLLM; the trainer scores with its temperature and behind its filters, so that both are one policy.

    The library's penalty reads log-probabilities without the filters; here there are none beside them.
    """
    o = options(**given)
    modes = {"processed_logprobs": "processed", "raw_logprobs": "raw"}
    records = choose("nemo_rl", "logprobs_mode", o.logprobs_mode, modes)
    top_k = -1 if o.top_k is None else o.top_k
    found = drawn(o.temperature, top_k=top_k, top_p=o.top_p, records=records)
    if found.behavior is None:
        return found
    behavior = None if records == "processed" else dataclasses.replace(found.behavior, decoding=None)
    return Sampling(found.behavior.decoding, behavior)
