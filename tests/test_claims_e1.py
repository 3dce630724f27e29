"""Rules that judge E1, with numbers made up for the purpose; its formulas by differentiating and by hand."""

import itertools

import numpy as np
import pytest
import xarray as xr

from experiments.claims import e01_which_kl as e1
from experiments.formulas import penalty_gradients as by_hand
from experiments.harness.verdict import Claim
from experiments.problems import kl_gradients as slopes
from experiments.problems import kl_places as kl
from tests.made_up_claims import noisy

TREE = by_hand.tree(3, 2, eos=True)
TREES, TABLES = 12, 20


def made_up(
    *, token=0.3, one=0.0, k2=0.3, k1_on=1.0, k3=0.3, later=0.5, sine=0.5, whole=0.0, win=0.0, often=1.2,
    once=1.0, pushed=1.1, force=1.0, added=1.0, end=0.0, library=0.0, near=0.2, held=0.0,
):  # fmt: skip
    every, trees = list(e1.EVERY), range(TREES)
    policies = [f"noise {x:g}" for x in slopes.NOISE] + [slopes.TILTED]
    labels = {"place": every, "horizon": e1.HORIZONS, "policy": policies, "tree": trees}
    missed = abs(noisy(0.5, **labels))
    several = {"horizon": e1.HORIZONS[1:]}
    first = {"horizon": 1}
    for place in (kl.K2_LOSS, kl.RATIO_LOSS):
        missed.loc[{"place": place, **first}] = 0.0
    missed.loc[{"place": kl.RATIO_LOSS, **several}] = token
    missed.loc[{"place": kl.K2_LOSS, **several}] = k2
    missed.loc[{"place": kl.K1_REWARD}] = 0.0
    missed.loc[{"place": kl.K3_LOSS, "policy": policies[0]}] = near
    steps = {"place": every, "steps": list(slopes.STEPS), "tree": trees}
    single = noisy(0.5, **steps)
    single.loc[{"place": kl.RATIO_LOSS}] = one
    single.loc[{"place": kl.K2_LOSS, "steps": 0}] = 0.0
    single.loc[{"place": kl.K1_LOSS, "steps": 0}] = k1_on
    single.loc[{"place": kl.K3_LOSS}] = k3
    drift = xr.Dataset({"missed": single, "backward": single - single.sel(steps=0)})
    more = drift.assign(missed=noisy(later, **steps))
    kinds = {"rewards": slopes.UNEQUAL, "beta": list(slopes.DIVIDED), "tree": trees}
    per = xr.DataArray(list(slopes.DIVIDED), {"beta": list(slopes.DIVIDED)})
    pull = noisy(1.0, **kinds) / per
    tied = noisy(1.0, added=list(slopes.ADDED), beta=list(slopes.DIVIDED), tree=trees) / per
    tied.loc[{"beta": slopes.DIVIDED[0], "added": slopes.NOTHING}] *= force
    tied.loc[{"beta": slopes.DIVIDED[0], "added": list(slopes.ADDED)[1:]}] *= added
    found = {
        "identities": xr.Dataset({"gap": noisy(library, spread=0.0, n=range(3))}),
        "tokens": xr.Dataset({"missed": missed, "backward": missed}),
        "whole": xr.Dataset({"missed": noisy(whole, spread=0.0, horizon=e1.HORIZONS, tree=trees)}),
        "one": drift, "steps": more,
        "spread": xr.Dataset({"sine": noisy(sine, **kinds), "force": pull, "tied": tied}),
    }  # fmt: skip
    return found | trained(win, often, once, pushed, end, held)


def trained(win, often, once, pushed, end, held):
    questions = {"kind": [kl.RARE, kl.HALF, kl.GRADED], "table": range(TABLES)}
    ends = {"place": list(kl.ENDS), "beta": e1.BETAS, **questions}
    closed = xr.Dataset({"reward": noisy(0.9, **ends), "divergence": noisy(1.0, **ends)})
    wide = {**ends, "beta": e1.WIDE}
    told = xr.Dataset({"reward": noisy(0.9, **wide), "divergence": noisy(1.0, **wide)})
    reached = told + end
    reached = reached.assign(force=noisy(0.0, spread=0.0, place=list(kl.ENDS), strength=[0.1]))
    data = {"ends": closed, "at ends": told, "exact": reached}
    for name, (_, rates) in kl.OPTIMIZERS.items():
        runs = {"learning_rate": rates, "place": list(kl.PLACES), "beta": [0.0, *e1.BETAS], **questions}
        reward, path = noisy(0.8, **runs), noisy(1.0, **runs)
        reward.loc[{"place": kl.K1_REWARD, "beta": 0.1}] += win
        reward.loc[{"place": kl.K3_LOSS}] -= held
        path.loc[{"place": kl.K1_LOSS, "beta": 0.1}] *= once
        path.loc[{"place": kl.K3_REWARD, "beta": 0.1}] *= pushed
        data[f"{name}, sampled"] = xr.Dataset({"reward": reward, "path": path})
        batch = noisy(1.0, **{**runs, "place": [kl.K1_LOSS], "beta": [0.0, 0.1]})
        batch.loc[{"beta": 0.1}] *= often
        data[f"{name}, often"] = xr.Dataset({"path": batch})
    return data


def verdicts(**changed):
    claim = Claim("E1", "sentence")
    e1.check(made_up(**changed), claim)
    return {row.id: row.verdict().verdict for row in (claim, *claim.rows)}


USUAL = {
    "E1": "qualified", "E1.1": "qualified", "E1.2": "qualified", "E1.3": "qualified", "E1.4": "qualified",
    "E1.5": "refuted", "E1.6": "qualified", "E1.7": "reproduced", "E1.8": "reproduced", "E1.9": "reproduced",
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "want"),
    [
        ({}, {}),
        ({"library": 1e-6}, {"E1": "not testable here"}),
        ({"one": 0.01}, {"E1": "refuted", "E1.1": "refuted"}),
        ({"token": 0.01}, {"E1": "reproduced"}),
        ({"k1_on": 0.9}, {"E1.1": "refuted"}),
        ({"k3": 0.01}, {"E1.1": "refuted"}),
        ({"whole": 0.01}, {"E1.2": "refuted"}),
        ({"sine": 0.01, "k2": 0.01}, {"E1.2": "reproduced"}),
        ({"sine": 0.01, "later": 0.01}, {"E1.3": "reproduced"}),
        ({"win": 0.05}, {"E1.5": "reproduced"}),
        ({"held": 0.05}, {"E1.5": "qualified"}),
        ({"win": 0.05, "held": -0.1}, {}),
        ({"often": 0.9}, {"E1.6": "refuted"}),
        ({"once": 1.2}, {"E1.6": "reproduced"}),
        ({"pushed": 1.0}, {"E1.7": "refuted"}),
        ({"force": 0.5}, {"E1.8": "refuted"}),
        ({"force": 0.95}, {"E1.8": "refuted"}),
        ({"added": 0.5}, {}),
        ({"end": 0.01}, {"E1.9": "refuted"}),
    ],
)
def test_what_e1_says_falls_when_it_should(changed, want):
    found = verdicts(**changed)
    assert {row: verdict for row, verdict in found.items() if verdict != USUAL[row]} == want


def policies():
    return np.random.default_rng(3).normal(size=(3, TREE.nodes, 3))


def slope(value, at, step=1e-5):
    """Central differences of a function of logits."""
    found = np.zeros_like(at)
    for place in np.ndindex(at.shape):
        moved = np.zeros_like(at)
        moved[place] = step
        found[place] = (value(at + moved) - value(at - moved)) / (2 * step)
    return found


def test_a_tree_lists_every_answer_once():
    answers = {tuple(int(a) for a in row if a >= 0) for row in TREE.token}
    assert answers == {(2,), *((a, b) for a in (0, 1) for b in range(3))}
    assert TREE.nodes == 3
    assert len(by_hand.tree(3, 2).token) == 9


def test_gradients_are_those_of_expectations():
    now, anchor, old = policies()
    chance = np.exp(by_hand.token_logp(TREE, old).sum(1))

    def apart(at):
        return by_hand.token_logp(TREE, at) - by_hand.token_logp(TREE, anchor)

    def kl_of(at):
        return np.exp(by_hand.token_logp(TREE, at).sum(1)) @ apart(at).sum(1)

    def ratio(at):
        return np.exp(by_hand.token_logp(TREE, at) - by_hand.token_logp(TREE, old))

    def k3(x):
        return np.exp(-x) + x - 1

    losses = {
        "k1": apart,
        "k2": lambda at: apart(at) ** 2 / 2,
        "k3": lambda at: k3(apart(at)),
        "ratio x k3": lambda at: ratio(at) * k3(apart(at)),
    }
    for name, value in losses.items():
        aim = slope(lambda at, value=value: chance @ (value(at) * TREE.live).sum(1), now)
        np.testing.assert_allclose(by_hand.in_loss(name, TREE, now, anchor, old), aim, atol=1e-8)
    np.testing.assert_allclose(by_hand.forward(TREE, now, anchor), slope(kl_of, now), atol=1e-8)


def test_groups_of_two_are_what_pairs_give():
    """With advantages r − r̄ every ordered pair gives each half the difference; k1 is part of the reward."""
    now, anchor, old = policies()
    rewards = np.arange(len(TREE.node)) % 3 / 2.0
    sampler = by_hand.token_logp(TREE, old)
    earned = rewards - 0.3 * (sampler - by_hand.token_logp(TREE, anchor)).sum(1)
    chance = np.exp(sampler.sum(1))

    def value(at):
        ratio = (np.exp(by_hand.token_logp(TREE, at) - sampler) * TREE.live).sum(1)
        pairs = itertools.product(range(len(rewards)), repeat=2)
        return sum(
            chance[i] * chance[j] * (earned[i] - earned[j]) / 4 * (ratio[i] - ratio[j]) for i, j in pairs
        )

    found = by_hand.of_groups(TREE, now, anchor, old, rewards, coef=0.3, size=2)
    np.testing.assert_allclose(found, slope(value, now), atol=1e-8)


def test_ends_are_where_the_forces_balance():
    _, anchor, _ = policies()
    rewards = np.arange(len(TREE.node)) % 4 / 3.0
    best = by_hand.optimum(TREE, anchor, rewards, 0.3)
    whole = by_hand.token_logp(TREE, anchor).sum(1) + rewards / 0.3
    np.testing.assert_allclose(
        by_hand.token_logp(TREE, best).sum(1), whole - np.log(np.exp(whole).sum()), atol=1e-12
    )
    for name, end in (("k2", by_hand.forward_end), ("k3", by_hand.backward_end)):
        at = end(TREE, anchor, rewards, 0.3)
        force = slopes.return_slope(TREE, at, rewards) - 0.3 * by_hand.in_loss(name, TREE, at, anchor, at)
        np.testing.assert_allclose(force, 0, atol=1e-10)


def test_shares_are_bounded_and_zero_for_the_same_gradient():
    one = np.array([1.0, 2.0])
    assert slopes.share(one, one) == 0
    assert slopes.share(0 * one, one) == 1
    assert slopes.share(-one, one) == 2
    assert slopes.share(10 * one, one) == pytest.approx(0.9)


def test_every_question_has_a_right_and_a_wrong_answer():
    # at seed 2, 64 of each kind, one answer of more than half the chance came last and all were right
    _, rewards = kl.questions(2, 64)
    assert (rewards.max(1) > 0).all()
    assert (rewards.min(1) < 1).all()


def test_questions_are_as_hard_as_they_say():
    logits, rewards = kl.questions(0, 4)
    tree = by_hand.tree(3, kl.HORIZON, eos=True)
    chance = np.exp([by_hand.token_logp(tree, x).sum(1) for x in logits])
    right = (chance * rewards).sum(1)
    for rows, share in ((slice(0, 4), 0.05), (slice(4, 8), 0.5)):
        assert (right[rows] >= share).all()
        least = np.where(rewards[rows] > 0, chance[rows], np.inf).min(1)
        assert (right[rows] - least < 1).all()
    assert set(np.unique(rewards[8:])) == {0.0, 1 / 3, 2 / 3, 1.0}
