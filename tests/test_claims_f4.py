"""The rule that judges F4, with accuracies made up for the purpose."""

import numpy as np
import pytest
import xarray as xr

from experiments.claims import f04_addition as f4
from tests.made_up_claims import verdicts


def made_up(reached, *, start=0.35, iterations=f4.LEAST, fast=(0.0, 0.3)):
    """Every seed's checks rise in a line to what it reaches at the last two."""
    at = np.linspace(0, iterations, f4.CHECKS + 1)[1:]

    def curves(rate, ends):
        rising = start + np.minimum(np.arange(1, f4.CHECKS + 1) / (f4.CHECKS - 1), 1)[:, None] * (
            np.asarray(ends) - start
        )
        places = {"learning_rate": [rate], "iteration": at, "seed": range(len(ends))}
        return xr.Dataset({"accuracy": (tuple(places), rising[None])}, coords=places)

    main = curves(f4.RATE, reached).assign(start=start, seconds=250.0, steps=400)
    return {"main": main, "besides": curves(f4.FAST, fast)}


@pytest.mark.parametrize(
    ("data", "verdict"),
    [
        (made_up([0.95] * 8), "reproduced"),
        (made_up([0.91] * 7 + [0.2]), "reproduced"),
        (made_up([0.91] * 6 + [0.89, 0.89]), "refuted"),
        (made_up([0.95] * 8, iterations=f4.LEAST // 2), "not testable here"),
        (made_up([0.95] * 8, start=0.45), "not testable here"),
        (made_up([0.95] * 8, fast=(0.99, 0.99)), "reproduced"),
    ],
)
def test_seven_of_eight_seeds_must_reach_nine_in_ten(data, verdict):
    assert verdicts(f4, data) == [verdict]


def test_only_the_last_two_checks_count():
    late = made_up([0.95] * 8)
    late["main"].accuracy[:, : f4.CHECKS - 2] = 0.0
    assert verdicts(f4, late) == ["reproduced"]
    late["main"].accuracy[:, -1] = 0.8
    assert verdicts(f4, late) == ["refuted"]
