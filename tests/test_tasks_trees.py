"""Tree tasks reward what they say, on every output."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.tasks import trees


def test_outputs_are_the_support_without_eos():
    space = trees.free_length(vocab=3, horizon=3)
    assert trees.outputs(space) == [
        (0, 0, 0), (0, 0, 1), (0, 0), (0, 1, 0), (0, 1, 1), (0, 1), (0,),
        (1, 0, 0), (1, 0, 1), (1, 0), (1, 1, 0), (1, 1, 1), (1, 1), (1,),
    ]  # fmt: skip


@pytest.mark.parametrize("prefix", [1, 2, 3])
def test_free_length_starts_after_the_prefix(prefix):
    space = trees.free_length(vocab=3, horizon=4, prefix=prefix)
    lengths = {int(n) for n in space.support[1].sum(1)}
    assert lengths == set(range(prefix + 1, 5)) | {4}


def test_every_output_shares_a_shared_prefix():
    space = trees.shared_prefix(vocab=3, horizon=4, prefix=2)
    tokens, mask = space.support
    assert (tokens[:, :2] == 0).all()
    assert set(mask.sum(1)) == {3.0, 4.0}


@pytest.mark.parametrize(
    ("make", "reward"),
    [
        (trees.first_token, lambda y: float(y[0] == 0)),
        (lambda space: trees.decision(space, at=1, right=1), lambda y: float(len(y) > 1 and y[1] == 1)),
        (trees.final_answer, lambda y: float(y[-1] == 0)),
        (lambda space: trees.tabulated(space, len), lambda y: float(len(y))),
    ],
)
def test_rewards_are_the_function_of_the_tokens(make, reward):
    space = trees.free_length(vocab=3, horizon=4)
    task = make(space)
    tokens, mask = (jnp.asarray(x)[None] for x in space.support)
    found = task.rewards(np.zeros(1, int), tokens, mask, jnp.zeros(tokens.shape[:2]))[0, :, 0]
    np.testing.assert_array_equal(found, [reward(y) for y in trees.outputs(space)])


def test_each_context_has_its_function():
    space = trees.free_length(horizon=2)
    task = trees.tabulated(space, len, lambda y: 0.0)
    assert task.table.shape == (2, 6)
    assert not task.table[1].any()


def test_placebo_rewards_do_not_depend_on_the_output():
    space = trees.free_length(horizon=3)
    task = trees.placebo(space, probability=0.3)
    tokens, mask = (jnp.asarray(x)[None] for x in space.support)
    np.testing.assert_allclose(task.means(np.zeros(1, int), tokens, mask), 0.3)
    uniforms = jax.random.uniform(jax.random.key(0), tokens.shape[:2])
    rewards = task.rewards(np.zeros(1, int), tokens, mask, uniforms)[:, :, 0]
    np.testing.assert_array_equal(rewards, uniforms < 0.3)


def test_graded_rewards_fill_the_unit_interval():
    task = trees.graded(trees.free_length(), seed=1)
    assert ((task.table >= 0) & (task.table <= 1)).all()
    assert np.unique(task.table).size == task.table.size
