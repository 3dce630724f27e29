"""Group preferences against brute force over ordered groups, and their limits."""

import itertools
import math
from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import theory
from grpo_jax.theory.counts import bernstein, histograms, multinomial_weights, stirling_remainder

pytestmark = pytest.mark.usefixtures("x64")


def brute_force(policy, values, probs, group_size, ddof=0.0, added=0.0, power=1.0):
    """E[A_1 | o_1] as a sum over every ordered group of (output, reward) pairs."""
    actions, kinds = values.shape
    cells = [(o, m) for o in range(actions) for m in range(kinds)]
    expected = np.zeros(actions)
    for own, *rest in itertools.product(cells, repeat=group_size):
        weight = probs[own] * np.prod([policy[o] * probs[o, m] for o, m in rest])
        rewards = np.array([values[cell] for cell in [own, *rest]])
        if np.ptp(rewards) > 0:
            spread = rewards.std(ddof=ddof) + added
            expected[own[0]] += weight * (rewards[0] - rewards.mean()) / spread**power
    return expected


@pytest.mark.parametrize(
    ("actions", "kinds", "group_size", "convention"),
    [
        (3, 1, 2, theory.PAPER),
        (3, 1, 5, theory.PAPER),
        (4, 1, 3, theory.Convention(ddof=1)),
        (2, 2, 4, theory.Convention(ddof=1, added=0.02)),
        (3, 2, 3, theory.Convention(ddof=0, added=0.3, power=0.5)),
        (4, 1, 4, theory.Convention(power=0)),
    ],
)
def test_group_preference_is_the_sum_over_all_groups(actions, kinds, group_size, convention):
    rng = np.random.default_rng(actions * kinds * group_size)
    policy = rng.dirichlet(np.ones(actions))
    values = rng.integers(0, 4, (actions, kinds)).astype(float)
    probs = rng.dirichlet(np.ones(kinds), actions)
    expected = brute_force(policy, values, probs, group_size, *convention)
    merged = theory.reward_table(values, probs)
    options = {"group_size": group_size, "convention": convention}
    np.testing.assert_allclose(theory.group_preference(policy, merged, **options), expected, atol=3e-15)
    traced = jax.jit(lambda v: theory.group_preference(policy, theory.reward_table(v, probs), **options))
    np.testing.assert_allclose(traced(values), expected, atol=3e-15)
    assert abs(policy @ expected) < 1e-15


def test_pairs_compare_and_ignore_increasing_transforms_while_triples_do_not():
    policy = np.array([0.2, 0.5, 0.3])
    values = np.array([[0.0, 2.0], [1.0, 1.5], [-1.0, 5.0]])
    probs = np.array([[0.4, 0.6], [0.7, 0.3], [0.5, 0.5]])
    table, bent = theory.reward_table(values, probs), theory.reward_table(np.exp(values), probs)
    pairs = theory.group_preference(policy, table, group_size=2)
    np.testing.assert_allclose(pairs, theory.pairwise_payoffs(table) @ policy, atol=1e-15)
    np.testing.assert_allclose(pairs, theory.group_preference(policy, bent, group_size=2), atol=1e-15)
    triples = [theory.group_preference(policy, t, group_size=3) for t in (table, bent)]
    assert np.max(abs(triples[0] - triples[1])) > 1e-3


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_preferences_do_not_depend_on_the_scale_of_rewards(scale):
    policy, rewards = np.array([0.2, 0.5, 0.3]), np.array([0.0, 1.0, 3.0])
    for group_size in (4, math.inf):
        expected = theory.group_preference(policy, theory.reward_table(rewards), group_size=group_size)
        table = theory.reward_table(scale * rewards)
        np.testing.assert_allclose(theory.group_preference(policy, table, group_size=group_size), expected)


def test_large_groups_approach_the_limit_at_rate_one_over_the_group():
    policy, table = np.array([0.2, 0.5, 0.3]), theory.reward_table([0.0, 1.0, 3.0])
    limit = theory.group_preference(policy, table, group_size=math.inf)
    mean = 0.5 + 0.9
    np.testing.assert_allclose(limit, (np.array([0, 1, 3]) - mean) / np.sqrt(0.5 + 2.7 - mean**2), atol=1e-14)
    sizes = np.array([64, 128, 256])
    errors = [
        np.max(abs(theory.group_preference(policy, table, group_size=int(size)) - limit)) for size in sizes
    ]
    rate = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert -1.1 < rate < -0.9


def test_derivatives_are_finite_differences():
    table = theory.reward_table([0.0, 1.0, 3.0])
    convention = theory.Convention(ddof=1, added=0.1)

    def preference(logits, levels):
        policy = jax.nn.softmax(logits)
        rewards = theory.Rewards(levels, table.probs)
        return theory.group_preference(policy, rewards, group_size=5, convention=convention)

    point = jnp.array([0.1, -0.4, 0.7]), table.levels
    for index in (0, 1):
        jacobian = jax.jacrev(preference, index)(*point)
        for k in range(3):
            ends = [[*point], [*point]]
            ends[0][index], ends[1][index] = point[index].at[k].add(1e-5), point[index].at[k].add(-1e-5)
            slope = (preference(*ends[0]) - preference(*ends[1])) / 2e-5
            np.testing.assert_allclose(jacobian[:, k], slope, atol=1e-9)


@pytest.mark.parametrize("group_size", [2, 3, 64, 4096])
@pytest.mark.parametrize("p", [2.0**-13, 0.3125, 0.5, 1 - 2.0**-9])
def test_phi_to_fifty_digits(group_size, p):
    with localcontext() as context:
        context.prec = 50
        x = Decimal(p)
        terms = (
            Decimal(math.comb(group_size, k))
            * x**k
            * (1 - x) ** (group_size - k)
            * Decimal(k * (group_size - k)).sqrt()
            for k in range(1, group_size)
        )
        expected = float(sum(terms) / group_size)
    np.testing.assert_allclose(theory.phi(p, group_size=group_size), expected, rtol=2e-13)


def test_bernstein_derivatives_hold_at_the_ends():
    values = jnp.array([0.3, -1.0, 2.0, 0.5])

    def polynomial(p):
        return bernstein(values, p, 1 - p)

    for end, first, second in [
        (0.0, 3 * (-1.0 - 0.3), 6 * (2.0 + 2 * 1.0 + 0.3)),
        (1.0, 3 * (0.5 - 2.0), 6 * (0.5 - 2 * 2.0 - 1.0)),
    ]:
        np.testing.assert_allclose(jax.grad(polynomial)(end), first, atol=1e-13)
        np.testing.assert_allclose(jax.grad(jax.grad(polynomial))(end), second, atol=1e-13)


def test_multinomial_weights_sum_to_one_and_match_factorials():
    rows = histograms(7, 3)
    assert len({tuple(row) for row in rows.tolist()}) == math.comb(9, 2)
    assert np.all(rows.sum(1) == 7)
    q = np.array([0.2, 0.0, 0.8])
    expected = [
        math.factorial(7) / math.prod(math.factorial(n) for n in row) * math.prod(q**row) for row in rows
    ]
    weights = multinomial_weights(rows, 7, jnp.asarray(q))
    np.testing.assert_allclose(weights, expected, atol=1e-15)
    exact = [math.lgamma(n + 1) - n * math.log(n) + n for n in range(1, 60)]
    np.testing.assert_allclose(stirling_remainder(59)[1:], exact, rtol=1e-13)


def test_refusals():
    table = theory.reward_table([0.0, 1.0, 2.0])
    with pytest.raises(ValueError, match="8386560 histograms"):
        theory.group_preference(np.ones(3) / 3, table, group_size=4095)
    with pytest.raises(ValueError, match="at least 2"):
        theory.group_preference(np.ones(3) / 3, table, group_size=1)
    with pytest.raises(ValueError, match="do not fit"):
        theory.group_preference(np.ones(2) / 2, table, group_size=2)
    with pytest.raises(ValueError, match="ddof"):
        theory.group_preference(np.ones(3) / 3, table, group_size=2, convention=theory.Convention(ddof=2))
    with pytest.raises(ValueError, match="finite"):
        theory.reward_table([0.0, np.nan])
    with pytest.raises(ValueError, match="sum to 1"):
        theory.reward_table([[0.0, 1.0]], [[0.5, 0.6]])
    with pytest.raises(ValueError, match="antisymmetric"):
        theory.table_preference(np.eye(2))


def test_ties_give_exactly_zero_in_single_precision():
    with jax.enable_x64(False):
        value = theory.group_preference(jnp.array([0.3, 0.7]), theory.reward_table([0.1, 0.1]), group_size=8)
        assert value.dtype == jnp.float32
        assert value.tolist() == [0.0, 0.0]
