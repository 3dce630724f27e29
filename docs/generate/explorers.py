"""The explorers: each a question with settings, functions of the package, and a sentence that answers it."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from docs.generate.explorer import Curve, Explorer, Grid
from grpo_jax import theory
from grpo_jax.presets.consequences import fold
from grpo_jax.theory.optimizer import (
    coasting,
    coasting_travel,
    heavy_ball_coasting,
    scale_corner,
    scale_response,
)
from grpo_jax.theory.variance import trajectory_second_moment

TRL = theory.LIBRARIES["trl"]


def between(low: float, high: float, count: int, *also: float) -> tuple[float, ...]:
    """About ``count`` values from low to high, in equal ratios, of two digits; and those named besides."""
    spread = {float(f"{value:.2g}") for value in np.geomspace(low, high, count)}
    return tuple(sorted(spread | set(also)))


RATES = tuple(k / 100 for k in range(1, 100))
GROUPS = (2, 4, 8, 16, 32, 64)
GROUP = Grid("group_size", "group size G", GROUPS, 8)
SUCCESS = Grid("success", "success rate p of the prompt", RATES, 0.1)
TOKENS = Grid("tokens", "tokens of the answer", tuple(float(v) for v in between(1, 4096, 37, 256, 4096)), 256)
CHI2 = Grid("chi2", "χ² of one token", (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1), 0.01)


def kept_beside_ratio(beta: Any, reference: float, group_size: int) -> Any:
    """π of the worse answer where the penalty carries the importance ratio; of several ends the mildest."""
    acts = theory.effective_beta(beta, 0.5, 1.0, group_size=group_size, convention=TRL)
    roots = theory.direct_roots(reference, acts, group_size=group_size)
    return jax.nn.sigmoid(-jnp.nanmin(roots.log_odds, -1))


def kept_in_loss(beta: Any, reference: float, group_size: int) -> Any:
    """The same for k3 in the loss without the ratio, as GRPO was published."""
    better = theory.stationary_binary_convention(reference, beta, group_size=group_size, convention=TRL)
    return 1 - better


def kept_by_rlhf(beta: Any, reference: float, group_size: int) -> Any:
    """The same for RLHF, which knows no groups."""
    return theory.rlhf(np.array([reference, 1 - reference]), np.array([1.0, 0.0]), beta)[..., 1]


def by_spread(success: Any, group_size: int) -> Any:
    """w_G(p) over w_G(1/2)."""
    weights = theory.convention_gap(np.append(success, 0.5), group_size=group_size, convention=theory.PAPER)
    return weights[:-1] / weights[-1]


def by_mean(success: Any, group_size: int) -> Any:
    """(1 - (1 - p)^(G - 1))/p over the same at one half."""
    p = np.append(success, 0.5)
    weights = (1 - (1 - p) ** (group_size - 1)) / p
    return weights[:-1] / weights[-1]


def acting(rule: theory.Convention, gap: Any, group_size: int) -> Any:
    """The β that acts over the β set, at a success rate of one half."""

    def one(gap: Any) -> Any:
        return theory.effective_beta(1.0, 0.5, gap, group_size=group_size, convention=rule)

    return jax.vmap(one)(gap)


EXPLORERS = (
    Explorer(
        "kept",
        "How much of the worse answer does my KL weight keep?",
        "Two answers with rewards 1 and 0, trained to the end in TRL's convention (σ with ddof 1, 1e-4 "
        "added). TRL multiplies k3 by the importance ratio, its default; GRPO as first published has k3 in "
        "the loss as it is; RLHF is the maximum of J − β KL(π‖π_ref).",
        (
            Grid("beta", "KL weight β", between(0.02, 10, 44, 0.04, 0.1, 1.0), 0.04),
            Grid(
                "reference",
                "what the reference gives the better answer",
                (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99),
                0.3,
            ),
            GROUP,
        ),
        (
            Curve("ratio", "GRPO, k3 times the ratio (TRL)", kept_beside_ratio, ".2g"),
            Curve("loss", "GRPO, k3 in the loss", kept_in_loss, ".2g"),
            Curve("rlhf", "RLHF", kept_by_rlhf, ".2g"),
        ),
        "probability of the worse answer",
        "At β = {beta}, G = {group_size} and {reference} on the better answer at first, the worse one ends "
        "at {ratio} under k3 times the ratio, at {loss} under k3 in the loss, and at {rlhf} under RLHF.",
        'trl = theory.LIBRARIES["trl"]\n'
        "beta = theory.effective_beta({beta}, 0.5, 1.0, group_size={group_size}, convention=trl)\n"
        "roots = theory.direct_roots({reference}, beta, group_size={group_size})\n"
        "float(jax.nn.sigmoid(-jnp.nanmin(roots.log_odds)))",
        ("A8", "A7", "A4", "A6"),
        log_x=True,
        span=(0, 1),
    ),
    Explorer(
        "weights",
        "How much does a hard prompt count?",
        "What multiplies the gradient of a prompt's success rate in the expected update, for rewards of 0 "
        "and 1, over what multiplies it at one half.",
        (SUCCESS, GROUP),
        (
            Curve("spread", "divided by σ", by_spread),
            Curve("mean", "divided by the mean (MaxRL)", by_mean),
            Curve("none", "not divided", lambda success, group_size: np.ones_like(success)),
            Curve("fold", "σ: most over least", lambda success, group_size: fold(group_size), drawn=False),
        ),
        "weight, 1 at p = 1/2",
        "At G = {group_size} a prompt of success rate {success} counts {spread} times what one of 0.5 does "
        "if advantages are divided by σ, {mean} times if by the group's mean, and {none} times if by "
        "nothing. Over all rates σ weighs at most {fold}-fold.",
        "w = theory.convention_gap([{success}, 0.5], group_size={group_size}, convention=theory.PAPER)\n"
        "float(w[0] / w[1])",
        ("E2", "E3"),
        log_y=True,
    ),
    Explorer(
        "dead-groups",
        "How many of my groups are dead, and what does refilling cost?",
        "A group is dead where all its rewards are equal. Refilling here asks the same prompt again until "
        "its group is mixed, and what is kept counts as many times as there were groups drawn for it.",
        (SUCCESS, GROUP),
        (
            Curve("tied", "groups that are dead", theory.tied_share),
            Curve("price", "groups drawn for one kept", theory.refill_price, drawn=False),
        ),
        "share of groups that are dead",
        "At a success rate of {success} and G = {group_size}, {tied} of the groups are dead. Refilled, "
        "{price} groups are drawn for one that is kept, and its update is as many times as large.",
        "float(theory.tied_share({success}, group_size={group_size}))",
        ("E4",),
        span=(0, 1),
    ),
    Explorer(
        "top-p",
        "How much of an answer does top-p keep?",
        "A filter keeps at least top_p of every token's distribution, so an answer keeps at least the "
        "product. What is kept is the mean importance ratio of whole answers, too: no weight wins back what "
        "is never drawn.",
        (
            TOKENS,
            Grid("top_p", "top_p", (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0), 0.95),
        ),
        (Curve("kept", "kept at least", theory.kept_at_least, ".3g"),),
        "probability kept at least",
        "At top_p = {top_p} answers of {tokens} tokens keep {kept} of their probability at least: as much "
        "where every token's tail is as long as the filter cuts, more where the policy is sure.",
        "float(theory.kept_at_least({top_p}, tokens={tokens}))",
        ("D1",),
        log_x=True,
        span=(0, 1),
    ),
    Explorer(
        "temperature",
        "Trained at another temperature: what do I deploy at 1?",
        "Two answers. Sampled and trained at τ, the policy at τ is what improves; at temperature 1 its "
        "logits are τ times as far apart.",
        (
            Grid("success", "success rate at the training temperature", RATES, 0.9),
            Grid(
                "temperature",
                "training temperature τ",
                (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.5, 2.0),
                0.7,
            ),
        ),
        (
            Curve("deployed", "deployed at 1", theory.at_temperature),
            Curve("trained", "as trained", lambda success, temperature: success),
        ),
        "success rate",
        "An answer that has {success} at τ = {temperature} has {deployed} deployed at 1.",
        "float(theory.at_temperature({success}, {temperature}))",
        ("D2",),
        span=(0, 1),
    ),
    Explorer(
        "caps",
        "What does a cap on importance weights leave of long answers?",
        "Weights of whole answers are products of ratios. With χ² alike at every token their second moment "
        "is (1 + χ²)^T; their logarithm is taken as normal. Answers beyond the cap are left out.",
        (TOKENS, CHI2, Grid("cap", "cap on the weight", (1.5, 2, 3, 5, 10, 30, 100), 3)),
        (
            Curve("weight", "weight that is left", lambda **at: theory.bounded_weight(**at).weight, ".3g"),
            Curve(
                "answers", "answers that are left", lambda **at: theory.bounded_weight(**at).answers, ".3g"
            ),
            Curve(
                "moment",
                "second moment, uncapped",
                lambda tokens, chi2, cap: trajectory_second_moment(chi2, horizon=tokens),
                drawn=False,
            ),
        ),
        "share that is left",
        "Where a token's χ² is {chi2}, answers of {tokens} tokens keep {weight} of their weight below a cap "
        "of {cap}, and {answers} of them stay. Uncapped, the weights' second moment is {moment}.",
        "float(theory.bounded_weight({chi2}, tokens={tokens}, cap={cap}).weight)",
        ("D3", "C4"),
        log_x=True,
        span=(0, 1),
    ),
    Explorer(
        "momentum",
        "How far does momentum carry a token past the clip?",
        "Once a token is clipped its gradient is 0, and the optimizer goes on. In units of the last step "
        "with a gradient; Adam at ε = 0, without weight decay.",
        (
            Grid("k", "steps since the gradient vanished", tuple(range(41)), 0),
            Grid("b1", "β₁, or the momentum", (0.0, 0.5, 0.8, 0.9, 0.95, 0.99), 0.9),
            Grid("b2", "β₂", (0.9, 0.95, 0.98, 0.99, 0.999), 0.95),
            Grid("live", "steps before", (1, 10, 100, 1000), 1000),
        ),
        (
            Curve("adam", "Adam", lambda k, b1, b2, live: coasting(b1, b2, live=live, k=k)),
            Curve("ball", "heavy ball", lambda k, b1, b2, live: heavy_ball_coasting(b1, k=k)),
            Curve(
                "travel",
                "Adam's way in all, late",
                lambda k, b1, b2, live: coasting_travel(b1, b2),
                drawn=False,
            ),
        ),
        "step over the last live one",
        "At β₁ = {b1} and β₂ = {b2}, after {live} steps with a gradient and {k} without, the next is {adam} "
        "of the last live one under Adam and {ball} under heavy ball. In all, late in training, Adam travels "
        "{travel} such steps.",
        "float(theory.optimizer.coasting({b1}, {b2}, live={live}, k={k}))",
        ("B4",),
    ),
    Explorer(
        "beta-conventions",
        "Is my beta the same penalty in another library?",
        "Libraries divide by σ with ddof 1 and add a constant. The weight at which the paper's rule "
        "(neither) would drive as hard, over the weight that is set; at a success rate of one half.",
        (Grid("gap", "difference of the two rewards", between(0.0001, 10, 51, 0.01, 0.1, 1.0), 0.01), GROUP),
        tuple(
            Curve(
                name,
                label,
                functools.partial(acting, theory.LIBRARIES[name]),
                ".5g",
            )
            for name, label in (("trl", "TRL"), ("verl", "verl"), ("openrlhf", "OpenRLHF"))
        ),
        "β that acts over β set",
        "Where rewards differ by {gap} and G = {group_size}, a β of 1 acts like {trl} in TRL, {verl} in "
        "verl and {openrlhf} in OpenRLHF.",
        'trl = theory.LIBRARIES["trl"]\n'
        "float(theory.effective_beta(1.0, 0.5, {gap}, group_size={group_size}, convention=trl))",
        ("A11",),
        log_x=True,
    ),
    Explorer(
        "reward-scale",
        "Does AdamW see the scale of my rewards?",
        "Without a KL penalty only Adam's ε does: the size of a step over what it is at ε = 0, where the "
        "gradient's root mean square is √v at rewards as they are.",
        (
            Grid("scale", "rewards multiplied by", between(1e-8, 100, 41, 1.0), 1.0),
            Grid("root_v", "√v", (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0), 1e-4),
            Grid("eps", "ε", (1e-15, 1e-10, 1e-8, 1e-6, 1e-5), 1e-8),
        ),
        (
            Curve("step", "step", scale_response, ".4g"),
            Curve(
                "corner",
                "half-way",
                lambda scale, root_v, eps: scale_corner(root_v=root_v, eps=eps),
                drawn=False,
            ),
        ),
        "step over that at ε = 0",
        "With √v = {root_v} and ε = {eps}, rewards multiplied by {scale} give {step} of the step; half of "
        "it is lost where they are multiplied by {corner}.",
        "float(theory.optimizer.scale_response({scale}, root_v={root_v}, eps={eps}))",
        ("B3",),
        log_x=True,
        span=(0, 1),
    ),
)
