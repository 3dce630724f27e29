"""OpenRLHF's flags, their present names (``--algo.kl.init_coef``) and earlier ones (``--init_kl_coef``)."""

from __future__ import annotations

from typing import Any

from grpo_jax.check.reading import shown
from grpo_jax.check.setting import Circumstances, Given, Library, adamw, divided
from grpo_jax.refill import Refill

FLAGS: dict[str, tuple[str, ...]] = {
    "policy_loss_type": ("actor.policy_loss_type", "policy_loss_type"),
    "estimator": ("algo.advantage.estimator", "advantage_estimator"),
    "gamma": ("algo.advantage.gamma", "gamma"),
    "no_std_norm": ("algo.advantage.no_std_norm", "no_advantage_std_norm"),
    "dual_clip": ("actor.dual_clip", "dual_clip"),
    "token_level_loss": ("actor.token_level_loss", "token_level_loss"),
    "kl_estimator": ("algo.kl.estimator", "kl_estimator"),
    "unbiased_gradient": ("algo.kl.unbiased_gradient", "kl_unbiased_gradient"),
    "is_correction_level": ("algo.advantage.is_correction_level",),
    "is_correction_mode": ("algo.advantage.is_correction_mode",),
    "is_correction_gating": ("algo.advantage.is_correction_gating",),
    "is_correction_threshold": ("algo.advantage.is_correction_threshold", "vllm_is_truncated_threshold"),
    "reward_clip_range": ("reward.clip_range", "reward_clip_range"),
    "overlong_buffer_len": ("reward.overlong_buffer_len", "overlong_buffer_len"),
    "overlong_penalty_factor": ("reward.overlong_penalty_factor", "overlong_penalty_factor"),
    "stop_properly_penalty_coef": ("reward.stop_properly_penalty_coef", "stop_properly_penalty_coef"),
    "temperature": ("rollout.temperature", "temperature"),
    "top_p": ("rollout.top_p", "top_p"),
    "entropy_coef": ("actor.entropy_coef", "entropy_loss_coef"),
    "aux_loss_coef": ("actor.aux_loss_coef", "aux_loss_coef"),
}
"""The preset's option -> flags that set it."""
LENGTH = ("rollout.max_new_tokens", "generate_max_len", "max_new_tokens")
CORRECTED = ("algo.advantage.is_correction_enable", "enable_vllm_is_correction", "vllm_enable_is_correction")
KINDS = {"tis": ("token", "clip"), "icepop": ("token", "mask"), "seq-mask-tis": ("seq", "mask")}
"""``is_correction_type`` of earlier versions -> level and mode."""

ACTS: dict[str, tuple[Any, str]] = {
    "algo.kl.target": (None, "the KL coefficient changes over training"),
    "kl_target": (None, "the KL coefficient changes over training"),
    "ema_beta": (None, "an average of the weights"),
    "actor.lr_warmup_ratio": (0, "the learning rate rises at first"),
    "lr_warmup_ratio": (0, "the learning rate rises at first"),
    "actor.lr_scheduler": ("constant", "the learning rate changes over training"),
    "lr_scheduler": ("constant", "the learning rate changes over training"),
    "partial_rollout": (False, "answers that older weights began"),
    "train.partial_rollout_enable": (False, "answers that older weights began"),
    "ds.lora.rank": (0, "adapters: other parameters are trained, by the same method"),
    "lora_rank": (0, "adapters: other parameters are trained, by the same method"),
}

IRRELEVANT = (
    r"(ref|critic|vllm|ds|fsdp|ckpt|logger|eval|data|ray)\..*",
    r"(ref|critic|vllm|eval|save|ckpt|wandb|use_wandb|zero|ds|deepspeed|logging|actor_num|prompt|input|label)_.*",
    r"(micro|colocate|gradient|flash|load|packing|adam_offload|bf16|pretrain|remote|apply|max_samples).*",
    r"actor\.(num.*|model.*|gradient.*)|train\.(micro.*|colocate.*|num_episodes|.*max_tokens.*)|.*remote_url",
    r"reward\.(num.*|model.*|remote.*)|rollout\.micro.*|reward_(num|pretrain).*|train_max_tokens.*|num_episodes",
)


def options(given: Given) -> dict[str, Any]:
    """The preset's options; ``init_kl_coef`` is a loss's or a reward's by ``use_kl_loss``."""
    found = {name: given.get(*flags) for name, flags in FLAGS.items() if given.get(*flags) is not None}
    if found.setdefault("estimator", "gae") == "gae":
        raise ValueError(
            "openrlhf: the estimator is gae (its default where no flag sets it), which needs a critic and is "
            "not modelled; write algo.advantage.estimator=group_norm after the file's name"
        )
    if found.get("entropy_coef") == 0:
        del found["entropy_coef"]
    for name in ("reward_clip_range", "is_correction_threshold"):
        if isinstance(found.get(name), list):
            found[name] = tuple(found[name])
    coef = given.number("algo.kl.init_coef", "init_kl_coef", default=0.01)
    in_loss = given.flag("algo.kl.use_loss", "use_kl_loss")
    found["kl_loss_coef" if in_loss else "kl_reward_coef"] = coef
    bounds = given.get("actor.eps_clip_low_high", "eps_clip_low_high")
    both = given.number("actor.eps_clip", "eps_clip", default=0.2)
    if bounds is not None and not (isinstance(bounds, list) and len(bounds) == 2):
        raise ValueError(f"eps_clip_low_high is {shown(bounds)}; it takes two numbers")
    found["clip_eps_low"], found["clip_eps_high"] = bounds or (both, both)
    if found.get("overlong_buffer_len") is not None:
        found["max_new_tokens"] = given.get(*LENGTH, default=1024)
    _earlier(given, found)
    return found


def _earlier(given: Given, found: dict[str, Any]) -> None:
    """The correction as earlier versions switch it on."""
    usual = "icepop" if given.flag("use_icepop") else "tis"
    kind = given.get("algo.advantage.is_correction_type", "vllm_is_correction_type", default=usual)
    if not given.flag(*CORRECTED):
        return
    if kind not in KINDS:
        raise ValueError(f"is_correction_type is {shown(kind)}; there are {', '.join(KINDS)}")
    found.setdefault("is_correction_level", KINDS[kind][0])
    found.setdefault("is_correction_mode", KINDS[kind][1])


def circumstances(given: Given) -> Circumstances:
    """Steps on a batch: ``rollout_batch_size * n_samples_per_prompt / train_batch_size * max_epochs``."""
    group = given.count("rollout.n_samples_per_prompt", "n_samples_per_prompt", default=1)
    prompts = given.count("rollout.batch_size", "rollout_batch_size", default=1024)
    size = given.count("train.batch_size", "train_batch_size", default=128)
    filtered = given.flag("algo.dynamic_filtering_enable", "dynamic_filtering")
    given.get("algo.dynamic_filtering_range", "dynamic_filtering_reward_range")
    betas = given.get("actor.adam.betas", "adam_betas", default=[0.9, 0.95])
    if not (isinstance(betas, list) and len(betas) == 2 and all(isinstance(b, (int, float)) for b in betas)):
        raise ValueError(f"adam_betas is {shown(betas)}; it takes two numbers")
    lag = None
    if given.flag("train.async_enable", "async_train"):
        lag = given.count("train.async_queue_size", "async_queue_size", default=1)
    return Circumstances(
        group_size=group,
        prompts=prompts,
        passes=given.count("train.max_epochs", "max_epochs", default=1),
        minibatches=divided(given, prompts * group, size, ("the batch of answers", "train_batch_size")),
        tokens=given.count(*LENGTH, default=1024),
        optimizer=adamw(
            rate=given.number("actor.adam.lr", "actor_learning_rate", default=1e-6),
            b1=float(betas[0]),
            b2=float(betas[1]),
            decay=given.number("actor.adam.weight_decay", "l2", default=0.0),
            norm=given.number("actor.max_norm", "max_norm", default=1.0),
        ),
        lag=lag,
        refill=Refill(other=True) if filtered else None,
    )


OPENRLHF = Library(
    title="OpenRLHF 0.11.2",
    preset="openrlhf",
    marks=(
        r"algo\.(advantage|kl)\..*",
        r"advantage_estimator",
        r"(actor\.)?eps_clip(_low_high)?",
        r"init_kl_coef",
        r"(rollout\.)?n_samples_per_prompt",
        r"use_kl_loss",
        r"rollout_batch_size",
        r"actor\.adam\..*",
        r"actor_learning_rate",
    ),
    options=options,
    circumstances=circumstances,
    acts=ACTS,
    irrelevant=IRRELEVANT,
)
