"""Rules that judge F2 and F3, with numbers made up for the purpose; what answers do to each other by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from experiments.claims import f02_losers_winners as f2
from experiments.claims import f03_few_parameters as f3
from experiments.problems import winners
from grpo_jax import optimizers
from tests import made_up_claims
from tests.made_up_claims import verdicts

RNG = np.random.default_rng(0)
SEEDS = range(8)


def noisy(value, **labels):
    """With less noise than margins of a millionth."""
    return made_up_claims.noisy(value, 1e-7, **labels)


def f2_data(
    *, falls=0.05, marginal=0.2, constant=0.05, alone=0.0, lone=0.0, lift=0.3, later=0.1, table=0.5, gap=0.0
):
    policies = ["tree", *f2.NETWORKS]
    labels = {"policy": policies, "seed": SEEDS, "group": f2.GROUPS, "weight": list(f2.DIVIDED)}
    labels |= {"success": list(f2.RANGES), "rights": list(f2.RIGHTS)}
    groups = xr.Dataset(
        {
            "falls": noisy(falls, **labels),
            "marginal": noisy(marginal, **labels),
            "losers lower": noisy(0.2, **labels),
            "falls without": noisy(alone, **labels),
            "losers over winners": noisy(lift, **labels),
        }
    )
    groups.falls.loc[{"weight": "constant"}] += constant - falls
    groups["falls without"].loc[{"rights": "one"}] = lone
    by = {"policy": policies, "seed": SEEDS, "shared": range(4)}
    alike = xr.Dataset({"any": noisy(0.0, **by), "prefix": noisy(table, **by), "later": 0.0})
    alike["any"].loc[{"shared": 3}] += 0.5
    alike["later"] = xr.DataArray(np.zeros((3, 8)), {"policy": policies, "seed": SEEDS})
    alike.later.loc[{"policy": f2.NETWORKS}] = later
    identities = xr.Dataset({"tree": gap, "score": ("policy", [0.0] * 3), "library": ("tried", [0.0] * 2)})
    return {"groups": groups, "alike": alike, "identities": identities}


def f3_data(*, few=1.0, half=0.5, sgd=0.6, start=0.35, top=0.1, best=2, rounded=2, placebo=0.0):
    labels = {"optimizer": list(f3.RATES), "storage": f3.STORAGES, "seed": range(8)}
    changed = noisy(1.0, **labels) - 1e-6
    changed.loc[{"optimizer": "SGD", "storage": "float32"}] *= few
    changed.loc[{"optimizer": "SGD", "storage": "bfloat16"}] *= half
    accuracy = noisy(0.6, **labels)
    accuracy.loc[{"optimizer": "SGD"}] = sgd
    found = {"accuracy": accuracy, "changed": changed, "visible": changed, "top": noisy(top, **labels)}
    found["best"] = xr.full_like(accuracy.isel(seed=0, drop=True), best, int)
    tried = xr.Dataset({"changed": ("step", [placebo, 1.0])})
    found["best"].loc[{"optimizer": "SGD", "storage": "bfloat16"}] = rounded
    return {"rates": tried, "judged": xr.Dataset(found).assign(start=start, parameters=1000)}


YES, NO, IF, OPEN = "reproduced", "refuted", "qualified", "not testable here"


@pytest.mark.parametrize(
    ("changed", "want"),
    [
        ({}, [YES, YES, YES, NO, YES]),
        ({"falls": 0.0}, [NO, OPEN, YES, NO, YES]),
        ({"marginal": 0.01}, [NO, YES, YES, NO, YES]),
        ({"constant": 0.0}, [IF, YES, YES, NO, YES]),
        ({"alone": 0.02}, [YES, IF, YES, NO, YES]),
        ({"alone": 0.04}, [YES, NO, YES, NO, YES]),
        ({"lone": 0.001}, [YES, OPEN, YES, NO, YES]),
        ({"later": 0.0}, [YES, YES, NO, NO, YES]),
        ({"table": -0.5}, [YES, YES, YES, YES, YES]),
        ({"lift": -0.3}, [YES, YES, YES, NO, NO]),
        ({"gap": 1e-3}, [OPEN, YES, YES, NO, YES]),
    ],
)
def test_what_f2_says_falls_when_it_should(changed, want):
    assert verdicts(f2, f2_data(**changed)) == want


@pytest.mark.parametrize(
    ("changed", "want"),
    [
        ({}, [NO, YES, YES, YES]),
        ({"half": 1e-4}, [IF, YES, YES, YES]),
        ({"half": 1e-4, "few": 1e-4}, [YES, YES, NO, YES]),
        ({"half": 1.0}, [NO, YES, NO, YES]),
        ({"sgd": 0.5}, [NO, NO, YES, YES]),
        ({"top": 0.6}, [NO, YES, YES, NO]),
        ({"best": 1}, [OPEN, OPEN, YES, YES]),
        ({"rounded": 5}, [OPEN, OPEN, YES, YES]),
        ({"start": 0.55}, [OPEN, OPEN, YES, YES]),
        ({"placebo": 0.01}, [OPEN, YES, YES, YES]),
    ],
)
def test_what_f3_says_falls_when_it_should(changed, want):
    assert verdicts(f3, f3_data(**changed)) == want


def test_a_run_without_a_case_in_a_range_is_left_out_of_it():
    data = f2_data()
    data["groups"].loc[{"seed": 0, "success": next(iter(f2.BINS))}] = np.nan
    assert verdicts(f2, data)[-1] == YES


def test_shares_are_counted_by_range_and_by_right_answers():
    """By hand: a fall, a fall by the winners alone, a rise by little, a full rise, one out of range."""
    gain, loss = [1.0, -1.0, 1.0, 1.0, 1.0], [-2.0, 0.5, -0.6, 0.1, -9.0]
    success, rights = [0.1, 0.1, 0.3, 0.3, 0.99], [1, 2, 2, 1, 1]
    given = {"gain": gain, "loss": loss, "success": success, "rights": rights}
    cases = xr.Dataset({name: ("case", np.array(values)) for name, values in given.items()})
    names = ["falls", "falls without", "marginal", "losers lower"]

    def found(kind, success):
        here = f2.by_range(cases, *f2.RIGHTS[kind]).sel(success=success)
        return [float(here[name]) for name in names]

    assert found("any", "all") == [0.5, 0.25, 0.75, 0.5]
    assert found("two", "all") == [0.5, 0.5, 1.0, 0.5]
    assert found("one", ".2-.5") == [0.0, 0.0, 0.0, 0.0]
    assert found("any", ".05-.2") == [1.0, 0.5, 1.0, 0.5]
    assert np.isnan(found("any", ".5-.8")).all()


def test_groups_are_split_as_summed_one_by_one():
    """Three answers drawn again by the same generator; every right answer among them, sum by sum."""
    table = winners.rewards()
    probabilities = RNG.dirichlet(np.ones(winners.SPACE.size) * 0.3, size=winners.CONTEXTS)
    probabilities = 0.5 * probabilities + 0.5 * table / table.sum(1, keepdims=True)
    pulls = RNG.normal(size=(len(winners.WINNERS), winners.SPACE.size))
    found = winners.split_groups(probabilities, pulls, group=4, draws=20, by_length=True, seed=3)
    again, nets = np.random.default_rng(3), []
    for c in range(winners.CONTEXTS):
        counts = again.multinomial(4, probabilities[c] / probabilities[c].sum(), size=20)
        for w, (context, row) in enumerate(winners.WINNERS):
            for drawn in counts if context == c else ():
                answers = np.repeat(np.arange(len(drawn)), drawn)
                rewards = table[c, answers]
                if row in answers and 0 < rewards.mean() < 1:
                    a = (rewards - rewards.mean()) / rewards.std()
                    nets.append(sum(a * pulls[w, answers] / winners.LENGTHS[answers]) / 4)
    np.testing.assert_allclose((found.gain + found["loss"]).values, nets, rtol=1e-9)
    assert (found.success > 0).all()
    assert set(found.rights.values) == {1, 2}


def test_tokens_shared_are_counted_by_place():
    row = winners.place((0, 1, 0, 2))
    shared, before = winners.agreement(row)
    for answer, want in {(0, 1, 2): (2, 2), (1, 1, 0, 2): (3, 0), (2,): (0, 0), (0, 0, 0, 1): (2, 1)}.items():
        other = winners.place(answer)
        assert (shared[other], before[other]) == want


def test_a_step_keeps_bfloat16_where_rates_are_traced():
    """Parameters and moments, and by hand: 1 + 2⁻¹⁰ is rounded back to 1, 1 + 2⁻⁶ is not."""
    params = {"a": jnp.ones(2, jnp.bfloat16)}
    grads = {"a": jnp.asarray([-(2.0**-10), -(2.0**-6)], jnp.bfloat16)}

    @jax.jit
    def steps(rate):
        own = optimizers.SGD(learning_rate=rate), optimizers.AdamW(learning_rate=rate, b1=rate * 0.9)
        state = [optimizers.init(o, params, runs=False) for o in own]
        return state, [
            optimizers.step(o, grads, s, params, runs=False) for o, s in zip(own, state, strict=True)
        ]

    before, after = steps(jnp.float32(1.0))
    kinds = [[leaf.dtype for leaf in jax.tree.leaves(s)] for s in before]
    assert [[leaf.dtype for leaf in jax.tree.leaves(s)] for _, s, _ in after] == kinds
    assert all(new["a"].dtype == jnp.bfloat16 for new, _, _ in after)
    assert after[0][0]["a"].astype(float).tolist() == [1.0, 1 + 2.0**-6]
