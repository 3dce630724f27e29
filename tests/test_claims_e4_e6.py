"""Rules that judge E4 and E6, with numbers made up for the purpose; their set-ups and formulas by hand."""

import numpy as np
import pytest
import xarray as xr

import grpo_jax as gj
from experiments.claims import e04_dead_groups as e4
from experiments.claims import e06_truncated_votes as e6
from experiments.formulas import dead_groups, truncation
from experiments.formulas.truncation import HANDLINGS, PLAIN, VOTELESS, VOTING
from experiments.problems import budgets, masks, updates
from experiments.problems import dead_groups as questions
from grpo_jax.tasks import Bernoulli
from tests.made_up_claims import noisy, verdicts

pytestmark = pytest.mark.usefixtures("x64")
SEEDS = 12


def e6_data(
    *, voting=0.3, plain=0.1, voteless=0.3, gain=0.05, harm=0.0, bare=0.0, gap=0.0, often=0.3, seldom=0.2,
    left=0.05,
):  # fmt: skip
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
    budget.loc[{"handling": VOTELESS}] -= bare
    runs = xr.Dataset({"cut off": cut, "budget": budget, "room": budget})
    known = {"gap": xr.DataArray(gap), "placebo": xr.DataArray(0.0)}
    known["sine"] = xr.DataArray([often, seldom], {"cut": [e6.OFTEN, e6.SELDOM]})
    known["left"] = xr.DataArray(left)
    one = runs.isel(tokens=0, drop=True)
    exact = one.isel(seed=0, drop=True)
    return {"identities": xr.Dataset(known), "sampled": runs, "exact": exact, "few": one}


@pytest.mark.parametrize(
    ("changed", "want"),
    [
        ({}, "++++"),
        ({"voting": 0.2}, "q+++"),
        ({"left": 0.2}, "-+++"),
        ({"harm": 0.1}, "+q+q"),
        ({"gain": 0.0}, "+-+-"),
        ({"gain": 0.0, "harm": 0.1}, "+-+-"),
        ({"bare": 0.1}, "+++-"),
        ({"seldom": 0.01}, "++q+"),
        ({"often": 0.01}, "++-+"),
        ({"voteless": 0.2}, "?+++"),
        ({"plain": 0.3}, "?+++"),
        ({"gap": 1e-6}, "????"),
    ],
)
def test_what_e6_says_falls_when_it_should(changed, want):
    short = {"reproduced": "+", "refuted": "-", "qualified": "q", "not testable here": "?"}
    assert "".join(short[word] for word in verdicts(e6, e6_data(**changed))) == want


def test_the_trees_of_e6_are_those_of_the_library():
    """Outputs in the order of the support, with the chances of the set-up."""
    given = budgets.Budget(3)
    tree = truncation.tree(masks.with_end(given.logits[0]), 3)
    possible = [output for output, chance in zip(tree.outputs, tree.chance, strict=True) if chance > 0]
    rows, mask = given.space.support
    assert possible == [tuple(row[: int(n)]) for row, n in zip(rows, mask.sum(1), strict=True)]
    assert tree.chance @ ~tree.finished == pytest.approx((1 - budgets.STOP) ** 2)
    np.testing.assert_array_equal(given.cut, [len(o) == 3 and o[-1] != 2 for o in possible])


def test_a_vote_leaves_the_share_cut_off_of_the_pressure_to_stop():
    """m = 1 and ∇m = 0: f(1 − P)∇P against f ∇P."""
    assert masks.pressure(0.3) == pytest.approx(0.3)
    assert masks.cut_off(0.3).chance @ ~masks.cut_off(0.3).finished == pytest.approx(0.3)
    assert masks.sine(0.6) > masks.sine(0.3) > masks.sine(1e-6)
    assert masks.sine(1e-6) < 1e-2


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
        rates = budgets.learning(VOTELESS, tokens)
        done = 1 - 0.75 ** (tokens - 1)
        own = done - (1 - (1 - done) ** 8) / 8
        assert rates[e6.MATCHED][0] / rates["SGD"][0] == pytest.approx(0.875 * done / own)


STEPS, EVERY = 10, 64.0
LEVELS = (e4.LEVEL, e4.LEVEL_ADAMW)
BOTH = (e4.SGD, e4.ADAMW)


def e4_runs(value, *, optimizers=BOTH, samples=EVERY):
    labels = {"optimizer": list(optimizers), "seed": range(SEEDS), "iteration": range(1, STEPS + 1)}
    drawn = noisy(0.0, **labels) * 0 + samples
    return xr.Dataset({"expected_reward": noisy(value, **labels), "samples_drawn": drawn})


def e4_data(*, left_out=0.7, other=0.7, sign=0.7, kept=0.5, level=0.5, slow=0.0, gap=0.0, price=1.0):
    plain = xr.concat([e4_runs(kept), e4_runs(level, optimizers=LEVELS)], "optimizer")
    refilled = e4_runs(other, samples=2 * EVERY)
    late = refilled.iteration > STEPS / 2
    refilled["expected_reward"] = refilled.expected_reward + xr.where(late, slow, 0.0)
    checks = ["library", "dead groups kept - (1 - 1/G) grad J"]
    return {
        e4.KEPT: plain, e4.LEFT_OUT: e4_runs(left_out), e4.OTHER: refilled, e4.SAME: e4_runs(other),
        "sign": e4_runs(sign, samples=32.0), "few": xr.concat(
            [e4_runs(kept, samples=32.0), e4_runs(level, optimizers=[e4.LEVEL], samples=32.0)], "optimizer"
        ),
        "identities": xr.Dataset({"gap": ("check", [gap, 0.0]), "drawn": price}, {"check": checks}),
        "factors": xr.Dataset({name: ("iteration", [1.4, 2.0]) for name in LEVELS}),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "want"),
    [
        ({}, ["reproduced", "reproduced", "reproduced", "qualified"]),
        ({"left_out": 0.505}, ["refuted", "reproduced", "reproduced", "qualified"]),
        ({"level": 0.7}, ["refuted", "refuted", "refuted", "qualified"]),
        ({"other": 0.5}, ["reproduced", "refuted", "reproduced", "qualified"]),
        ({"other": 0.5, "slow": 0.4}, ["reproduced", "refuted", "reproduced", "qualified"]),
        ({"sign": 0.5}, ["reproduced", "reproduced", "refuted", "qualified"]),
        ({"gap": 1e-6}, ["not testable here"] * 3 + ["qualified"]),
        ({"price": 1.01}, ["not testable here", "reproduced", "reproduced", "qualified"]),
    ],
)
def test_what_e4_says_falls_when_it_should(changed, want):
    """``slow``: what refilling gains only after the answers that it may draw are drawn does not count."""
    assert verdicts(e4, e4_data(**changed)) == want


def test_returns_are_read_off_where_the_answers_are_spent():
    data = xr.Dataset(
        {
            "expected_reward": (("seed", "iteration"), [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]),
            "samples_drawn": (("seed", "iteration"), [[10.0, 10, 10], [10.0, 25, 10]]),
        }
    )
    np.testing.assert_allclose(e4.after(data, 30.0), [0.3, 0.4])
    np.testing.assert_allclose(e4.after(data, 20.0), [0.2, 0.4])


def test_baselines_and_prices_of_dead_groups_by_hand():
    """Groups of three at p = .2: hits 0 to 3 have chances .512, .384, .096 and .008."""
    assert dead_groups.ties(0.2, 3) == pytest.approx(0.52)
    assert dead_groups.baseline(0.2, 3, mixed=False) == pytest.approx(0.2, abs=1e-15)
    assert dead_groups.baseline(0.2, 3, mixed=True) == pytest.approx((0.384 / 3 + 0.096 * 2 / 3) / 0.48)
    assert dead_groups.price(np.array(0.52), 3) == pytest.approx(1 + 0.52 + 0.52**2)


def test_the_questions_of_e4_start_at_their_success_rates():
    outputs = truncation.tree(questions.logits((0.3,))[0], 2)
    right = np.array([output == questions.RIGHT for output in outputs.outputs])
    assert outputs.chance @ right == pytest.approx(0.3)
    np.testing.assert_array_equal(questions.table(2), [right, right])
    factors = {e4.LEVEL: np.array([1.5, 2, 3]), e4.LEVEL_ADAMW: 0.5}
    slow, fast = questions.learning(3), questions.learning(3, factors)
    np.testing.assert_allclose(fast[e4.LEVEL][0] / slow[e4.SGD][0], [1.5, 2, 3])
    np.testing.assert_allclose(fast[e4.LEVEL_ADAMW][0] / slow[e4.ADAMW][0], [0.5] * 3)
    assert [row[1:] for row in fast.values()] == [row[1:] for row in slow.values()]


def test_the_library_s_update_is_the_slope_of_the_return():
    """(1 − 1/G)∇J of every prompt, ∇J by differences, as its part of the batch; coins are their chances."""
    space = gj.Sequences(vocab=3, horizon=2, eos=2)
    rng = np.random.default_rng(0)
    logits, table = rng.normal(size=(2, 3, 3)), rng.uniform(size=(2, space.size))

    def earned(rows, rewards):
        return truncation.tree(rows, 2).mean(rewards)

    want = np.zeros_like(logits)
    for place in np.ndindex(logits.shape):
        up, down = (logits + step * (np.arange(logits.size) == np.ravel_multi_index(place, logits.shape))
                    .reshape(logits.shape) for step in (1e-5, -1e-5))  # fmt: skip
        want[place] = (earned(up[place[0]], table[place[0]]) - earned(down[place[0]], table[place[0]])) / 2e-5
    for noise in (None, Bernoulli()):
        found = updates.expected_update(updates.PLAIN, space, logits, table, group_size=3, noise=noise)
        np.testing.assert_allclose(found, (1 - 1 / 3) * want / 2, atol=1e-9)
