"""Networks of a user's own, warm starts, weights on disk, and how much memory a network takes."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import grpo_jax as gj
from grpo_jax import checkpoints, warm_start
from grpo_jax.part import describe
from grpo_jax.policies import NetworkPolicy, TransformerPolicy
from grpo_jax.sweeps.layout import default_chunk

PROBLEMS = gj.Verifiable(problems=gj.Addition(digits=1))
SMALL = TransformerPolicy(
    space=PROBLEMS.space, prompt_length=PROBLEMS.prompt_length, layers=1, width=16, heads=2
)


class Recurrent(nn.Module):
    """A running sum of embeddings, and a layer on it."""

    rows: int
    vocab: int

    @nn.compact
    def __call__(self, tokens):
        return nn.Dense(self.vocab)(nn.tanh(jnp.cumsum(nn.Embed(self.rows, 8)(tokens), 1)))


def adapted(space, network, **options):
    return NetworkPolicy(
        space=space, apply=network.apply,
        initialise=lambda key: network.init(key, jnp.zeros((1, 1), int)), **options,
    )  # fmt: skip


def test_any_causal_network_is_a_policy_in_five_lines():
    """Its scores are its own softmax, and it trains under the same sweep."""
    space = gj.Sequences(vocab=4, horizon=3, eos=3)
    policy = adapted(space, Recurrent(6, 4), contexts=2)
    params = policy.init(jax.random.key(1))
    tokens, mask = space.support
    found = np.asarray(policy.score_support(params, np.arange(2)).logp)
    for context, place in itertools.product(range(2), range(0, len(tokens), 7)):
        row, live = tokens[place], mask[place]
        read = jnp.asarray([[4 + context, *row[:-1]]])
        logits = np.asarray(Recurrent(6, 4).apply(params, read))[0]
        logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        np.testing.assert_allclose(
            found[context, place], np.where(live > 0, logp[range(3), row], 0), atol=1e-5
        )
    rewards = np.stack([(tokens[:, 0] == 0) * 1.0, (mask.sum(1) == 3) * 1.0])
    config = gj.Config(
        policy=policy, task=gj.SequenceTable(space=space, table=rewards), method=gj.methods.grpo,
        optimizer=gj.AdamW(learning_rate=0.03), loop=gj.Loop(group_size=16),
    )  # fmt: skip
    data = gj.sweep(config, seeds=2, iterations=60, record=["expected_reward"], progress=False)
    assert (data.expected_reward.isel(iteration=-1) > 0.9).all()


def test_a_network_that_looks_ahead_or_has_another_vocabulary_is_refused():
    space = gj.Sequences(vocab=4, horizon=3, eos=3)

    class Backwards(Recurrent):
        @nn.compact
        def __call__(self, tokens):
            return super().__call__(tokens[:, ::-1])[:, ::-1]

    with pytest.raises(ValueError, match="not causal"):
        adapted(space, Backwards(6, 4), contexts=2)
    with pytest.raises(ValueError, match=r"gives shape \(2, 3, 5\).*must give \(2, 3, 4\)"):
        adapted(space, Recurrent(6, 5), contexts=2)


@pytest.mark.slow
def test_a_warm_start_stops_in_its_band_and_serves_every_method():
    found = warm_start.fit(
        SMALL, PROBLEMS, accuracy=(0.3, 0.6), every=64, checked=256, batch=32, progress=False
    )
    assert 0.3 <= found.accuracy <= 0.6
    assert found.history[0][1] < 0.3
    assert found.steps == found.history[-1][0]
    config = gj.Config(policy=found.policy, task=PROBLEMS, loop=gj.Loop(prompts=8, group_size=4))
    data = gj.sweep(
        config, variants={"method": {name: gj.methods.get(name) for name in ("grpo", "dr_grpo")}}, seeds=2,
        iterations=1, record=["reward", "grad_norm"], record_start=True, progress=False,
    )  # fmt: skip
    start = data.reward.sel(iteration=0)
    np.testing.assert_array_equal(start.sel(algorithm="grpo"), start.sel(algorithm="dr_grpo"))
    assert 0.05 < float(start.mean()) < 0.95


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"accuracy": (0.5, 0.4)}, "least first"),
        ({"accuracy": (0.9, 1.0), "most": 4, "every": 2}, r"after 4 steps 0\.\d\d of the held-out answers"),
        ({"batch": 0}, "batch"),
    ],
)
def test_warm_starts_that_cannot_be(options, words):
    with pytest.raises(ValueError, match=words):
        warm_start.fit(SMALL, PROBLEMS, checked=32, progress=False, **options)


def test_a_warm_start_needs_right_answers_and_a_network():
    table = gj.Questions(table=[[1.0, 0.0]])
    with pytest.raises(ValueError, match="Questions has no right answers to imitate"):
        warm_start.fit(SMALL, table, progress=False)
    with pytest.raises(ValueError, match="ActionPolicy cannot be given weights to start from"):
        warm_start.fit(gj.ActionPolicy.uniform(contexts=1, actions=2), PROBLEMS, progress=False)


def test_weights_come_back_from_disk_and_only_to_their_architecture(tmp_path):
    params = SMALL.init(jax.random.key(3))
    checkpoints.save(tmp_path / "weights", SMALL, params)
    held = checkpoints.load(tmp_path / "weights", SMALL)
    assert jax.tree.all(jax.tree.map(np.array_equal, held.init(jax.random.key(0)), params))
    with pytest.raises(ValueError, match=r"weights of another kind: width is 16 there, and 32 here"):
        checkpoints.load(tmp_path / "weights", dataclasses.replace(SMALL, width=32))
    with pytest.raises(ValueError, match="holds no weights"):
        checkpoints.load(tmp_path, SMALL)


def test_a_long_run_goes_on_exactly_where_it_was_cut_off(tmp_path):
    task = dataclasses.replace(PROBLEMS, length_cost=0.1)
    config = gj.Config(policy=SMALL, task=task, loop=gj.Loop(prompts=3, group_size=4))
    options = {"save_every": 2, "record": ["reward", "grad_norm"], "seed": 4}
    whole, records = checkpoints.run(config, tmp_path / "whole", iterations=6, **options)
    checkpoints.run(config, tmp_path / "cut", iterations=4, **options)
    after, again = checkpoints.run(config, tmp_path / "cut", iterations=6, **options)
    assert jax.tree.all(jax.tree.map(np.array_equal, after, whole))
    for name in ("reward", "grad_norm"):
        np.testing.assert_array_equal(again[name], records[name])
    plain, _ = gj.train.run(config, gj.train.init(config, 4), iterations=6)
    assert jax.tree.all(jax.tree.map(lambda a, b: np.allclose(a, b, atol=1e-6), plain.params, whole.params))
    with pytest.raises(ValueError, match="a run of another kind: seed is 4 there, and 5 here"):
        checkpoints.run(config, tmp_path / "cut", iterations=6, **(options | {"seed": 5}))
    with pytest.raises(ValueError, match="must be a multiple of save_every"):
        checkpoints.run(config, tmp_path / "cut", iterations=5, **options)
    with pytest.raises(ValueError, match="holds a run of 6 iterations, and 4 are asked for"):
        checkpoints.run(config, tmp_path / "cut", iterations=4, **options)
    held_out = {"held_out": gj.measures.held_out(8)}
    with pytest.raises(ValueError, match=r"measure is \[\] there, and \['held_out'\] here"):
        checkpoints.run(config, tmp_path / "cut", iterations=8, measure=held_out, **options)


@pytest.mark.parametrize("apart", [False, True])
def test_a_batch_is_scored_once_only_where_the_old_policy_is_the_new_one(apart, x64):
    """``step`` scores a batch under both; ``run`` once, unless it is given a state where they differ."""
    config = gj.Config(
        policy=SMALL, task=PROBLEMS, loop=gj.Loop(prompts=3, group_size=4), method=gj.methods.grpo,
        optimizer=gj.SGD(learning_rate=0.5),
    )  # fmt: skip
    begin = gj.train.init(config, 4)
    if apart:
        begin = begin._replace(params=jax.tree.map(lambda leaf: leaf * 1.5, begin.params))
    state, each = begin, []
    step = jax.jit(lambda state: gj.train.step(config, state, record=["reward", "grad_norm"]))
    for _ in range(3):
        state, info = step(state)
        each.append(info)
    after, found = gj.train.run(config, begin, iterations=3, record=["reward", "grad_norm"])
    for name in found:
        np.testing.assert_allclose(found[name], [info[name] for info in each], rtol=1e-9, atol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), after.params, state.params)


def test_large_networks_take_turns():
    def config(width):
        policy = dataclasses.replace(SMALL, width=width, layers=2)
        return gj.Config(policy=policy, task=PROBLEMS, loop=gj.Loop(prompts=16, group_size=16))

    assert default_chunk(config(8), 64, 1) > 1
    assert default_chunk(config(64), 64, 1) == 1


@pytest.mark.parametrize(("asked", "answer"), [(5, 3), (60, 4), (3, 24)])
def test_the_memory_of_a_gradient_is_foreseen(asked, answer):
    space = gj.Sequences(vocab=12, horizon=answer)
    policy = gj.TransformerPolicy(space=space, prompt_length=asked, layers=2, width=64)
    params = jax.eval_shape(policy.init, jax.random.key(0))
    tokens = jnp.zeros((8, 16, answer), int)

    def loss(params, prompts):
        return jnp.sum(policy.score(params, prompts, tokens, jnp.ones(tokens.shape)).logp)

    lowered = jax.jit(jax.grad(loss)).lower(params, jnp.zeros((8, asked), int))
    held = lowered.compile().memory_analysis().temp_size_in_bytes
    assert 0.5 < 4 * tokens.size * policy.numbers_per_token / held < 2


def test_weights_are_described_by_their_digest():
    one = dataclasses.replace(SMALL, start=SMALL.init(jax.random.key(0)))
    two = dataclasses.replace(SMALL, start=SMALL.init(jax.random.key(1)))
    assert describe(one) == describe(dataclasses.replace(SMALL, start=SMALL.init(jax.random.key(0))))
    assert describe(one) != describe(two)
    assert len(str(describe(one))) < 20_000


def test_held_out_accuracy_asks_held_out_problems():
    class Apart:
        """Training problems begin with 0 and are wrong whatever the answer, the others with 1 and right."""

        def prompts(self, uniforms):
            return jnp.zeros((len(uniforms), SMALL.prompt_length), int)

        def held_out_prompts(self, uniforms):
            return jnp.ones((len(uniforms), SMALL.prompt_length), int)

        def grade(self, prompts, tokens, mask):
            return jnp.where(prompts[:, :1] == 1, 1.0, 0.0)

    at = (jnp.uint32(0),) * 3
    found = gj.diagnostics.held_out_accuracy(SMALL, Apart(), SMALL.init(jax.random.key(0)), at, 8)
    assert float(found) == 1
