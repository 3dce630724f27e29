"""What fires on the libraries' own examples, and why it is true there.

`shipped.json` holds the options of examples as their repositories ship them (facts, with repository, commit
and path), without those that are no matter of the dynamics.
"""

import json
import math
from pathlib import Path

import pytest

from grpo_jax.check import LIBRARIES, Level, check

SHIPPED = json.loads((Path(__file__).parent / "shipped.json").read_text())

HAZARDS = {
    "nemo_rl grpo-gspo-deepscaler-1.5b-8K.yaml": {"by_sequence", "token_clip_for_answers"},
    "nemo_rl grpo-llama3.2-1b-instruct-1n8g-fsdp2tp2-temp0.8-topp0.9-topk50.yaml": {"top_p", "other_filters"},
    "open_instruct grpo_fast_8b.sh": {"reference_kept"},
    "areal gsm8k_dapo_dynamic_bs.yaml": {"phantoms"},
    "openrlhf train_dapo_ray_hybrid_engine.sh": {"reference_kept"},
    "trl config_demo.yaml": {"phantoms"},
    "trl config_codeforces.yaml": {"cut_off_votes"},
    "trl config.yaml": {"top_p"},
    "verl gmpo_trainer/test_dapo_7b_math.sh": {"by_sequence", "phantoms"},
    "verl gpg_trainer/run_qwen2-7b_math.sh": {"no_ratio"},
    "verl grpo_trainer/run_qwen2-7b_math.sh": {"reference_kept"},
    "verl gspo_trainer/test_gspo_3b_math.sh": {"by_sequence"},
    "verl rloo_trainer/run_qwen2-7b.sh": {"reference_kept"},
    "verl rollout_correction/run_with_rollout_corr.sh": {"group_of_one"},
    "verl 0.5b/qwen2-0.5b_grpo-lora_1_h100_fsdp_vllm.sh": {"group_of_one"},
}
"""Example -> hazards. Of the others none is one."""

WHY = {
    "phantoms": lambda o: o.get("reward_weights") or any("overlong" in name for name in o),
    "reference_kept": lambda o: 0 < coefficient(o) <= 1e-3,
    "token_clip_for_answers": lambda o: (
        o["loss_fn.sequence_level_importance_ratios"] and o["loss_fn.ratio_clip_max"] >= 0.01
    ),
    "cut_off_votes": lambda o: o["mask_truncated_completions"],
    "top_p": lambda o: o.get("top_p", o.get("policy.generation.top_p")) < 1,
    "other_filters": lambda o: o["policy.generation.top_k"] > 0,
    "by_sequence": lambda o: loss(o) in ("geo_mean", "gspo") or o.get("loss_fn.token_level_loss") is False,
    "no_ratio": lambda o: loss(o) == "gpg" and o["data.train_batch_size"] > mini(o),
    "group_of_one": lambda o: o.get("actor_rollout_ref.rollout.n", 1) == 1,
}
"""Hazard -> what of the options, by themselves, makes it true: a second term in a reward that the group's
spread divides; a penalty of a thousandth of what a right answer earns; the mask; the filters; the geometric
mean of GMPO and GSPO, and a clip for tokens on it; several steps without a ratio; verl's own default of one
answer a prompt."""


def coefficient(options):
    names = ("actor_rollout_ref.actor.kl_loss_coef", "algorithm.kl_ctrl.kl_coef", "algo.kl.init_coef", "beta")
    earned = 10 if "num_samples_per_prompt_rollout" in options else 1  # open-instruct's verification_reward
    return next(options[name] for name in names if options.get(name)) / earned


def loss(options):
    return options.get("actor_rollout_ref.actor.policy_loss.loss_mode")


def mini(options):
    return options["actor_rollout_ref.actor.ppo_mini_batch_size"]


def name_of(example):
    path = example["source"].split()[-1].split("/")
    return f"{example['library']} {'/'.join(path[-2:]) if example['library'] == 'verl' else path[-1]}"


def test_the_list_names_examples():
    names = [name_of(example) for example in SHIPPED]
    assert len(set(names)) == len(names) >= 20
    assert set(HAZARDS) <= set(names)
    assert {example["library"] for example in SHIPPED} == set(LIBRARIES)


@pytest.mark.parametrize("example", SHIPPED, ids=name_of)
def test_hazards_of_the_libraries_own_examples(example):
    options = example["options"]
    found = check(json.dumps(options))
    assert found.setting.library == example["library"]
    fired = {finding.name for finding in found.findings if finding.level == Level.HAZARD}
    assert fired == HAZARDS.get(name_of(example), set())
    assert all(WHY[name](options) for name in fired)
    assert all(math.isfinite(finding.size) for finding in found.findings)
