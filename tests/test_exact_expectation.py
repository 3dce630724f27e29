"""Exact expectations against brute force over all ordered groups, closed sums, and sampling."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import methods, train
from grpo_jax.collectors import Sampled
from grpo_jax.config import Config, Loop
from grpo_jax.diagnostics import expected_reward
from grpo_jax.exact import Exact, expected_gradient, expected_objective
from grpo_jax.optimizers import SGD
from grpo_jax.part import aligned, put_all
from grpo_jax.parts import advantages as adv
from grpo_jax.parts import corrections, reductions, shaping
from grpo_jax.policies import ActionPolicy, MLPPolicy, TreePolicy
from grpo_jax.sequences import Sequences
from grpo_jax.surrogate import advantages, objective
from grpo_jax.sweeps import sweep
from grpo_jax.tasks import Bernoulli, Gaussian, Questions, SequenceTable
from grpo_jax.types import Rollout, evaluated_at_old

pytestmark = pytest.mark.usefixtures("x64")

SPACE = Sequences(vocab=2, horizon=3, eos=1)
"""Four outputs, of lengths 3, 3, 2 and 1."""
ODDS = [0.7, -0.4, 0.2, 0.5, 1.1, -0.8]

METHODS = methods.METHODS | {
    "group_tokens": dataclasses.replace(methods.dapo, reduction=reductions.PerGroupToken()),
    "informative": dataclasses.replace(methods.dapo, reduction=reductions.Informative()),
    "length_weighted": dataclasses.replace(
        methods.dr_grpo, advantage=adv.Normalized(center=adv.LengthWeightedMean(), scale=None)
    ),
    "per_token_reward": dataclasses.replace(methods.tic_grpo, shaping=shaping.DivideByLength()),
    "normalized_sum": dataclasses.replace(methods.grpo, shaping=shaping.NormalizedSum()),
    "best_of_group": dataclasses.replace(methods.grpo, advantage=adv.Normalized(center=adv.BestOfGroup())),
    "conflict": dataclasses.replace(methods.grpo, corrections=(corrections.Conflict(),)),
    "kl_in_reward": dataclasses.replace(methods.grpo, shaping=shaping.KLInReward(coef=0.3)),
}


def tree(method=methods.grpo, *, table=(1.0, 0.0, 0.5, 0.0), group_size=3, noise=None):
    """A tree of four outputs under one prompt."""
    logits = np.array(ODDS).reshape(1, 3, 2)
    return Config(
        policy=TreePolicy(space=SPACE, logits=logits),
        task=SequenceTable(space=SPACE, table=np.array([table]), noise=noise),
        method=method,
        optimizer=SGD(learning_rate=0.1),
        loop=Loop(group_size=group_size),
        expectation=Exact(),
    )


def repeated(table, count):
    """A table that every run has a copy of."""
    return np.repeat(np.asarray(table)[..., None], count, -1)


def drifted(config, size=0.6):
    """Parameters away from the starting ones."""
    start = np.asarray(config.policy.logits, float)
    return start + size * np.cos(np.arange(start.size)).reshape(start.shape)


def by_brute_force(config, params, old, ref):
    """E[J] over every ordered group of samples of one prompt, through the surrogate of plain samples."""
    prompts = np.arange(1)
    support = config.policy.support(prompts)
    tokens, mask = jnp.asarray(support.tokens), jnp.asarray(support.mask)
    new, was, anchor = (config.policy.score_support(p, prompts) for p in (params, old, ref))
    rewards = config.task.means(prompts, tokens, mask)
    chance = jnp.exp(jnp.sum(was.logp, 2))[0]
    size = config.loop.group_size
    ordered = np.array(list(itertools.product(range(tokens.shape[1]), repeat=size)))

    def one(rows):
        rollout = Rollout(
            prompts=prompts, tokens=tokens[:, rows], mask=mask[:, rows], rewards=rewards[:, rows, None],
            multiplicity=jnp.ones((1, size)), sampling_logp=was.logp[:, rows], old_logp=was.logp[:, rows],
            ref_logp=anchor.logp[:, rows], entropy=jax.lax.stop_gradient(new.entropy[:, rows]),
        )  # fmt: skip
        return objective(config.method, rollout, advantages(config.method, rollout), new.logp[:, rows])

    return jnp.sum(jnp.prod(chance[ordered], 1) * jax.vmap(one)(jnp.asarray(ordered)))


PLAIN = ("grpo", "dapo", "tic_grpo", "gspo", "grpo_frozen", "length_weighted", "per_token_reward", "conflict")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in PLAIN else pytest.mark.slow) for n in sorted(METHODS)]
)
def test_histograms_and_cells_equal_brute_force(name):
    method = METHODS[name]
    config = tree(method)
    old, params = np.asarray(config.policy.logits), drifted(config)
    ref = 0.5 * old
    at = old if evaluated_at_old(method.ratio) else params

    @jax.jit
    def everything(params, old, ref):
        value, gradient = jax.value_and_grad(by_brute_force, argnums=1)(config, params, old, ref)
        ways = []
        for cells in {0, Exact().resolved(config).cells}:
            way = dataclasses.replace(config, expectation=Exact(cells=cells))
            ways.append(
                (
                    expected_objective(way, params, old=old, reference=ref),
                    expected_gradient(way, params, old=old, reference=ref),
                )
            )
        return value, gradient, ways

    value, gradient, ways = everything(at, old, ref)
    assert jnp.any(gradient != 0)
    for found, slope in ways:
        np.testing.assert_allclose(found, value, rtol=0, atol=1e-14)
        np.testing.assert_allclose(slope, gradient, rtol=0, atol=1e-14)


def test_cells_are_chosen_where_they_serve():
    assert Exact().resolved(tree()).cells == 3
    assert Exact().resolved(tree(METHODS["conflict"])).cells == 0
    assert Exact().resolved(tree(METHODS["kl_in_reward"])).cells == 0
    assert Exact().resolved(tree(METHODS["per_token_reward"], table=(1.0, 0.0, 1.0, 0.0))).cells == 3
    assert Exact().resolved(tree(METHODS["length_weighted"])).cells == 0
    assert Exact().resolved(tree(table=(1.0, 0.0, 1.0, 0.0), noise=Bernoulli())).cells == 2


def test_prompts_are_independent():
    """Two prompts: brute force over the joint groups of both, through the surrogate of the whole batch."""
    table, logits = np.array([[1.0, 0.0], [0.3, 0.8]]), np.array([[0.2, -0.5], [1.0, 0.4]])
    policy = ActionPolicy(logits=logits)
    config = Config(policy=policy, task=Questions(table=table), loop=Loop(group_size=3), expectation=Exact())
    params, prompts = drifted(config), np.arange(2)
    pairs = list(itertools.product(itertools.product(range(2), repeat=3), repeat=2))
    chance = jax.nn.softmax(jnp.asarray(logits))

    def brute(params):
        def one(rows):
            tokens = rows[:, :, None]
            ones = jnp.ones((2, 3, 1))
            new, old = (policy.score(p, prompts, tokens, ones).logp for p in (params, logits))
            rewards = jnp.take_along_axis(jnp.asarray(table), rows, 1)[:, :, None]
            r = Rollout(
                prompts=prompts, tokens=tokens, mask=ones, rewards=rewards,
                multiplicity=jnp.ones((2, 3)), sampling_logp=old, old_logp=old, ref_logp=old,
            )  # fmt: skip
            return jnp.prod(jnp.take_along_axis(chance, rows, 1)) * objective(
                config.method, r, advantages(config.method, r), new
            )

        return jnp.sum(jax.vmap(one)(jnp.array(pairs)))

    value, gradient = jax.jit(jax.value_and_grad(brute))(params)
    np.testing.assert_allclose(expected_objective(config, params, old=logits), value, atol=1e-15)
    np.testing.assert_allclose(expected_gradient(config, params, old=logits), gradient, atol=1e-15)


@pytest.mark.parametrize(("name", "scaled"), [("grpo", True), ("dr_grpo", False)])
def test_against_a_formula_of_its_own(name, scaled):
    """Equation (1) of [B] for finite actions, written in NumPy with loops over ordered groups."""
    rewards, beta, eps, size = np.array([1.0, 0.0, 0.4]), 0.07, 0.2, 3
    old, ref = np.array([0.5, 0.2, 0.3]), np.array([0.2, 0.5, 0.3])
    new = np.array([0.35, 0.4, 0.25])
    expected = 0.0
    for group in itertools.product(range(3), repeat=size):
        r = rewards[list(group)]
        spread = np.sqrt(np.mean((r - r.mean()) ** 2))
        for o in group:
            a = rewards[o] - r.mean()
            a = (a / spread if spread > 1e-12 else 0.0) if scaled else a
            s = new[o] / old[o]
            gain = min(s * a, np.clip(s, 1 - eps, 1 + eps) * a)
            k3 = ref[o] / new[o] - np.log(ref[o] / new[o]) - 1
            expected += math.prod(old[i] for i in group) * (gain - beta * k3) / size
    base = methods.get(name)
    method = dataclasses.replace(base, penalty=dataclasses.replace(base.penalty, coef=beta))
    config = Config(
        policy=ActionPolicy.from_probabilities(old), task=Questions(table=rewards[None]), method=method,
        loop=Loop(group_size=size), reference=np.log(ref)[None],
    )  # fmt: skip
    found = expected_objective(config, np.log(new)[None], old=np.log(old)[None], reference=np.log(ref)[None])
    np.testing.assert_allclose(found, expected, atol=1e-15)


@pytest.mark.parametrize("group_size", [2, 3, 16, 64])
def test_binary_rewards_meet_the_closed_sum(group_size):
    """On-policy, [A]'s drift is φ_G(p)·∇log-odds: with one logit, E[∂J/∂θ_1] = φ_G(p), φ_G = E√(K(G−K))/G."""
    p = 0.2
    config = Config(
        policy=ActionPolicy.from_probabilities([p, 1 - p]), task=Questions(table=np.array([[1.0, 0.0]])),
        method=methods.tic_grpo, loop=Loop(group_size=group_size),
    )  # fmt: skip
    terms = [
        math.comb(group_size, k) * p**k * (1 - p) ** (group_size - k) * math.sqrt(k * (group_size - k))
        for k in range(group_size + 1)
    ]
    slope = expected_gradient(config, jnp.asarray(config.policy.logits))
    np.testing.assert_allclose(slope, [[sum(terms) / group_size, -sum(terms) / group_size]], atol=1e-13)


def test_bernoulli_noise_is_the_mixture_of_its_levels():
    """Noisy binary rewards are a sum over ordered groups of (action, level) pairs, in NumPy."""
    means, size = np.array([0.8, 0.3]), 3
    logits = np.array([[0.4, -0.2]])
    chance = np.exp(logits[0]) / np.exp(logits[0]).sum()
    params = jnp.asarray(logits + np.array([[0.1, -0.3]]))
    config = Config(
        policy=ActionPolicy(logits=logits), task=Questions(table=means[None], noise=Bernoulli()),
        method=methods.grpo, loop=Loop(group_size=size),
    )  # fmt: skip
    ratio = np.exp(jax.nn.log_softmax(params)[0]) / chance
    expected = 0.0
    for group in itertools.product(itertools.product(range(2), range(2)), repeat=size):
        weight = math.prod(chance[o] * (means[o] if hit else 1 - means[o]) for o, hit in group)
        hits = np.array([hit for _, hit in group], float)
        if 0 < hits.sum() < size:
            a = (hits - hits.mean()) / hits.std()
            s = np.array([ratio[o] for o, _ in group])
            expected += weight * np.mean(np.minimum(s * a, np.clip(s, 0.8, 1.2) * a))
    k3 = np.sum(chance * (1 / ratio - np.log(1 / ratio) - 1))
    for cells in (0, 2):
        way = dataclasses.replace(config, expectation=Exact(cells=cells))
        found = expected_objective(way, params, old=logits)
        np.testing.assert_allclose(found, expected - 0.04 * k3, atol=1e-15)


def test_sampling_approaches_at_the_root_of_n():
    """Means of n sampled gradients leave the exact one by Gaussian errors that shrink as n^(−1/2)."""
    config = dataclasses.replace(tree(group_size=4), expectation=Sampled())
    params = drifted(config, 0.3)
    exact = expected_gradient(config, params, old=config.policy.logits)
    count = 4096
    state, many = train.init(config, np.arange(count)), repeated(params, count)
    config = aligned(config)

    @jax.jit
    def gradients(state):
        batch = Sampled().collect(config, state)
        return jax.grad(lambda p: jnp.sum(Sampled().objective(config, batch, p)[0]))(many)

    draws = gradients(state).reshape(-1, count)
    live = jnp.std(draws, 1) > 0
    error = jnp.std(draws, 1)[live]
    for n in (256, count):
        z = (jnp.mean(draws[:, :n], 1) - exact.ravel())[live] / (error / np.sqrt(n))
        assert jnp.all(jnp.abs(z) < 4.5)
        assert jnp.sqrt(jnp.mean(z**2)) > 0.1
    np.testing.assert_allclose(exact.ravel()[~live], 0, atol=1e-15)


def test_dynamics_follow_the_expected_gradient():
    """Exact training at μ = 1 under SGD is θ ← θ + lr·E[∇J], alone and as one of several runs."""
    config = tree(METHODS["grpo"])
    theta = np.asarray(config.policy.logits)
    for _ in range(3):
        theta = theta + 0.1 * expected_gradient(config, theta, old=theta, reference=config.policy.logits)
    after, _ = train.run(config, train.init(config), iterations=3, record=("finite",))
    np.testing.assert_allclose(after.params, theta, atol=1e-15)
    tables = np.stack([np.array([[1.0, 0.0, 0.5, 0.0]]), np.array([[0.0, 1.0, 0.0, 1.0]])], -1)
    rates = np.array([0.1, 0.3])
    swept = dataclasses.replace(
        config,
        task=dataclasses.replace(config.task, table=tables),
        optimizer=SGD(learning_rate=rates),
        loop=Loop(group_size=3, inner_steps=2),
    )
    record = ("tied", "clip_fraction_high", "surrogate")
    together, info = train.run(swept, train.init(swept, np.arange(2)), iterations=3, record=record)
    for r in range(2):
        alone = dataclasses.replace(
            swept,
            task=dataclasses.replace(config.task, table=tables[..., r]),
            optimizer=SGD(learning_rate=rates[r]),
        )
        single, numbers = train.run(alone, train.init(alone), iterations=3, record=record)
        np.testing.assert_allclose(together.params[..., r], single.params, atol=1e-15)
        for name in numbers:
            np.testing.assert_allclose(info[name][:, r], numbers[name], atol=1e-13)


def test_diagnostics_are_expectations():
    config = dataclasses.replace(tree(group_size=5, table=(1.0, 0.0, 1.0, 0.0)), loop=Loop(group_size=5))
    chance = jnp.exp(jnp.sum(config.policy.score_support(config.policy.logits, np.arange(1)).logp, 2))[0]
    p = float(chance[0] + chance[2])
    _, info = train.run(config, train.init(config), iterations=1, record=("tied", "reward", "length"))
    np.testing.assert_allclose(info["tied"][0], p**5 + (1 - p) ** 5, atol=1e-15)
    np.testing.assert_allclose(info["reward"][0], p, atol=1e-15)
    np.testing.assert_allclose(info["length"][0], jnp.sum(chance * jnp.array([3, 3, 2, 1])), atol=1e-14)


def test_refusals():
    config = tree()
    with pytest.raises(ValueError, match="Gaussian rewards have no finite list"):
        expected_objective(tree(noise=Gaussian()), config.policy.logits)
    two = Config(
        policy=ActionPolicy.uniform(contexts=2, actions=2),
        task=Questions(table=np.eye(2)),
        method=methods.dapo,
    )
    with pytest.raises(ValueError, match="PerToken couples the whole batch"):
        expected_objective(two, two.policy.logits)
    halved = dataclasses.replace(
        two, method=methods.grpo, loop=Loop(group_size=2, minibatches=2), expectation=Exact()
    )
    with pytest.raises(ValueError, match="minibatches must be 1"):
        train.run(halved, train.init(halved), iterations=1)
    with pytest.raises(ValueError, match="Conflict reads more than rewards"):
        expected_objective(
            dataclasses.replace(tree(METHODS["conflict"]), expectation=Exact(cells=3)), config.policy.logits
        )
    large = dataclasses.replace(config, loop=Loop(group_size=1000), expectation=Exact(cells=0))
    with pytest.raises(ValueError, match=r"167668501 groups of 1000 over 4 outcomes.*GB"):
        expected_objective(large, config.policy.logits)
    for cells in (1, 2):
        few = dataclasses.replace(config, expectation=Exact(cells=cells))
        assert jnp.isnan(expected_objective(few, config.policy.logits))


def test_networks_have_expected_gradients_too():
    """[C] C2 on a neural policy: the trajectory ratio's expected gradient is (1 − 1/G)·∇J(θ)."""
    policy = MLPPolicy(space=SPACE, width=3)
    config = dataclasses.replace(
        tree(dataclasses.replace(methods.tic_grpo_unclipped, advantage=methods.SHIFT)), policy=policy
    )
    old, params = policy.init(jax.random.key(1)), policy.init(jax.random.key(2))
    found = expected_gradient(config, params, old=old)
    expected = jax.grad(lambda p: expected_reward(policy, config.task, p, np.arange(1)))(params)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, 2 / 3 * other, atol=1e-14)


def test_sweeps_take_exact_expectations():
    """A swept learning rate and reward scale give what single runs give."""
    config = tree()
    grid = {"optimizer.learning_rate": [0.1, 0.3], "task.scale": [1.0, 2.0]}
    data = sweep(config, grid, seeds=1, iterations=2, record=("expected_reward",), progress=False)
    assert data.attrs["expectation"] == "Exact"
    values = {"optimizer.learning_rate": 0.3, "task.scale": 2.0}
    alone = put_all(config, values)
    _, info = train.run(alone, train.init(alone), iterations=2, record=("expected_reward",))
    swept = data.expected_reward.sel(values).isel(seed=0)
    np.testing.assert_allclose(swept, info["expected_reward"], atol=1e-14)


def test_single_precision():
    config = tree(group_size=64, table=(1.0, 0.0, 1.0, 0.0))
    exact = expected_gradient(config, drifted(config), old=config.policy.logits)
    with jax.enable_x64(False):
        found = expected_gradient(config, drifted(config), old=config.policy.logits)
        assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, exact, atol=2e-6)


def test_kl_in_the_reward_descends_the_policy_s_own_divergence():
    """On-policy, without other rewards: −(1 − 1/G) ∇KL(π‖π_ref), the group's mean taking its share."""
    now, reference = (jnp.asarray(np.random.default_rng(seed).normal(size=(1, 4))) for seed in range(2))
    method = dataclasses.replace(methods.dr_grpo, shaping=shaping.KLInReward(coef=0.7))
    config = Config(
        policy=ActionPolicy(logits=np.asarray(now)),
        task=Questions(table=np.zeros((1, 4))),
        method=method,
        loop=Loop(group_size=3),
    )

    def divergence(logits):
        gap = jax.nn.log_softmax(logits) - jax.nn.log_softmax(reference)
        return jnp.sum(jnp.exp(jax.nn.log_softmax(logits)) * gap)

    found = expected_gradient(config, now, reference=reference)
    np.testing.assert_allclose(found, -0.7 * (1 - 1 / 3) * jax.grad(divergence)(now), atol=1e-14)
