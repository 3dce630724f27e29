"""(TRL's manual, trl 3248.) With the mask on, "truncated completions are excluded from the loss calculation,
preventing them from being incorrectly penalized".

`mask_truncated_completions` of huggingface/trl: answers that reach the budget without an end are masked, with
a reward of 0 that counts in their group's mean: they vote. So they do in NeMo-RL's recorded
`overlong_filtering` and after open-instruct's pull request 1794 ("compute group means/stds/advantages from
the pre-filter batch"); NeMo-RL 4160 takes the vote away. A penalty is read as a falling probability. Three
questions (any answer that ends is right; the first token decides; the full reward takes long), budgets of 3
and 5 tokens, at each of which but the first an answer ends with chance 1/4, so that 56 and 32 of 100 are cut
off; r − r̄, groups of 8, SGD and AdamW, samples and, for the smaller budget, exact expectations.

Refuted if, where any answer that ends is right, so that only being cut off tells answers apart, and 5 % are
cut off, TRL's handling leaves more than a tenth of the expected update that an update without a mask has;
qualified if with these budgets the share cut off falls by more than .05 under it, for a budget and an
optimizer. What becomes of the 5 % in training is told. Second sentence (trl 3229, of DAPO, which goes on from
"significantly stabilizes training and": stability is not judged), of TRL's handling: refuted if the return
with the budget of training, mean over training, masked less not masked, at equal samples, is above .02 for no
question, budget and optimizer; qualified if below -.02 for one. So is a row of ours on a mask without a vote,
also at the learning rate that gives ∇E[r | ends] its weight without the mask (with a vote it has it). Third
(NeMo-RL 4160, of masked rows that vote): refuted if the sine of the angle between the voting update and ∇E[r
| ends] is below .1 where half are cut off; qualified if it is below .1 where 5 % are. Checks of the
instrument: the library, the closed forms and every ordered group of three on random trees agree to 1e-10;
without a vote the share of the first question stays within .02, not masked it falls by .1 or more (placebo
and control); where every answer has to end within the budget the three handlings are one.
"""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr

import grpo_jax as gj
from experiments.formulas import truncation
from experiments.formulas.truncation import HANDLINGS, PLAIN, VOTELESS, VOTING
from experiments.harness.numbers import Number, each, hardest, mean, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems.budgets import (
    FINISH,
    FREE,
    GROUP,
    METHODS,
    OPTIMIZER,
    ROOM,
    SLOW,
    STOP,
    Budget,
)
from grpo_jax import plotting
from grpo_jax.exact import expected_gradient
from grpo_jax.policies import TreePolicy

PRECISION = "float64"
SIZES = sizes(seeds=(12, 48, 256), iterations=(150, 400, 2000))

BUDGETS = [3, 5]
RATE, ADAM = 3.0, 0.05
MATCHED = "SGD, rate matched"
"""SGD that gives ∇E[r | K] the weight at the start that it has where nothing is masked."""
FELL, STILL, CONTROL, GAIN, SINE, LEFT = 0.05, 0.02, 0.1, 0.02, 0.1, 0.1
SMALL = 3
"""Group and tokens where everything is enumerated."""
OFTEN, SELDOM = 0.5, 0.05


def learning(handling: str, tokens: int, stop: float = STOP) -> dict[str, tuple[float, float, float]]:
    """(rate, b1, eps) of every optimizer."""
    done = 1 - (1 - stop) ** (tokens - 1)
    plain, own = (truncation.coefficients(done, 1.0, GROUP, h)[0] for h in (PLAIN, handling))
    return {
        "SGD": (RATE * FREE, 0.0, FREE),
        "AdamW": (ADAM, 0.9, 1e-8),
        MATCHED: (RATE * FREE * plain / own, 0.0, FREE),
    }


def identities() -> xr.Dataset:
    """Largest gaps of the library and of the closed form to the enumeration, on two unlike random trees."""
    rng = np.random.default_rng(1)
    space = gj.Sequences(vocab=3, horizon=SMALL, eos=2)
    logits = rng.normal(size=(2, space.offsets[-1], 3))
    trees = [truncation.tree(rows, SMALL) for rows in logits]
    levels = np.array([[0.0, 1.0, 0.3], [0.5, 0.5, 1.0]])
    table = np.take_along_axis(levels, rng.integers(0, 3, (2, space.size)), 1)
    table = np.where([t.finished for t in trees], table, 0)
    gaps = xr.DataArray(np.zeros((3, 2)), {"handling": list(HANDLINGS), "of": ["library", "closed form"]})
    for handling, method in METHODS.items():
        config = gj.Config(
            policy=TreePolicy(space=space, logits=logits), task=gj.SequenceTable(space=space, table=table),
            method=method, loop=gj.Loop(group_size=SMALL), expectation=gj.Exact(),
        )  # fmt: skip
        found = 2 * np.asarray(expected_gradient(config, jnp.asarray(logits)))
        for tree, rewards, own in zip(trees, table, found, strict=True):
            by_hand = truncation.enumerated(tree, rewards, SMALL, handling)
            away = truncation.closed(tree, rewards, SMALL, handling) - by_hand
            for of, gap in {"library": own - by_hand, "closed form": away}.items():
                gaps.loc[handling, of] = max(float(gaps.loc[handling, of]), abs(gap).max())
    return xr.Dataset({"gap": gaps, "placebo": placebo(), "sine": sines(), "left": pressures()})


def placebo() -> float:
    """Largest difference that a handling makes where the last token has to be the end."""
    space = gj.Sequences(vocab=3, horizon=3, eos=2, forbidden=((0, 2), (2, 0), (2, 1)))
    table = np.linspace(0, 1, space.size)[None]
    policy = TreePolicy.uniform(space)
    found = [
        np.asarray(expected_gradient(
            gj.Config(policy=policy, task=gj.SequenceTable(space=space, table=table), method=method,
                      loop=gj.Loop(group_size=GROUP), expectation=gj.Exact()),
            jnp.asarray(policy.logits),
        ))
        for method in METHODS.values()
    ]  # fmt: skip
    return float(max(abs(one - found[0]).max() for one in found))


def sines() -> xr.DataArray:
    """Of the angle between the voting update and ∇E[r | K], by how many answers are cut off."""
    found = []
    for share in (OFTEN, SELDOM):
        given = Budget(4, stop=1 - share ** (1 / 3))
        tree = truncation.tree(with_end(given.logits[0]), 4)
        rewards = np.array([1.0 * (output[0] == 0) for output in tree.outputs]) * tree.finished
        done, to_end = tree.mean(tree.finished), tree.slope(tree.finished)
        level = tree.mean(rewards) / done
        straight = ((tree.slope(rewards) - level * to_end) / done).ravel()
        voting = truncation.closed(tree, rewards, GROUP, VOTING).ravel()
        cosine = straight @ voting / np.linalg.norm(straight) / np.linalg.norm(voting)
        found.append(np.sqrt(1 - cosine**2))
    return xr.DataArray(found, {"cut": [OFTEN, SELDOM]})


def pressures() -> xr.DataArray:
    """Length of the voting update over that without a mask, if any answer that ends is right."""
    found = []
    for share in (OFTEN, SELDOM):
        given = Budget(4, stop=1 - share ** (1 / 3))
        tree = truncation.tree(with_end(given.logits[0]), 4)
        rewards = np.ones(len(tree.outputs)) * tree.finished
        voting, plain = (truncation.closed(tree, rewards, GROUP, h) for h in (VOTING, PLAIN))
        found.append(np.linalg.norm(voting) / np.linalg.norm(plain))
    return xr.DataArray(found, {"cut": [OFTEN, SELDOM]})


def with_end(logits: np.ndarray) -> np.ndarray:
    """The logits without an end at the first token, as ``free_length`` forbids it."""
    rows = np.array(logits)
    rows[0, -1] = -np.inf
    return rows


def trained(seed: int, size: Any, tokens: int, *, exact: bool = False, stop: float = STOP) -> xr.Dataset:
    """Shares, lengths and returns of every handling and optimizer, with this budget."""
    budget, found = Budget(tokens, stop=stop), []
    for handling, method in METHODS.items():
        data = gj.sweep(
            budget.config(method, exact=exact), {OPTIMIZER: learning(handling, tokens, stop)},
            seeds=1 if exact else size.seeds, iterations=size.iterations, root=seed, record=["finite"],
            measure={"of": budget.measure()}, record_every=size.iterations // 50, record_start=True,
        )  # fmt: skip
        data = data.rename({"+".join(OPTIMIZER): "optimizer"}).of.to_dataset("quantity")
        found.append(data.drop_vars([name for name in data.coords if name not in data.dims]))
    return xr.concat(found, xr.Variable("handling", list(HANDLINGS)))


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Identities, and training from samples and from exact expectations."""
    sampled = [trained(seed, size, tokens) for tokens in BUDGETS]
    exact = trained(seed, size, BUDGETS[0], exact=True)
    return {
        "identities": identities(),
        "sampled": xr.concat(sampled, xr.Variable("tokens", BUDGETS)),
        "exact": exact.isel(seed=0, drop=True),
        "few": trained(seed, size, BUDGETS[0], stop=1 - SELDOM ** (1 / (BUDGETS[0] - 1))),
    }


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """What happens to answers that are cut off, and to the returns."""
    known, runs = data["identities"], data["sampled"]
    two = [name for name in runs.optimizer.values if name != MATCHED]
    start, end = (runs.isel(iteration=place, drop=True) for place in (0, -1))
    gone = (end["cut off"] - start["cut off"]).sel(context=FINISH, optimizer=two)
    claim.requires("library and closed forms - enumeration", worst(known.gap, tolerance=1e-10))
    claim.requires("nothing cut off: handlings differ by", worst(known.placebo, tolerance=1e-10))
    still = each(gone.sel(handling=VOTELESS), expected=0.0, tolerance=STILL)
    claim.requires("no vote: cut off, end - start", hardest(still))
    falls = each(gone.sel(handling=PLAIN), expected=-CONTROL, relation="at most")
    claim.requires("not masked: cut off, end - start", hardest(falls))
    often, seldom = (float(known.left.sel(cut=cut)) for cut in (OFTEN, SELDOM))
    claim.refutes(
        "5 % cut off: update, masked, voting / not masked", Number(seldom, LEFT, relation="at most")
    )
    claim.reports("half cut off: update, masked, voting / not masked", Number(often))
    penalty = each(gone.sel(handling=VOTING), expected=0.0, tolerance=FELL, relation="at least")
    claim.qualifies("masked, voting: cut off, end - start", hardest(penalty), only="where few are cut off")
    few = data["few"]["cut off"].sel(context=FINISH, optimizer=two, handling=[PLAIN, VOTING])
    rest = each(few.isel(iteration=-1) / SELDOM)
    claim.reports(f"{SELDOM:.0%} cut off: share of them that is left in the end", rest)
    exact = data["exact"]["cut off"].sel(handling=VOTING, context=FINISH, optimizer="SGD")
    first, left = (float(exact.isel(iteration=place)) for place in (0, -1))
    claim.finds(
        "With a vote, the pressure to stop is the share cut off times what it is without a mask, at any "
        "group size (f E[r | ends](1 - P(ends)) instead of f E[r | ends]): enough for the share to fall from "
        f"{first:.2f} to {left:.2f} with a budget of {BUDGETS[0]}. Without a vote nothing is left of it.",
        when=bool(known.gap.max() < 1e-10 and left < first - FELL),
    )
    claim.finds(
        f"Where {SELDOM:.0%} are cut off, of these are left in the end "
        + ", ".join(f"{number.value:.0%} ({name})" for name, number in rest.items())
        + "."
    )
    for group in (8, 16):
        for cut in (0.05, 0.2, 0.5):
            plain, vote, none = (truncation.coefficients(1 - cut, 1.0, group, h) for h in HANDLINGS)
            here = f"G {group}, {cut:.0%} cut off"
            claim.reports(f"{here}: pressure to stop that a vote leaves", Number(vote[1] / plain[1]))
            claim.reports(f"{here}: weight of the rest without a vote", Number(none[0] / plain[0]))

    row = claim.also('(trl 3229, of DAPO.) Masking "... enhances performance".')
    _returns(known, runs, VOTING, two, row)
    _roomy(runs, two, row)
    wrong = claim.also(
        '(NeMo-RL 4160, of rows that are masked and vote) "its siblings received wrong advantages".'
    )
    wrong.requires("library and closed forms - enumeration", worst(known.gap, tolerance=1e-10))
    often, seldom = (float(known.sine.sel(cut=cut)) for cut in (OFTEN, SELDOM))
    wrong.refutes("half cut off: sine to the gradient of E[r | K]", Number(often, SINE, relation="at least"))
    wrong.qualifies(
        "5 % cut off: sine to the gradient of E[r | K]", Number(seldom, SINE, relation="at least"),
        only="where many answers are cut off",
    )  # fmt: skip
    bare = claim.ours("A mask without a vote, which is not DAPO's, enhances performance.")
    _returns(known, runs, VOTELESS, [*two, MATCHED], bare)


def _returns(known: xr.Dataset, runs: xr.Dataset, handling: str, optimizers: list[str], row: Claim) -> None:
    """What a mask does to the returns with the budget itself."""
    row.requires("library and closed forms - enumeration", worst(known.gap, tolerance=1e-10))
    during = runs.budget.mean("iteration")
    base = during.sel(handling=PLAIN, optimizer=[_plain(name) for name in optimizers], drop=True)
    mine = during.sel(handling=handling, optimizer=optimizers, drop=True)
    ahead = mine - base.assign_coords(optimizer=optimizers)
    gains = each(ahead, expected=GAIN, relation="at least")
    best = max(gains, key=lambda name: gains[name].value)
    row.refutes(f"{handling}: the greatest gain of any setting", replace(gains[best], at=best))
    harm = hardest(each(ahead, expected=0.0, tolerance=GAIN, relation="at least"))
    row.qualifies(
        f"{handling}: return with the budget, less not masked", harm,
        only="for some questions and budgets",
    )  # fmt: skip
    row.finds(
        f"{handling.capitalize()}: from {harm.value:+.2f} ({harm.at}) to {gains[best].value:+.2f} ({best}).",
        when=harm.holds is False,
    )


def _roomy(runs: xr.Dataset, two: list[str], row: Claim) -> None:
    """What a mask does to the returns with more room."""
    room = runs.room.mean("iteration").sel(context=SLOW, optimizer=two)
    roomy = room.sel(handling=[VOTING, VOTELESS]) - room.sel(handling=PLAIN, drop=True)
    row.reports("slow question, deployed with room, less not masked", each(roomy))
    slow = {
        name: mean(gaps, expected=GAIN, relation="at least")
        for name, gaps in roomy.sel(tokens=BUDGETS[-1], optimizer="SGD").groupby("handling")
    }
    row.finds(
        "Not masked, the update ascends the return with the budget itself. A mask protects answers that "
        f"would be right with more room: trained with {BUDGETS[-1]} tokens and deployed with {ROOM} the slow "
        f"question returns {slow[VOTING].value:+.2f} with a vote and {slow[VOTELESS].value:+.2f} without "
        "(mean over training).",
        when=list(slow.values()),
    )


def _plain(optimizer: str) -> str:
    """The optimizer that one with a matched rate is compared with."""
    return "SGD" if optimizer == MATCHED else optimizer


def draw(figure: Any, data: dict[str, xr.Dataset]) -> None:
    """Share cut off and return with room, by handling."""
    figure.set_size_inches(7, 2.9)
    left, right = plotting.panels(figure, 1, 2)
    runs = data["sampled"].sel(tokens=BUDGETS[-1], optimizer="SGD")
    share = runs["cut off"].sel(context=FINISH)
    share.attrs = {"long_name": "share of answers cut off"}
    plotting.curves(left, share, over="seed", by="handling")
    left.legend(loc="upper right", bbox_to_anchor=(1, 0.93))
    left.set(xlabel="iteration", ylim=(0, None))
    left.set_title("any answer that ends is right:\nonly a vote, or no mask, tells to stop")
    room = runs.room.sel(context=SLOW)
    room.attrs = {"long_name": "return, deployed with room"}
    plotting.curves(right, room, over="seed", by="handling")
    right.get_legend().remove()
    right.set(xlabel="iteration")
    right.set_title("the full reward takes long:\nmasked, slow answers survive")
