"""What people ask about GRPO: each a sentence with a number that is computed or read, and a claim."""

from __future__ import annotations

from docs.generate.answers import Question, Row, formula, hazard, several
from grpo_jax import theory
from grpo_jax.presets.consequences import fold
from grpo_jax.theory.optimizer import coasting_travel, scale_corner
from grpo_jax.theory.variance import trajectory_second_moment

LOSS, PENALTY, GROUPS = "The loss", "The penalty and the reference", "Groups, spreads and rewards"
RATIOS, LENGTHS, SAMPLER = "Ratios, clips and passes", "Lengths and denominators", "Who sampled"
METHODS = "Other methods, and networks"

QUESTIONS = (
    Question(
        LOSS,
        "My loss is 0. Is something broken?",
        "No: {says}.",
        hazard("loss_zero", num_generations=8, loss_type="grpo"),
        ("B5",),
    ),
    Question(
        LOSS,
        "The loss falls, or grows: is that progress?",
        "It does not say: over training the surrogate's value and the true reward correlate by **{most}** "
        "at most under any method, and under GRPO by down to {grpo}.",
        Row("B5.1", r"greatest: (?P<most>[\d.]+),.*\(GRPO: down to (?P<grpo>[-\d.]+),"),
        ("B5",),
    ),
    Question(
        PENALTY,
        "How much of my reference policy survives a KL weight (beta)?",
        "At TRL's {what}, {says}.",
        hazard("reference_kept", num_generations=8, beta=0.04, loss_type="grpo"),
        ("A8", "A4"),
    ),
    Question(
        PENALTY,
        "And with beta = 0, the default of TRL?",
        "{says}.",
        hazard("no_penalty", num_generations=8, beta=0.0),
        ("A4",),
    ),
    Question(
        PENALTY,
        "Which KL: k1, k2 or k3, in the loss or in the reward?",
        "k1 in the reward, not divided by σ, ends at the optimum of J − β KL; k3 in the loss at β = {beta} "
        "gives up **{lost}** of the optimum's return where the reference is right in {right} %.",
        Row(
            "E1.9",
            r"right in (?P<right>\d+) %, k3 in the loss at β = (?P<beta>[\d.]+) .*?gives up (?P<lost>[\d.]+)",
        ),
        ("E1", "A3"),
    ),
    Question(
        PENALTY,
        "Does k3 with the importance ratio give the KL's gradient?",
        "At each prefix, yes; of whole answers, no: with {tokens} tokens it misses **{near} to {far}** of "
        "∇KL(π‖π_ref), the more the further π has left π_ref.",
        Row("E1", r"With (?P<tokens>\w+) tokens it misses (?P<near>\d+%), \d+%, (?P<far>\d+%)"),
        ("E1", "A3"),
    ),
    Question(
        PENALTY,
        "Is the same beta the same penalty in every library?",
        "No: {says}.",
        hazard("convention_factor", num_generations=8, beta=0.04),
        ("A11",),
    ),
    Question(
        PENALTY,
        "Is GRPO RLHF with another estimator?",
        "No: at β = {beta} its policy is up to **{value}** in probability from every RLHF policy.",
        Row("A7", r"At β = (?P<beta>\d+) GRPO's policy is up to (?P<value>[\d.]+)"),
        ("A7", "A9"),
    ),
    Question(
        GROUPS,
        "Should I divide by the standard deviation (scale_rewards)?",
        "It weighs prompts by difficulty, at most **{value:.3g}-fold** at G = {group_size}; in training it "
        "moves little in small groups.",
        formula(fold, group_size=8),
        ("E2",),
    ),
    Question(
        GROUPS,
        "And in large groups?",
        "At G = {group_size} the same fold is **{value:.3g}**: prompts that are nearly always right or wrong "
        "count for more than middling ones.",
        formula(fold, group_size=64),
        ("E2", "A2"),
    ),
    Question(
        GROUPS,
        "Do dead groups (all right or all wrong) hurt?",
        "**{value:.1%}** of the groups tie at a success rate of {success} and G = {group_size}; kept in the "
        "denominator they bias nothing, and leaving them out is a larger learning rate.",
        formula(theory.tied_share, success=0.05, group_size=8),
        ("E4",),
    ),
    Question(
        GROUPS,
        "What does refilling dead groups (DAPO's dynamic sampling) cost?",
        "**{value:.3g} groups** are drawn for one that is kept at a success rate of {success} and "
        "G = {group_size}, and the update is as many times as large.",
        formula(theory.refill_price, success=0.05, group_size=8),
        ("E4",),
    ),
    Question(
        GROUPS,
        "Are groups of two enough?",
        "They see which answer is better, not by how much; where rewards tie the preference is off by up to "
        "**{value}** unless a tie counts one half.",
        Row("A1", r"chance of a tie, up to (?P<value>[\d.]+)"),
        ("A1",),
    ),
    Question(
        GROUPS,
        "Does a rare right answer get its full advantage?",
        "Not in a finite group: found {often}, it gets **{value}** of the standardised reward.",
        Row("A2.2", r"found (?P<often>once in ten groups) gets (?P<value>\d+%)"),
        ("A2",),
    ),
    Question(
        GROUPS,
        "Is a small length term in the reward harmless?",
        "Not beside σ: of J, **{share}** is left at a weight of {weight}, {least} at {small}; groups with "
        "one outcome give it advantages of full size. Without σ {free} is left.",
        Row(
            "E5",
            r"at λ = (?P<weight>[\d.]+): σ (?P<share>[\d.]+),.*no σ (?P<free>[\d.]+),.*"
            r"at λ = (?P<small>[\d.]+) under σ (?P<least>[\d.]+)\.",
        ),
        ("E5",),
    ),
    Question(
        GROUPS,
        "Should I normalise several rewards apart (GDPO)?",
        "It tells more apart (**{apart}** advantage vectors, not {sum}, for pairs of coins) and earns no "
        "better total here; a reward of a tenth the size then pushes as hard as the others.",
        Row("E8", r"have (?P<apart>\d+) advantage vectors under GDPO.* (?P<sum>\d+) under GRPO"),
        ("E8",),
    ),
    Question(
        GROUPS,
        "Does multiplying the reward matter under AdamW?",
        "Not before gradients meet Adam's ε: with a root mean square of {root_v} and ε = {eps:g} half of a "
        "step is lost where rewards are multiplied by **{value:.1e}**. A KL penalty brings the scale back.",
        formula(scale_corner, root_v=0.01, eps=1e-8),
        ("B3",),
    ),
    Question(
        GROUPS,
        "Does multiplying the reward matter under norm clipping?",
        "Where the clip acts at every step, no more than without it; where it acts at some steps only, a "
        "factor of {factor} moves AdamW's policy by **{moved}**.",
        Row(
            "B3",
            r"multiplied by [\d/]+, 1 or (?P<factor>\d+);.*acts at some steps only moves the policy by "
            r"(?P<moved>\d\.\d+)",
        ),
        ("B3",),
    ),
    Question(
        RATIOS,
        "Does the clip (or clip-higher) matter with one step on a batch?",
        "No: {says}. The share of tokens that it holds is **{size:g}**.",
        hazard("idle_clip", num_generations=8, num_iterations=1, epsilon_high=0.28),
        ("B6",),
    ),
    Question(
        RATIOS,
        "μ > 1: what do more passes over a batch follow?",
        "{says}.",
        hazard("old_values", num_generations=8, num_iterations=4),
        ("C1", "B6"),
    ),
    Question(
        RATIOS,
        "Does clipping help at many passes?",
        "It depends on the optimizer: at {passes} passes SGD ends **{sgd} below** and AdamW **{adamw} "
        "above** what they reach unclipped.",
        Row(
            "B6.1",
            r"SGD: (?P<passes>\d+) passes with clipping end (?P<sgd>[\d.]+) below.*"
            r"end (?P<adamw>[\d.]+) above",
        ),
        ("B6",),
    ),
    Question(
        RATIOS,
        "Does Adam carry a token past the clip?",
        "Yes, by momentum: on zero gradient up to **{value:.3g}** times its last step "
        "at betas of {b1} and {b2}.",
        formula(coasting_travel, b1=0.9, b2=0.999),
        ("B4",),
    ),
    Question(
        RATIOS,
        "Token or sequence ratio?",
        "A product of {horizon} ratios has second moment **{value:.3g}** where a token's χ² is {chi2}; token "
        "ratios do not grow, and estimate a local surrogate, not the gradient.",
        formula(trajectory_second_moment, chi2=0.01, horizon=256),
        ("C4", "C1"),
    ),
    Question(
        RATIOS,
        "GSPO: can I keep a clip of 0.2?",
        "{says}.",
        hazard("token_clip_for_answers", num_iterations=4, importance_sampling_level="sequence"),
        ("C4",),
    ),
    Question(
        RATIOS,
        "Can I leave importance sampling out altogether?",
        "Each at its best learning rate, it changes mean J by **{low} to {high}** against GRPO.",
        Row("C3", r"changes mean J by (?P<low>[-+\d.]+) to (?P<high>[-+\d.]+);"),
        ("C3",),
    ),
    Question(
        LENGTHS,
        "My answers get longer. Why?",
        "With 1/|o| wrong ones do and right ones get shorter: from a success rate of {rate}, **{longer} "
        "tokens longer and {shorter} shorter** in {steps} steps, though no reward looks at length.",
        Row(
            "B2.1",
            r"in (?P<steps>\d+) steps of AdamW from a success rate of (?P<rate>[\d.]+) right answers end "
            r"(?P<shorter>[\d.]+) tokens shorter and wrong ones (?P<longer>[\d.]+) longer",
        ),
        ("B2", "B7"),
    ),
    Question(
        LENGTHS,
        "A token mean over what: answer, batch or prompt?",
        "{says}. A mean over the batch's tokens does neither.",
        hazard("by_sequence", loss_type="grpo", num_generations=8),
        ("E7", "B2"),
    ),
    Question(
        LENGTHS,
        "Do masked, truncated answers still count?",
        "Where they vote in the group's mean, yes: with {cut_off:.0%} cut off the pressure to stop is "
        "**{value:.0%}** of what it is without a mask.",
        formula(theory.stop_pressure, cut_off=0.1, masked=True),
        ("E6",),
    ),
    Question(
        LENGTHS,
        "Reward per token (r/|o|): harmless?",
        "No: the update's median cosine to the gradient of the expected reward is **{cosine}**, and on "
        "{away} of random tasks it points away.",
        Row("C6", r"is (?P<cosine>[\d.]+), and on (?P<away>\d+%) it points away"),
        ("C6",),
    ),
    Question(
        SAMPLER,
        "top_p < 1 with importance sampling?",
        "{says}.",
        hazard("top_p", num_generations=8, top_p=0.9, use_vllm=True),
        ("D1",),
    ),
    Question(
        SAMPLER,
        "Another temperature than 1?",
        "The policy at that temperature is trained: an answer of {success} at {temperature} has "
        "**{value:.3g}** if deployed at 1.",
        formula(theory.at_temperature, success=0.9, temperature=0.7),
        ("D2",),
    ),
    Question(
        SAMPLER,
        "My inference engine's probabilities differ from the trainer's: which correction?",
        "None wins much here: uncorrected, even an update that is wrong by {wrong} of the gradient costs "
        "**{cost}** of reward at most, and no correction wins back more than {won}.",
        Row(
            "D7",
            r"wrong by up to (?P<wrong>\d+%) of the gradient costs (?P<cost>[\d.]+).*"
            r"wins back more than (?P<won>[\d.]+\d)",
        ),
        ("D7", "D3"),
    ),
    Question(
        SAMPLER,
        "Do caps on sequence weights drop long answers?",
        "Yes: where a token's χ² is {chi2}, answers of {tokens} tokens keep **{value:.0%}** of their "
        "weight below a cap of {cap:g}; short ones keep theirs.",
        formula(theory.bounded_weight, "weight", chi2=0.01, tokens=256, cap=3.0),
        ("D3", "C4"),
    ),
    Question(
        SAMPLER,
        "Which warning foretells collapse on stale answers?",
        "The KL to the sampler (AUC **{kl}**) and a low effective sample size ({ess}), {ahead} iterations "
        "ahead; not the gradient's norm.",
        Row(
            "D4",
            r"warning (?P<ahead>\d+) iterations ahead, one ratio: KL\(q‖π\) (?P<kl>[\d.]+), "
            r"low effective sample size (?P<ess>[\d.]+)",
        ),
        ("D4",),
    ),
    Question(
        SAMPLER,
        "May I drop answers that come too late?",
        "It starves what is slow: the problem settles on its fast, half-right answers (return **{dropped}**; "
        "with the late ones kept {kept}).",
        Row("D5", r"\(return (?P<dropped>[\d.]+)\).*reaches (?P<kept>\d\.\d+)"),
        ("D5",),
    ),
    Question(
        METHODS,
        "Should I average over successes only (MaxRL)?",
        "It looks at hard prompts first: after a tenth of training, at equal effective rates, prompts of "
        "at most a quarter stand at **{ours}** (GRPO {grpo}); it is surely behind in {lost} "
        "of {all} comparisons.",
        Row(
            "E3.1",
            r"in (?P<lost>\d+) of (?P<all>\d+) comparisons.*stand at (?P<ours>[\d.]+) "
            r"\(GRPO (?P<grpo>[\d.]+)\) after a tenth",
        ),
        ("E3",),
    ),
    Question(
        METHODS,
        "Is TIC-GRPO faster than GRPO?",
        "On tables undecided at this size: its lead in mean J is **{tables_low} to {tables_high}** under SGD "
        "with graded rewards, where GRPO leaves something to win. On small transformers, each at its best "
        "rate, its mean accuracy differs by {networks_sums} on sums and by {networks_chains} on parities, "
        "undecided, too.",
        several(
            tables=Row("C5", r"lead in mean J is (?P<low>[-+\d.]+) to (?P<high>[-+\d.]+) \(SGD, graded"),
            networks=Row(
                "C7", r"differs by (?P<sums>[-+\d.]+) on addition and (?P<chains>[-+\d.]+) on scratchpad"
            ),
            open=Row("C7", "^not testable here$", "verdict"),
        ),
        ("C5", "C7", "C2"),
    ),
    Question(
        METHODS,
        "Do few parameters carry the update?",
        "No: on a small transformer the largest {part} % of them hold **{value}** of it under AdamW, "
        "1 being all.",
        Row("F3.3", r"float32, AdamW: in the largest (?P<part>[\d.]+) % is (?P<value>[\d.]+)", "because"),
        ("F3",),
    ),
)
"""In the order of the start page."""
