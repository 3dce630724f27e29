"""Trees as decision processes, and what the expected updates of [C] are, to rounding."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from grpo_jax import methods
from grpo_jax.config import Config, Loop
from grpo_jax.decoding import Decoding
from grpo_jax.exact import expected_gradient
from grpo_jax.exact import values as tree_values
from grpo_jax.parts import reductions, shaping
from grpo_jax.parts.gains import Linear
from grpo_jax.parts.ratios import Score, Token
from grpo_jax.policies import TreePolicy
from grpo_jax.sequences import Sequences
from grpo_jax.surrogate import Method
from grpo_jax.tasks import SequenceTable

pytestmark = pytest.mark.usefixtures("x64")

SPACE = Sequences(vocab=3, horizon=3, eos=2, forbidden=((0, 2),))
GROUP = 4
SHRINK = 1 - 1 / GROUP
TIC = dataclasses.replace(methods.tic_grpo, advantage=methods.SHIFT, gain=Linear())
TOKEN = dataclasses.replace(TIC, ratio=Token(), reduction=reductions.Constant())


MEASURES = {
    "values": tree_values.action_values,
    "visits": lambda policy, task, theta: tree_values.visits(policy, theta),
    "lengths": lambda policy, task, theta: tree_values.lengths(policy, theta),
    "curvature": tree_values.state_curvature,
    "gradient": tree_values.return_gradient,
    "local": lambda policy, task, theta: tree_values.local_gradient(policy, task, theta, old=policy.logits),
    "hessian": tree_values.return_hessian,
    "blocks": tree_values.block_hessian,
}


@functools.partial(jax.jit, static_argnames="names")
def measured(policy, task, theta, names):
    """The named quantities of the tree, compiled together."""
    return {name: MEASURES[name](policy, task, theta) for name in names}


def made(seed=0, *, contexts=1, levels=4):
    """A random policy, task and drifted parameters."""
    rng = np.random.default_rng(seed)
    size = (contexts, SPACE.offsets[-1], SPACE.vocab)
    table = rng.choice(np.linspace(0, 1, levels), (contexts, len(SPACE.support[0])))
    old = rng.normal(size=size)
    return (
        TreePolicy(space=SPACE, logits=old),
        SequenceTable(space=SPACE, table=table),
        old + 0.7 * rng.normal(size=size),
    )


def config_of(method: Method, policy, task) -> Config:
    """The method on this policy and task in groups of four."""
    return Config(policy=policy, task=task, method=method, loop=Loop(group_size=GROUP))


def listed(policy, params):
    """Every sequence of context 0 with its probability, by multiplying conditionals in plain Python."""
    table = np.exp(np.asarray(policy.log_probabilities(jnp.asarray(params), np.arange(1))))[0]
    space, found = policy.space, []

    def walk(prefix, depth, local, chance):
        node = space.offsets[depth] + local
        for token in range(space.vocab):
            if not space.allowed[depth, token]:
                continue
            here = (*prefix, (node, token))
            if token == space.eos or depth + 1 == space.horizon:
                found.append((here, chance * table[node, token]))
            else:
                digit = [v for v in range(space.vocab) if v != space.eos].index(token)
                walk(here, depth + 1, local * space.branching + digit, chance * table[node, token])

    walk((), 0, 0, 1.0)
    return found


def test_visits_values_and_lengths_equal_brute_force():
    policy, task, params = made()
    every = listed(policy, params)
    np.testing.assert_allclose(sum(p for _, p in every), 1, atol=1e-14)
    visits = np.zeros(SPACE.offsets[-1])
    total = np.zeros((SPACE.offsets[-1], SPACE.vocab))
    mass, lengths = np.zeros_like(total), np.zeros(SPACE.horizon)
    for (path, chance), reward in zip(every, np.asarray(task.table)[0], strict=True):
        lengths[len(path) - 1] += chance
        for node, token in path:
            visits[node] += chance
            total[node, token] += chance * reward
            mass[node, token] += chance
    found = measured(policy, task, params, ("visits", "lengths", "values"))
    np.testing.assert_allclose(found["visits"][0], visits, atol=1e-15)
    np.testing.assert_allclose(found["lengths"][0], lengths, atol=1e-15)
    values = np.divide(total, mass, out=np.zeros_like(total), where=mass > 0)
    np.testing.assert_allclose(found["values"][0], values, atol=1e-14)


DECODINGS = {
    "softmax": None,
    "temperature": Decoding(temperature=1.7),
    "temperature and filters": Decoding(temperature=0.6, top_k=2.0, min_p=0.2),
}


@pytest.mark.parametrize("decoding", DECODINGS.values(), ids=DECODINGS)
def test_policy_gradient_theorem_and_curvature(decoding):
    policy, task, params = made(1, contexts=2)
    policy = TreePolicy(space=SPACE, logits=params, decoding=decoding)
    found = measured(policy, task, params, ("gradient", "local", "hessian", "curvature", "blocks"))
    np.testing.assert_allclose(found["local"], found["gradient"], atol=1e-15)
    hessian = np.asarray(found["hessian"])
    step = 1e-5 * np.cos(np.arange(params.size)).reshape(params.shape)
    ahead, behind = (measured(policy, task, params + s * step, ("gradient",))["gradient"] for s in (1, -1))
    np.testing.assert_allclose(hessian @ step.ravel(), (ahead - behind).ravel() / 2, atol=1e-14)
    blocks = hessian.reshape(2, 7, 3, 2, 7, 3)
    diagonal = np.stack([[blocks[c, s, :, c, s] for s in range(7)] for c in range(2)])
    np.testing.assert_allclose(found["curvature"], diagonal, atol=1e-15)
    outside = hessian - np.asarray(found["blocks"])
    assert np.abs(outside).max() > 1e-3
    np.testing.assert_allclose(np.einsum("csicsj->csij", outside.reshape(2, 7, 3, 2, 7, 3)), 0, atol=1e-15)


def test_runs_stand_last():
    policies, tasks, params = zip(*[made(s, contexts=2) for s in range(3)], strict=True)
    heat = np.array([0.5, 1.5, 1.0])
    together = TreePolicy(
        space=SPACE, logits=np.stack([p.logits for p in policies], -1), decoding=Decoding(temperature=heat)
    )
    alone = dataclasses.replace(policies[1], decoding=Decoding(temperature=heat[1]))
    task = SequenceTable(space=SPACE, table=np.stack([t.table for t in tasks], -1))
    theta = np.stack(params, -1)
    names = ("values", "visits", "curvature", "gradient", "local", "lengths")
    many = measured(together, task, theta, names)
    for name, value in measured(alone, tasks[1], params[1], names).items():
        np.testing.assert_allclose(many[name][..., 1], value, atol=1e-15, err_msg=name)


def test_trajectory_ratio_is_the_gradient_at_the_current_policy():
    """[C] C2: shift-only and unclipped, E[update] = (1 − 1/G)·∇J(θ) at any θ."""
    policy, task, params = made(2, contexts=2)
    found = expected_gradient(config_of(TIC, policy, task), params, old=policy.logits)
    np.testing.assert_allclose(found, SHRINK * tree_values.return_gradient(policy, task, params), atol=1e-14)


def test_token_ratios_are_the_gradient_of_the_local_surrogate():
    """[C] C1: shift-only, unclipped, no 1/len: (1 − 1/G) times the local surrogate's gradient at θ."""
    policy, task, params = made(3, contexts=2)
    found = expected_gradient(config_of(TOKEN, policy, task), params, old=policy.logits)
    local = tree_values.local_gradient(policy, task, params, old=policy.logits)
    np.testing.assert_allclose(found, SHRINK * local, atol=1e-14)
    assert jnp.abs(local - tree_values.return_gradient(policy, task, params)).max() > 1e-3
    assert jnp.abs(local - tree_values.return_gradient(policy, task, policy.logits)).max() > 1e-3


def test_score_at_the_current_policy_weighs_log_likelihood():
    """[C] without ratios, second reading: (1 − 1/G)·∇_θ Σ_y π_old(y)(r(y) − J_old) log π_θ(y)."""
    policy, task, params = made(4)
    score = dataclasses.replace(TOKEN, ratio=Score())
    found = expected_gradient(config_of(score, policy, task), params, old=policy.logits)
    every = listed(policy, policy.logits)
    table = np.asarray(task.table)[0]
    chance = np.array([p for _, p in every])
    weight = chance * (table - chance @ table)

    def likelihood(theta):
        return jnp.sum(weight * jnp.sum(policy.score_support(theta, np.arange(1)).logp, 2)[0])

    np.testing.assert_allclose(found, SHRINK * jax.grad(likelihood)(params), atol=1e-14)


def test_length_corrections():
    """[C] C6 at θ_old: GRPO's 1/len, and TIC-GRPO with the reward per token."""
    policy, task, _ = made(5)
    old, length = policy.logits, SPACE.support[1].sum(1)
    table = np.asarray(task.table)

    def of(values):
        return jax.grad(lambda p: tree_values.expectation(policy, p, values))(old)

    mean = tree_values.expectation(policy, old, table)
    grpo = dataclasses.replace(TOKEN, reduction=reductions.PerSequence())
    found = expected_gradient(config_of(grpo, policy, task), old)
    np.testing.assert_allclose(found, SHRINK * (of(table / length) - mean * of(1 / length[None])), atol=1e-14)
    tic = dataclasses.replace(TIC, shaping=shaping.DivideByLength())
    found = expected_gradient(config_of(tic, policy, task), old)
    np.testing.assert_allclose(found, SHRINK * of(table / length), atol=1e-14)


def test_shared_logits_have_no_blocks():
    policy = TreePolicy(space=SPACE, logits=np.zeros((1, 1, 3)), tie=(0,) * 7)
    with pytest.raises(ValueError, match="states share logits"):
        tree_values.state_curvature(policy, made()[1], policy.logits)
    flat, _ = ravel_pytree(tree_values.return_gradient(policy, made()[1], jnp.zeros((1, 1, 3))))
    assert flat.shape == (3,)
