"""AReaL's YAML: the actor's options, the engine's, and how old its weights may be."""

from __future__ import annotations

import dataclasses
from typing import Any

from grpo_jax.check.setting import Circumstances, Given, Library, adamw
from grpo_jax.presets.areal import NOT_MODELLED, Generation, Norm, Options, Rejecting

ACTOR, ENGINE, OPTIMIZER = "actor.", "gconfig.", "actor.optimizer."
NESTED = {"reward_norm": Norm, "adv_norm": Norm, "rejection_sampling": Rejecting}
OPTIONS = tuple(
    field.name
    for field in dataclasses.fields(Options)
    if field.name not in (*NESTED, "gconfig", "backend", "max_new_tokens")
)

ACTS: dict[str, tuple[Any, str]] = {
    f"{OPTIMIZER}lr_scheduler_type": ("constant", "the learning rate changes over training"),
    f"{OPTIMIZER}warmup_steps_proportion": (0, "the learning rate rises at first"),
    "dynamic_bs": (False, "batches are filled until enough groups are kept"),
    f"{ACTOR}dynamic_sampling": (False, "groups whose rewards tie are left out"),
    f"{ACTOR}use_lora": (False, "adapters: other parameters are trained, by the same method"),
    f"{ENGINE}min_new_tokens": (0, "answers may not end before"),
    f"{ACTOR}kl_reward_coef": (0.0, "a penalty in the reward"),
    f"{ACTOR}log_agent_stats": (False, "of logging"),
    "critic.path": (None, "a critic's values are part of the advantages"),
    "teacher.path": (None, "a teacher's log-probabilities are part of the loss"),
    f"{OPTIMIZER}type": ("adam", "another optimizer"),
}

IRRELEVANT = (
    r"(cluster|scheduler|ref|sglang|vllm|saver|recover|evaluator|stats_logger|perf_tracer|valid_dataset|teacher)\..*",
    r"rollout\.(?!max_head_offpolicyness).*|train_dataset\.(?!batch_size).*|(eval_gconfig|critic|rollout_eval)\..*",
    r"actor\.(experiment_name|trial_name|path|dtype|mb_spec.*|scheduling.*|group_size|grad.*|init.*|.*backend.*)",
    r"actor\.(disable_dropout|weight_update_mode|attn_impl|fsdp.*|megatron.*|archon.*|log_.*|enable_offload).*",
    r"actor\.optimizer\.(offload|initial.*|min.*|loss_scale.*|gradient_clipping_.*|hysteresis).*",
    r"experiment_name|trial_name|seed|total_train.*|enable_offload|tokenizer_path|async_training|workflow|reward_fn",
)


def options(given: Given) -> dict[str, Any]:
    """The preset's options."""
    names = (*OPTIONS, *NOT_MODELLED)
    found = {n: given.get(f"{ACTOR}{n}") for n in names if given.get(f"{ACTOR}{n}") is not None}
    for option, kind in NESTED.items():
        inner = {
            f.name: given.get(f"{ACTOR}{option}.{f.name}")
            for f in dataclasses.fields(kind)
            if f"{ACTOR}{option}.{f.name}" in given.values
        }
        given.asked.update(f"{ACTOR}{option}.{f.name}" for f in dataclasses.fields(kind))
        given.asked.add(f"{ACTOR}{option}")
        if inner:
            if inner.get("group_size") is None:
                inner.pop("group_size", None)
            found[option] = inner
    _earlier(given, found)
    names = (*(field.name for field in dataclasses.fields(Generation)), "greedy")
    engine = {n: given.get(f"{ENGINE}{n}") for n in names if given.get(f"{ENGINE}{n}") is not None}
    if engine:
        found["gconfig"] = engine
    if found.get("overlong_reward_penalty"):
        found["max_new_tokens"] = given.count(
            f"{ACTOR}max_new_tokens", f"{ENGINE}max_new_tokens", default=1024
        )
    given.asked.add(f"{ACTOR}max_new_tokens")
    mode = given.get("allocation_mode", "rollout.backend", default="sglang")
    if isinstance(mode, str) and mode.startswith("vllm"):
        found["backend"] = "vllm"
    return found


def _earlier(given: Given, found: dict[str, Any]) -> None:
    """``behave_imp_weight_cap`` and ``_mode``, which came before ``rejection_sampling``."""
    names = tuple(f"{ACTOR}{spelt}_imp_weight_cap" for spelt in ("behave", "behav"))
    cap = given.get(*names)
    mode = given.get(f"{ACTOR}behave_imp_weight_mode", default="token_mask")
    if (
        cap is None
        or mode == "disabled"
        or "rejection_sampling" in found
        or not found.get("use_decoupled_loss")
    ):
        return
    level, _, action = str(mode).partition("_")
    act = {"mask": "mask", "truncate": "clamp"}.get(action, action)
    found["rejection_sampling"] = {
        "level": level,
        "action": act,
        "upper": given.number(*names, default=5.0),
    }


def circumstances(given: Given) -> Circumstances:
    """Steps on a batch: ``ppo_n_minibatches``; the sampler's age: ``max_head_offpolicyness``."""
    lag = given.count("rollout.max_head_offpolicyness", default=0, low=0)
    return Circumstances(
        group_size=given.assume(f"{ENGINE}n_samples", f"{ACTOR}group_size", taken=1, what="answers a prompt"),
        prompts=given.assume("train_dataset.batch_size", taken=256, what="prompts of a batch"),
        minibatches=given.count(f"{ACTOR}ppo_n_minibatches", default=4),
        tokens=given.count(f"{ENGINE}max_new_tokens", default=16384),
        optimizer=adamw(
            rate=given.number(f"{OPTIMIZER}lr", default=1e-3),
            b1=given.number(f"{OPTIMIZER}beta1", default=0.9),
            b2=given.number(f"{OPTIMIZER}beta2", default=0.999),
            eps=given.number(f"{OPTIMIZER}eps", default=1e-8),
            decay=given.number(f"{OPTIMIZER}weight_decay", default=0.01),
            norm=given.number(f"{OPTIMIZER}gradient_clipping", default=1.0),
        ),
        lag=lag or None,
    )


AREAL = Library(
    title="AReaL 1.0.4",
    preset="areal",
    marks=(
        r"actor\.(eps_clip|recompute_logprob|use_decoupled_loss|reward_norm.*|adv_norm.*|ppo_n_minibatches|kl_ctl)",
        r"gconfig\..*",
        r"rollout\.max_head_offpolicyness",
        r"allocation_mode",
    ),
    options=options,
    circumstances=circumstances,
    acts=ACTS,
    irrelevant=IRRELEVANT,
)
