"""No option is swallowed: beside every loss it changes the method or the sampler, or it is refused."""

import dataclasses
import importlib
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import presets
from grpo_jax.part import describe
from grpo_jax.presets.compare import random_batch
from grpo_jax.presets.options import NotModelled

TRL = {
    "beta": 0.3, "epsilon": 0.11, "epsilon_high": 5.5, "delta": 7.0, "importance_sampling_level": "sequence",
    "use_bias_correction_kl": False, "scale_rewards": "batch", "reward_weights": (1.0, 2.0),
    "multi_objective_aggregation": "normalize_then_sum", "max_completion_length": 99,
    "gradient_accumulation_steps": 4,
    "sapo_temperature_pos": 1.7, "sapo_temperature_neg": 1.9, "vespo_k_pos": 1.1, "vespo_lambda_pos": 1.2,
    "vespo_k_neg": 1.3, "vespo_lambda_neg": 1.4, "top_entropy_quantile": 0.4,
    "off_policy_mask_threshold": 0.6, "use_vllm": True, "vllm_importance_sampling_correction": False,
    "vllm_importance_sampling_mode": "token_mask", "vllm_importance_sampling_clip_max": 2.2,
    "vllm_importance_sampling_clip_min": 0.4, "normalize_advantages": True, "reward_clip_range": (-1.0, 1.0),
    "mask_truncated_completions": True,
}  # fmt: skip
LIGER = TRL | {"epsilon_low": 0.11, "use_bias_correction_kl": True}
OPENRLHF = {
    "clip_eps_low": 0.11, "clip_eps_high": 0.33, "dual_clip": 3.0, "token_level_loss": False, "gamma": 0.9,
    "no_std_norm": True, "reward_clip_range": (-1.0, 1.0), "kl_loss_coef": 0.1, "kl_reward_coef": 0.2,
    "kl_estimator": "k3", "unbiased_gradient": True, "is_correction_level": "token",
    "is_correction_mode": "clip", "is_correction_gating": "tv", "is_correction_threshold": (0.7, 2.0),
    "overlong_buffer_len": 4, "overlong_penalty_factor": 0.5, "max_new_tokens": 16,
    "stop_properly_penalty_coef": 0.5,
}  # fmt: skip
NEMO_RL = {
    "normalize_rewards": False, "use_leave_one_out_baseline": False, "minus_baseline": False,
    "reward_weights": (1.0, 2.0), "normalize_advantages": False, "advantage_clip_low": -0.5,
    "advantage_clip_high": 0.7, "reward_shaping": {"enabled": True, "stop_properly_penalty_coef": 0.5},
    "reward_scaling": {"enabled": True, "target_min": -1.0}, "overlong_filtering": True,
    "use_dynamic_sampling": True, "seq_logprob_error_threshold": 1.5, "disable_ppo_ratio": True,
    "force_on_policy_ratio": True, "sequence_level_importance_ratios": True, "token_level_loss": False,
    "use_cispo": True, "ratio_clip_min": 0.11, "ratio_clip_max": 0.33, "ratio_clip_c": 3.0,
    "reference_policy_kl_penalty": 0.3, "reference_policy_kl_type": "k2", "kl_input_clamp_value": 5.0,
    "kl_output_clamp_value": 4.0, "use_kl_in_reward": True, "use_on_policy_kl_approximation": True,
    "use_importance_sampling_correction": True, "truncated_importance_sampling_type": "tis",
    "truncated_importance_sampling_ratio": 1.7, "truncated_importance_sampling_ratio_min": 0.6,
    "positive_example_nll_weight": 0.1,
}  # fmt: skip
OPEN_INSTRUCT = {
    "clip_lower": 0.11, "clip_higher": 0.33, "beta": 0.3, "kl_estimator": 3, "load_ref_policy": False,
    "loss_denominator": 80.0, "advantage_normalization_type": "standard", "filter_zero_std_samples": False,
    "mask_truncated_completions": True, "non_stop_penalty": True, "non_stop_penalty_value": -1.0,
    "verification_reward": 10.0, "use_vllm_logprobs": True, "use_rho_correction": False,
    "rho_clamp_lower_bound": 0.4, "rho_clamp_upper_bound": 3.0, "rho_mask_lower_bound": 0.3,
    "rho_mask_upper_bound": 4.0, "rho_mask_sequence_level": True, "rho_mask_tv_divergence": True,
}  # fmt: skip
OF_THE_LOOP = ("num_mini_batches", "num_epochs")
TRUNCATED = {
    "use_importance_sampling_correction": True,
    "truncated_importance_sampling_type": "icepop",
    "truncated_importance_sampling_ratio": 2.0,
    "truncated_importance_sampling_ratio_min": 0.5,
}
CROSSED = TRUNCATED | {"truncated_importance_sampling_ratio_min": 3.0}
ENGINE = {"temperature": 0.7, "top_p": 0.9, "top_k": 5}
LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo", "rloo", "gmpo")
VLLM = {"use_vllm": True, "vllm_importance_sampling_mode": "token_truncate"}
FILTERS = {"min_p": 0.1, "temperature": 0.8}
"""Beside the RLOO trainer ``use_vllm`` says but this: in which order they are applied."""
ESTIMATORS = ("group_norm", "dr_grpo", "rloo", "reinforce", "reinforce_baseline", "flash_reinforce")
FILLED = {"is_correction_level": "token", "overlong_buffer_len": 4, "max_new_tokens": 16}
GIVEN = [
    *(("trl", TRL | ENGINE, {"loss_type": loss} | more) for loss in LOSSES for more in (FILTERS, VLLM)),
    *(("liger", LIGER | ENGINE, {"loss_type": loss} | more) for loss in LOSSES[:-2] for more in ({}, VLLM)),
    ("liger", LIGER, {"loss_type": "luspo", "importance_sampling_level": "sequence", "beta": 0.0}),
    *(
        ("openrlhf", OPENRLHF | ENGINE, {"policy_loss_type": loss, "estimator": estimator} | more)
        for loss, estimator, more in itertools.product(("ppo", "gspo"), ESTIMATORS, ({}, FILLED))
    ),
    *(
        ("nemo_rl", NEMO_RL | ENGINE, {"adv_estimator": estimator} | more)
        for estimator, more in itertools.product(
            ("grpo", "gdpo", "reinforce_plus_plus", "raw_reward"),
            ({}, TRUNCATED, {"use_leave_one_out_baseline": False, "token_level_loss": False}),
        )
    ),
    *(
        ("open_instruct", OPEN_INSTRUCT | {"temperature": 0.7, "vllm_top_p": 0.9}, {"loss_fn": loss} | more)
        for loss, more in itertools.product(
            ("dapo", "cispo"), ({}, {"num_mini_batches": 2, "rho_mask_upper_bound": 1.5})
        )
    ),
]


def made(library, given):
    """Method and sampler in words, or None where the options are refused."""
    try:
        return describe(presets.PRESETS[library](**given)), presets.sampling(library, **given)
    except ValueError:
        return None


@pytest.mark.parametrize(("library", "options", "base"), GIVEN)
def test_every_option_acts_or_is_refused(library, options, base):
    start = made(library, base)
    for name, value in options.items():
        if name not in base:
            found = made(library, base | {name: value})
            assert found is None or found != start, name


@pytest.mark.parametrize(
    ("library", "tried"),
    [
        ("trl", TRL),
        ("liger", LIGER),
        ("openrlhf", OPENRLHF),
        ("nemo_rl", NEMO_RL),
        ("open_instruct", OPEN_INSTRUCT),
    ],
)
def test_every_option_is_tried_above(library, tried):
    module = importlib.import_module(f"grpo_jax.presets.{library}")
    held = {field.name: field.default for field in dataclasses.fields(module.Options)}
    chosen = {"loss_type", "policy_loss_type", "estimator", "min_p", "generation_kwargs", *ENGINE}
    chosen |= {"adv_estimator", "loss_fn", "logprobs_mode", "vllm_top_p", *OF_THE_LOOP}
    assert set(held) - chosen == set(tried)
    assert all(held[name] != value for name, value in tried.items())


@pytest.mark.parametrize(
    ("library", "given", "named"),
    [
        ("trl", {"loss_type": "grpo", "sapo_temperature_pos": 2.0}, "sapo_temperature_pos=2.0"),
        ("trl", {"loss_type": "rloo", "scale_rewards": "batch"}, "scale_rewards='batch'"),
        ("trl", {"loss_type": "gmpo", "importance_sampling_level": "sequence"}, "importance_sampling_level="),
        ("trl", {"loss_type": "cispo", "epsilon": 0.1, "epsilon_high": 5.0}, "epsilon=0.1"),
        ("trl", {"vllm_importance_sampling_clip_max": 2.0}, "vllm_importance_sampling_clip_max=2.0"),
        ("liger", {"loss_type": "sapo", "epsilon_low": 0.1}, "epsilon_low=0.1"),
        ("openrlhf", {"is_correction_gating": "nonsense"}, "is_correction_gating='nonsense'"),
        ("openrlhf", {"gamma": 0.9}, "gamma=0.9"),
        ("openrlhf", {"policy_loss_type": "gspo", "token_level_loss": False}, "token_level_loss=False"),
        ("nemo_rl", {"use_kl_in_reward": True, "kl_input_clamp_value": 5.0}, "kl_input_clamp_value=5.0"),
        ("nemo_rl", {"minus_baseline": False}, "minus_baseline=False"),
        ("nemo_rl", {"disable_ppo_ratio": True, "ratio_clip_max": 0.3}, "ratio_clip_max=0.3"),
        ("open_instruct", {"non_stop_penalty_value": -1.0}, "non_stop_penalty_value=-1.0"),
        (
            "open_instruct",
            {"use_rho_correction": False, "rho_clamp_upper_bound": 3.0},
            "rho_clamp_upper_bound=",
        ),
    ],
)
def test_what_changes_nothing_is_named(library, given, named):
    with pytest.raises(NotModelled, match=f"^{library}: {named}.* changes nothing beside the other options"):
        presets.PRESETS[library](**given)


@pytest.mark.parametrize("loss", ["rloo", "gmpo"])
def test_losses_that_liger_lacks_are_refused(loss):
    with pytest.raises(ValueError, match=f"liger: loss_type='{loss}'"):
        presets.PRESETS["liger"](loss_type=loss)


def test_a_default_may_be_written_and_numbers_may_be_what_they_would_be_anyway():
    plain = presets.PRESETS["trl"](loss_type="grpo")
    assert presets.PRESETS["trl"](loss_type="grpo", beta=0.0, epsilon=0.2, sapo_temperature_pos=1.0) == plain


@pytest.mark.parametrize(
    ("library", "given", "said"),
    [
        ("nemo_rl", {"sequence_level_importance_ratios": True}, "needs token_level_loss=False"),
        (
            "nemo_rl",
            {"use_cispo": True, "force_on_policy_ratio": True},
            "use_cispo and force_on_policy_ratio",
        ),
        ("nemo_rl", {"use_cispo": True, "ratio_clip_c": 3.0}, "no ratio_clip_c"),
        ("nemo_rl", {"use_dynamic_sampling": True}, "a group's only success among them"),
        ("nemo_rl", {"adv_estimator": "raw_reward", "overlong_filtering": True}, "overlong_filtering is not"),
        ("nemo_rl", {"adv_estimator": "gdpo", "reward_shaping": {"enabled": True}}, "not modelled with adv"),
        ("nemo_rl", {"truncated_importance_sampling_ratio": 2.0}, "needs truncated_importance_sampling_type"),
        (
            "nemo_rl",
            TRUNCATED | {"truncated_importance_sampling_ratio_min": None},
            "'icepop' needs .*ratio_min",
        ),
        ("nemo_rl", {"reward_shaping": {"enabled": True}}, "needs overlong_buffer_length"),
        ("nemo_rl", {"reward_shaping": {"stop_proper": 1}}, "did you mean stop_properly_penalty_coef"),
        ("nemo_rl", {"reward_scaling": {"enabled": True, "target_max": 0.0}}, "one of them is empty"),
        ("nemo_rl", {"positive_example_nll_weight": 0.1}, "with no KL in the loss only"),
        ("nemo_rl", {"ratio_clip_high": 0.3}, "did you mean ratio_clip_"),
        ("open_instruct", {"load_ref_policy": False}, "load_ref_policy=False needs beta=0"),
        ("open_instruct", {"use_vllm_logprobs": True}, "needs use_rho_correction=False"),
        ("open_instruct", {"rho_mask_tv_divergence": True}, "changes nothing without a bound"),
        ("open_instruct", {"kl_estimator": 4}, "kl_estimator=4"),
        ("open_instruct", {"clip_high": 0.3}, "did you mean clip_higher"),
        (
            "open_instruct",
            {"rho_mask_lower_bound": 1.0},
            "rho_mask_lower_bound=1.0; allowed is 0, for none, or",
        ),
        ("open_instruct", {"rho_clamp_lower_bound": 1.5}, "rho_clamp_lower_bound=1.5; allowed is 0"),
        ("open_instruct", {"rho_mask_upper_bound": 1.0}, "rho_mask_upper_bound=1.0; allowed .* above 1"),
        ("open_instruct", {"rho_clamp_upper_bound": 0.5}, "rho_clamp_upper_bound=0.5; allowed .* above 1"),
        ("open_instruct", {"rho_clamp_upper_bound": np.array([2.0, 0.5])}, "rho_clamp_upper_bound=array"),
        (
            "open_instruct",
            {"kl_estimator": True},
            "kl_estimator=True; it must be a number, and no truth value",
        ),
        *(
            (
                "nemo_rl",
                CROSSED | {"truncated_importance_sampling_type": kind},
                "ratio_min=3.0; it must be at most truncated_importance_sampling_ratio=2.0",
            )
            for kind in ("tis", "icepop", "seq-mask-tis")
        ),
        *(
            (
                "nemo_rl",
                {"reward_shaping": {"enabled": True, "stop_properly_penalty_coef": coef}},
                rf"stop_properly_penalty_coef is {coef}; allowed is \[0, 1\]",
            )
            for coef in (-0.5, 1.5)
        ),
        ("nemo_rl", {"reward_scaling": {"enabled": "yes"}}, "enabled='yes'; it must be True or False"),
        ("nemo_rl", {"reward_scaling": {"enabled": True, "source_max": "x"}}, "source_max='x'; .* a number"),
        ("nemo_rl", {"reward_shaping": True}, "reward_shaping=True; it must be options by name"),
        ("nemo_rl", {"reward_shaping": {1: 2}}, "it must be options by name"),
        (
            "nemo_rl",
            {"adv_estimator": "gdpo", "reward_weights": 2.0},
            "reward_weights=2.0; .*a list of numbers",
        ),
        ("nemo_rl", {"adv_estimator": "gdpo", "reward_weights": "1,2"}, "reward_weights='1,2'; .*a list of"),
        ("nemo_rl", {"adv_estimator": "gdpo", "reward_weights": [1, "2"]}, "it must be a list of numbers"),
        ("trl", {"reward_clip_range": (0.0, 1.0, 2.0)}, "it must be two numbers"),
    ],
)
def test_what_a_library_refuses_or_no_part_computes_is_said(library, given, said):
    with pytest.raises(ValueError, match=said):
        presets.PRESETS[library](**given)


def test_nemo_rl_scales_rewards_onto_an_interval():
    """[.2, .7] onto [−1, 1]: .2, .45, .7 become −1, 0, 1; what lies outside is held at the ends."""
    shaping = presets.nemo_rl(
        reward_scaling={"enabled": True, "source_min": 0.2, "source_max": 0.7, "target_min": -1.0}
    ).shaping
    rollout, _ = random_batch(prompts=1, group=5)
    given = np.array([0.0, 0.2, 0.45, 0.7, 3.0])
    found = shaping(rollout._replace(rewards=jnp.asarray(given[None, :, None])))
    np.testing.assert_allclose(found[0], [-1, -1, 0, 1, 1], atol=1e-6)
