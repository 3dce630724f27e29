"""Longer answers: what several claims say together; a claim that no longer says its part stops the build."""

from __future__ import annotations

from docs.generate.answers import Question, Row, formula, several
from grpo_jax.presets.consequences import fold

TOGETHER = "What several claims say together"
THREE = r"(?P<sgd>[-+]\d\.\d+), (?P<equal>[-+]\d\.\d+), (?P<adamw>[-+]\d\.\d+)"


def verdict(id: str, expected: str = "reproduced") -> Row:
    """Fills nothing: the row has this verdict."""
    return Row(id, f"^{expected}$", "verdict")


LONGER = (
    Question(
        TOGETHER,
        "Which KL, in the loss or in the reward?",
        "k1 in the reward, not divided by σ, is the only one of those taken token by token that is exact "
        "for whole answers, and goes stale within a batch: it misses {stale_share} at the eighth update "
        "where an update moves log π of tokens by {stale_moved} (E1.3). k1 in the loss and k3 in the "
        "reward do not hold the policy (E1.6, E1.7). What each library's default does is "
        "[Penalties](penalties.md) (`python -m grpo_jax penalties`).",
        several(
            exact=Row(
                "E1.3", r"It holds in: 1 to 8 tokens: k1 in the reward misses is [\d.]+e-1\d", "because"
            ),
            unscaled=Row("E1.3", r"only without a division by the spread", "because"),
            others=Row("E1.2", r"2 to 8 tokens, token by token: k2 misses is 0\.[1-9]", "because"),
            stale=Row(
                "E1.3",
                r"by (?P<moved>[\d.]+), it misses \d+%, \d+%, (?P<share>\d+%) at the second, fourth "
                r"and eighth",
            ),
            lost=Row("E1.6", r"On-policy it has no gradient"),
            kept=verdict("E1.7"),
        ),
        ("E1",),
    ),
    Question(
        TOGETHER,
        "Should I divide by σ?",
        "At groups of {small_group_size} it weighs prompts by difficulty at most {small_value:.3g}-fold, "
        "at {large_group_size} {large_value:.3g}-fold, at {least_two} and {least_three} not at all, for "
        "rewards of 0 and 1.",
        several(
            small=formula(fold, group_size=8),
            large=formula(fold, group_size=64),
            least=Row(
                "E2.2", r"groups of (?P<two>2): fold is 1 \(.*groups of (?P<three>3): fold is 1 \(", "because"
            ),
        ),
        ("E2",),
    ),
    Question(
        TOGETHER,
        "Should I average over successes only?",
        "It looks at hard prompts first. Where prompts compete for one policy it keeps the hard one: "
        "against GRPO {shared_one} of pass@1 and {shared_eight} of pass@8 (E3.3). Where they do not, it is "
        "surely behind by over {apart_margin} in {apart_lost} of {apart_all} comparisons, at each one's "
        "best rate by {apart_most} at most (E3.1).",
        several(
            shared=Row("E3.3", r"have (?P<one>[-+\d.]+) of pass@1 and (?P<eight>[-+\d.]*\d) of pass@8"),
            apart=Row(
                "E3.1",
                r"behind by over (?P<margin>[\d.]+) in (?P<lost>\d+) of (?P<all>\d+) comparisons, at "
                r"best rates by (?P<most>[\d.]+) at most",
            ),
        ),
        ("E3",),
    ),
    Question(
        TOGETHER,
        "Do dead groups hurt? Leave them out, refill them?",
        "Leaving them out is a larger learning rate, {left_start} times as large at the start and "
        "{left_end} at the end. DAPO's refill changes return by {refill_sgd} against keeping them under "
        "SGD and by {refill_adamw} under AdamW at one fixed rate: it takes fewer steps (E4.1). Asking the "
        "same prompt again weighs prompts by 1/P(mixed).",
        several(
            left=Row(
                "E4",
                r"Under SGD leaving dead groups out is a larger rate, (?P<start>[\d.]+) times as large at "
                r"the start and (?P<end>[\d.]+) at",
            ),
            refill=Row(
                "E4.1",
                r"SGD, same rate: refilled by other prompts - kept is (?P<sgd>-?[\d.e-]+) in .*?AdamW, "
                r"same rate: refilled by other prompts - kept is (?P<adamw>-?[\d.e-]+) in",
                "because",
            ),
            again=Row(
                "E4.1", r"The same prompt asked again multiplies each one's update by its own 1/P\(mixed\)"
            ),
        ),
        ("E4",),
    ),
    Question(
        TOGETHER,
        "Is a small length term in the reward harmless?",
        "Under σ no weight is small: {dose_share} of J is left at {dose_weight}, {dose_least} at "
        "{dose_small} (E5, E5.3). Groups with one outcome give it advantages of full size, and where most "
        "groups fail whole the success rate falls below half of what it was (E5.4). Gate it on the group's "
        "outcome (E5.1, while the reward itself does not prefer short answers), or drop σ: {dose_free} is "
        "left (E5.5).",
        several(
            dose=Row(
                "E5",
                r"at λ = (?P<weight>[\d.]+): σ (?P<share>[\d.]+),.*no σ (?P<free>[\d.]+),.*"
                r"at λ = (?P<small>[\d.]+) under σ (?P<least>[\d.]+)\.",
            ),
            none_small=verdict("E5.3"),
            collapse=verdict("E5.4"),
            gate=Row("E5.1", r"Holds only where the reward does not itself prefer short answers", "because"),
            no_spread=verdict("E5.5"),
        ),
        ("E5",),
    ),
    Question(
        TOGETHER,
        "Do masked, truncated answers still count?",
        "While they vote in the group's mean, yes: the share cut off times the full pressure. Where "
        "{few_cut} are cut off, {few_sgd} of these are left in the end under SGD, and {few_adamw} under "
        "AdamW, which makes up for a small factor. Without a vote nothing is left of the pressure (E6).",
        several(
            vote=Row(
                "E6",
                r"With a vote, the pressure to stop is the share cut off times what it is without a mask",
            ),
            few=Row(
                "E6",
                r"Where (?P<cut>\d+%) are cut off, .*? (?P<sgd>\d+%) \(masked, voting, SGD\), "
                r"(?P<adamw>\d+%) \(masked, voting, AdamW\)",
            ),
            mute=Row("E6", r"Without a vote nothing is left of it"),
        ),
        ("E6",),
    ),
    Question(
        TOGETHER,
        "A token mean over what?",
        "In the update a prompt of {weighs_long} tokens weighs {weighs_batch} of that of {weighs_short} "
        "under a mean over the batch, {weighs_prompt} under one per prompt and {weighs_sequence} under one "
        "per sequence: all alike, or by 1/length. Micro-batches and ranks do either, by the order of "
        "prompts (E7.2).",
        several(
            weighs=Row(
                "E7",
                r"the prompt of (?P<long>\d+) tokens weighs (?P<batch>[\d.]+) \(batch\), "
                r"(?P<prompt>[\d.]+) \(prompt\), (?P<sequence>[\d.]+) "
                r"\(sequence\) of that of (?P<short>\d+)",
            ),
            order=verdict("E7.2"),
        ),
        ("E7",),
    ),
    Question(
        TOGETHER,
        "Normalise several rewards apart?",
        "More different advantages (E8.1). Where both rewards are coins the share of the best total over "
        "training changes by {alike_sgd} at equal rates under SGD, {alike_equal} at equal advantages and "
        "{alike_adamw} under AdamW; where one is a tenth as large by {small_sgd}, {small_equal} and "
        "{small_adamw}.",
        several(
            alike=Row("E8", rf"AdamW\): coins {THREE};"),
            small=Row("E8", rf"one a tenth as large {THREE}\."),
            more=verdict("E8.1"),
        ),
        ("E8",),
    ),
    Question(
        TOGETHER,
        "Do losers pull winners down, do few parameters move?",
        "Losers, sometimes: in groups of {losers_group} with right and wrong answers {losers_network} of the "
        "right ones fall on a small transformer, and {losers_tree} on a table (F2). Few parameters, not on a "
        "small transformer: under SGD a share of {moved_float32} moves in float32 and of {moved_bfloat16} in "
        "bfloat16; what stays in place, rounding leaves (F3, F3.2).",
        several(
            losers=Row(
                "F2",
                r"groups of (?P<group>\d+) and .* kinds (?P<network>[\d.]+%) and .* a table, "
                r"(?P<tree>[\d.]+%) and",
            ),
            marginal=verdict("F2"),
            few=verdict("F3", "refuted"),
            moved=Row(
                "F3",
                r"bfloat16, SGD: share changed is (?P<bfloat16>[\d.]+) in.*"
                r"float32, SGD: share changed is (?P<float32>[\d.]+) in",
                "because",
            ),
            rounding=verdict("F3.2"),
        ),
        ("F2", "F3"),
    ),
)
"""In the order of the page."""
