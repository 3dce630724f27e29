"""(TRL 6503.) "Multiplying that term by the importance sampling ratio makes the KL gradient the unbiased
reverse-KL gradient."

github.com/huggingface/trl/pull/6503, merged, and TRL's default since: the term is k3 in the loss, token by
token; its "reverse KL" is KL(π‖π_ref). Trees of up to eight tokens, exact gradients by enumeration in NumPy,
which the library's own gradients equal (instrument, 1e-10); training of random questions, each as if alone,
from π_ref, exact and sampled (groups of 8, SGD and AdamW).

Refuted if with one token, on-policy or after up to 31 optimizer steps on one batch, the gradient misses
∇KL(π‖π_ref) by 1e-10 (of the longer one of the two gradients). Qualified if with 2 to 8 tokens it misses more
than 5 %, on-policy, on the mean over trees, at any of the distances from π_ref tried. So are the rows, each
by its own sentence: an identity that holds for one token, for whole answers, on-policy or without a spread,
and does not say so, is qualified with more tokens, token by token, off-policy or with a spread, by these 5 %.

Training: "better performance" is a return above that with k3 in the loss by .01 at some β (.001, .04, .1),
both where the reference is right in 5 % and with graded rewards, on the mean over three learning rates and
with each its own best one; qualified if not above that with k1 in the loss and k3 in the reward, too. "Larger
KL": of the questions whose KL over the run (mean over the rates) changes by 1 % or more from β = 0 to .1 it
rises in two thirds, with four optimizer steps a batch under AdamW, in groups so large that they have no
noise; qualified if not under SGD, or not with one step (sampled). 99.9 % intervals over questions, of all
settings at once where any one would do. Rows of ours fall beyond the margins that they name; the one on
tied groups (E1.8) is an identity: it can fall only if the code is wrong.
"""

from typing import Any

import xarray as xr

from experiments.harness.numbers import Number, at_best_rate, each, hardest, mean, share, surest, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems import kl_gradients as slopes
from experiments.problems import kl_places as kl
from grpo_jax import plotting

PRECISION = "float64"
SIZES = sizes(
    trees=(24, 48, 200), tables=(6, 64, 128), iterations=(60, 120, 400), batches=(16, 48, 128),
    answers=(3, 6, 24), ascent=(1500, 3000, 6000),
)  # fmt: skip

HORIZONS = [1, 2, 4, 8]
SEVERAL = slice(2, None)
EVERY = (*kl.PLACES, kl.RATIO_LOSS)
BETAS = [0.001, 0.04, 0.1]
WIDE = [1.0, 1.5]
"""Where exact ascent ends within reach."""
EXACT, SHARE, WIN, SMALL, CLOSE, MOST = 1e-10, 0.05, 0.01, 0.01, 1e-3, 2 / 3


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Identities; what gradients miss over T, steps and spreads; where training ends."""
    ascent = kl.config(seed, size.answers, exact=True)
    exact = kl.trained(ascent, {}, kl.ENDS, WIDE, iterations=size.ascent, root=seed)
    force = slopes.forces(seed, size.answers, [BETAS[-1], *WIDE]).rename(beta="strength")
    return {
        "identities": xr.Dataset({"gap": slopes.identities(seed)}),
        "tokens": slopes.missed(EVERY, HORIZONS, size.trees, seed),
        "whole": xr.Dataset({"missed": slopes.missed_whole(HORIZONS, size.trees, seed)}),
        "one": slopes.drifted(EVERY, size.trees, seed, horizon=1),
        "steps": slopes.drifted(EVERY, size.trees, seed),
        "spread": slopes.divided(seed, size.trees),
        "ends": kl.ends(seed, size.tables, BETAS),
        "at ends": kl.ends(seed, size.answers, WIDE),
        "exact": exact.assign(force=force),
        **{f"{name}, sampled": kl.sampled(name, seed, size, BETAS) for name in kl.OPTIMIZERS},
        **{f"{name}, often": kl.often(name, seed, size, BETAS[-1]) for name in kl.OPTIMIZERS},
    }


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """Gradients of k1, k2 and k3 in the loss and in the reward, and what they train to."""
    claim.requires("library - enumeration", worst(data["identities"].gap, tolerance=EXACT))
    tokens, one = (data[name].missed.sel(place=kl.RATIO_LOSS) for name in ("tokens", "one"))
    claim.refutes("one token, on- and off-policy: share missed", same(one))
    partial = several(tokens)
    claim.qualifies("2 to 8 tokens: share missed", partial, only="for answers of one token")
    most = tokens.sel(horizon=HORIZONS[-1]).mean("tree")
    by_noise = ", ".join(f"{float(most.sel(policy=f'noise {x:g}')):.0%}" for x in slopes.NOISE)
    claim.finds(
        "It is the gradient at each prefix, with the chance to meet the prefix held. With eight tokens it "
        f"misses {by_noise} of ∇KL(π‖π_ref) where π has left π_ref by .003, .03 and .3 nats a token, and "
        f"{float(most.sel(policy=slopes.TILTED)):.0%} where 5 % right answers have become half of all.",
        when=partial.holds is False,
    )
    for judge in (estimators, equivalence, reward, pitfalls, performance, larger, ties, ends):
        judge(data, claim)


def same(missed: xr.DataArray) -> Number:
    """The greatest share missed, against none."""
    return worst(missed, tolerance=EXACT)


def several(missed: xr.DataArray) -> Number:
    """Of all T from two tokens on, and all distances, the mean share missed that is furthest beyond 5 %."""
    here = missed.sel(horizon=SEVERAL) if "horizon" in missed.dims else missed
    return hardest(each(here, over="tree", expected=SHARE, relation="at most"))


def biased(missed: xr.DataArray) -> Number:
    """Of all settings the mean share missed that is least beyond 5 %."""
    return hardest(each(missed, over="tree", expected=SHARE, relation="at least"))


def estimators(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """OpenRLHF's pull request; w·k1·∇log π, its remedy, is the expected gradient of the ratio times k3."""
    row = claim.also(
        '(OpenRLHF 1309.) "k2 is unbiased on-policy, but becomes biased once samples are drawn from '
        "pi_theta_old, and needs an importance weight to recover. k1 and k3 are biased in both regimes: k1's "
        "gradient vanishes in expectation, and k3's gradient descends the forward KL rather than the reverse "
        'one." (Forward is KL(π_ref‖π).)'
    )
    weighted = data["one"].missed.sel(place=kl.RATIO_LOSS)
    k1, k2, k3 = (data["one"].sel(place=place) for place in (kl.K1_LOSS, kl.K2_LOSS, kl.K3_LOSS))
    now, later = {"steps": 0}, {"steps": slopes.STEPS[-1]}
    judged = {
        "one token, on-policy: k2 misses": same(k2.missed.sel(now)),
        "one token, 31 steps: k2 misses": biased(k2.missed.sel(later)),
        "one token: k2 with the weight misses": same(weighted),
        "one token, on-policy: k1 misses all, less 1": same(k1.missed.sel(now) - 1),
        "one token, on-policy: k3 misses": biased(k3.missed.sel(now)),
        "one token, 31 steps: k3 misses": biased(k3.missed.sel(later)),
        "one token, on-policy: k3 - ∇KL(π_ref‖π)": same(k3.backward.sel(now)),
    }
    for name, number in judged.items():
        row.refutes(name, number)
    vanishes, only = same(k1.missed.sel(later) - 1), "for answers of one token"
    row.qualifies("one token, 31 steps: k1 misses all, less 1", vanishes, only="on-policy")
    missed, backward = data["tokens"].missed, data["tokens"].backward
    row.qualifies("2 to 8 tokens: k2 misses", several(missed.sel(place=kl.K2_LOSS)), only=only)
    row.qualifies("2 to 8 tokens: k3 - ∇KL(π_ref‖π)", several(backward.sel(place=kl.K3_LOSS)), only=only)


def equivalence(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """2510.01555, abstract."""
    row = claim.also(
        "(arXiv:2510.01555, abstract.) \"Under on-policy conditions, the 'k2 as loss' formulation is, in "
        "fact, gradient-equivalent to 'k1 in reward'.\""
    )
    tokens = data["tokens"].missed
    row.refutes("whole answers, 1 to 8 tokens: gap", same(data["whole"].missed))
    row.refutes("one token: k2 misses", same(tokens.sel(place=kl.K2_LOSS, horizon=1)))
    row.requires("k1 in the reward misses", same(tokens.sel(place=kl.K1_REWARD)))
    apart, only = several(tokens.sel(place=kl.K2_LOSS)), "for whole answers, their log ratio squared"
    row.qualifies("2 to 8 tokens, token by token: k2 misses", apart, only=only)
    with_spread(data, row)


def with_spread(data: dict[str, xr.Dataset], row: Claim) -> None:
    """The direction of k1 in a reward that is divided by the spread."""
    sine = several(data["spread"].sine.sel(rewards=slopes.UNEQUAL))
    only = "without a division by the spread of rewards"
    row.qualifies("with GRPO's spread: sine of the angle", sine, only=only)


def reward(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """TRL's issue."""
    row = claim.also(
        '(TRL 4967.) "K1-in-Reward (proposed implementation) provides unbiased gradients for the Reverse KL '
        'objective."'
    )
    row.refutes("1 to 8 tokens: k1 in the reward misses", same(data["tokens"].missed.sel(place=kl.K1_REWARD)))
    steps = data["steps"].missed
    drifted, only = several(steps.sel(place=kl.K1_REWARD)), "while the policy is the one that sampled"
    row.qualifies("up to 31 steps on a batch: misses", drifted, only=only)
    reward, loss = (
        ", ".join(f"{float(steps.sel(place=place, steps=n).mean('tree')):.0%}" for n in (1, 3, 7))
        for place in (kl.K1_REWARD, kl.K2_LOSS)
    )
    row.finds(
        f"Where an update moves log π of tokens by {slopes.FIRST:g}, it misses {reward} at the second, "
        f"fourth and eighth update on a batch; k2 in the loss {loss}.",
        when=drifted.holds is False,
    )
    with_spread(data, row)


def pitfalls(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """2506.09477: its abstract, and the beginning of its introduction."""
    row = claim.also(
        '(arXiv:2506.09477, abstract, of differentiating "through the KL estimate as loss functions".) "Such '
        'implementations are generally incorrect and do not produce the desired KL gradient."'
    )
    missed = data["tokens"].missed
    far = missed.sel(policy=[f"noise {x:g}" for x in slopes.NOISE[1:]] + [slopes.TILTED])
    near = missed.sel(policy=f"noise {slopes.NOISE[0]:g}", horizon=SEVERAL)
    row.refutes("k1 and k3, 1 to 8 tokens: miss", biased(far.sel(place=[kl.K1_LOSS, kl.K3_LOSS])))
    only = "for k1 and k3, once π has left π_ref"
    row.qualifies("k2, 1 to 8 tokens: misses", biased(far.sel(place=kl.K2_LOSS)), only=only)
    row.qualifies("close to π_ref, k3: misses", biased(near.sel(place=kl.K3_LOSS)), only=only)


def performance(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """2512.21852, abstract: what can be tested without a language model."""
    row = claim.also(
        '(arXiv:2512.21852, abstract; in-domain, on-policy.) "Using estimator configurations resulting in '
        'unbiased gradients leads to better performance on in-domain" tasks.'
    )
    gains: dict[str, dict[str, Number]] = {kl.K3_LOSS: {}, kl.K1_LOSS: {}, kl.K3_REWARD: {}}
    rule: Any = {"expected": WIN, "relation": "at least", "together": True}
    for name in kl.OPTIMIZERS:
        reward = data[f"{name}, sampled"].reward.sel(kind=[kl.RARE, kl.GRADED], beta=BETAS)
        at_best = at_best_rate(reward, over="table")
        for way, found in {"same rates": reward.mean("learning_rate"), "own best rate": at_best}.items():
            for place, numbers in gains.items():
                gap = found.sel(place=kl.K1_REWARD) - found.sel(place=place)
                kinds = {kind: surest(each(rows, over="table", **rule)) for kind, rows in gap.groupby("kind")}
                numbers[f"{name}, {way}: {kl.K1_REWARD} - {place}"] = hardest(kinds)
    held, none, freer = gains.values()
    row.refutes("return", held)
    row.qualifies("return", none | freer, only="against a penalty that holds back more")
    low, high = (end(n.value for n in held.values()) for end in (min, max))
    row.finds(
        f"It earns {low:.2f} to {high:.2f} more than k3 in the loss, which holds back more, and no more than "
        "k1 in the loss, which is no penalty: in these tables return is what a penalty lets go.",
        when=all(n.holds is True for n in held.values()) and all(n.holds is False for n in none.values()),
    )


def larger(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """open-instruct's issue; its author saw it at β = .01 and .03, two mini-batches a batch."""
    row = claim.also(
        '(open-instruct 534, k1 in the loss.) "Kl1 looks wrong (larger beta induces larger KL...???)."'
    )
    many, one = (
        {name: against_none(data[f"{name}, {how}"]) for name in kl.OPTIMIZERS} for how in ("often", "sampled")
    )
    many = {name: ratio.sel(place=kl.K1_LOSS) for name, ratio in many.items()}
    what, only = "of KLs that β = .1 changes, share that rise", "with several optimizer steps a batch"
    judged = risen(many["AdamW"])
    row.refutes(f"AdamW, 4 steps a batch: {what}", judged)
    row.qualifies(f"SGD, 4 steps a batch: {what}", risen(many["SGD"]), only="under AdamW")
    for name, ratio in one.items():
        row.qualifies(f"{name}, one step a batch: {what}", risen(ratio.sel(place=kl.K1_LOSS)), only=only)
    grown = many["AdamW"].mean("table") - 1
    row.finds(
        "On-policy it has no gradient; later in a batch it descends −KL(π_old‖π) and pushes away from the "
        f"sampler: under AdamW the KL over the run is {float(grown.min()):.0%} to {float(grown.max()):.0%} "
        "larger at β = .1, by kind of question.",
        when=judged,
    )
    other = claim.ours(
        "What grows with β even on-policy is KL(π‖π_ref) with k3 in the reward, where answers are right or "
        "wrong: by 2 % at least over the run at β = .1, mean over both kinds of question."
    )
    for name, ratio in one.items():
        pushed = ratio.sel(place=kl.K3_REWARD, kind=[kl.RARE, kl.HALF]).mean("kind")
        grows = mean(pushed, expected=1.02, relation="at least")
        other.refutes(f"{name}: KL over the run at β = .1 over that at 0", grows)


def against_none(data: xr.Dataset) -> xr.DataArray:
    """KL(π‖π_ref) over the run at β = .1 less that at 0, over the latter's mean over questions, plus 1."""
    found = data.path.mean("learning_rate")
    none = found.sel(beta=0.0)
    return 1 + (found.sel(beta=BETAS[-1]) - none) / none.mean("table")


def risen(ratio: xr.DataArray) -> Number:
    """Of the questions, of all kinds, whose KL changes by 1 % or more, the share in which it rises."""
    up, down = int((ratio >= 1 + WIN).sum()), int((ratio <= 1 - WIN).sum())
    if not up + down:
        return Number(0.0, MOST, relation="at least", at="no question's KL changes")
    return share(up, up + down, expected=MOST, relation="at least")


def ties(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """What the spread makes of k1 where all rewards are equal."""
    row = claim.ours(
        "In groups whose rewards tie, k1 in a reward that is divided by the spread, with nothing added, "
        "keeps its pull, to 1 %, from β = .1 to .001: its advantages have full size whatever β is."
    )
    force = data["spread"].tied * data["spread"].beta
    ratio = force.sel(beta=slopes.DIVIDED[0]) / force.sel(beta=slopes.DIVIDED[-1])
    kept = worst(ratio.sel(added=slopes.NOTHING), expected=1.0, tolerance=SMALL)
    row.refutes("force at .001 over that at .1, less 1", kept)
    pull = data["spread"].force.sel(rewards=slopes.UNEQUAL[0]).mean("tree")
    few, many = (float(pull.sel(beta=beta)) for beta in (0.1, 0.001))
    left = ratio.drop_sel(added=slopes.NOTHING).mean("tree")
    with_eps = " and ".join(f"{float(left.sel(added=x)):.0%} with {x}" for x in left.added.values)
    row.finds(
        f"In groups of {slopes.DRAWN}, answers right or wrong, many tie: the pull is {few:.0f} times what β "
        f"says at β = .1, {many:.0f} times at .001. Where all tie it keeps {with_eps} of its pull.",
        when=kept,
    )


def ends(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """Where each place leads, and what that costs at the β that people use."""
    row = claim.ours(
        "Exact ascent ends (to .001 in return and KL) at π_ref(o) e^{r(o)/β}, the optimum of J − "
        "β KL(π‖π_ref), with k1 in the reward; at π(a|s) ∝ π_ref(a|s) e^{Q(s,a)/β} with k2 in the loss and "
        "at π(a|s) = π_ref(a|s) β/(β + V(s) − Q(s,a)) with k3, Q and V rewards to come without their penalty."
    )
    found = data["exact"]
    row.refutes("force at these ends, over ∇J", worst(found.force, tolerance=1e-6))
    gap = found[["reward", "divergence"]] - data["at ends"]
    for place in kl.ENDS:
        for what, apart in gap.sel(place=place).items():
            row.refutes(f"{place}: {what} - formula", worst(apart, tolerance=CLOSE))
    rare = data["ends"].sel(kind=kl.RARE, beta=BETAS[1:], drop=True)
    beyond = rare - rare.sel(place=kl.K1_REWARD, drop=True)
    words, judged = [], list[Number]()
    for apart in (-beyond.reward.sel(place=kl.K3_LOSS), beyond.divergence.sel(place=kl.K2_LOSS)):
        numbers = each(apart, over="table", expected=WIN, relation="at least").values()
        words.append(" and ".join(f"{number.value:.2f}" for number in numbers))
        judged += numbers
    row.finds(
        f"Where the reference is right in 5 %, k3 in the loss at β = .04 and .1 gives up {words[0]} of the "
        f"optimum's return; k2 in the loss ends {words[1]} nats further from π_ref than the optimum does.",
        when=judged,
    )


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """What every penalty misses of the gradient of KL(π‖π_ref), over T and over optimizer steps."""
    figure.set_size_inches(7.2, 3.1)
    left, right = plotting.panels(figure, 1, 2)
    tokens = data["tokens"].missed.sel(policy=f"noise {slopes.NOISE[1]:g}").mean("tree")
    steps = data["steps"].missed.mean("tree")
    for place, color, marker in zip(EVERY, plotting.COLORS, "osv^xD", strict=False):
        left.plot(tokens.horizon, tokens.sel(place=place), marker=marker, ms=4, color=color, label=place)
        right.plot(1 + steps.steps, steps.sel(place=place), marker=marker, ms=4, color=color, label=place)
    left.set(xlabel="T, tokens at most", ylabel="share missed of ∇KL(π‖π_ref)")
    right.set(xlabel="update on the same batch, each .02 in log π")
    for axes, at in {left: HORIZONS, right: [1 + step for step in slopes.STEPS]}.items():
        axes.set(xscale="log", ylim=(-0.05, 1.65))
        axes.set_xticks(at, at)
        axes.set_xticks([], minor=True)
    left.set_title("On-policy, .03 nats a token from π_ref")
    right.set_title(f"T = {kl.HORIZON}, .3 nats a token from π_ref")
    left.legend(fontsize="small")
