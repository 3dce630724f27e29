"""Policies against brute force: scores, sums, samples, histograms, runs and gradients."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import grpo_jax as gj
from grpo_jax.policies import ActionPolicy, MLPPolicy, TreePolicy, share_rows
from grpo_jax.random import Stream, uniforms
from grpo_jax.sequences import Sequences

SPACE = Sequences(vocab=3, horizon=3, eos=2)
HOLED = Sequences(vocab=3, horizon=3, eos=0, forbidden=((0, 0), (1, 2)))
TIE = share_rows(SPACE, lambda prefix: prefix[1:])
PROMPTS = np.arange(2)


def table(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape)


ACTIONS = ActionPolicy(logits=table(2, 5))
BARRED = ActionPolicy(logits=np.where(np.arange(5) == 1, -np.inf, table(2, 5)))
TREE = TreePolicy(space=SPACE, logits=table(2, 7, 3))
TIED = TreePolicy(space=SPACE, logits=table(2, max(TIE) + 1, 3), tie=TIE)
HOLES = TreePolicy(space=HOLED, logits=table(2, 7, 3))
FIXED = TreePolicy(space=Sequences(vocab=2, horizon=2), logits=table(2, 3, 2))
MLP = MLPPolicy(space=HOLED, contexts=2, width=5)
TABLES = {
    "actions": ACTIONS,
    "barred": BARRED,
    "tree": TREE,
    "tied": TIED,
    "holes": HOLES,
    "fixed": FIXED,
}
ALL = TABLES | {"mlp": MLP}

each = pytest.mark.parametrize("policy", ALL.values(), ids=ALL)
each_table = pytest.mark.parametrize("policy", TABLES.values(), ids=TABLES)


@jax.jit
def measured(policy, params, draws):
    """Everything a test looks at, in one compiled function."""
    tokens, mask = policy.sample(params, PROMPTS, draws)
    support = policy.support(PROMPTS)
    shared = [jnp.asarray(x)[..., None] if draws.ndim == 4 else jnp.asarray(x) for x in support]
    found = {
        "tokens": tokens,
        "mask": mask,
        "score": policy.score(params, PROMPTS, tokens, mask),
        "score_given": policy.score(params, PROMPTS, *shared),
        "score_support": policy.score_support(params, PROMPTS),
    }
    return found | ({"counts": policy.counts(params, PROMPTS, draws)} if hasattr(policy, "counts") else {})


def draws(policy, group=200, seed=3):
    shape = (len(PROMPTS), group, policy.horizon)
    return uniforms(jnp.uint32(0), jnp.asarray(seed, jnp.uint32), jnp.uint32(0), Stream.TOKEN, shape)


def start(policy):
    return policy.init(jax.random.key(1))


def softmax(logits, allowed=None):
    weights = np.exp(np.asarray(logits, float))
    weights = weights if allowed is None else weights * allowed
    return weights / weights.sum()


def node_probabilities(policy, context, prefix):
    """The distribution after a prefix, from the definition: a plain softmax of the right row."""
    if isinstance(policy, ActionPolicy):
        return softmax(policy.logits[context])
    space = policy.space
    words = [t for t in range(space.vocab) if t != space.eos]
    order = [p for d in range(space.horizon) for p in itertools.product(words, repeat=d)]
    node = order.index(prefix)
    row = node if policy.tie is None else policy.tie[node]
    return softmax(policy.logits[context, row], space.allowed[len(prefix)])


def outputs(policy):
    support = policy.support(PROMPTS)
    return [
        tuple(int(t) for t in row[: int(live.sum())])
        for row, live in zip(support.tokens[0], support.mask[0], strict=True)
    ]


@each_table
@pytest.mark.usefixtures("x64")
def test_scores_are_the_softmax_written_out(policy):
    found = measured(policy, start(policy), draws(policy, 8))
    for c, (s, output) in itertools.product(PROMPTS, enumerate(outputs(policy))):
        for t in range(policy.horizon):
            logp, entropy = (np.asarray(x)[c, s, t] for x in found["score_support"])
            if t >= len(output):
                assert (logp, entropy) == (0, 0)
                continue
            law = node_probabilities(policy, c, output[:t])
            np.testing.assert_allclose(np.exp(logp), law[output[t]], rtol=1e-13, atol=0)
            np.testing.assert_allclose(entropy, -sum(p * np.log(p) for p in law if p > 0), rtol=1e-12)


@each
@pytest.mark.usefixtures("x64")
def test_the_support_carries_all_probability(policy):
    found = measured(policy, start(policy), draws(policy, 8))
    np.testing.assert_allclose(jnp.exp(found["score_support"].logp.sum(2)).sum(1), 1, atol=1e-6)
    for given, listed in zip(found["score_given"], found["score_support"], strict=True):
        np.testing.assert_allclose(given, listed, atol=1e-12)


@each
def test_samples_follow_the_policy(policy):
    """χ² of 8000 samples against the scores of the support; impossible outputs never occur."""
    found = measured(policy, start(policy), draws(policy, 8000))
    law = np.exp(np.asarray(found["score_support"].logp, np.float64).sum(2))
    names = outputs(policy)
    for c in PROMPTS:
        lengths = np.asarray(found["mask"][c]).sum(1).astype(int)
        drawn = [
            tuple(row[:n]) for row, n in zip(np.asarray(found["tokens"][c]).tolist(), lengths, strict=True)
        ]
        seen = np.array([drawn.count(name) for name in names])
        assert seen.sum() == 8000
        assert (seen[law[c] == 0] == 0).all()
        likely = law[c] > 0
        expected = 8000 * law[c][likely] / law[c][likely].sum()
        assert stats.chisquare(seen[likely], expected).pvalue > 1e-4


@each_table
def test_counts_are_the_histogram_of_the_samples(policy):
    found = measured(policy, start(policy), draws(policy))
    names = outputs(policy)
    for c in PROMPTS:
        lengths = np.asarray(found["mask"][c]).sum(1).astype(int)
        drawn = [
            tuple(row[:n]) for row, n in zip(np.asarray(found["tokens"][c]).tolist(), lengths, strict=True)
        ]
        np.testing.assert_array_equal(found["counts"][c], [drawn.count(name) for name in names])


@pytest.mark.parametrize("kind", ["actions", "tree"])
def test_large_groups_are_counted_in_whole_numbers(kind):
    """Beyond 2^24 a float32 no longer grows by ones."""
    size, chance = 2**24 + 2**23, 0.9
    u = jnp.asarray((np.arange(size) + 0.5) / size, jnp.float32).reshape(1, size, 1)
    logits = np.log([chance, 1 - chance])[None]
    policy = ActionPolicy(logits=logits)
    if kind == "tree":
        policy = TreePolicy(space=Sequences(vocab=2, horizon=1), logits=logits[None])
    found = np.asarray(jax.jit(policy.counts)(policy.init(None), np.arange(1), u), float)
    np.testing.assert_allclose(found, [[chance * size, (1 - chance) * size]], rtol=2e-6)
    assert found.sum() == size


def test_a_single_action_is_counted():
    policy = ActionPolicy.uniform(contexts=2, actions=1)
    for seed in (3, np.array([3, 4, 5])):
        params = policy.init(None) if np.ndim(seed) == 0 else policy.init(None)[..., None]
        found = jax.jit(policy.counts)(params, PROMPTS, draws(policy, 7, seed))
        np.testing.assert_array_equal(found, np.full((2, 1, *np.shape(seed)), 7.0))


@each_table
def test_runs_as_the_last_axis_equal_a_loop_over_runs(policy):
    base = np.asarray(start(policy))
    many = np.stack([base, -2 * np.nan_to_num(base, neginf=9.0), base * 0.5], -1)
    seeds = np.array([4, 9, 2])
    together = measured(policy, many, draws(policy, 20, seeds))
    for r, seed in enumerate(seeds):
        alone = measured(policy, many[..., r], draws(policy, 20, seed))
        for chunk, one in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(chunk[..., r], one, rtol=2e-6, atol=1e-6)
        np.testing.assert_array_equal(together["tokens"][..., r], alone["tokens"])


@pytest.mark.usefixtures("x64")
def test_the_gradient_of_an_action_is_its_score_function():
    """∂ log π(k)/∂θ_j = 1{j = k} − π(j)."""

    def logp(params, action):
        return ACTIONS.score(params, PROMPTS, action, jnp.ones((2, 1, 1)))[0][0, 0, 0]

    slope = jax.jit(jax.grad(logp))
    for k in range(5):
        found = slope(jnp.asarray(ACTIONS.logits), jnp.full((2, 1, 1), k))
        np.testing.assert_allclose(found[0], (np.arange(5) == k) - softmax(ACTIONS.logits[0]), atol=1e-14)
        assert not found[1].any()


@pytest.mark.usefixtures("x64")
def test_gradients_are_finite_at_probability_zero():
    def reading(policy, params):
        scores = policy.score_support(params, PROMPTS)
        return jnp.sum(jnp.where(jnp.isfinite(scores.logp), scores.logp, 0)) + jnp.sum(scores.entropy)

    for policy in (BARRED, HOLES):
        slope = jax.jit(jax.grad(functools.partial(reading, policy)))
        assert np.isfinite(slope(start(policy))).all()


def test_a_tied_tail_does_not_see_what_the_key_hides():
    """With the first token hidden, what follows (a, b) has the law of what follows (a', b)."""
    found = measured(TIED, start(TIED), draws(TIED))
    logp = dict(zip(outputs(TIED), np.asarray(found["score_support"].logp)[0], strict=True))
    for tail in itertools.product((0, 1), (0, 1, 2)):
        assert logp[(0, *tail)][1:].tolist() == logp[(1, *tail)][1:].tolist()
    assert logp[(0, 0, 0)][2] != logp[(0, 1, 0)][2]
    with pytest.raises(ValueError, match="tie names 2 rows; there are 7 nodes"):
        TreePolicy(space=SPACE, logits=np.zeros((1, 2, 3)), tie=(0, 1))


def test_the_mlp_is_causal_and_knows_its_context():
    """The gradient of a step's log-probability in the tokens' one-hot inputs ends before that step."""
    params = start(MLP)
    tokens = np.array([[[1, 1, 1]], [[1, 1, 1]]])
    score = jax.jit(lambda tokens: MLP.score(params, PROMPTS, tokens, np.ones((2, 1, 3))).logp)
    base = np.asarray(score(tokens))
    for t in range(3):
        changed = tokens.copy()
        changed[:, :, t] = 2 if t != 1 else 0
        moved = np.asarray(score(changed)) != base
        assert not moved[:, :, :t].any()
        assert moved[:, :, t:].all()
    assert (base[0] != base[1]).all()


def test_masked_tokens_are_not_read():
    for policy in (TREE, MLP):
        space = policy.space
        first = np.full((2, 1, 3), space.eos)
        first[:, :, 0] = 1
        mask = np.array([1.0, 1.0, 0.0]) * np.ones((2, 1, 1))
        other = first.copy()
        other[:, :, 2] = 1
        score = jax.jit(
            lambda tokens, policy=policy, mask=mask: policy.score(start(policy), PROMPTS, tokens, mask)
        )
        np.testing.assert_array_equal(score(first).logp, score(other).logp)


def test_probabilities_are_taken_as_given():
    policy = ActionPolicy.from_probabilities([[0.5, 0.0, 1.5], [1, 2, 1]])
    logp = policy.score_support(policy.init(None), PROMPTS).logp
    np.testing.assert_allclose(np.exp(logp[..., 0]), [[0.25, 0, 0.75], [0.25, 0.5, 0.25]], rtol=1e-6)
    assert (policy.contexts, policy.actions, policy.horizon) == (2, 3, 1)
    uniform = ActionPolicy.uniform(contexts=3, actions=4)
    np.testing.assert_allclose(jax.nn.softmax(uniform.logits, 1), 0.25)
    tree = TreePolicy.uniform(HOLED, contexts=2)
    first = [law[0] for law in (node_probabilities(tree, 0, ()), node_probabilities(tree, 0, (1,)))]
    assert first == [0, 0.5]


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: ActionPolicy(logits=np.zeros(3)), r"must be \[contexts, actions\]"),
        (lambda: ActionPolicy(logits=[[0.0, np.nan]]), "NaN"),
        (lambda: ActionPolicy(logits=[[0.0, np.inf]]), r"never \+inf"),
        (lambda: ActionPolicy(logits=[[0.0, 1.0], [-np.inf, -np.inf]]), "not for all of a context"),
        (lambda: ActionPolicy.from_probabilities([[0.5, -0.5]]), "non-negative"),
        (lambda: ActionPolicy.from_probabilities([[0.0, 0.0]]), "positive sum"),
        (lambda: TreePolicy(space=SPACE, logits=np.zeros((1, 6, 3))), r"\[contexts, 7, 3\]"),
        (lambda: TreePolicy(space=SPACE, logits=np.full((1, 7, 3), np.inf)), "finite"),
        (lambda: MLPPolicy(space=SPACE, width=0), "at least 1"),
    ],
)
def test_bad_policies_are_refused(build, says):
    with pytest.raises(ValueError, match=says):
        build()


def test_a_network_whose_outputs_cannot_be_listed_trains_and_says_what_needs_a_list():
    space = Sequences(vocab=40, horizon=8, eos=0)
    policy = MLPPolicy(space=space, width=4)
    assert policy.support(np.arange(1)) is None
    task = gj.SequenceReward(function=lambda prompts, tokens, mask: jnp.sum(tokens == 1, 2) / 8)
    config = gj.Config(policy=policy, task=task, loop=gj.Loop(group_size=4))
    data = gj.sweep(config, seeds=2, iterations=2, progress=False)
    assert "reward" in data
    assert "expected_reward" not in data
    for asked in ({"record": ["entropy"]}, {"measure": {"mine": lambda view: view.probabilities}}):
        with pytest.raises(ValueError, match="MLPPolicy has more outputs than can be listed"):
            gj.sweep(config, iterations=2, progress=False, **asked)
    exact = dataclasses.replace(config, expectation=gj.Exact())
    with pytest.raises(ValueError, match=r"more outputs than can be listed.*Sampled"):
        gj.sweep(exact, iterations=2, progress=False)
