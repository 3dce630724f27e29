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

import xarray as xr

from experiments.formulas.truncation import PLAIN, VOTELESS, VOTING
from experiments.harness.numbers import Number, each, hardest, mean, worst
from experiments.harness.scripts import sizes
from experiments.harness.verdict import Claim
from experiments.problems import budgets, masks
from experiments.problems.budgets import FINISH, MATCHED, ROOM, SLOW
from grpo_jax import plotting

PRECISION = "float64"
SIZES = sizes(seeds=(12, 48, 256), iterations=(150, 400, 2000))

BUDGETS = [3, 5]
TWO = ["SGD", "AdamW"]
FELL, STILL, CONTROL, GAIN, SINE, LEFT = 0.05, 0.02, 0.1, 0.02, 0.1, 0.1
OFTEN, SELDOM = 0.5, 0.05


def simulate(seed: int, size: Any) -> dict[str, xr.Dataset]:
    """Identities, and training from samples and from exact expectations."""
    sampled = [budgets.trained(seed, size, tokens) for tokens in BUDGETS]
    exact = budgets.trained(seed, size, BUDGETS[0], exact=True)
    sine = xr.DataArray([masks.sine(share) for share in (OFTEN, SELDOM)], {"cut": [OFTEN, SELDOM]})
    known = {"gap": masks.gaps(), "placebo": masks.placebo(), "sine": sine, "left": masks.pressure(SELDOM)}
    return {
        "identities": xr.Dataset(known),
        "sampled": xr.concat(sampled, xr.Variable("tokens", BUDGETS)),
        "exact": exact.isel(seed=0, drop=True),
        "few": budgets.trained(seed, size, BUDGETS[0], stop=1 - SELDOM ** (1 / (BUDGETS[0] - 1))),
    }


def check(data: dict[str, xr.Dataset], claim: Claim) -> None:
    """What happens to answers that are cut off, and to the returns."""
    known, runs = data["identities"], data["sampled"]
    gap = worst(known.gap, tolerance=1e-10)
    cut_off(data, gap, claim)
    row = claim.also('(trl 3229, of DAPO.) Masking "... enhances performance".')
    row.requires("library and closed forms - enumeration", gap)
    returns(runs, VOTING, TWO, row)
    roomy(runs, row)
    wrong = claim.also(
        '(NeMo-RL 4160, of rows that are masked and vote) "its siblings received wrong advantages".'
    )
    wrong.requires("library and closed forms - enumeration", gap)
    often, seldom = (Number(float(known.sine.sel(cut=c)), SINE, relation="at least") for c in (OFTEN, SELDOM))
    wrong.refutes("half cut off: sine to the gradient of E[r | K]", often)
    only = "where many answers are cut off"
    wrong.qualifies("5 % cut off: sine to the gradient of E[r | K]", seldom, only=only)
    bare = claim.ours("A mask without a vote, which is not DAPO's, enhances performance.")
    bare.requires("library and closed forms - enumeration", gap)
    returns(runs, VOTELESS, [*TWO, MATCHED], bare)


def cut_off(data: dict[str, xr.Dataset], gap: Number, claim: Claim) -> None:
    """What a mask with a vote leaves of the pressure to stop, and of the share that is cut off."""
    known = data["identities"]
    shares = data["sampled"]["cut off"].sel(context=FINISH, optimizer=TWO)
    gone = shares.isel(iteration=-1, drop=True) - shares.isel(iteration=0, drop=True)
    claim.requires("library and closed forms - enumeration", gap)
    claim.requires("nothing cut off: handlings differ by", worst(known.placebo, tolerance=1e-10))
    still = each(gone.sel(handling=VOTELESS), expected=0.0, tolerance=STILL)
    claim.requires("no vote: cut off, end - start", hardest(still))
    falls = each(gone.sel(handling=PLAIN), expected=-CONTROL, relation="at most")
    claim.requires("not masked: cut off, end - start", hardest(falls))
    left = Number(float(known.left), LEFT, relation="at most")
    claim.refutes("5 % cut off: update, masked, voting / not masked", left)
    penalty = each(gone.sel(handling=VOTING), expected=0.0, tolerance=FELL, relation="at least")
    claim.qualifies("masked, voting: cut off, end - start", hardest(penalty), only="where few are cut off")
    exact = data["exact"]["cut off"].sel(handling=VOTING, context=FINISH, optimizer="SGD")
    first, last = (float(exact.isel(iteration=place)) for place in (0, -1))
    claim.finds(
        "With a vote, the pressure to stop is the share cut off times what it is without a mask, at any "
        "group size (f E[r | ends](1 - P(ends)) instead of f E[r | ends]): enough for the share to fall from "
        f"{first:.2f} to {last:.2f} with a budget of {BUDGETS[0]}. Without a vote nothing is left of it.",
        when=bool(known.gap.max() < 1e-10 and last < first - FELL),
    )
    few = data["few"]["cut off"].sel(context=FINISH, optimizer=TWO, handling=[PLAIN, VOTING])
    rest = each(few.isel(iteration=-1) / SELDOM)
    claim.finds(
        f"Where {SELDOM:.0%} are cut off, of these are left in the end "
        + ", ".join(f"{number.value:.0%} ({name})" for name, number in rest.items())
        + "."
    )


def returns(runs: xr.Dataset, handling: str, optimizers: list[str], row: Claim) -> None:
    """What a mask does to the returns with the budget itself; a matched rate is held against plain SGD."""
    during = runs.budget.mean("iteration")
    plain = ["SGD" if name == MATCHED else name for name in optimizers]
    base = during.sel(handling=PLAIN, optimizer=plain, drop=True).assign_coords(optimizer=optimizers)
    ahead = during.sel(handling=handling, optimizer=optimizers, drop=True) - base
    gains = each(ahead, expected=GAIN, relation="at least")
    best = max(gains, key=lambda name: gains[name].value)
    row.refutes(f"{handling}: the greatest gain of any setting", replace(gains[best], at=best))
    harm = hardest(each(ahead, expected=0.0, tolerance=GAIN, relation="at least"))
    only = "for some questions and budgets"
    row.qualifies(f"{handling}: return with the budget, less not masked", harm, only=only)
    row.finds(
        f"{handling.capitalize()}: from {harm.value:+.2f} ({harm.at}) to {gains[best].value:+.2f} ({best}).",
        when=harm.holds is False,
    )


def roomy(runs: xr.Dataset, row: Claim) -> None:
    """What a mask does to the returns with more room."""
    room = runs.room.mean("iteration").sel(context=SLOW, optimizer="SGD", tokens=BUDGETS[-1])
    with_vote, without = (
        mean(room.sel(handling=name) - room.sel(handling=PLAIN), expected=GAIN, relation="at least")
        for name in (VOTING, VOTELESS)
    )
    row.finds(
        "Not masked, the update ascends the return with the budget itself. A mask protects answers that "
        f"would be right with more room: trained with {BUDGETS[-1]} tokens and deployed with {ROOM} the slow "
        f"question returns {with_vote.value:+.2f} with a vote and {without.value:+.2f} without "
        "(mean over training).",
        when=[with_vote, without],
    )


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
