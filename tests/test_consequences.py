"""What a differing switch means: its numbers by hand, and no sentence where there is none."""

import math

import numpy as np
import pytest

from grpo_jax import methods, presets
from grpo_jax.presets import Settings, consequences, parse

pytestmark = pytest.mark.usefixtures("x64")


def weight(p, group):
    """w_G(p) = E√(K(G − K))/(G p(1 − p)), from the binomial law."""
    chance = [math.comb(group, k) * p**k * (1 - p) ** (group - k) for k in range(group + 1)]
    drive = sum(c * math.sqrt(k * (group - k)) for k, c in enumerate(chance))
    return drive / (group * p * (1 - p))


def told(a, b, *, group=8, longest=10.0):
    return {found.switch: found for found in consequences(parse(a), parse(b), Settings(group, longest))}


@pytest.mark.parametrize(
    ("group", "printed"), [(2, "1-fold"), (3, "1-fold"), (8, "1.43-fold"), (64, "4-fold")]
)
def test_the_spread_weighs_prompts(group, printed):
    """The ends are the limit √(G − 1), the least weight is that of one half."""
    found = told("trl:grpo", "dr_grpo", group=group)["spread"]
    assert found.claim == "E2"
    assert f"w_{group}(p), at most {math.sqrt(group - 1) / weight(0.5, group):.3g}-fold" in found.sides[0]
    if group < 64:
        assert printed in found.sides[0]
    assert "alike" in found.sides[1]


def test_groups_with_one_outcome_are_counted():
    found = told("grpo", "dr_grpo", group=16)["small extra terms"]
    assert f"{0.95**16 + 0.05**16:.2g} of the groups" in found.sides[0]
    assert "in proportion" in found.sides[1]


def test_conventions_act_on_the_penalty():
    found = told("grpo", "trl:grpo")["convention"]
    assert "act as 1 times itself" in found.sides[0]
    # Nearly √(8/7): the constant 1e-4 is small beside a spread of one half.
    assert f"act as {math.sqrt(8 / 7):.3f}" in found.sides[1]


def test_constants_that_do_not_count_are_not_told():
    """1e-4 and 1e-6 beside a spread of one half."""
    assert "convention" not in told("trl:grpo", "verl:vanilla")


def test_a_penalty_beside_the_spread():
    found = told("grpo", "dr_grpo")["KL"]
    assert (
        f"β = 0.04; beside advantages over σ it acts as {0.04 * (7 / 8) / weight(0.5, 8):.3g}"
        in found.sides[0]
    )
    assert "KL(π_ref‖π)" in found.sides[0]
    assert "no KL" in found.sides[1]
    forward = told("trl:grpo,beta=0.04", "verl:vanilla,use_kl_loss=True,kl_loss_coef=0.04")["KL"]
    assert "k3 times the ratio descends KL(π‖π_ref)" in forward.sides[0]
    assert "k3 in the loss descends KL(π_ref‖π)" in forward.sides[1]
    straight = told("grpo", "verl:vanilla,use_kl_loss=True,kl_loss_coef=0.04,kl_loss_type=k3+")["KL"]
    assert "k2 in the loss descends KL(π‖π_ref)" in straight.sides[1]


def test_lengths_and_ratios():
    assert "weighs 0.05 as much" in told("grpo", "dr_grpo", longest=20)["denominator"].sides[0]
    assert "weighs 20 times as much" in told("bnpo", "grpo", longest=20)["denominator"].sides[0]
    whole = told("grpo", "rloo", longest=20)["ratio"].sides[1]
    assert f"make {1.1**20:.3g};" in whole
    assert f"E[w²] = {1.01**20:.3g}" in whole
    assert "times what the group's own mean gives" in told("dr_grpo", "rloo")["baseline"].sides[1]
    assert f"{8 / 7:.4g} times" in told("dr_grpo", "rloo")["baseline"].sides[1]


def test_maxrl_weighs_seven_fold_at_most():
    """(1 − (1 − p)^7)/p falls from 7 at p → 0 to 1 at p = 1."""
    p = np.linspace(1e-9, 1, 1001)
    weights = (1 - (1 - p) ** 7) / p
    found = told("prime_rl,algorithm=max_rl", "prime_rl")["spread"]
    assert f"at most {weights.max() / weights.min():.0f}-fold" in found.sides[0]


def test_who_sampled_and_several_rewards():
    found = told("trl:grpo,use_vllm=True", "trl:grpo")["who sampled"]
    assert f"off by {0.9**10:.2g}" in found.sides[1]
    apart = told("trl:grpo,multi_objective_aggregation=normalize_then_sum", "trl:grpo")["several rewards"]
    assert apart.claim == "E8"
    assert "1.43-fold" in apart.sides[0]


def test_equal_methods_have_no_consequences():
    assert all(consequences(method, method) == [] for method in methods.METHODS.values())


def test_every_pair_of_methods_and_libraries_has_words():
    given = [*methods.METHODS.values(), *(preset() for preset in presets.PRESETS.values())]
    found = [c for a in given for b in given for c in consequences(a, b)]
    assert {c.switch for c in found} >= {"spread", "baseline", "denominator", "KL", "clip", "ratio"}
    assert all(c.sides[0] != c.sides[1] and all(c.sides) for c in found)


def test_the_text_says_them_and_settings_without_meaning_are_refused():
    text = presets.diff("trl:grpo", "dr_grpo", at=Settings(group_size=4))
    assert "what that means, in groups of 4 with answers of 1 to 10 tokens" in text
    assert "spread (E2)" in text
    with pytest.raises(ValueError, match="two answers or more"):
        presets.diff("grpo", "dr_grpo", at=Settings(group_size=1))


def test_the_others_spread_weighs_prompts_by_one_over_it():
    """E[1/σ] over seven others, J of them right, σ taken for 1 where they tie; ends and middle by hand."""

    def weighs(p):
        chance = [math.comb(7, j) * p**j * (1 - p) ** (7 - j) for j in range(8)]
        spread = [np.std([1] * j + [0] * (7 - j), ddof=1) or 1.0 for j in range(8)]
        return sum(c / s for c, s in zip(chance, spread, strict=True))

    weights = [weighs(p) for p in np.linspace(0, 1, 2001)]
    assert min(weights) == pytest.approx(1.0)
    most = f"at most {max(weights):.3g}-fold"
    found = told("nemo_rl", "nemo_rl,normalize_rewards=False")
    assert (
        f"σ of the 7 others, where they differ: weighs prompts by E[1/σ], {most}" in found["spread"].sides[0]
    )
    assert "baseline" not in found
    apart = told("nemo_rl:gdpo", "nemo_rl:gdpo,use_leave_one_out_baseline=False")["several rewards"]
    assert f"does not count, its success rate weighs {most}" in apart.sides[0]
    assert "w_8" in apart.sides[1]


def test_k1_times_the_ratio_and_of_its_own_token():
    found = told("open_instruct,kl_estimator=3", "open_instruct,kl_estimator=0")["KL"]
    assert "k1 times the ratio descends KL(π‖π_ref)" in found.sides[0]
    assert "k1 in the loss has no gradient" in found.sides[1]
    spec = "nemo_rl:reinforce_plus_plus,use_kl_in_reward=True,reference_policy_kl_type=k1"
    own = told(spec, "nemo_rl:reinforce_plus_plus,reference_policy_kl_penalty=0")["KL"]
    assert (
        "k1 in the advantage of its own token descends KL(π‖π_ref), prefix by prefix, β = 0.01"
        in own.sides[0]
    )
