"""Each hazard fires where it should and not where it should not, and its size is recomputed by hand."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import brentq

from grpo_jax.check import HAZARDS, Level, check

TRL = "num_generations: 8\n"
VERL = "algorithm: {adv_estimator: grpo}\nactor_rollout_ref.rollout.n: 8\n"
KL = "actor_rollout_ref.actor: {use_kl_loss: true, kl_loss_coef: 0.5"
OPENRLHF = "python -m openrlhf.cli.train_ppo_ray --advantage_estimator group_norm --n_samples_per_prompt 8 "
PLAIN = OPENRLHF + "--init_kl_coef 0 "
AREAL = (
    "gconfig: {n_samples: 4, max_new_tokens: 64}\nactor: {kl_ctl: 0.0, ppo_n_minibatches: 1, eps_clip: 0.2}\n"
)
GROUP = "actor.reward_norm: {mean_level: group, std_level: group}\n"
PRIME = "[orchestrator]\ngroup_size = 8\nbatch_size = 64\n"
STEPS = "steps_per_generation: 4\n"


def drive(p, group, ddof=0.0, added=0.0):
    """E of better minus worse advantage, by summing over the other G − 2 members and the two at hand."""
    total = 0.0
    for others in range(group - 1):
        k = others + 1
        sigma = math.sqrt(k * (group - k) / (group * (group - ddof))) + added
        total += stats.binom.pmf(others, group - 2, p) / sigma
    return (group - 1) / group * total


def logit(p):
    return math.log(p / (1 - p))


def direct(beta, group, ddof, added, better=0.3):
    """The lowest root of drive/β' − z + z_ref, β' the paper's weight at one half (a scan, then bisection)."""
    acts = beta * drive(0.5, group) / drive(0.5, group, ddof, added)
    height = lambda z: drive(1 / (1 + math.exp(-z)), group) / acts - z + logit(better)  # noqa: E731
    grid = np.linspace(logit(better), logit(better) + math.sqrt(group - 1) / acts + 1, 4000)
    signs = [height(z) for z in grid]
    first = next(i for i, (a, b) in enumerate(itertools.pairwise(signs)) if a > 0 >= b)
    return 1 / (1 + math.exp(brentq(height, grid[first], grid[first + 1])))


def indirect(beta, group, ddof, added, better=0.3):
    """β(π − π_ref) = π(1 − π)·drive."""
    balance = lambda x: beta * (x - better) - x * (1 - x) * drive(x, group, ddof, added)  # noqa: E731
    return 1 - brentq(balance, better + 1e-9, 1 - 1e-12)


def fold(group):
    weights = [drive(p, group) for p in np.linspace(1e-9, 1 - 1e-9, 201)]
    return max(weights) / min(weights)


def tie(p, group):
    return p**group + (1 - p) ** group


def beyond(chi2, tokens, cap):
    """E_q[w; w ≤ cap] of a lognormal weight of mean 1: the share of the tilted law below the cap."""
    v = tokens * math.log1p(chi2)
    return stats.norm.cdf(math.log(cap), loc=v / 2, scale=math.sqrt(v))


RHO = 0.9 / math.sqrt(0.999)

CASES = {
    "top_p": (TRL + "top_p: 0.9", TRL + "top_p: 1.0", 0.9),
    "other_filters": (TRL + "top_k: 64", TRL + "top_k: 0", 64 / 32_000),
    "temperatures_apart": (
        TRL + "temperature: 1.0\ngeneration_kwargs: {temperature: 0.5}",
        TRL + "temperature: 0.5",
        0.5,
    ),
    "raw_logprobs": (
        AREAL + "allocation_mode: vllm:d1\ngconfig.temperature: 0.5\nactor.temperature: 0.5",
        AREAL + "allocation_mode: sglang:d1\ngconfig.temperature: 0.5\nactor.temperature: 0.5",
        0.9 / (1 / (1 + math.exp(-0.5 * logit(0.9)))),
    ),
    "cut_off_votes": (TRL + "mask_truncated_completions: true", TRL, 0.1),
    "stale": (OPENRLHF + "--async_train --train_batch_size 8192", OPENRLHF, 1.0),
    "masked_products": (
        TRL + "use_vllm: true\nmax_completion_length: 100",
        TRL + "use_vllm: true\nvllm_importance_sampling_mode: token_mask",
        beyond(0.01, 100, 3.0),
    ),
    "masked_means": (
        OPENRLHF + "--algo.advantage.is_correction_level seq --generate_max_len 100",
        OPENRLHF + "--algo.advantage.is_correction_level token --generate_max_len 100",
        math.log(5) / math.sqrt(math.log(1.01) / 100),
    ),
    "temperature": (TRL + "temperature: 0.7", TRL, 1 / (1 + math.exp(-0.7 * logit(0.9)))),
    "reference_kept": (TRL + "beta: 0.2", TRL + "beta: 0.0", direct(0.2, 8, 1, 1e-4)),
    "k1_in_loss": (VERL + KL + ", kl_loss_type: kl}", VERL + KL + ", kl_loss_type: k2}", 0.0),
    "k3_in_reward": (
        VERL + "algorithm.use_kl_in_reward: true\nalgorithm.kl_penalty: low_var_kl",
        VERL + "algorithm.use_kl_in_reward: true\nalgorithm.kl_penalty: kl",
        0.0,
    ),
    "divided_in_reward": (
        VERL + "algorithm.use_kl_in_reward: true",
        VERL + "algorithm.use_kl_in_reward: true\nalgorithm.norm_adv_by_std_in_grpo: false",
        tie(0.05, 8),
    ),
    "several_ends": ("num_generations: 64\nbeta: 1.15", TRL + "beta: 1.15", 3.0),
    "other_divergence": (VERL + KL + "}", VERL + KL + ", kl_loss_type: k2}", indirect(0.5, 8, 1, 1e-6)),
    "stale_in_batch": (
        VERL + "algorithm.use_kl_in_reward: true",
        VERL + "algorithm.use_kl_in_reward: true\nactor_rollout_ref.actor.ppo_mini_batch_size: 1024",
        3.0,
    ),
    "convention_factor": (TRL + "beta: 0.5", TRL, drive(0.5, 8) / drive(0.5, 8, 1, 1e-4)),
    "beside_spread": (TRL + "beta: 0.5", TRL, 0.5 * (7 / 8) / drive(0.5, 8, 1, 1e-4)),
    "no_penalty": (TRL, TRL + "beta: 0.1", 0.0),
    "idle_clip": (TRL, TRL + STEPS, 0.0),
    "coasting": (TRL + STEPS, TRL, RHO + RHO**2 + RHO**3),
    "coasting_grows": (TRL + "adam_beta2: 0.8", TRL, 0.9 / math.sqrt(0.8)),
    "token_clip_for_answers": (
        TRL + STEPS + "importance_sampling_level: sequence\nmax_completion_length: 100",
        TRL + STEPS + "importance_sampling_level: sequence\nepsilon: 3e-4",
        100 * math.log(1.2),
    ),
    "answer_ratio": (
        TRL + STEPS + "loss_type: rloo\nmax_completion_length: 100",
        TRL + "loss_type: rloo\nmax_completion_length: 100",
        1.01**100,
    ),
    "no_ratio": (
        VERL + "actor_rollout_ref.actor.policy_loss.loss_mode: gpg",
        VERL + "actor_rollout_ref.actor.policy_loss.loss_mode: gpg\ndata.train_batch_size: 256",
        4.0,
    ),
    "old_values": (TRL + STEPS, TRL, 0.75),
    "decay": (
        TRL + STEPS + "weight_decay: 0.1\nlearning_rate: 1e-5",
        TRL + "weight_decay: 0.0",
        4 * 0.1 * 1e-5,
    ),
    "group_of_one": (VERL.replace("8", "1"), VERL, 1.0),
    "pairs": (TRL.replace("8", "2"), TRL, 0.0),
    "difficulty": (TRL, TRL + "scale_rewards: none", fold(8)),
    "hard_first": (PRIME + "[orchestrator.algo]\ntype = 'max_rl'", PRIME, 7.0),
    "own_mean": (TRL + "scale_rewards: none", TRL, 7 / 8),
    "tied_groups": (TRL, PLAIN + "--dynamic_filtering", tie(0.05, 8)),
    "refilled": (
        PLAIN + "--dynamic_filtering",
        PLAIN,
        (1 - tie(0.05, 8) ** 10) / (1 - tie(0.05, 8)),
    ),
    "left_out": (VERL.replace("grpo", "gpg"), VERL, 20.0),
    "phantoms": (
        TRL + "reward_weights: [1.0, 0.1]",
        TRL + "reward_weights: [1.0, 0.1]\nscale_rewards: none",
        tie(0.05, 8),
    ),
    "apart": (TRL + "multi_objective_aggregation: normalize_then_sum", TRL, fold(8)),
    "scale_lost": (
        AREAL + GROUP + "actor.reward_scaling: 10.0",
        AREAL + GROUP + "actor.reward_scaling: 1.0",
        0.0,
    ),
    "by_sequence": (TRL + "loss_type: grpo\nmax_completion_length: 512", TRL, 1 / 512),
    "by_batch": (TRL + "max_completion_length: 512", TRL + "loss_type: grpo", 512.0),
    "micro_batches": (
        TRL + "loss_type: bnpo\ngradient_accumulation_steps: 4",
        TRL + "loss_type: dapo\ngradient_accumulation_steps: 4",
        4.0,
    ),
    "loss_zero": (TRL + "loss_type: grpo", TRL + "loss_type: dapo", 0.0),
    # Four of eight right: A = ± ½/(σ + 1e-4), σ² = 8·¼/7; lengths 2 and 1.
    "loss_meter": (
        TRL,
        TRL + "loss_type: grpo",
        -(0.5 / (math.sqrt(2 / 7) + 1e-4)) * 4 * (2 - 1) / (4 * (2 + 1)),
    ),
}


def fired(text):
    return {finding.name: finding for finding in check(text).findings}


def test_every_hazard_has_a_case():
    assert set(CASES) == {hazard.__name__ for hazard in HAZARDS}
    assert len(HAZARDS) >= 20


@pytest.mark.parametrize("name", CASES)
def test_it_fires_with_its_size_and_not_elsewhere(name):
    where, elsewhere, size = CASES[name]
    found = fired(where)[name]
    assert name not in fired(elsewhere)
    assert found.size == pytest.approx(size, rel=1e-5, abs=1e-12)
    assert found.claim[0] in "ABCDE"
    assert found.what
    assert found.says
    assert found.measures


def test_claims_are_those_of_the_ledger(pytestconfig):
    ledger = (pytestconfig.rootpath / "experiments" / "ledger.json").read_text()
    for where, _, _ in CASES.values():
        for finding in check(where).findings:
            assert all(f'"{claim}":' in ledger for claim in finding.claim.split(", "))


def test_what_is_left_of_the_reference_is_what_the_readme_prints():
    """At beta 0.04 the paper's own numbers, and the weakest the printed form can be."""
    found = fired(TRL + "beta: 0.04\nloss_type: grpo")["reference_kept"]
    assert found.level == Level.HAZARD
    assert "of 0.7 on the worse of two answers 3.2e-27 is left" in found.says
    assert found.size == pytest.approx(direct(0.04, 8, 1, 1e-4), rel=1e-5)
    assert fired(TRL + "beta: 1.0")["reference_kept"].level == Level.KNOW
    tiny = fired(TRL + "beta: 0.0001")["reference_kept"]
    assert "e^-2.4" in tiny.says
    assert tiny.size < 1e-300


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (TRL + "beta: 1.0\nscale_rewards: none", 1 / (1 + math.exp(logit(0.3) + 7 / 8))),
        (TRL + "beta: 1.0\nscale_rewards: none\nloss_type: rloo", 1 / (1 + math.exp(logit(0.3) + 1.0))),
        (VERL + KL + "}", indirect(0.5, 8, 1, 1e-6)),
        (OPENRLHF + "--init_kl_coef 0.5", direct(0.5, 8, 1, 1e-9)),
    ],
    ids=["A9", "A9, leave one out", "A4", "A8, in the returns"],
)
def test_each_penalty_has_its_own_fixed_point(text, kept):
    assert fired(text)["reference_kept"].size == pytest.approx(kept, rel=1e-5)


def test_an_override_of_the_clip_that_does_nothing_is_worth_knowing():
    assert fired(TRL)["idle_clip"].level == Level.NOTE
    told = fired(TRL + "epsilon_high: 0.28")["idle_clip"]
    assert told.level == Level.KNOW
    assert "epsilon_high changes nothing" in told.says


def test_the_clip_acts_where_the_ratio_is_against_the_engine():
    """verl's bypass mode, and prime-rl: ratios are not 1 at the first step."""
    once = VERL + "data.train_batch_size: 256\n"
    assert "idle_clip" in fired(once)
    assert "idle_clip" not in fired(once + "algorithm.rollout_correction: {bypass_mode: true}")
    assert "idle_clip" not in fired(PRIME)


def test_groups_that_tie_have_advantages_where_a_batch_mean_is_taken_off_them():
    assert "tied_groups" in fired(AREAL + GROUP)
    batch = "actor.adv_norm: {mean_level: batch, std_level: batch}\n"
    assert "tied_groups" not in fired(AREAL + GROUP + batch)
    assert "tied_groups" not in fired(PLAIN.replace("group_norm", "reinforce_baseline"))


def test_a_large_group_reweighs_enough_to_know():
    assert fired(TRL)["difficulty"].level == Level.NOTE
    assert fired("num_generations: 64")["difficulty"].level == Level.KNOW
    assert "4-fold" in fired("num_generations: 64")["difficulty"].says


def test_stale_answers_that_ratios_see_are_no_hazard():
    assert fired(PRIME)["stale"].level == Level.KNOW
    assert fired(OPENRLHF + "--async_train")["stale"].level == Level.HAZARD


def test_the_worst_comes_first():
    levels = [finding.level for finding in check(TRL + "top_p: 0.9\nbeta: 0.04").findings]
    assert levels == sorted(levels, reverse=True)
    assert levels[0] == Level.HAZARD


def test_a_quiet_configuration_has_notes_only():
    """Leave-one-out, no spread, one step, no filter."""
    found = check("num_generations: 8\nloss_type: rloo\nbeta: 0.0\nper_device_train_batch_size: 8")
    assert found.worst is None or found.worst == Level.NOTE


def test_sizes_beyond_every_float_are_told_by_their_logarithm():
    """(1 + χ²)^T at a million tokens; β2 = 0, from which momentum never recovers."""
    answers = TRL + STEPS + "loss_type: rloo\nmax_completion_length: 1000000"
    found = fired(answers)["answer_ratio"]
    assert math.isinf(found.size)
    assert f"e^{1e6 * math.log(1.01):.4g}" in found.says
    assert math.isinf(fired(TRL + STEPS + "adam_beta2: 0.0")["coasting_grows"].size)
    assert "coasting" not in fired(TRL + STEPS + "adam_beta2: 0.0")
    long = fired(TRL + "num_iterations: 1000000000")["coasting"]
    assert long.size == pytest.approx(RHO / (1 - RHO))


def test_min_p_is_a_filter_too():
    found = fired(TRL + "min_p: 0.1")["other_filters"]
    assert "none below 0.05 is drawn" in found.says
    assert found.size == 0.5


def test_a_scaled_reward_has_a_larger_gap():
    """Shift-only, the group's own mean: log-odds move by (1 - 1/4)·10/β."""
    text = (
        AREAL.replace("kl_ctl: 0.0", "kl_ctl: 5.0")
        + "actor.reward_norm: {mean_level: group, std_level: null}\n"
    )
    found = fired(text + "actor.reward_scaling: 10.0")["reference_kept"]
    assert found.size == pytest.approx(1 / (1 + math.exp(logit(0.3) + 0.75 * 10 / 5)))
    assert "rewards 10 and 0" in found.says


def test_temperatures_that_a_correction_sees_are_no_hazard():
    text = TRL + "temperature: 1.0\ngeneration_kwargs: {temperature: 0.5}"
    assert "temperatures_apart" in fired(text)
    assert "temperatures_apart" not in fired(text + "\nuse_vllm: true")


NEMO = "loss_fn: {reference_policy_kl_penalty: 0.0}\ngrpo: {num_generations_per_prompt: 8}\n"
OPEN = "python open_instruct/grpo_fast.py --num_samples_per_prompt_rollout 8 --beta 0 "


def test_the_spread_of_the_others():
    """E[1/σ] over seven others, at its most and its least, which is 1."""
    j = np.arange(8)
    spread = [np.std([1] * k + [0] * (7 - k), ddof=1) or 1.0 for k in j]
    weights = [stats.binom.pmf(j, 7, p) @ (1 / np.array(spread)) for p in np.linspace(0, 1, 2001)]
    found = fired(NEMO)["difficulty"]
    assert found.size == pytest.approx(max(weights), rel=1e-4)
    assert "the others' σ" in found.says
    shaped = NEMO + "grpo.reward_shaping.enabled: true\n"
    assert fired(shaped)["phantoms"].size == pytest.approx(tie(0.05, 8))
    assert "1 at the limit" in fired(shaped)["phantoms"].what
    assert "phantoms" not in fired(shaped + "grpo.use_dynamic_sampling: true")


def test_one_policy_samples_and_scores_behind_a_filter():
    """NeMo-RL's trainer scores through the filter, so that ratios have the mean 1."""
    filtered = (
        NEMO + "policy.generation: {top_p: 0.9, top_k: 64}\nloss_fn.use_importance_sampling_correction: true"
    )
    assert "those of a policy that keeps down to 0.9" in fired(filtered)["top_p"].says
    assert "ratios" not in fired(filtered)["other_filters"].says
    assert "ratios" in fired(TRL + "top_k: 64")["other_filters"].says
    assert "the mean ratio is the kept mass" in fired(OPEN + "--vllm_top_p 0.9")["top_p"].says


def test_tied_groups_that_no_denominator_counts():
    assert fired(OPEN)["left_out"].size == pytest.approx(1 / (1 - tie(0.05, 8)))
    assert "tied_groups" not in fired(OPEN)
    assert "left_out" not in fired(OPEN + "--active_sampling")
    kept = fired(OPEN + "--no_filter_zero_std_samples")
    assert "left_out" not in kept
    assert kept["tied_groups"].size == pytest.approx(tie(0.05, 8))


def test_a_right_answer_of_open_instruct_earns_ten():
    """Shift-only, forward KL: β(π − π_ref) = (1 − 1/8)·10·π(1 − π)."""
    balance = lambda x: 0.5 * (x - 0.3) - 8.75 * x * (1 - x)  # noqa: E731
    found = fired(OPEN.replace("--beta 0 ", "--beta 0.5 "))["reference_kept"]
    assert found.size == pytest.approx(1 - brentq(balance, 0.3 + 1e-9, 1 - 1e-12))


def test_masked_answers_that_vote_in_nemo_rl_alone():
    assert fired(NEMO + "grpo.overlong_filtering: true")["cut_off_votes"].level == Level.HAZARD
    assert "cut_off_votes" not in fired(OPEN + "--mask_truncated_completions")
