"""prime-rl's TOML: the trainer's loss, the orchestrator's algorithm and sampling, how old weights may be."""

from __future__ import annotations

from typing import Any

from grpo_jax.check.setting import Circumstances, Given, Library, adamw

LOSS = (
    "type",
    "dppo_mask_low",
    "dppo_mask_high",
    "ipo_threshold",
    "kpop_threshold",
    "ratio_low",
    "ratio_high",
    "adv_tau",
    "kl_tau",
    "ratio_type",
    "token_mask_low",
    "token_mask_high",
    "geo_mask_low",
    "geo_mask_high",
    "sequence_mask_low",
    "sequence_mask_high",
    "sequence_clip_high",
    "teacher_tau",
)
SAMPLING = ("orchestrator.train.sampling.", "orchestrator.sampling.")
ADVANTAGE = ("orchestrator.algorithm.", "orchestrator.advantage.", "orchestrator.algo.")
OPTIM = "trainer.optim."

ACTS: dict[str, tuple[Any, str]] = {
    "trainer.optim.type": ("adamw", "another optimizer"),
    "trainer.scheduler.type": ("constant", "the learning rate changes over training"),
    "trainer.model.lora.rank": (0, "adapters: other parameters are trained, by the same method"),
    "orchestrator.buffer.online_difficulty_filtering": (False, "groups whose rewards tie are left out"),
}

IRRELEVANT = (
    r"(deployment|wandb|ckpt|inference|model|log|slurm|weight_broadcast|eval|experimental|output_dir|seq_len).*",
    r"orchestrator\.(train\.env|env|eval|renderer|log|ckpt|wandb|model|client|max_inflight|oversampling|buffer).*",
    r"trainer\.(model|ckpt|log|wandb|dist|weight|metrics|bench|data|memory|profile|tokenizer).*|max_steps|seed",
)


def options(given: Given) -> dict[str, Any]:
    """The preset's options."""
    found = {name: given.get(f"trainer.loss.{name}") for name in LOSS}
    found["algorithm"] = given.get(*(f"{prefix}type" for prefix in ADVANTAGE))
    found["length_weighted_mean"] = given.get(*(f"{prefix}length_weighted_mean" for prefix in ADVANTAGE))
    found["temperature"] = given.get(*(f"{prefix}temperature" for prefix in SAMPLING))
    found["repetition_penalty"] = given.get(*(f"{prefix}repetition_penalty" for prefix in SAMPLING))
    body, penalty = {}, {}
    for name, value in given.values.items():
        for prefix in SAMPLING:
            if name.startswith(f"{prefix}extra_body."):
                given.asked.add(name)
                body[name.removeprefix(f"{prefix}extra_body.")] = value
        for prefix in ADVANTAGE:
            if name.startswith(f"{prefix}length_penalty."):
                given.asked.add(name)
                penalty[name.removeprefix(f"{prefix}length_penalty.")] = value
    if body:
        found["extra_body"] = body
    if penalty:
        found["length_penalty"] = penalty
    return {name: value for name, value in found.items() if value is not None}


def circumstances(given: Given) -> Circumstances:
    """One step on a batch of ``batch_size`` answers; every answer may be of older weights."""
    group = given.count("orchestrator.group_size", "orchestrator.rollouts_per_example", default=1)
    answers = given.assume("orchestrator.batch_size", taken=128, what="answers of a batch")
    lag = given.count("orchestrator.max_off_policy_steps", "orchestrator.max_async_level", default=8, low=0)
    return Circumstances(
        group_size=group,
        prompts=max(answers // group, 1),
        tokens=given.get(*(f"{p}{n}" for p in SAMPLING for n in ("max_completion_tokens", "max_tokens"))),
        optimizer=adamw(
            rate=given.number(f"{OPTIM}lr", default=1e-6),
            b1=given.number(f"{OPTIM}betas1", default=0.9),
            b2=given.number(f"{OPTIM}betas2", default=0.999),
            decay=given.number(f"{OPTIM}weight_decay", default=0.01),
            norm=given.number(f"{OPTIM}max_norm", default=1.0),
        ),
        lag=lag or None,
    )


PRIME_RL = Library(
    title="prime-rl 0.8.0",
    preset="prime_rl",
    marks=(r"orchestrator\..*", r"trainer\.(loss|optim)\..*"),
    options=options,
    circumstances=circumstances,
    acts=ACTS,
    irrelevant=IRRELEVANT,
)
