"""Tasks: means, draws and laws of rewards against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from grpo_jax.random import Stream, uniforms
from grpo_jax.sequences import Sequences
from grpo_jax.tasks import Bernoulli, Gaussian, Questions, SequenceReward, SequenceTable

SPACE = Sequences(vocab=3, horizon=2, eos=2)
TABLE = np.array([[0.1, 0.9, 0.5], [0.0, 1.0, 0.3]])
PROMPTS = np.arange(2)
DRAWN = 40_000


def noise(shape, seed=0):
    return uniforms(jnp.uint32(1), jnp.asarray(seed, jnp.uint32), jnp.uint32(0), Stream.REWARD, shape)


def answers(size=DRAWN):
    return np.broadcast_to(np.arange(size)[None, :, None] % 3, (2, size, 1))


def reward(task, tokens, u=None):
    u = noise(tokens.shape[:2]) if u is None else u
    return np.asarray(jax.jit(lambda t, u: t.rewards(PROMPTS, tokens, np.ones(tokens.shape), u))(task, u))[
        :, :, 0
    ]


def test_without_noise_a_reward_is_its_mean_times_phi():
    task = Questions(table=TABLE, scale=3.0)
    tokens = answers(6)
    expected = 3 * TABLE[:, [0, 1, 2, 0, 1, 2]]
    np.testing.assert_allclose(reward(task, tokens), expected, rtol=1e-6)
    np.testing.assert_allclose(task.means(PROMPTS, tokens, None), expected, rtol=1e-6)
    law = task.levels(PROMPTS, tokens, None)
    np.testing.assert_allclose(law.values[..., 0], expected, rtol=1e-6)
    np.testing.assert_array_equal(law.probabilities, 1)


def test_bernoulli_rewards_have_their_law():
    task = Questions(table=TABLE, noise=Bernoulli(), scale=2.0)
    found = reward(task, answers())
    assert set(np.unique(found)) == {0.0, 2.0}
    for c in range(2):
        for k in range(3):
            hits, trials = (found[c, k::3] > 0).sum(), len(found[c, k::3])
            assert stats.binomtest(int(hits), trials, TABLE[c, k]).pvalue > 1e-4
    law = task.levels(PROMPTS, answers(3), None)
    np.testing.assert_allclose(law.probabilities.sum(2), 1, rtol=1e-6)
    np.testing.assert_allclose(law.probabilities[..., 1], TABLE, rtol=1e-6)
    np.testing.assert_allclose((law.values * law.probabilities).sum(2), 2 * TABLE, rtol=1e-6)
    np.testing.assert_allclose(task.means(PROMPTS, answers(3), None), 2 * TABLE, rtol=1e-6)


def test_gaussian_rewards_have_their_law():
    task = Questions(table=TABLE, noise=Gaussian(std=0.5), scale=2.0)
    found = reward(task, answers())
    for c in range(2):
        for k in range(3):
            law = stats.norm(loc=2 * TABLE[c, k], scale=1.0)
            assert stats.kstest(found[c, k::3], law.cdf).pvalue > 1e-4
    assert task.levels(PROMPTS, answers(3), None) is None
    np.testing.assert_allclose(task.means(PROMPTS, answers(3), None), 2 * TABLE, rtol=1e-6)


def test_gaussian_noise_has_no_outlier_at_the_ends_of_the_uniforms():
    """u = 0 and u = 1 − 2⁻²⁴ are about as far out as 2²⁴ draws go, on either side."""
    ends = np.array([0.0, 1 - 2.0**-24], np.float32)[None].repeat(2, 0)
    low, high = reward(Questions(table=np.zeros((2, 3)), noise=Gaussian()), answers(2), ends)[0]
    assert stats.norm.ppf(2.0**-26) < low < stats.norm.ppf(2.0**-24)
    assert stats.norm.ppf(1 - 2.0**-23) < high < stats.norm.ppf(1 - 2.0**-26)


def test_prompts_are_uniform_over_contexts():
    u = noise((DRAWN,))
    for task in (
        Questions(table=np.zeros((5, 2))),
        SequenceTable(space=SPACE, table=np.zeros((5, 7))),
        SequenceReward(function=lambda prompts, tokens, mask: mask.sum(2), contexts=5),
    ):
        drawn = np.asarray(task.prompts(u))
        assert stats.chisquare(np.bincount(drawn, minlength=5)).pvalue > 1e-4
    assert int(Questions(table=np.zeros((3, 2))).prompts(jnp.array([np.nextafter(np.float32(1), 0)]))[0]) == 2


def test_a_table_over_sequences_is_read_by_row():
    tokens, mask = SPACE.support
    table = np.arange(2.0 * len(tokens)).reshape(2, -1)
    task = SequenceTable(space=SPACE, table=table, scale=0.5)
    shape = (2, *tokens.shape)
    given = np.broadcast_to(np.where(mask > 0, tokens, 1), shape), np.broadcast_to(mask, shape)
    read = jax.jit(lambda task: (task.means(PROMPTS, *given), task.rewards(PROMPTS, *given, 0.0)[..., 0]))
    for found in read(task):
        np.testing.assert_array_equal(found, table / 2)


def test_a_function_of_the_tokens_is_a_task():
    tokens, mask = SPACE.support
    task = SequenceReward(function=lambda prompts, tokens, mask: jnp.sum(mask * (tokens == 1), 2), contexts=2)
    shape = (2, *tokens.shape)
    found = task.means(PROMPTS, np.broadcast_to(tokens, shape), np.broadcast_to(mask, shape))
    np.testing.assert_array_equal(
        found, [[((row == 1) * live).sum() for row, live in zip(*SPACE.support, strict=True)]] * 2
    )
    coin = SequenceReward(function=task.function, contexts=2, noise=Bernoulli(), scale=4.0)
    law = coin.levels(PROMPTS, np.broadcast_to(tokens, shape), np.broadcast_to(mask, shape))
    np.testing.assert_array_equal(law.values[..., 1], 4)


@pytest.mark.parametrize(
    "law", [None, Bernoulli(), Gaussian(std=0.3)], ids=["exact", "bernoulli", "gaussian"]
)
def test_runs_as_the_last_axis_equal_a_loop_over_runs(law):
    rng = np.random.default_rng(0)
    tables, scales, seeds = rng.uniform(size=(2, 3, 4)), np.array([1.0, 2.0, 0.5, -1.0]), np.arange(4)
    tokens = rng.integers(0, 3, (2, 6, 1, 4))
    together = reward(Questions(table=tables, noise=law, scale=scales), tokens, noise((2, 6), seeds))
    for r in range(4):
        one = Questions(table=tables[..., r], noise=law, scale=scales[r])
        alone = reward(one, tokens[..., r], noise((2, 6), seeds[r]))
        np.testing.assert_allclose(together[..., r], alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Questions(table=np.zeros(3)), r"must be \[contexts, actions\]"),
        (lambda: Questions(table=[[0.0, np.nan]]), "NaN"),
        (lambda: Questions(table=[[0.0, 1.5]], noise=Bernoulli()), r"\[0, 1\] under Bernoulli"),
        (lambda: Questions(table=[[0.0, 1.0]], noise=Gaussian(std=-1.0)), "Gaussian.std is -1"),
        (lambda: Questions(table=[[0.0, 1.0]], scale=np.nan), "NaN"),
        (lambda: SequenceTable(space=SPACE, table=np.zeros((1, 6))), r"\[contexts, 7\]"),
        (
            lambda: SequenceTable(space=SPACE, table=np.full((1, 7), 2.0), noise=Bernoulli()),
            "under Bernoulli",
        ),
        (lambda: SequenceReward(function=len, contexts=0), "at least 1"),
    ],
)
def test_bad_tasks_are_refused(build, says):
    with pytest.raises(ValueError, match=says):
        build()
