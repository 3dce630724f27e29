"""Presets: what is refused and by what name, numbers as leaves, names, and the comparison of two."""

import dataclasses
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import methods, presets
from grpo_jax.config import Config, Loop
from grpo_jax.optimizers import AdamW, ClippedNorm, Cosine, Warmup
from grpo_jax.part import leaf_paths
from grpo_jax.parts.reductions import Informative
from grpo_jax.presets import registry
from grpo_jax.presets.compare import random_batch
from grpo_jax.presets.options import ELSEWHERE
from grpo_jax.refill import Refill
from grpo_jax.surrogate import loss
from grpo_jax.sweeps import sweep


@pytest.mark.parametrize("library", list(presets.PRESETS))
def test_defaults_give_a_finite_loss(library: str) -> None:
    rollout, logp = random_batch()
    value, grad = jax.value_and_grad(loss, argnums=2)(presets.PRESETS[library](), rollout, logp)
    assert np.isfinite(value)
    assert np.isfinite(np.asarray(grad)).all()


@pytest.mark.parametrize(
    ("library", "options", "message"),
    [
        ("trl", {"entropy_coef": 0.1}, "trl: entropy_coef=0.1 is not modelled"),
        ("trl", {"epsilon_hgih": 0.3}, "epsilon_hgih is not modelled; did you mean .*epsilon_high"),
        ("trl", {"loss_type": "gmpo", "off_policy_mask_threshold": 0.1}, "GMPO trainer ignores"),
        ("verl", {"loss_mode": "clip_cov", "clip_cov_ratio": 0.1}, "clip_cov_ratio below 1"),
        ("verl", {"adv_estimator": "gae"}, "gae"),
        (
            "verl",
            {"rollout_rs": "token_k1", "rollout_rs_threshold": 2.0, "loss_mode": "geo_mean"},
            "rollout_rs is not modelled with loss_mode='geo_mean'",
        ),
        (
            "verl",
            {"rollout_rs": "token_k1", "rollout_rs_threshold": 2.0, "adv_estimator": "opo"},
            "adv_estimator='opo'",
        ),
        ("openrlhf", {"estimator": "gae"}, "critic"),
        ("prime_rl", {"algorithm": "opd"}, "algorithm='opd' is not modelled; it is distillation"),
        ("prime_rl", {"algorithm": "sft"}, "supervised"),
        ("prime_rl", {"algorithm": "echo"}, "nobody sampled"),
        ("prime_rl", {"algorithm": "rae"}, "baseline from batch to batch"),
        ("prime_rl", {"algorithm": "hierarchical_grpo"}, "agents"),
        (
            "prime_rl",
            {"type": "masked_is", "ratio_type": "sequence", "sequence_clip_high": 1e5},
            "above e.10",
        ),
        ("areal", {"prox_logp_method": "loglinear"}, "no version of the weights by token"),
        ("areal", {"use_cispo_loss": True}, "use_cispo_loss=True is not modelled"),
        (
            "areal",
            {"use_decoupled_loss": True, "m2_threshold": 0.04, "rejection_sampling": {"level": "sequence"}},
            "level='token' only",
        ),
        (
            "areal",
            {
                "use_decoupled_loss": True,
                "rejection_sampling": {"level": "sequence", "action": "clamp", "agg": "max"},
            },
            "not modelled with agg='max'",
        ),
        ("liger", {"epsilon": 0.1}, "epsilon_low"),
        ("liger", {"loss_type": "luspo"}, "reads padding"),
        (
            "liger",
            {
                "loss_type": "luspo",
                "importance_sampling_level": "sequence",
                "beta": 0.0,
                "use_vllm": True,
                "vllm_importance_sampling_mode": "token_mask",
            },
            "reads padding",
        ),
    ],
)
def test_what_is_not_modelled_is_named(library: str, options: dict, message: str) -> None:
    with pytest.raises(presets.NotModelled, match=message):
        presets.PRESETS[library](**options)


@pytest.mark.parametrize(
    ("library", "options", "message"),
    [
        ("trl", {"learning_rate": 1e-6}, r"belongs to the optimizer: .*AdamW\(learning_rate=1e-06\)"),
        ("trl", {"num_iterations": 2}, r"num_iterations.*belongs to the loop: .*Loop\(inner_steps=2\)"),
        ("trl", {"num_generations": 8}, r"Loop\(group_size=8\)"),
        ("trl", {"max_grad_norm": 1.0}, r"ClippedNorm\(inner=AdamW\(\), max_norm=1\.0\)"),
        ("trl", {"adam_beta2": 0.95}, r"AdamW\(b2=0\.95\)"),
        ("trl", {"repetition_penalty": 1.1}, "only 1.0 is; it belongs to the sampler"),
        ("openrlhf", {"min_p": 0.1}, "min_p=0.1 is not modelled; it belongs to the sampler"),
        ("verl", {"rollout_rs": "token_k1"}, "needs rollout_rs_threshold"),
        ("verl", {"rollout_rs": "token_k4", "rollout_rs_threshold": 2.0}, "did you mean token_k"),
        ("verl", {"rollout_rs": "seq_max_k1", "rollout_rs_threshold": 2.0}, "did you mean seq_max_k"),
        ("verl", {"rollout_rs": "token_k3", "rollout_rs_threshold": "0.5_2.0"}, "k1's may be lower_upper"),
        ("verl", {"rollout_rs": "token_k3", "rollout_rs_threshold": "1,2"}, "2 entries for 1 options"),
        ("prime_rl", {"loss": {"type": "ipo"}, "type": "kpop"}, "type is given twice"),
        ("prime_rl", {"type": "icepob"}, "did you mean icepop"),
        ("prime_rl", {"algorithm": "max_rl", "length_penalty": {}}, "takes no length_penalty"),
        ("prime_rl", {"length_penalty": {"num_turn_weight": 0.1}}, "did you mean num_turns_weight"),
        ("areal", {"use_sapo_loss": True, "use_decoupled_loss": True}, "use_decoupled_loss=False"),
        ("areal", {"reward_norm": {"mean_level": "groups"}}, "reward_norm.mean_level.*did you mean group"),
        ("areal", {"reward_norm": {"mean_levle": "group"}}, "areal.reward_norm: mean_levle.*mean_level"),
        ("areal", {"overlong_reward_penalty": True}, "needs overlong_tokens"),
        (
            "areal",
            {"use_decoupled_loss": True, "rejection_sampling": {"metric": "kl_k3", "action": "clamp"}},
            "metric='ratio' only",
        ),
        ("trl", {"num_iteration": 2}, "num_iteration is not modelled; did you mean num_iterations"),
        ("verl", {"ppo_epochs": 2}, r"ppo_epochs.*belongs to the loop: .*Loop\(inner_steps=2\)"),
        ("trl", {"loss_type": "drgrpo"}, "dr_grpo"),
        ("verl", {"loss_mode": "dro"}, "dro_beta"),
        ("verl", {"loss_agg_mode": "seq-mean"}, "seq-mean-token-mean"),
        ("openrlhf", {"overlong_buffer_len": 4}, "max_new_tokens"),
        ("liger", {"loss_type": "sapo", "importance_sampling_level": "sequence"}, "token"),
    ],
)
def test_what_belongs_elsewhere_or_is_wrong_is_named(library: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        presets.PRESETS[library](**options)


def test_what_belongs_elsewhere_can_be_written_there() -> None:
    """Every class that is named exists, and takes the keywords it is said to take."""
    kinds = (Config, Loop, AdamW, ClippedNorm, Cosine, Warmup, Informative, Refill)
    takes = {kind.__name__: set(inspect.signature(kind).parameters) for kind in kinds}
    takes["sweep"] = set(inspect.signature(sweep).parameters)
    for option, here in ELSEWHERE.items():
        called = re.findall(r"(\w+)\(", here)
        assert called, option
        assert set(called) <= set(takes), option
        keywords = set(re.findall(r"(\w+)=", here))
        assert keywords <= set().union(*(takes[name] for name in called)), option


def test_options_are_completed_and_helped() -> None:
    parameters = inspect.signature(presets.trl).parameters
    assert parameters["loss_type"].default == "dapo"
    assert {"beta", "epsilon_high", "scale_rewards"} <= set(parameters)


def test_options_that_change_nothing_are_accepted() -> None:
    assert presets.trl(entropy_coef=0.0, top_p=1.0) == presets.trl()


def test_numbers_are_leaves_and_kinds_are_structure() -> None:
    narrow, wide = presets.trl(epsilon_high=0.2, beta=0.0), presets.trl(epsilon_high=0.4, beta=0.1)
    assert jax.tree.structure(narrow) == jax.tree.structure(wide)
    assert leaf_paths(wide)["gain.high"] == 0.4
    assert leaf_paths(wide)["penalty.coef"] == 0.1
    assert jax.tree.structure(narrow) != jax.tree.structure(presets.trl(loss_type="grpo"))
    for library, options in (
        ("trl", {"beta": 0.1, "epsilon": 0.3}),
        ("verl", {"kl_loss_coef": 0.1, "use_kl_loss": True, "clip_ratio_high": 0.3}),
        ("openrlhf", {"kl_loss_coef": 0.1, "clip_eps_low": 0.3}),
        ("liger", {"beta": 0.1, "delta": 2.0}),
        ("prime_rl", {"kl_tau": 0.1, "dppo_mask_low": 0.3, "adv_tau": 2.0}),
        ("prime_rl", {"ipo_threshold": 0.3, "kl_tau": 0.0}),
        ("areal", {"eps_clip": 0.3, "kl_ctl": 0.2, "reward_scaling": 2.0, "discount": 0.9}),
    ):
        traced = {k: v if isinstance(v, bool) else jnp.asarray(v) for k, v in options.items()}
        made = [presets.PRESETS[library](**o) for o in (options, traced)]
        assert jax.tree.structure(made[0]) == jax.tree.structure(made[1])
        np.testing.assert_allclose(*[np.asarray(jax.tree.leaves(m), float) for m in made])


def test_clip_ratio_of_verl_counts_only_without_low_and_high() -> None:
    assert presets.verl(clip_ratio=0.4).gain.high == 0.2
    assert presets.verl(clip_ratio=0.4, clip_ratio_low=None, clip_ratio_high=None).gain.low == 0.4


def test_flags_of_openrlhf_are_understood() -> None:
    flags = {"algo.advantage.estimator": "rloo", "actor.dual_clip": 2.0}
    assert presets.openrlhf(**flags) == presets.openrlhf(estimator="rloo", dual_clip=2.0)
    known = {field.name for field in dataclasses.fields(registry.openrlhf.__globals__["Options"])}
    assert set(registry.openrlhf.__globals__["FLAGS"].values()) <= known


def test_names() -> None:
    assert presets.parse("trl:dapo,epsilon_high=0.28") == presets.trl(loss_type="dapo", epsilon_high=0.28)
    assert presets.parse("verl:vanilla,adv_estimator=rloo") == presets.verl(adv_estimator="rloo")
    assert presets.parse("openrlhf:gspo", dual_clip=2.0) == presets.openrlhf(
        policy_loss_type="gspo", dual_clip=2.0
    )
    assert presets.parse("prime_rl:ipo,kl_tau=0") == presets.prime_rl(type="ipo", kl_tau=0)
    assert presets.parse("areal,eps_clip=0.3") == presets.areal(eps_clip=0.3)
    assert presets.parse("dr_grpo") is methods.get("dr_grpo")
    with pytest.raises(ValueError, match="did you mean trl"):
        presets.parse("trll:dapo")
    with pytest.raises(ValueError, match="option=value"):
        presets.parse("trl:dapo,epsilon")
    with pytest.raises(ValueError, match="areal has no losses by name"):
        presets.parse("areal:grpo")
    with pytest.raises(ValueError, match=r"says who samples.*presets\.sampling\('trl', \.\.\.\)"):
        presets.parse("trl:dapo,top_p=0.9")


def test_difference_is_found_where_it_is() -> None:
    found = presets.compare(presets.trl(epsilon_high=0.28), presets.trl(epsilon_high=0.2))
    assert list(found.slots) == ["gain"]
    assert found.advantage == 0
    assert 0 < found.gradient < 1
    same = presets.compare(presets.trl(), presets.trl())
    assert same.slots == {}
    assert same.gradient == 0
    np.testing.assert_allclose(same.cosine, 1, rtol=1e-5)


def test_difference_as_text() -> None:
    text = presets.diff("trl:dapo", "verl:vanilla")
    assert "DualClip(low=0.2, high=0.2, cap=3.0)" in text
    assert "eps=1e-06" in text
    assert "gradient" in text
    assert "penalty" not in text  # both coefficients are 0
    assert "where DualClip: ``Clip``, and for A < 0 at least cap·A" in text
    assert "Config(optimizer=..., loop=...)" in text
    charged = presets.diff("trl:dapo,beta=0.1", "verl:vanilla")
    assert "Penalty(divergence=K3, coef=0.1, weight=RatioWeight(ratio=Token))" in charged
    assert "verl:vanilla     none" in charged
    assert "no slot differs" in presets.diff("grpo", "grpo")
