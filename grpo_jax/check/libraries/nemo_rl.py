"""NeMo-RL's YAML: the loss, the algorithm, who samples. What is silent is as in its ``grpo_math_1B.yaml``."""

from __future__ import annotations

import dataclasses
from typing import Any

from grpo_jax.check.setting import Circumstances, Given, Library, adamw, divided
from grpo_jax.presets.nemo_rl_options import NOT_MODELLED, Scaled, Shaped
from grpo_jax.refill import Refill

LOSS, ALGORITHM, ENGINE = "loss_fn.", "grpo.", "policy.generation."
ESTIMATOR, OVERLONG, SCALING = "grpo.adv_estimator.", "grpo.reward_shaping.", "grpo.reward_scaling."
ADAM, MEGATRON = "policy.optimizer.kwargs.", "policy.megatron_cfg."
IN_LOSS = (
    "disable_ppo_ratio",
    "force_on_policy_ratio",
    "sequence_level_importance_ratios",
    "token_level_loss",
    "use_cispo",
    "ratio_clip_min",
    "ratio_clip_max",
    "ratio_clip_c",
    "reference_policy_kl_penalty",
    "reference_policy_kl_type",
    "kl_input_clamp_value",
    "kl_output_clamp_value",
    "use_kl_in_reward",
    "use_on_policy_kl_approximation",
    "use_importance_sampling_correction",
    "truncated_importance_sampling_type",
    "truncated_importance_sampling_ratio",
    "truncated_importance_sampling_ratio_min",
    "positive_example_nll_weight",
)
UNBOUNDED = ("kl_input_clamp_value", "kl_output_clamp_value")
"""Bounds of the loss that null takes away; where they are absent their defaults act."""
OF_GROUPS = ("overlong_filtering", "seq_logprob_error_threshold", "advantage_clip_low", "advantage_clip_high")
OF_ESTIMATOR = ("minus_baseline", "reward_weights", "normalize_advantages")
SHAPED_BY_DEFAULT = {"overlong_buffer_length": 128, "overlong_buffer_penalty": 1}
"""What ``grpo_math_1B.yaml`` sets beside the switch."""

ACTS: dict[str, tuple[Any, str]] = {
    "policy.dtensor_cfg.lora_cfg.enabled": (False, "adapters: other parameters are trained"),
    f"{MEGATRON}peft.enabled": (False, "adapters: other parameters are trained"),
    f"{ALGORITHM}max_rollout_turns": (1, "answers in several turns"),
    f"{ALGORITHM}batch_multiplier": (1, "more prompts are drawn at a time; the batch is as large"),
    "policy.draft.enabled": (False, "a draft model is trained beside"),
    f"{ENGINE}backend": ("vllm", "an engine whose sampler is not modelled"),
    "on_policy_distillation": (None, "distillation from a teacher"),
}

IRRELEVANT = (
    r"(checkpointing|logger|cluster|data|env|data_plane|reward_penalties|defaults|teachers?)\b.*",
    r"grpo\.(max_num|val_|max_val|stop_at|seed|calculate|deduplicate|debug|async_grpo\.(?!enabled|max_traj)).*",
    r"policy\.(?!optimizer|generation|max_grad|train_global|max_total|megatron_cfg).*",
    r"policy\.megatron_cfg\.(?!enabled|peft\.enabled|optimizer\.(lr|adam|weight|clip)).*",
    r"policy\.generation\.(vllm_cfg\.(?!logprobs_mode)|vllm_kwargs|val_|stop|colocated|refit|real|port|mcore).*",
)


def options(given: Given) -> dict[str, Any]:
    """The preset's options; dynamic sampling is the loop's, where it drops whole groups."""
    found: dict[str, Any] = {name: given.get(f"{LOSS}{name}") for name in IN_LOSS}
    found |= {name: given.get(f"{ALGORITHM}{name}") for name in (*OF_GROUPS, *NOT_MODELLED)}
    found |= {name: given.get(f"{ESTIMATOR}{name}") for name in OF_ESTIMATOR}
    found["adv_estimator"] = given.get(f"{ESTIMATOR}name")
    for name in ("normalize_rewards", "use_leave_one_out_baseline"):
        found[name] = given.get(f"{ESTIMATOR}{name}", f"{ALGORITHM}{name}")
    for name in ("temperature", "top_p", "top_k"):
        found[name] = given.get(f"{ENGINE}{name}")
    found["logprobs_mode"] = given.get(f"{ENGINE}vllm_cfg.logprobs_mode")
    if given.flag(f"{SCALING}enabled"):
        found["reward_scaling"] = _nested(given, SCALING, Scaled, {})
    if given.flag(f"{OVERLONG}enabled"):
        length = given.count("policy.max_total_sequence_length", default=512)
        shaped = _nested(given, OVERLONG, Shaped, SHAPED_BY_DEFAULT | {"max_response_length": length})
        if "stop_properly_penalty_coef" in shaped:  # it goes before the others
            shaped = {n: shaped[n] for n in ("enabled", "stop_properly_penalty_coef")}
        found["reward_shaping"] = shaped
    if given.flag(f"{ALGORITHM}use_dynamic_sampling") and given.flag(
        f"{ALGORITHM}use_leave_one_out_baseline", default=True
    ):
        given.left[f"{ALGORITHM}use_dynamic_sampling"] = (
            "with use_leave_one_out_baseline drops rows one by one: a group's only success, or its only "
            "failure, is left out, and the others then tie; here whole groups are drawn anew"
        )
    _schedule(given)
    parents = given.get("defaults")
    if parents is not None:
        given.assumed.append(
            f"{parents} is not beside the file, so that what it sets is as in grpo_math_1B.yaml"
        )
    off = {name for name in UNBOUNDED if given.null(f"{LOSS}{name}")}
    return {name: value for name, value in found.items() if value is not None or name in off}


def _schedule(given: Given) -> None:
    """What the trainer that is enabled does to the learning rate; the other's block stands in every file."""
    own = f"{MEGATRON}scheduler."
    if not given.flag(f"{MEGATRON}enabled"):
        if given.get("policy.scheduler"):
            given.left["policy.scheduler"] = "changes the learning rate over training"
        return
    if given.get(f"{own}lr_decay_style", default="constant") != "constant":
        given.left[f"{own}lr_decay_style"] = "changes the learning rate over training"
    if given.get(f"{own}lr_warmup_iters"):
        given.left[f"{own}lr_warmup_iters"] = "lets the learning rate rise at first"


def _nested(given: Given, prefix: str, kind: type, usual: dict[str, Any]) -> dict[str, Any]:
    """The fields of a record that the file sets, or that the library's own file does."""
    names = [field.name for field in dataclasses.fields(kind)]
    found = {name: given.get(f"{prefix}{name}", default=usual.get(name)) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def circumstances(given: Given) -> Circumstances:
    """Steps on a batch: ``num_prompts_per_step * num_generations_per_prompt / train_global_batch_size``."""
    group = given.count(f"{ALGORITHM}num_generations_per_prompt", default=16)
    prompts = given.count(f"{ALGORITHM}num_prompts_per_step", default=32)
    size = given.count("policy.train_global_batch_size", default=512)
    lag = None
    if given.flag(f"{ALGORITHM}async_grpo.enabled"):
        lag = given.count(f"{ALGORITHM}async_grpo.max_trajectory_age_steps", default=1)
    refill = None
    if given.flag(f"{ALGORITHM}use_dynamic_sampling"):
        tries = given.count(f"{ALGORITHM}dynamic_sampling_max_gen_batches", default=10)
        refill = Refill(tries=tries, other=True)
    length = given.count("policy.max_total_sequence_length", default=512)
    return Circumstances(
        group_size=group,
        prompts=prompts,
        minibatches=divided(
            given, prompts * group, size, ("the batch of answers", "train_global_batch_size")
        ),
        tokens=given.count(f"{ENGINE}max_new_tokens", default=length),
        optimizer=_optimizer(given),
        lag=lag,
        refill=refill,
    )


def _optimizer(given: Given) -> Any:
    """AdamW as the trainer that is enabled has it: Megatron's, or PyTorch's."""
    norm = given.number("policy.max_grad_norm", default=0.0 if given.null("policy.max_grad_norm") else 1.0)
    if given.flag(f"{MEGATRON}enabled"):
        own = f"{MEGATRON}optimizer."
        return adamw(
            rate=given.number(f"{own}lr", default=5e-6),
            b1=given.number(f"{own}adam_beta1", default=0.9),
            b2=given.number(f"{own}adam_beta2", default=0.999),
            eps=given.number(f"{own}adam_eps", default=1e-8),
            decay=given.number(f"{own}weight_decay", default=0.01),
            norm=given.number(f"{own}clip_grad", default=norm),
        )
    betas = given.get(f"{ADAM}betas", default=[0.9, 0.999])
    if not (isinstance(betas, list) and len(betas) == 2 and all(isinstance(b, (int, float)) for b in betas)):
        raise ValueError(f"{ADAM}betas is {betas!r}; it must be two numbers")
    return adamw(
        rate=given.number(f"{ADAM}lr", default=5e-6),
        b1=float(betas[0]),
        b2=float(betas[1]),
        eps=given.number(f"{ADAM}eps", default=1e-8),
        decay=given.number(f"{ADAM}weight_decay", default=0.01),
        norm=norm,
    )


NEMO_RL = Library(
    title="NeMo-RL 0.6.0",
    preset="nemo_rl",
    marks=(r"loss_fn\..*", r"grpo\..*", r"policy\.(train_global_batch_size|max_total_sequence_length)"),
    options=options,
    circumstances=circumstances,
    acts=ACTS,
    irrelevant=IRRELEVANT,
)
