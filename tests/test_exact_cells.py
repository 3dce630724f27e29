"""Into how many cells outcomes fall, and what happens where contexts, runs or settings have other cells."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import methods, train
from grpo_jax.config import Config, Loop, TrainState
from grpo_jax.exact import Exact, expected_gradient, expected_objective, expected_preference, moves_cells
from grpo_jax.optimizers import SGD
from grpo_jax.part import part, put_all
from grpo_jax.parts import advantages as adv
from grpo_jax.parts import corrections, shaping
from grpo_jax.parts.returns import Standardized
from grpo_jax.policies import ActionPolicy, TreePolicy
from grpo_jax.sequences import Sequences
from grpo_jax.sweeps import sweep
from grpo_jax.tasks import Bernoulli, Questions, SequenceTable

pytestmark = pytest.mark.usefixtures("x64")

SPACE = Sequences(vocab=2, horizon=3, eos=1)
"""Four outputs, of lengths 3, 3, 2 and 1."""
TWO_LEVELS = (1.0, 0.0, 1.0, 0.0)


def tree(method=methods.grpo, *, table=(1.0, 0.0, 0.5, 0.0), noise=None):
    """Four outputs of one prompt, and where training starts no two are equally likely."""
    return Config(
        policy=TreePolicy(space=SPACE, logits=np.array([[[0.7, -0.4], [0.2, 0.5], [1.1, -0.8]]])),
        task=SequenceTable(space=SPACE, table=np.array([table]), noise=noise),
        method=method, optimizer=SGD(learning_rate=0.1), loop=Loop(group_size=3), expectation=Exact(),
    )  # fmt: skip


def repeated(table, count):
    """A table that every run has a copy of."""
    return np.repeat(np.asarray(table)[..., None], count, -1)


def cells_of(config):
    return Exact().resolved(config).cells


def test_cells_are_chosen_where_they_serve():
    def of(**slots):
        return cells_of(tree(dataclasses.replace(methods.grpo, **slots), table=TWO_LEVELS))

    assert cells_of(tree()) == 3
    assert cells_of(tree(table=TWO_LEVELS, noise=Bernoulli())) == 2
    assert of() == 2
    assert of(shaping=shaping.DivideByLength()) == 3
    assert of(advantage=adv.Normalized(center=adv.LengthWeightedMean())) == 0
    assert of(shaping=shaping.NormalizedSum()) == 2
    assert of(corrections=(corrections.Conflict(),)) == 0
    assert of(shaping=shaping.KLInReward(coef=0.3)) == 0


@part
class FirstToken:
    """A shaping and an advantage from outside that reads tokens, and couples nothing."""

    def __call__(self, rollout, *rewards):
        first = rollout.tokens[:, :, 0].astype(float)
        return rewards[0][:, :, None] + first[:, :, None] if rewards else first


def test_statistics_of_what_another_part_makes_of_outcomes_take_histograms():
    """A cell tells rewards and lengths apart, and a shaping's values, but not what stands in a statistic."""

    def of(**slots):
        return cells_of(tree(dataclasses.replace(methods.grpo, **slots), table=TWO_LEVELS))

    normalized = shaping.NormalizedSum()
    assert of(shaping=shaping.DivideByLength(inner=normalized)) == 0
    assert of(shaping=shaping.Overlong(inner=normalized, limit=3, buffer=2)) == 0
    assert of(advantage=Standardized(inner=adv.Normalized())) == 2
    assert of(advantage=Standardized(inner=FirstToken())) == 0
    assert of(shaping=FirstToken()) == 3


def test_cells_are_enough_for_every_run():
    """Numbers swept may set apart what the base configuration does not: each run's own cells are counted."""
    config = tree(dataclasses.replace(methods.grpo, shaping=shaping.Overlong(limit=3, buffer=2, factor=0.0)))
    assert [moves_cells(p) for p in ("task.scale", "method.shaping.factor", "policy.logits")] == [1, 1, 0]
    for scale, factor, table, cells in (
        ([0.0, 1.0], [0.0, 0.0], (1.0, 0.0, 0.5, 0.0), 3),
        ([0.0, 0.0], [0.0, 0.0], (1.0, 0.0, 0.5, 0.0), 1),
        ([1.0, 1.0], [0.0, 0.3], (1.0, 1.0, 1.0, 0.0), 3),
        ([1.0, 0.0], [0.0, 0.3], (1.0, 1.0, 1.0, 0.0), 3),
        ([1.0, 0.0], [0.0, 0.0], (1.0, 1.0, 1.0, 0.0), 2),
    ):
        swept = put_all(
            config,
            {
                "task.scale": np.array(scale),
                "method.shaping.factor": np.array(factor),
                "task.table": repeated([table], 2),
                "policy.logits": repeated(config.policy.logits, 2),
            },
        )
        assert cells_of(swept) == cells, (scale, factor, table)
    tables = np.stack([np.zeros((1, 4)), np.array([(0.0, 1.0, 0.0, 0.5)])], -1)
    assert cells_of(tree(table=(0.0, 0.0, 0.0, 0.0))) == 1
    assert cells_of(put_all(config, {"task.table": tables})) == 3
    impossible = ActionPolicy(logits=np.array([[0.0, -np.inf, 0.0]]))
    question = Config(policy=impossible, task=Questions(table=np.array([[1.0, 0.5, 1.0]])))
    assert cells_of(question) == 2


def test_sweeps_have_cells_for_every_setting():
    """Two axes that set outcomes apart only together, from a base with more cells than any setting."""
    config = dataclasses.replace(tree(), policy=TreePolicy.uniform(SPACE))
    tables = {"tied": np.zeros((1, 4)), "apart": np.array([(0.0, 1.0, 0.0, 1.0)])}
    grid = {"task.table": tables, "task.scale": [0.0, 2.0]}
    data = sweep(config, grid, iterations=1, record=("expected_reward",), progress=False)
    moved = data.expected_reward.isel(seed=0, iteration=0)
    np.testing.assert_array_equal(moved.sel({"task.table": "tied"}), 0)
    alone = put_all(config, {"task.table": tables["apart"], "task.scale": 2.0})
    _, info = train.run(alone, train.init(alone), iterations=1, record=("expected_reward",))
    np.testing.assert_allclose(
        moved.sel({"task.table": "apart"}), [0, info["expected_reward"][0]], atol=1e-14
    )


def test_too_few_cells():
    """An error where the numbers are known, NaN in everything where they are traced."""
    config = dataclasses.replace(tree(), expectation=Exact(cells=2))
    with pytest.raises(ValueError, match=r"Exact\(cells=2\).*3 cells.*cells=3 or more"):
        expected_objective(config, config.policy.logits)
    with pytest.raises(ValueError, match="3 cells"):
        train.run(config, train.init(config), iterations=1)

    def everything(config, params):
        zero = jnp.uint32(0)
        state = TrainState(params, params, params, None, zero, zero, zero)
        way = config.expectation
        batch = way.collect(config, state)
        (value, logp), slope = jax.value_and_grad(lambda p: way.objective(config, batch, p), has_aux=True)(
            params
        )
        preference = expected_preference(config, params)
        return value, slope, way.clip_fractions(config, batch, logp), way.tied(config, batch), preference

    every = jax.jit(everything)
    params = jnp.asarray(config.policy.logits)
    assert all(jnp.isnan(x).any() for x in jax.tree.leaves(every(config, params)))
    enough = dataclasses.replace(config, expectation=Exact(cells=3))
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(every(enough, params)))


@pytest.mark.parametrize("cells", [None, 0, 2, 3])
def test_a_context_that_lacks_a_cell_leaves_its_neighbour_alone(cells):
    """(1 − 1/G)·∇J of the first context, half of it as there are two; in float32, as users run."""
    with jax.enable_x64(False):
        config = Config(
            policy=ActionPolicy.uniform(contexts=2, actions=3),
            task=Questions(table=np.array([[1.0, 0.5, 0.5], [0.0, 0.0, 0.0]])),
            method=methods.dr_grpo, optimizer=SGD(learning_rate=1.0), loop=Loop(group_size=2),
            expectation=Exact(cells=cells),
        )  # fmt: skip
        after, info = train.run(config, train.init(config), iterations=1, record=("surrogate", "tied"))
        step = 1 / 36 * np.array([1.0, -0.5, -0.5])
        np.testing.assert_allclose(after.params, [step, [0, 0, 0]], atol=1e-8)
        np.testing.assert_allclose(info["tied"], [(5 / 9 + 1) / 2], rtol=1e-6)


def test_one_draw_of_several_outcomes_is_one():
    """The best of a group may be any outcome of its cell: fractions that add up to one only to rounding."""
    method = dataclasses.replace(methods.grpo, advantage=adv.Normalized(center=adv.BestOfGroup()))
    logits = np.random.default_rng(0).normal(size=(1, 6, 100))
    config = Config(
        policy=ActionPolicy(logits=logits), task=Questions(table=np.array([[1.0, 1.0, 1.0, 1.0, 0.0, 0.5]])),
        method=method, loop=Loop(group_size=3),
    )  # fmt: skip
    found, expected = (
        expected_gradient(dataclasses.replace(config, expectation=Exact(cells=c)), logits) for c in (3, 0)
    )
    np.testing.assert_allclose(found, expected, atol=1e-14)
