"""C7's rule, its score, and the one program that trains all of its methods."""

import numpy as np
import pytest
import xarray as xr

from experiments.claims import c07_networks as c7
from tests.made_up_claims import verdicts

SEEDS = 6
WOBBLE = np.random.default_rng(0).normal(0, 0.02, SEEDS)
"""What the seeds of all methods share; pairs do not see it."""


def made_up(*, length=3.0, grpo=0.25, spread=0.0, **ends):
    """Accuracy rises in a line by what each method gains; all answers are as long."""
    rng = np.random.default_rng(1)
    at = np.linspace(0, 100, c7.CHECKS + 1)

    def task(start, own):
        values = np.zeros((len(c7.METHODS), SEEDS, len(at)))
        for k, name in enumerate(c7.METHODS):
            gain = own.get(name, grpo) + WOBBLE + spread * rng.normal(size=SEEDS)
            values[k] = start + gain[:, None] * at / 100
        places = {"algorithm": list(c7.METHODS), "seed": range(SEEDS), "iteration": at}
        lengths = np.full(values.shape, length)
        data = xr.Dataset({"accuracy": (tuple(places), values), "length": (tuple(places), lengths)}, places)
        return data.assign(rate=("algorithm", np.full(len(c7.METHODS), 1e-4)))

    return {name: task(sum(c7.BANDS[name]) / 2, ends.get(name, {})) for name in c7.TASKS}


def everywhere(**own):
    names = {"tic": c7.TIC, "frozen": c7.FROZEN, "score": c7.SCORE}
    return {task: {names[k]: v for k, v in own.items()} for task in c7.TASKS}


BETTER, WORSE = 0.45, 0.05
"""A line that ends .2 away has a score .09 away."""


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (made_up(**everywhere(tic=BETTER)), ["reproduced", "reproduced", "reproduced"]),
        (made_up(), ["qualified", "reproduced", "reproduced"]),
        (made_up(**everywhere(tic=WORSE)), ["refuted", "reproduced", "reproduced"]),
        (made_up(scratchpad={c7.TIC: WORSE}, addition={c7.TIC: BETTER}), ["refuted"] + ["reproduced"] * 2),
        (made_up(addition={c7.TIC: BETTER}), ["qualified", "reproduced", "reproduced"]),
        (made_up(**everywhere(tic=BETTER, frozen=WORSE)), ["reproduced", "refuted", "reproduced"]),
        (made_up(**everywhere(tic=BETTER, frozen=BETTER)), ["reproduced", "refuted", "reproduced"]),
        (made_up(scratchpad={c7.SCORE: WORSE}), ["qualified", "reproduced", "refuted"]),
        (made_up(spread=0.2), ["not testable here"] * 3),
        (made_up(grpo=0.03), ["not testable here"] * 3),
    ],
)
def test_the_rule_on_networks(data, wanted):
    assert verdicts(c7, data) == wanted


@pytest.mark.parametrize("rate", [min(c7.RATES), max(c7.RATES)])
def test_a_best_rate_at_the_end_of_the_grid_decides_nothing_for_its_method(rate):
    data = made_up(**everywhere(tic=BETTER))
    data["scratchpad"].rate.loc[{"algorithm": c7.FROZEN}] = rate
    assert verdicts(c7, data) == ["reproduced", "not testable here", "reproduced"]


def test_the_score_is_a_mean_over_tokens_up_to_the_budget():
    """Lengths of 2 then 4: of 640·8 tokens that the start would sample in ten batches, nine tenths count."""
    at = [0, 5, 10]
    data = xr.Dataset(
        {
            "accuracy": (("seed", "iteration"), [[0.2, 0.6, 0.7]]),
            "length": (("seed", "iteration"), [[2.0, 2.0, 4.0]]),
        },
        {"iteration": at, "seed": [0]},
    )
    np.testing.assert_allclose(c7.tokens(data)[0], [0, 64 * 10, 64 * 25])
    most = 0.9 * 64 * 10 * 2
    first, slope = 640 * (0.2 + 0.6) / 2, (0.7 - 0.6) / (64 * 15)
    rest = (most - 640) * (0.6 + slope * (most - 640) / 2)
    np.testing.assert_allclose(c7.score(data), (first + rest) / most, rtol=1e-3)


def test_a_run_that_samples_less_keeps_its_last_accuracy():
    data = xr.Dataset(
        {
            "accuracy": (("seed", "iteration"), [[0.0, 0.5, 0.5]]),
            "length": (("seed", "iteration"), [[4.0, 0.0, 0.0]]),
        },
        {"iteration": [0, 5, 10], "seed": [0]},
    )
    found = c7.curves(data)
    assert float(found.tokens[-1]) == pytest.approx(0.9 * 64 * 40)
    np.testing.assert_allclose(found.sel(tokens=slice(64 * 10, None)), 0.5)
