"""open-instruct's flags (``grpo_fast.py``), present names and earlier ones."""

from __future__ import annotations

import dataclasses
from typing import Any

from grpo_jax.check.setting import Circumstances, Given, Library, adamw
from grpo_jax.presets.open_instruct import NOT_MODELLED, Options
from grpo_jax.refill import Refill

OPTIONS = tuple(field.name for field in dataclasses.fields(Options) if field.name != "verification_reward")
SWITCHED_ON = ("filter_zero_std_samples", "use_rho_correction", "load_ref_policy")
"""What ``--no_...`` switches off."""
ESTIMATORS = {"kl1": 0, "kl2": 1, "kl3": 2, "kl4": 3}
"""The estimators' earlier names."""
CAP = "truncated_importance_sampling_ratio_cap"
"""The correction of versions up to 0.2.0, whose default was none."""

ACTS: dict[str, tuple[Any, str]] = {
    "alpha": (None, "how far the reference follows, where it does"),
    "warmup_ratio": (0, "the learning rate rises at first"),
    "lr_scheduler_type": ("constant", "the learning rate changes over training"),
    "set_weight_decay_on_bias_and_norm": (
        True,
        "where false, weight_decay is ignored: AdamW's own 0.01 acts",
    ),
    "no_set_weight_decay_on_bias_and_norm": (False, "weight_decay is ignored: AdamW's own 0.01 acts"),
    "no_resampling_pass_rate": (None, "prompts that are solved are not drawn again"),
    "apply_verifiable_reward": (True, "another reward"),
    "additive_format_reward": (False, "a second reward is added"),
    "add_r1_style_format_reward": (False, "earlier: a second reward is added"),
    "r1_style_format_reward": (None, "a second reward"),
    "record_entropy": (False, "of logging"),
    "masked_mean_axis": (None, "earlier: a mean over each answer's tokens"),
    "masked_mean_denominator": (None, "earlier: the loss's denominator"),
}

IRRELEVANT = (
    r"(dataset|deepspeed|vllm_(?!top_p)|oe_eval|eval|save|checkpoint|hf|wandb|llm_judge|code|with|push|try)_.*",
    r"(per_device|gradient|model|tokenizer|chat|max_prompt|max_token|pack|total|num_(learners|nodes)|local|gs)_.*",
    r"(backend|single_gpu|inference|inflight|stop_strings|seed|exp_name|output|run|add_bos|system|ground|sft).*",
    r"(cluster|workspace|priority|image|gpus|budget|preemptible|pure_docker|env|task|max_retries|beaker|tools?).*",
    r"(allow|use_fp8|gather|sequence_parallel|fsdp|send_slack|cache|verbose|remap|queue|enable|activation|mask_tool).*",
)


def options(given: Given) -> dict[str, Any]:
    """The preset's options; a right answer earns ``verification_reward``, 10 unless set."""
    found = {name: given.get(name) for name in (*OPTIONS, *NOT_MODELLED)}
    found |= {name: False for name in SWITCHED_ON if given.flag(f"no_{name}")}
    found = {name: value for name, value in found.items() if value is not None}
    if isinstance(found.get("kl_estimator"), str):
        found["kl_estimator"] = ESTIMATORS.get(found["kl_estimator"], found["kl_estimator"])
    found["verification_reward"] = given.number("verification_reward", default=10.0)
    if not found.get("non_stop_penalty"):
        found.pop("non_stop_penalty_value", None)
    cap = given.get(CAP)
    if cap is not None:
        if given.number(CAP, default=0.0) > 0:
            found.setdefault("rho_clamp_upper_bound", cap)
        else:
            found.setdefault("use_rho_correction", False)
    return found


def circumstances(given: Given) -> Circumstances:
    """Steps on a batch: ``num_mini_batches * num_epochs``; answers may be ``async_steps`` batches old."""
    if given.get("lr_scheduler_type") is None:
        given.left["lr_scheduler_type"] = "linear unless set: the learning rate falls to 0 over training"
    refill = None
    if given.flag("active_sampling"):
        given.assumed.append("active_sampling without a limit: 10 draws at most")
        refill = Refill(tries=10, other=True)
    return Circumstances(
        group_size=given.count("num_samples_per_prompt_rollout", default=4),
        prompts=given.count("num_unique_prompts_rollout", default=16),
        passes=given.count("num_epochs", default=1),
        minibatches=given.count("num_mini_batches", default=1),
        tokens=given.count("response_length", default=256),
        optimizer=adamw(
            rate=given.number("learning_rate", default=2e-5),
            decay=given.number("weight_decay", default=0.0),
            norm=given.number("max_grad_norm", default=1.0),
        ),
        lag=given.count("async_steps", default=8),
        refill=refill,
    )


OPEN_INSTRUCT = Library(
    title="open-instruct 0.3.0",
    preset="open_instruct",
    marks=(
        r"num_(samples_per_prompt|unique_prompts)_rollout",
        r"advantage_normalization_type",
        r"(apply_)?(verifiable|verification)_reward|non_stop_penalty(_value)?",
        r"rho_(clamp|mask)_\w+",
        r"loss_denominator|kl_estimator|clip_(lower|higher)|num_mini_batches|async_steps|active_sampling",
        r"pack_length|response_length|beta",
    ),
    options=options,
    circumstances=circumstances,
    acts=ACTS,
    irrelevant=IRRELEVANT,
)
