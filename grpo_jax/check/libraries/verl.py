"""verl's YAML and Hydra overrides: where its options stand, its own defaults, and steps on a batch."""

from __future__ import annotations

from typing import Any

from grpo_jax.check.setting import Circumstances, Given, Library, adamw, divided
from grpo_jax.refill import Refill

ACTOR, ROLLOUT, ALGORITHM = "actor_rollout_ref.actor.", "actor_rollout_ref.rollout.", "algorithm."
CORRECTION = f"{ALGORITHM}rollout_correction."

PATHS = {
    **{
        f"{ACTOR}{name}": name
        for name in (
            "clip_ratio",
            "clip_ratio_low",
            "clip_ratio_high",
            "clip_ratio_c",
            "loss_agg_mode",
            "loss_scale_factor",
            "tau_pos",
            "tau_neg",
            "use_kl_loss",
            "kl_loss_coef",
            "kl_loss_type",
            "entropy_coeff",
        )
    },
    **{
        f"{ACTOR}policy_loss.{name}": name
        for name in (
            "loss_mode",
            "clip_cov_ratio",
            "clip_cov_lb",
            "clip_cov_ub",
            "kl_cov_ratio",
            "ppo_kl_coef",
            "dro_beta",
        )
    },
    **{
        f"{ALGORITHM}{name}": name
        for name in (
            "adv_estimator",
            "gamma",
            "use_kl_in_reward",
            "kl_penalty",
            "norm_adv_by_std_in_grpo",
            "gdpo_reward_weights",
        )
    },
    f"{ALGORITHM}kl_ctrl.kl_coef": "kl_coef",
    **{
        f"{CORRECTION}{name}": name
        for name in (
            "rollout_is",
            "rollout_is_threshold",
            "rollout_is_batch_normalize",
            "rollout_rs",
            "rollout_rs_threshold",
        )
    },
    **{
        f"{ROLLOUT}{name}": name
        for name in (
            "temperature",
            "top_p",
            "top_k",
            "name",
            "logprobs_mode",
            "calculate_log_probs",
            "do_sample",
            "repetition_penalty",
            "ignore_eos",
        )
    },
}
"""Path -> the preset's option."""

OVERLONG = (
    "reward_model.overlong_buffer.",
    "reward.reward_kwargs.overlong_buffer_cfg.",
    "reward_model.reward_kwargs.overlong_buffer_cfg.",
    "reward.overlong_buffer.",
)

ACTS: dict[str, tuple[Any, str]] = {
    f"{ALGORITHM}kl_ctrl.type": ("fixed", "the KL coefficient changes over training"),
    f"{ALGORITHM}use_pf_ppo": (False, "answers are drawn anew by their rewards"),
    f"{ACTOR}optim.lr_warmup_steps_ratio": (0.0, "the learning rate rises at first"),
    f"{ACTOR}optim.lr_warmup_steps": (-1, "the learning rate rises at first"),
    f"{ACTOR}optim.warmup_style": ("constant", "the learning rate changes over training"),
    f"{ACTOR}optim.lr_scheduler_type": ("constant", "the learning rate changes over training"),
    f"{CORRECTION}bypass_mode": (False, "the engine's log-probabilities are the ratio's denominator"),
    f"{ROLLOUT}multi_turn.enable": (False, "answers in several turns"),
    "actor_rollout_ref.model.lora_rank": (0, "adapters: other parameters are trained, by the same method"),
    "reward_model.enable": (False, "rewards by a model"),
    "async_training.staleness_threshold": (0, "answers of older weights"),
    "data.gen_batch_size": (None, "batches that are drawn for filter_groups"),
    f"{ALGORITHM}filter_groups.metric": ("seq_reward", "which number of a group has to vary"),
}

IRRELEVANT = (
    r"(trainer|critic|ray_kwargs|ray_init|global_profiler|custom_reward_function|reward_manager|env|hydra)\..*",
    r"actor_rollout_ref\.(ref|model|nccl_timeout|hybrid_engine)\b.*",
    r".*(_target_|val_kwargs|micro_batch|profiler|checkpoint|fsdp|megatron|engine_kwargs|max_token_len|dynamic_bsz).*",
    r".*(use_torch_compile|use_fused_kernels|chunked|tensor_model|router_replay|trace|agent|update_weights).*",
    r"data\.(?!train_batch_size|max_response_length).*|reward_model\.(?!overlong).*|reward\.(?!.*overlong).*",
    r".*(total_training_steps|prompt_length|dtype|load_format|max_model_len|max_num|enforce_eager|freeze).*",
)


def options(given: Given) -> dict[str, Any]:
    """The preset's options; verl's own default estimator is ``gae``."""
    found = {name: given.get(path) for path, name in PATHS.items() if given.get(path) is not None}
    found.setdefault("adv_estimator", "gae")
    if found["adv_estimator"] == "gae":
        raise ValueError(
            "verl: algorithm.adv_estimator is gae (its default where a file does not set it), which needs a "
            "critic and is not modelled; write algorithm.adv_estimator=grpo after the file's name"
        )
    given.get(f"{ALGORITHM}lam")  # of gae alone
    if found.get("name") not in ("vllm", "sglang", "hf", None):
        given.left[f"{ROLLOUT}name"] = f"= {found.pop('name')}: an engine whose sampler is not modelled"
    for prefix in OVERLONG:
        if given.flag(f"{prefix}enable", default=False):
            found["overlong_buffer_len"] = given.count(f"{prefix}len", default=1)
            found["overlong_penalty_factor"] = given.number(f"{prefix}penalty_factor", default=1.0)
            found["max_response_length"] = given.count("data.max_response_length", default=512)
    if found.get("loss_agg_mode") == "seq-mean-token-sum-norm" and found.get("loss_scale_factor") is None:
        found["loss_scale_factor"] = given.count("data.max_response_length", default=512)
    return found


def circumstances(given: Given) -> Circumstances:
    """Steps on a batch: ``train_batch_size / ppo_mini_batch_size * ppo_epochs``, both in prompts."""
    prompts = given.count("data.train_batch_size", default=1024)
    steps = given.count(f"{ACTOR}ppo_mini_batch_size", default=256)
    refill = None
    if given.flag(f"{ALGORITHM}filter_groups.enable", default=False):
        tries = given.count(f"{ALGORITHM}filter_groups.max_num_gen_batches", default=0, low=0)
        if not tries:
            given.assumed.append("filter_groups without a limit: 10 draws at most")
        refill = Refill(tries=tries or 10, other=True)
    betas = given.get(f"{ACTOR}optim.betas", default=[0.9, 0.999])
    if not (isinstance(betas, list) and len(betas) == 2 and all(isinstance(b, (int, float)) for b in betas)):
        raise ValueError(f"{ACTOR}optim.betas is {betas!r}; it must be two numbers")
    return Circumstances(
        group_size=given.count(f"{ROLLOUT}n", default=1),
        prompts=prompts,
        passes=given.count(f"{ACTOR}ppo_epochs", default=1),
        minibatches=divided(
            given, prompts, min(steps, prompts), ("data.train_batch_size", "ppo_mini_batch_size")
        ),
        tokens=given.count("data.max_response_length", f"{ROLLOUT}response_length", default=512),
        optimizer=adamw(
            rate=given.number(f"{ACTOR}optim.lr", default=1e-6),
            b1=float(betas[0]),
            b2=float(betas[1]),
            decay=given.number(f"{ACTOR}optim.weight_decay", default=0.01),
            norm=given.number(f"{ACTOR}grad_clip", f"{ACTOR}optim.clip_grad", default=1.0),
        ),
        refill=refill,
    )


VERL = Library(
    title="verl 0.9.1",
    preset="verl",
    marks=(
        r"actor_rollout_ref\..*",
        r"algorithm\.(adv_estimator|use_kl_in_reward|kl_ctrl.*|rollout_correction.*)",
    ),
    options=options,
    circumstances=circumstances,
    acts=ACTS,
    irrelevant=IRRELEVANT,
)
