"""Which library, which method, how many steps on a batch; what is left out is said by name."""

import importlib
import inspect

import pytest

import grpo_jax as gj
from grpo_jax import presets
from grpo_jax.check import LIBRARIES, check, check_file
from grpo_jax.check.libraries import nemo_rl, openrlhf, prime_rl, verl

verl_options = importlib.import_module("grpo_jax.presets.verl")
openrlhf_options = importlib.import_module("grpo_jax.presets.openrlhf")
VERL = "algorithm: {adv_estimator: grpo}\nactor_rollout_ref: {rollout: {n: 8}}\n"
OPENRLHF = "python -m openrlhf.cli.train_ppo_ray --advantage_estimator group_norm --n_samples_per_prompt 8 "
AREAL = "gconfig: {n_samples: 4}\nactor: {eps_clip: 0.2, recompute_logprob: true}\n"
PRIME = "[orchestrator]\ngroup_size = 8\nbatch_size = 64\n[trainer.loss]\ntype = 'ipo'\n"
NEMO = "loss_fn: {reference_policy_kl_penalty: 0.02}\ngrpo: {num_generations_per_prompt: 8}\n"
OPEN = "python open_instruct/grpo_fast.py --num_samples_per_prompt_rollout 8 --beta 0.02 "


def setting(text, **options):
    return check(text, **options).setting


@pytest.mark.parametrize(
    ("text", "library"),
    [("num_generations: 8\nbeta: 0.1", "trl"), (VERL, "verl"), (OPENRLHF, "openrlhf"), (AREAL, "areal")]
    + [
        (PRIME, "prime_rl"),
        (NEMO, "nemo_rl"),
        (OPEN, "open_instruct"),
        (OPEN.partition("py ")[2], "open_instruct"),
    ],
)
def test_the_library_is_told_by_its_options(text, library):
    found = setting(text)
    assert found.library == library
    assert setting(text, library=library) == found
    assert library in presets.PRESETS


def test_the_method_is_the_presets():
    trl = setting("num_generations: 8\nbeta: 0.04\nepsilon_high: 0.28\nscale_rewards: false")
    assert trl.method == presets.trl(beta=0.04, epsilon_high=0.28, scale_rewards=False)
    verl = setting(
        VERL + "algorithm.use_kl_in_reward: true\nalgorithm.kl_ctrl.kl_coef: 0.01\n"
        "actor_rollout_ref.actor.policy_loss.loss_mode: gspo\nactor_rollout_ref.actor.clip_ratio_low: 3.0e-4"
    )
    given = {"loss_mode": "gspo", "clip_ratio_low": 3e-4, "use_kl_in_reward": True, "kl_coef": 0.01}
    assert verl.method == presets.verl(**given)
    openrlhf = setting(
        OPENRLHF + "--use_kl_loss --init_kl_coef 1e-3 --kl_estimator k3 --eps_clip_low_high 0.2 0.3"
    )
    assert openrlhf.method == presets.openrlhf(kl_loss_coef=1e-3, kl_estimator="k3", clip_eps_high=0.3)
    dotted = (
        "--algo.advantage.estimator group_norm --rollout.n_samples_per_prompt 8 --algo.kl.use_loss "
        "--algo.kl.init_coef 1e-3 --algo.kl.estimator k3 --actor.eps_clip_low_high 0.2 0.3"
    )
    assert setting(dotted).method == openrlhf.method
    areal = setting(AREAL + "actor.reward_norm: {mean_level: group, std_level: group, group_size: 4}")
    norm = {"mean_level": "group", "std_level": "group", "group_size": 4}
    assert areal.method == presets.areal(recompute_logprob=True, reward_norm=norm)
    assert setting(PRIME).method == presets.prime_rl(type="ipo")


def test_a_kl_without_use_loss_is_one_in_the_returns():
    found = setting(OPENRLHF + "--init_kl_coef 1e-3")
    assert found.method == presets.openrlhf(kl_reward_coef=1e-3)


def test_the_sampler_is_the_presets():
    found = setting("num_generations: 8\nuse_vllm: true\ntop_p: 0.9\ntemperature: 0.7")
    assert found.sampling == presets.sampling("trl", use_vllm=True, top_p=0.9, temperature=0.7)
    assert found.decoding.top_p == 0.9
    assert setting("num_generations: 8").decoding == gj.Decoding()


@pytest.mark.parametrize(
    ("text", "steps", "prompts"),
    [
        ("num_generations: 8", 1, 1),
        ("num_generations: 8\ngradient_accumulation_steps: 4", 1, 4),
        ("num_generations: 8\nsteps_per_generation: 16\ngradient_accumulation_steps: 4", 4, 16),
        ("num_generations: 8\nnum_iterations: 3\nsteps_per_generation: 2", 6, 2),
        ("num_generations: 8\ngeneration_batch_size: 64\nper_device_train_batch_size: 16", 4, 8),
        (VERL, 4, 1024),
        (VERL + "data.train_batch_size: 256\nactor_rollout_ref.actor.ppo_epochs: 2", 2, 256),
        (VERL + "data.train_batch_size: 16", 1, 16),
        (OPENRLHF + "--rollout_batch_size 128 --train_batch_size 128", 8, 128),
        (OPENRLHF + "--rollout_batch_size 128 --train_batch_size 1024 --max_epochs 2", 2, 128),
        (AREAL, 4, 256),
        (AREAL + "actor.ppo_n_minibatches: 1\ntrain_dataset.batch_size: 64", 1, 64),
        (PRIME, 1, 8),
        (NEMO, 1, 32),
        (NEMO + "policy.train_global_batch_size: 64", 4, 32),
        (NEMO + "policy.train_global_batch_size: 48\ngrpo.num_prompts_per_step: 12", 2, 12),
        (OPEN, 1, 16),
        (OPEN + "--num_mini_batches 2 --num_epochs 3 --num_unique_prompts_rollout 24", 6, 24),
    ],
)
def test_steps_on_a_batch(text, steps, prompts):
    at = setting(text).at
    assert (at.steps, at.prompts) == (steps, prompts)


def test_the_optimizer_and_the_loop_are_told():
    """What ``presets`` refuse as no matter of the method has its place here."""
    found = setting(
        "num_generations: 4\nlearning_rate: 2e-6\nadam_beta2: 0.95\nweight_decay: 0.1\nmax_grad_norm: 0.2\n"
        "num_iterations: 2"
    )
    inner = gj.AdamW(learning_rate=2e-6, b2=0.95, weight_decay=0.1)
    assert found.at.optimizer == gj.ClippedNorm(inner=inner, max_norm=0.2)
    assert (found.at.passes, found.at.group_size) == (2, 4)
    assert setting("num_generations: 4\nmax_grad_norm: 0").at.optimizer == gj.AdamW(learning_rate=1e-6)
    assert setting(VERL).at.optimizer.inner.weight_decay == 0.01
    assert setting(OPENRLHF).at.optimizer.inner.b2 == 0.95


def test_dynamic_sampling_and_old_weights():
    verl = setting(
        VERL + "algorithm.filter_groups: {enable: true, max_num_gen_batches: 3, metric: seq_reward}"
    )
    assert verl.at.refill == gj.Refill(tries=3, other=True)
    assert setting(OPENRLHF + "--dynamic_filtering --dynamic_filtering_reward_range 0 1").at.refill.other
    assert setting(OPENRLHF + "--async_train --async_queue_size 2").at.lag == 2
    assert setting(AREAL + "rollout: {max_head_offpolicyness: 4}").at.lag == 4
    assert setting(PRIME).at.lag == 8
    assert setting(AREAL).at.lag is None


def test_overlong_answers_in_verl():
    text = VERL + "reward_model.overlong_buffer: {enable: true, len: 128, penalty_factor: 0.5}\n"
    found = setting(text + "data.max_response_length: 1024")
    part = found.method.shaping
    assert (part.limit, part.buffer, part.factor) == (1024, 128, 0.5)
    assert setting(text.replace("enable: true", "enable: false")).method.shaping == presets.verl().shaping


def test_earlier_names_of_corrections():
    icepop = setting(
        OPENRLHF + "--enable_vllm_is_correction --use_icepop --vllm_is_truncated_threshold 0.5 5.0"
    )
    given = {"is_correction_level": "token", "is_correction_mode": "mask", "kl_reward_coef": 0.01}
    assert icepop.method == presets.openrlhf(**given)
    areal = setting(AREAL + "actor.use_decoupled_loss: true\nactor.behav_imp_weight_cap: 5.0")
    rejects = {"upper": 5.0, "level": "token", "action": "mask"}
    assert areal.method == presets.areal(
        recompute_logprob=True, use_decoupled_loss=True, rejection_sampling=rejects
    )
    trl = setting("num_generations: 8\nuse_vllm: true\nvllm_importance_sampling_cap: 2.0")
    assert trl.method == presets.trl(use_vllm=True, vllm_importance_sampling_clip_max=2.0)


def test_what_is_not_modelled_is_named_and_left_out():
    found = setting("num_generations: 8\nentropy_coef: 0.01\nsync_ref_model: true\nbeta: 0.04\noutput_dir: x")
    assert set(found.not_modelled) == {"entropy_coef", "sync_ref_model"}
    assert found.method == presets.trl(beta=0.04)
    assert found.ignored == ("output_dir",)
    assert setting(OPENRLHF + "--entropy_loss_coef 0").not_modelled == {}
    assert set(setting(AREAL + "dynamic_bs: true").not_modelled) == {"dynamic_bs"}
    engine = setting(VERL + "actor_rollout_ref.rollout.name: trtllm")
    assert list(engine.not_modelled) == ["actor_rollout_ref.rollout.name"]


def test_what_changes_nothing_is_named():
    found = setting("num_generations: 8\nvllm_importance_sampling_clip_max: 2.0\nsapo_temperature_pos: 2.0")
    assert set(found.idle) == {"vllm_importance_sampling_clip_max", "sapo_temperature_pos"}
    assert "max_completion_length" not in setting("num_generations: 8\nmax_completion_length: 99").idle


def test_what_only_the_running_script_knows_is_said():
    found = setting("GRPOConfig(num_generations=8, beta=args.beta)")
    assert any("beta" in line for line in found.assumed)
    assert found.method == presets.trl()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "num_generations: 8\nepsilon_hihg: 0.28",
            "TRL 1.16.0 has no option epsilon_hihg; did you mean epsilon_high",
        ),
        ("num_generations: 8\nnum_iteration: 2", "no option num_iteration; did you mean num_iterations"),
        (
            VERL + "actor_rollout_ref.actor.clip_ratio_hgih: 0.28",
            "did you mean actor_rollout_ref.actor.clip_ratio",
        ),
        (VERL + "algorithm.norm_adv_by_std_in_grp: false", "did you mean algorithm.norm_adv_by_std_in_grpo"),
        (OPENRLHF + "--max_epoch 2", "no option max_epoch; did you mean max_epochs"),
        (AREAL + "actor.eps_clip_highr: 0.3", "did you mean actor.eps_clip_higher"),
        ("num_generations: 8\nloss_type: gpro", "loss_type='gpro'; did you mean grpo"),
        ("num_generations: eight", "num_generations is 'eight'; it must be a whole number"),
        ("num_generations: 0", "num_generations is 0; it must be at least 1"),
        ("num_generations: true", "num_generations is True; it must be a whole number"),
        ("num_generations: 8\nlearning_rate: fast", "learning_rate is 'fast'; it must be a number"),
        ("num_generations: 8\nlearning_rate: -1", "learning_rate is -1"),
        ("num_generations: 8\nbeta: lots", "beta|coef"),
        ("actor_rollout_ref: {rollout: {n: 8}}", "adv_estimator is gae .its default"),
        (OPENRLHF.replace("group_norm", "gae"), "the estimator is gae"),
        (VERL.replace("grpo", "optimal_token_baseline"), "no method to show"),
        (PRIME + "[orchestrator.algo]\ntype = 'opd'", "is distillation, so that there is no method to show"),
        (
            NEMO + "loss_fn.ratio_clip_mx: 0.3",
            "no option loss_fn.ratio_clip_mx; did you mean loss_fn.ratio_clip",
        ),
        (NEMO + "grpo.normalise_rewards: true", "did you mean grpo.normalize_rewards"),
        (NEMO + "grpo.adv_estimator.name: gae", "needs a critic, which is not modelled, so that there is no"),
        (NEMO + "loss_fn.reference_policy_kl_type: k4", "reference_policy_kl_type='k4'; did you mean k"),
        (
            NEMO + "loss_fn.truncated_importance_sampling_type: tis",
            "needs use_importance_sampling_correction",
        ),
        (NEMO + "policy.optimizer.kwargs.betas: 3", "betas is 3; it must be two numbers"),
        (OPEN + "--clip_highr 0.3", "open-instruct 0.3.0 has no option clip_highr; did you mean clip_higher"),
        (OPEN + "--loss_fn dappo", "loss_fn='dappo'; did you mean dapo"),
        (OPEN + "--loss_denominator lots", "loss_denominator='lots'; it must be 'token' or a number"),
        (OPEN + "--kl_estimator kl9", "kl_estimator='kl9'; known: 0, 1, 2, 3"),
    ],
)
def test_what_is_wrong_is_refused_with_the_nearest_right_name(text, said):
    with pytest.raises((ValueError, TypeError), match=said):
        check(text)


def test_a_wrong_library_is_refused():
    with pytest.raises(ValueError, match=r"no option of verl 0.9.1; it looks like TRL 1.16.0's"):
        check("num_generations: 8\nbeta: 0.1", library="verl")
    with pytest.raises(ValueError, match="unknown library 'tlr'; did you mean trl"):
        check("num_generations: 8", library="tlr")
    with pytest.raises(ValueError, match=r"no option of NeMo-RL 0.6.0; it looks like TRL"):
        check("num_generations: 8", library="nemo_rl")
    with pytest.raises(ValueError, match=r"none of the file's 1 options is one of TRL"):
        check("colour: green", library="trl")


def test_overrides_make_a_file_of_another_estimator_readable(tmp_path):
    path = tmp_path / "ppo.yaml"
    path.write_text("actor_rollout_ref: {rollout: {n: 8}}\n")
    found = check_file(path, ["algorithm.adv_estimator=rloo", "actor_rollout_ref.rollout.n=4"]).setting
    assert found.method == presets.verl(adv_estimator="rloo")
    assert found.at.group_size == 4


def test_nemo_rl_s_files_are_the_preset_s():
    found = setting(
        NEMO + "grpo.use_leave_one_out_baseline: false\nloss_fn.ratio_clip_max: 0.28\n"
        "policy.generation: {temperature: 0.8, top_p: 0.9}\n"
        "policy.optimizer.kwargs: {lr: 1.0e-6, betas: [0.8, 0.9]}\n"
        "grpo.async_grpo: {enabled: true, max_trajectory_age_steps: 3}\ngrpo.val_period: 5"
    )
    given = {"reference_policy_kl_penalty": 0.02, "ratio_clip_max": 0.28, "use_leave_one_out_baseline": False}
    assert found.method == presets.nemo_rl(**given)
    assert found.sampling == presets.Sampling(gj.Decoding(temperature=0.8, top_p=0.9), None)
    assert found.at.lag == 3
    assert found.at.optimizer.inner == gj.AdamW(learning_rate=1e-6, b1=0.8, b2=0.9, weight_decay=0.01)
    assert found.ignored == ("grpo.val_period",)


def test_what_nemo_rl_sets_to_null_is_switched_off_and_what_is_absent_has_its_default():
    given = {"reference_policy_kl_penalty": 0.02}
    assert setting(NEMO).method.penalty == presets.nemo_rl(**given).penalty
    assert setting(NEMO).at.optimizer.max_norm == 1
    for name in ("kl_input_clamp_value", "kl_output_clamp_value"):
        found = setting(f"{NEMO}loss_fn.{name}: null").method
        assert found == presets.nemo_rl(**given, **{name: None}) != presets.nemo_rl(**given)
    assert not isinstance(setting(NEMO + "policy.max_grad_norm: null").at.optimizer, gj.ClippedNorm)


def test_nemo_rl_s_estimator_has_its_own_switches():
    text = (
        NEMO
        + "grpo: {normalize_rewards: false, adv_estimator: {normalize_rewards: true, minus_baseline: true}}"
    )
    assert setting(text.replace(NEMO, "loss_fn.token_level_loss: true\n")).method == presets.nemo_rl()
    megatron = (
        "policy.megatron_cfg: {enabled: true, optimizer: {lr: 2.0e-6}, scheduler: {lr_warmup_iters: 9}}\n"
    )
    found = setting(NEMO + megatron + "policy.optimizer.kwargs.lr: 1.0\npolicy.scheduler: [{name: x}]")
    assert found.at.optimizer.inner.learning_rate == 2e-6
    assert set(found.not_modelled) == {"policy.megatron_cfg.scheduler.lr_warmup_iters"}


def test_nemo_rl_s_dynamic_sampling_is_the_loop_s():
    text = NEMO + "grpo.use_dynamic_sampling: true\ngrpo.dynamic_sampling_max_gen_batches: 4\n"
    found = setting(text)
    assert found.at.refill == gj.Refill(tries=4, other=True)
    assert "rows one by one" in found.not_modelled["grpo.use_dynamic_sampling"]
    whole = setting(text + "grpo.use_leave_one_out_baseline: false")
    assert (whole.at.refill, dict(whole.not_modelled)) == (found.at.refill, {})


def test_nemo_rl_s_shaping_takes_what_its_own_file_sets():
    text = NEMO + "grpo.reward_shaping: {enabled: true}\npolicy.max_total_sequence_length: 900\n"
    part = setting(text).method.shaping
    assert (part.limit, part.buffer, part.factor, part.capped) == (900, 128, 1, False)
    stop = setting(text + "grpo.reward_shaping.stop_properly_penalty_coef: 0.2").method.shaping
    assert (stop.scale, stop.value) == (0.2, 0.0)
    off = setting(text.replace("enabled: true", "enabled: false")).method.shaping
    assert off == presets.nemo_rl().shaping


def test_open_instruct_s_flags_are_the_preset_s():
    found = setting(
        OPEN + "--num_mini_batches 4 --clip_higher 0.3 --vllm_top_p 0.9 --no_filter_zero_std_samples"
    )
    given = {"num_mini_batches": 4, "clip_higher": 0.3, "filter_zero_std_samples": False, "beta": 0.02}
    assert found.method == presets.open_instruct(verification_reward=10, **given)
    assert found.decoding.top_p == 0.9
    assert found.at.lag == 8
    assert found.at.optimizer == gj.ClippedNorm(inner=gj.AdamW(learning_rate=2e-5), max_norm=1.0)
    assert setting(OPEN + "--max_grad_norm 0.5 --active_sampling").at.optimizer.max_norm == 0.5
    assert setting(OPEN + "--max_grad_norm 0").at.optimizer == gj.AdamW(learning_rate=2e-5)
    assert setting(OPEN + "--active_sampling True").at.refill == gj.Refill(tries=10, other=True)
    constant = setting(OPEN + "--loss_denominator 80.0").method.reduction.inner
    assert constant.by == 80


def test_open_instruct_s_learning_rate_falls_unless_it_is_told_not_to():
    assert "falls to 0" in setting(OPEN).not_modelled["lr_scheduler_type"]
    assert setting(OPEN + "--lr_scheduler_type constant").not_modelled == {}
    assert set(setting(OPEN + "--lr_scheduler_type cosine").not_modelled) == {"lr_scheduler_type"}


@pytest.mark.parametrize(
    "flag", ["set_weight_decay_on_bias_and_norm", "no_set_weight_decay_on_bias_and_norm"]
)
def test_open_instruct_may_ignore_its_weight_decay(flag):
    acts, idle = ("False", "True") if flag.startswith("set") else ("True", "False")
    text = f"{OPEN} --lr_scheduler_type constant --{flag}"
    assert "weight_decay is ignored" in setting(f"{text} {acts}").not_modelled[flag]
    assert setting(f"{text} {idle}").not_modelled == {}


def test_open_instruct_s_earlier_names():
    plain = {"verification_reward": 10, "beta": 0.02}
    assert setting(OPEN + "--kl_estimator kl2").method == presets.open_instruct(kl_estimator=1, **plain)
    capped = setting(OPEN + "--truncated_importance_sampling_ratio_cap 3.0").method
    assert capped == presets.open_instruct(rho_clamp_upper_bound=3.0, **plain)
    off = setting(OPEN + "--truncated_importance_sampling_ratio_cap 0").method
    assert off == presets.open_instruct(use_rho_correction=False, **plain)
    stopping = OPEN + "--non_stop_penalty True --non_stop_penalty_value -2 "
    stop = setting(stopping + "--no_filter_zero_std_samples").method.shaping
    assert (stop.scale, stop.value, stop.inner.scale) == (0, -2, 10)
    assert "filter_zero_std_samples" in setting(stopping).not_modelled["non_stop_penalty"]


def test_every_option_of_a_table_is_one_of_the_presets():
    for library, names, unmodelled in (
        ("verl", verl.PATHS.values(), verl_options.NOT_MODELLED),
        ("openrlhf", openrlhf.FLAGS, openrlhf_options.NOT_MODELLED),
        ("prime_rl", prime_rl.LOSS, {}),
        ("nemo_rl", nemo_rl.IN_LOSS, {}),
        ("nemo_rl", (*nemo_rl.OF_GROUPS, *nemo_rl.OF_ESTIMATOR), {}),
    ):
        known = inspect.signature(presets.PRESETS[library]).parameters
        assert set(names) <= {*known, *unmodelled}
    assert set(LIBRARIES) <= set(presets.PRESETS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            OPENRLHF + "--reward_clip_range 5",
            r"openrlhf: reward_clip_range=5; it must be two numbers, as \(0, 1\)",
        ),
        ("num_generations: 8\nreward_weights: 3", "trl: reward_weights=3; it must be a list of numbers"),
        ("num_generations: 8\nloss_type: [grpo]", "trl: loss_type is .*one value"),
        (VERL + "actor_rollout_ref.actor.kl_loss_type: 3\n", "verl: kl_loss_type is 3; it has no meaning"),
        (
            VERL + "algorithm.rollout_correction: {rollout_is: token, rollout_is_threshold: x}",
            "threshold is",
        ),
        ("num_generations: 8\nreward_weights: [a, b]", "trl: reward_weights is .*it must hold numbers"),
        ("num_generations: 8\nbeta: [0.1, 0.2]", "trl: beta is .*it must be one value"),
        ("num_generations: 8\nbeta: -1", r"trl: beta is -1; Penalty.coef is -1; allowed is \[0, inf\]"),
        ("num_generations: 8\nbeta: .nan", "trl: beta is nan; Penalty.coef is NaN"),
        ("num_generations: 8\nbeta: yes", "trl: beta is True; it has no meaning there"),
        ("num_generations: 8\ntop_p: 1.5", r"trl: top_p is 1.5; Decoding.top_p is 1.5; allowed is \(0, 1\]"),
        ("num_generations: 1000000000000", "groups of 1000000000000; sizes are computed for up to 100,000"),
        ("num_generations: 8\nadam_beta2: 1.0", r"AdamW.b2 is 1; allowed is \[0, 1\)"),
    ],
)
def test_values_of_the_wrong_kind_are_named(text, said):
    with pytest.raises(ValueError, match=said):
        check(text)
