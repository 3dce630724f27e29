"""Sizes that follow from a configuration's numbers: by enumeration, by sums and by integration."""

import itertools
import math

import numpy as np
import pytest
from scipy import integrate, stats

from experiments.formulas.truncation import PLAIN, VOTELESS, VOTING, coefficients
from grpo_jax import theory


@pytest.mark.parametrize(("p", "group"), [(0.05, 2), (0.3, 4), (0.9, 6)])
def test_tied_groups_by_enumeration(p, group):
    total = 0.0
    for rewards in itertools.product((0, 1), repeat=group):
        if len(set(rewards)) == 1:
            total += math.prod(p if r else 1 - p for r in rewards)
    assert float(theory.tied_share(p, group_size=group)) == pytest.approx(total, rel=1e-12)


def test_the_price_of_a_mixed_group_is_a_geometric_sum():
    t = 0.3**4 + 0.7**4
    for tries in (1, 2, 5):
        expected = sum(t**n for n in range(tries))
        assert float(theory.refill_price(0.3, group_size=4, tries=tries)) == pytest.approx(expected)
    assert float(theory.refill_price(0.3, group_size=4)) == pytest.approx(1 / (1 - t))


def test_kept_mass_is_a_product():
    assert float(theory.kept_at_least(0.9, tokens=7)) == pytest.approx(math.prod([0.9] * 7))
    assert float(theory.kept_at_least(1.0, tokens=1e6)) == 1.0


@pytest.mark.parametrize(("chi2", "tokens", "cap"), [(0.01, 100, 3.0), (0.05, 40, 1.5), (1e-3, 2000, 0.8)])
def test_what_a_cap_leaves_by_integration(chi2, tokens, cap):
    """A lognormal weight of mean 1 whose second moment is (1 + χ²)^T."""
    s = math.sqrt(tokens * math.log1p(chi2))
    law = stats.lognorm(s=s, scale=math.exp(-s * s / 2))
    assert law.mean() == pytest.approx(1)
    assert law.moment(2) == pytest.approx((1 + chi2) ** tokens)
    kept = theory.bounded_weight(chi2, tokens=tokens, cap=cap)
    assert float(kept.answers) == pytest.approx(law.cdf(cap))
    log_weights = stats.norm(loc=-s * s / 2, scale=s)
    below = integrate.quad(lambda x: math.exp(x) * log_weights.pdf(x), -12 * s, math.log(cap))[0]
    assert float(kept.weight) == pytest.approx(below, rel=1e-6)


@pytest.mark.parametrize("cut", [0.1, 0.5])
def test_the_pressure_to_stop_is_that_of_the_expected_update(cut):
    """b of the update a ∇m + b ∇P, as a share of b without a mask."""
    whole = coefficients(1 - cut, 0.6, 8, PLAIN)[1]
    for handling, masked, votes in ((PLAIN, False, True), (VOTING, True, True), (VOTELESS, True, False)):
        expected = coefficients(1 - cut, 0.6, 8, handling)[1] / whole
        assert float(theory.stop_pressure(cut, masked=masked, votes=votes)) == pytest.approx(expected)


def test_a_policy_at_another_temperature():
    logits = np.array([1.3, -0.4])
    at = lambda tau: np.exp(logits / tau)[0] / np.exp(logits / tau).sum()  # noqa: E731
    for tau in (0.5, 1.0, 1.7):
        assert float(theory.at_temperature(at(tau), tau)) == pytest.approx(at(1.0))
    assert float(theory.at_temperature(1.0, 0.7)) == 1.0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: theory.tied_share(1.5, group_size=4), r"success must lie in \[0, 1\]"),
        (lambda: theory.tied_share(0.5, group_size=1), "a group has an integer size"),
        (lambda: theory.refill_price(1.0, group_size=4), "never mixed"),
        (lambda: theory.refill_price(0.5, group_size=4, tries=0), "tries must be > 0"),
        (lambda: theory.kept_at_least(1.2, tokens=3), "top_p must lie"),
        (lambda: theory.kept_at_least(0.9, tokens=-1), "tokens must be >= 0"),
        (lambda: theory.bounded_weight(0.0, tokens=3, cap=2), "chi2 must be > 0"),
        (lambda: theory.bounded_weight(0.1, tokens=0, cap=2), "tokens must be > 0"),
        (lambda: theory.bounded_weight(0.1, tokens=3, cap=0), "cap must be > 0"),
        (lambda: theory.stop_pressure(-0.1, masked=True), "cut_off must lie"),
        (lambda: theory.at_temperature(0.5, 0.0), "temperature must be > 0"),
    ],
)
def test_bad_input_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()
