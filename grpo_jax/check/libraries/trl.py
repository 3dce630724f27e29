"""TRL's ``GRPOConfig`` (and ``RLOOConfig``, ``GMPOConfig``): names, defaults, and steps on a batch."""

from __future__ import annotations

import inspect
from typing import Any

from grpo_jax.check.setting import Circumstances, Given, Library, adamw, divided
from grpo_jax.presets import trl as preset
from grpo_jax.presets.trl import NOT_MODELLED

OPTIONS = tuple(name for name in inspect.signature(preset).parameters if name != "others")

ACTS: dict[str, tuple[Any, str]] = {
    "sync_ref_model": (False, "the reference follows the policy; here it stays where training starts"),
    "use_peft": (False, "adapters: other parameters are trained, by the same method"),
    "lr_scheduler_type": ("constant", "the learning rate changes over training"),
    "warmup_ratio": (0, "the learning rate rises at first"),
    "warmup_steps": (0, "the learning rate rises at first"),
    "label_smoothing_factor": (0, "of supervised training"),
    "chat_template_kwargs": (None, "another prompt"),
    "max_tool_calling_iterations": (None, "answers in several turns"),
    "use_transformers_paged": (False, "another engine"),
    "cast_lm_head_to_fp32": (False, "a precision; the engine may differ from the trainer by it"),
}

IRRELEVANT = (
    r"per_device_eval_batch_size|eval_.*|do_eval|num_generations_eval|max_prompt_length|lr_scheduler_kwargs",
    r"(logging|save|hub|log|wandb|report|dataset|data|model|torch|ddp|fsdp|push|trackio)_.*|output_dir|bf16|fp16",
    r"vllm_(mode|model_impl|server.*|gpu.*|max.*|tensor.*|device|dtype|guided.*|enable.*|group.*|structured.*)",
    r"gradient_checkpointing.*|optim_args|seed|data_seed|reward_funcs|.*_reward.*|num_processes|max_steps",
    r"num_train_epochs|num_completions_to_print|lora_.*|dtype|attn_implementation|trust_remote_code|run_name",
)


def options(given: Given) -> dict[str, Any]:
    """The preset's options that the file sets; micro-batches count in "bnpo" alone."""
    found = {name: given.get(name) for name in (*OPTIONS, *NOT_MODELLED) if given.get(name) is not None}
    prefix = "generation_kwargs."
    drawn = {name.removeprefix(prefix): given.get(name) for name in given.values if name.startswith(prefix)}
    if drawn:
        found["generation_kwargs"] = drawn
    cap = given.get("vllm_importance_sampling_cap")  # its earlier name
    if cap is not None:
        found.setdefault("vllm_importance_sampling_clip_max", cap)
    if found.get("loss_type") != "bnpo":
        found.pop("gradient_accumulation_steps", None)
    if found.get("loss_type") != "dr_grpo":
        found.pop("max_completion_length", None)  # of the method a denominator, else the loop's budget
    bounds = found.get("reward_clip_range")
    if isinstance(bounds, list) and len(bounds) == 2:
        found["reward_clip_range"] = (bounds[0], bounds[1])
    return found


def circumstances(given: Given) -> Circumstances:
    """Steps on a batch: ``num_iterations * steps_per_generation / gradient_accumulation_steps``.

    A generation batch is ``per_device_train_batch_size * processes * steps_per_generation`` answers, each
    step takes ``gradient_accumulation_steps`` of its parts, and all of it is used ``num_iterations`` times.
    """
    group = given.count("num_generations", default=8)
    accumulated = given.count("gradient_accumulation_steps", default=1)
    device = given.count("per_device_train_batch_size", default=8)
    processes = given.count("num_processes", default=1)
    size = given.get("generation_batch_size")
    per_generation = given.count("steps_per_generation", default=accumulated)
    if size is not None:
        size = given.count("generation_batch_size", default=device)
        per_generation = max(size // (device * processes), 1)
    answers = device * processes * per_generation
    if "num_processes" not in given.values and size is None:
        given.assumed.append(f"one process: {answers} answers a batch")
    return Circumstances(
        group_size=group,
        prompts=max(answers // group, 1),
        passes=given.count("num_iterations", default=1),
        minibatches=divided(
            given, per_generation, accumulated, ("steps_per_generation", "gradient_accumulation_steps")
        ),
        tokens=given.count("max_completion_length", default=256),
        optimizer=adamw(
            rate=given.number("learning_rate", default=1e-6),
            b1=given.number("adam_beta1", default=0.9),
            b2=given.number("adam_beta2", default=0.999),
            eps=given.number("adam_epsilon", default=1e-8),
            decay=given.number("weight_decay", default=0.0),
            norm=given.number("max_grad_norm", default=1.0),
        ),
    )


TRL = Library(
    title="TRL 1.16.0",
    preset="trl",
    marks=(
        r"num_generations",
        r"max_completion_length",
        r"scale_rewards",
        r"loss_type",
        r"num_iterations",
        r"steps_per_generation",
        r"per_device_train_batch_size",
        r"importance_sampling_level",
        r"mask_truncated_completions",
        r"vllm_importance_sampling_\w+",
        r"epsilon(_high)?",
        r"beta",
        r"use_vllm",
        r"reward_weights",
    ),
    options=options,
    circumstances=circumstances,
    acts=ACTS,
    irrelevant=IRRELEVANT,
)
