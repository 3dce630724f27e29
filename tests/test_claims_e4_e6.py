"""Rules that judge E4 and E6, with numbers made up for the purpose; their set-ups and formulas by hand."""

import numpy as np
import pytest
import xarray as xr

from experiments.claims import e06_truncated_votes as e6
from experiments.formulas import truncation
from experiments.formulas.truncation import HANDLINGS, PLAIN, VOTELESS, VOTING
from experiments.harness.verdict import Claim
from experiments.problems import budgets

pytestmark = pytest.mark.usefixtures("x64")
RNG = np.random.default_rng(0)
SEEDS = 12


def noisy(value, **labels):
    """An array of this value with a little noise by seed."""
    shape = [len(v) for v in labels.values()]
    return xr.DataArray(value + 1e-3 * RNG.normal(size=shape), labels)


def verdicts(module, data):
    claim = Claim("E9", "sentence")
    module.check(data, claim)
    return [row.verdict().verdict for row in (claim, *claim.rows)]


def e6_data(*, voting=0.3, plain=0.1, voteless=0.3, gain=0.05, harm=0.0, gap=0.0, often=0.3, seldom=0.2):
    labels = {
        "tokens": e6.BUDGETS, "handling": list(HANDLINGS), "optimizer": ["SGD", "AdamW", e6.MATCHED],
        "context": list(budgets.QUESTIONS), "iteration": [0, 10], "seed": range(SEEDS),
    }  # fmt: skip
    cut, budget = noisy(0.3, **labels), noisy(0.5, **labels)
    for handling, value in {PLAIN: plain, VOTING: voting, VOTELESS: voteless}.items():
        cut.loc[{"handling": handling, "iteration": 10}] += value - 0.3
    masked = [VOTING, VOTELESS]
    budget.loc[{"handling": masked, "context": budgets.SLOW}] += gain
    budget.loc[{"handling": masked, "context": budgets.FINISH, "tokens": 3}] -= harm
    runs = xr.Dataset({"cut off": cut, "budget": budget, "room": budget})
    known = {"gap": xr.DataArray(gap), "placebo": xr.DataArray(0.0)}
    known["sine"] = xr.DataArray([often, seldom], {"cut": [e6.OFTEN, e6.SELDOM]})
    exact = runs.isel(tokens=0, seed=0, drop=True)
    return {"identities": xr.Dataset(known), "sampled": runs, "exact": exact}


@pytest.mark.parametrize(
    ("changed", "want"),
    [
        ({}, ["reproduced", "reproduced", "reproduced"]),
        ({"voting": 0.2}, ["refuted", "reproduced", "reproduced"]),
        ({"harm": 0.1}, ["reproduced", "refuted", "reproduced"]),
        ({"gain": 0.0}, ["reproduced", "refuted", "reproduced"]),
        ({"seldom": 0.01}, ["reproduced", "reproduced", "qualified"]),
        ({"often": 0.01}, ["reproduced", "reproduced", "refuted"]),
        ({"voteless": 0.2}, ["not testable here", "reproduced", "reproduced"]),
        ({"plain": 0.3}, ["not testable here", "reproduced", "reproduced"]),
        ({"gap": 1e-6}, ["not testable here"] * 3),
    ],
)
def test_what_e6_says_falls_when_it_should(changed, want):
    assert verdicts(e6, e6_data(**changed)) == want


def test_the_trees_of_e6_are_those_of_the_library():
    """Outputs in the order of the support, with the chances of the set-up."""
    given = budgets.Budget(3)
    tree = truncation.tree(e6.with_end(given.logits[0]), 3)
    possible = [output for output, chance in zip(tree.outputs, tree.chance, strict=True) if chance > 0]
    rows, mask = given.space.support
    assert possible == [tuple(row[: int(n)]) for row, n in zip(rows, mask.sum(1), strict=True)]
    assert tree.chance @ ~tree.finished == pytest.approx((1 - budgets.STOP) ** 2)
    np.testing.assert_array_equal(given.cut, [len(o) == 3 and o[-1] != 2 for o in possible])


def test_the_questions_of_e6_by_hand():
    given = budgets.Budget(3)
    outputs = [tuple(row[: int(n)]) for row, n in zip(given.space.support[0], given.lengths, strict=True)]
    place = outputs.index((0, 1, 0))
    assert (given.table[:, place] == 0).all()
    e, n = budgets.STOP, budgets.ROOM
    ends = [e * (1 - e) ** k for k in range(n - 3)]
    np.testing.assert_allclose(given.room[:, place], [sum(ends), sum(ends), 0.5 * ends[0] + sum(ends[1:])])
    place = outputs.index((0, 2))
    np.testing.assert_allclose(given.table[:, place], [1, 1, 0.5])
    np.testing.assert_allclose(given.table[:, outputs.index((1, 2))], [1, 0, 0])


def test_the_matched_rate_gives_the_rest_its_weight():
    for tokens in e6.BUDGETS:
        rates = e6.learning(VOTELESS, tokens)
        done = 1 - 0.75 ** (tokens - 1)
        own = done - (1 - (1 - done) ** 8) / 8
        assert rates[e6.MATCHED][0] / rates["SGD"][0] == pytest.approx(0.875 * done / own)
