"""Rules that judge E5 and E8, with numbers made up for the purpose; their formulas by hand."""

import math

import numpy as np
import pytest
import xarray as xr

from experiments.claims import e05_phantoms as e5
from experiments.claims import e08_two_rewards as e8
from experiments.problems import pairs_of_rewards, phantoms
from tests import made_up_claims

pytestmark = pytest.mark.usefixtures("x64")
RNG = np.random.default_rng(0)
NAMES = [f"{dose:g}" for dose in (e5.LONG, 0.0, *e5.DOSES)]


def run(end, *, middle=0.0, doses=NAMES):
    """J from 1 to this end (a number, or one for each dose), half way lower by `middle` times the dose."""
    labels = {"optimizer": ["SGD", "AdamW"], "dose": doses, "seed": range(6), "iteration": [0, 1, 2]}
    found = xr.DataArray(np.ones([len(v) for v in labels.values()]), labels)
    last = xr.DataArray([end[d] if isinstance(end, dict) else end for d in doses], {"dose": doses})
    slope = xr.DataArray([float(d) for d in doses], {"dose": doses})
    found = found + 1e-4 * RNG.normal(size=found.shape)
    found = xr.where(found.iteration == 2, found + last - 1, found)
    return xr.Dataset({"expected_reward": xr.where(found.iteration == 1, found - middle * slope, found)})


def e5_data(
    *, end=0.3, first=None, gate=1.0, middle=1.0, plain=1.0, right=1.0, still=1.0, gap=0.0, hard=0.3,
    much=0.3, gated=1.0, spared=1.0,
):  # fmt: skip
    ends = dict.fromkeys(NAMES, end) | {"0": still} | ({} if first is None else {"0.001": first})
    doses = [f"{d:g}" for d in e5.DOSES]
    return {
        "identities": xr.Dataset({"gap": xr.DataArray([gap], dims="dose")}),
        e5.NONE: run(ends, middle=middle),
        e5.GATE: run(gate),
        e5.RIGHT: run(right),
        e5.PLAIN: run(plain),
        e5.SPLIT: run(1.0, doses=["0.01", "0.1"]),
        f"{e5.NONE}, hard": run(dict.fromkeys(doses, hard) | {"0.3": much, "0.5": much}, doses=doses),
        f"{e5.GATE}, hard": run({"0.1": gated, "0.3": spared, "0.5": spared}, doses=e5.PRINTED),
        "flat": run(1.0, doses=["0.3"]),
        "exact": run(end, doses=["0", "0.001", "0.1"]),
    }  # fmt: skip


def verdicts(module, data):
    short = {"reproduced": "+", "refuted": "-", "qualified": "q", "not testable here": "?"}
    return "".join(short[word] for word in made_up_claims.verdicts(module, data))


@pytest.mark.parametrize(
    ("changed", "want"),
    [
        ({}, "++++++++"),
        ({"end": 0.7}, "q+++++++"),
        ({"first": 0.8}, "q++-++++"),
        ({"first": 0.95, "hard": 0.6}, "-++--+++"),
        ({"gate": 0.8}, "+-++++++"),
        ({"gated": 0.8}, "+q++-+++"),
        ({"spared": 0.5}, "+q++++++"),
        ({"middle": 0.0}, "++-+++++"),
        ({"hard": 0.6}, "-+++-+++"),
        ({"much": 0.9}, "++++++++"),
        ({"plain": 0.6}, "+++++-++"),
        ({"right": 0.6}, "+++++++-"),
        ({"still": 0.8}, "?+++++++"),
        ({"gap": 1e-6}, "?+++++++"),
    ],
)
def test_what_e5_says_falls_when_it_should(changed, want):
    assert verdicts(e5, e5_data(**changed)) == want


def e8_data(
    *, gain=0.1, slow=0.1, late=0.0, vectors=0.2, few=0.2, two=1.0, three=1.0, first=0.3, most=0.99,
    placebo=0.0,
):  # fmt: skip
    names = [e8.GDPO, e8.SUM, e8.PLAIN]
    count = xr.DataArray(
        [[100.0] * 3, [100 * few] + [100 * vectors] * 2, [50.0] * 3],
        {"algorithm": names, "group": e8.COUNTED},
    )
    labels = {
        "kind": list(e8.KINDS), "algorithm": names, "optimizer": ["SGD", "SGD, equal advantages", "AdamW"],
        "iteration": [1, 2], "context": range(8),
    }  # fmt: skip
    kept = xr.DataArray(0.8 + 1e-4 * RNG.normal(size=[len(v) for v in labels.values()]), labels)
    kept.loc[{"algorithm": e8.GDPO}] += gain
    kept.loc[{"algorithm": e8.GDPO, "optimizer": "SGD, equal advantages"}] += slow - gain
    kept.loc[{"algorithm": e8.GDPO, "iteration": 2}] += late
    same = xr.Dataset({"kept": kept})
    return {
        "counted": xr.Dataset({"vectors": count, "two": two, "three": three}),
        "identities": xr.Dataset({"advantage": 0.0, "update": 0.0, "placebo": placebo}),
        "sizes": xr.Dataset({"first": xr.DataArray([first, most, 0.9], {"algorithm": names})}),
        "exact": same,
        "sampled": same,
    }


@pytest.mark.parametrize(
    ("changed", "want"),
    [
        ({}, "++++"),
        ({"gain": 0.0}, "-+++"),
        ({"slow": 0.0}, "-+++"),
        ({"late": -0.1}, "++++"),
        ({"late": -0.3}, "-+++"),
        ({"vectors": 0.6}, "--++"),
        ({"few": 0.6}, "++++"),
        ({"two": 0.0}, "++q+"),
        ({"three": 0.0}, "++-+"),
        ({"first": 0.4}, "+++-"),
        ({"most": 0.5}, "+++-"),
        ({"placebo": 1e-6}, "?+++"),
    ],
)
def test_what_e8_says_falls_when_it_should(changed, want):
    assert verdicts(e8, e8_data(**changed)) == want


def test_every_group_of_pairs_once():
    """As many multisets of G out of four pairs as C(G + 3, 3); the paper's two answers by hand."""
    for size in (2, 4, 8):
        found = {tuple(map(tuple, rows)) for rows in pairs_of_rewards.groups(size)}
        assert len(found) == math.comb(size + 3, 3)
    one, both = (pairs_of_rewards.by_hand(np.array([[0.0, 0.0], pair])) for pair in ([0.0, 1.0], [1.0, 1.0]))
    np.testing.assert_allclose(one[e8.SUM], [-1, 1])
    np.testing.assert_allclose(both[e8.SUM], [-1, 1])
    np.testing.assert_allclose(one[e8.GDPO], [-1, 1])
    np.testing.assert_allclose(both[e8.GDPO], [-2, 2])


def test_advantage_vectors_of_pairs_on_paper():
    """GDPO 0, ±1 and ±2 (opposite rewards cancel); GRPO 0 and ±1; without σ 0, ±1/2 and ±1."""
    found = pairs_of_rewards.counted([2]).squeeze("group")
    assert {name: int(found.sel(algorithm=name)) for name in (e8.GDPO, e8.SUM, e8.PLAIN)} == {
        e8.GDPO: 3, e8.SUM: 2, e8.PLAIN: 3,
    }  # fmt: skip


def test_two_rewards_whose_sum_ties_cancel_and_three_need_not():
    """r_2 = c − r_1 has the spread of r_1 and its deviations turned; of three, two need not cancel one."""
    assert pairs_of_rewards.silent(2) < 1e-12
    rows = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], float)
    wide, narrow = 0.5, math.sqrt(3) / 4
    first = 0.5 / wide - 2 * 0.25 / narrow
    np.testing.assert_allclose(pairs_of_rewards.by_hand(rows)[e8.GDPO][0], first)
    assert pairs_of_rewards.silent(3) >= abs(first)


def test_success_and_starts():
    """a(1 − (1 − x)²), x = (n − 1)/(T − 1), and lengths that are nearly normal about .8 T."""
    space = phantoms.stops(5)
    assert sorted(phantoms.lengths_of(space)) == [1, 2, 3, 4, 5]
    table = phantoms.success(space)
    for s, n in enumerate(phantoms.lengths_of(space)):
        x = (n - 1) / 4
        np.testing.assert_allclose(table[phantoms.ABLE][:, s], phantoms.ABILITIES * (1 - (1 - x) ** 2))
        np.testing.assert_allclose(table[phantoms.HARD][:, s], phantoms.ABILITIES * (1 - (1 - x) ** 2) / 5)
    logits = phantoms.start(space)[0]
    stop = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))
    stop[-1] = 1
    chance = stop * np.cumprod([1, *(1 - stop[:-1])])
    want = np.exp(-0.5 * ((np.arange(1, 6) / 5 - 0.8) / 0.15) ** 2)
    np.testing.assert_allclose(chance, want / want.sum(), rtol=1e-10)


def test_silent_groups_by_hand_on_one_prompt():
    """Two lengths, one outcome: half the groups of three of 1, 1, 2 and 1, 2, 2 push the stop alike."""
    logits = np.zeros((1, phantoms.TRIED.offsets[-1], 3))
    found = phantoms.of_one_outcome(logits, np.zeros((1, phantoms.TRIED.size)), power=0.0, eps=0.0)
    tokens, mask = phantoms.TRIED.support
    length = mask.sum(1)
    chance = 3.0**-length
    mean = chance @ length
    want = np.zeros(3)
    for row, n, p in zip(tokens, length, chance, strict=True):
        want[row[0]] += p * -(n - mean) / 3
    # E (1/G)Σ(r_i − r̄)∇log π = (1 − 1/G) Cov(r, ∇log π), at the root: the first token's.
    np.testing.assert_allclose(found[0, 0], (1 - 1 / 3) * want, atol=1e-12)
