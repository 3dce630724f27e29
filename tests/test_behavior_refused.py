"""Behaviours and configurations that do not fit each other, and networks that sample as their table would."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import grpo_jax as gj
from grpo_jax import biases, train
from grpo_jax.config import check_behavior
from grpo_jax.decoding import Decoding
from tests.behaviors import (
    SCORE,
    SEQUENCES,
    SPACE,
    TOKEN,
    node,
    problem,
)

pytestmark = pytest.mark.usefixtures("x64")

TOP_K = problem(behavior=gj.Behavior(decoding=Decoding(top_k=2.0)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Decoding(temperature=0.0), "temperature"),
        (lambda: Decoding(top_p=0.0), "top_p"),
        (lambda: Decoding(top_p=1.1), "top_p"),
        (lambda: Decoding(top_k=0.0), "top_k"),
        (lambda: Decoding(top_k=1.5), r"top_k is 1\.5; it must be a whole number"),
        (lambda: Decoding(top_k=np.array([1.0, 2.5])), r"top_k is 2\.5"),
        (
            lambda: gj.sweep(TOP_K, {"top_k": [1.0, 1.5]}, seeds=1, iterations=1),
            r"is 1\.5; it must be a whole",
        ),
        (lambda: Decoding(order=("top_k", "top_p")), "each of"),
        (lambda: gj.Behavior(records="logits"), "processed"),
        (lambda: gj.Age(lag=3.0, depth=2), "give depth=3"),
        (lambda: gj.Age(lag=1.5, depth=2), "whole number"),
    ],
)
def test_bad_behaviours_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_policy_that_cannot_be_decoded_is_refused():
    class Bare:
        """Everything of a policy but the field."""

        trailing, rank, horizon, contexts = True, 2, 1, 1

        def init(self, key): ...
        def sample(self, params, prompts, uniforms): ...
        def score(self, params, prompts, tokens, mask): ...

    behavior = gj.Behavior(decoding=Decoding(top_p=0.9))
    config = gj.Config(
        policy=gj.ActionPolicy.uniform(contexts=1, actions=2), task=gj.Questions(table=[[1.0, 0.0]])
    )
    with pytest.raises(ValueError, match="Bare has no field ``decoding``"):
        check_behavior(dataclasses.replace(config, policy=Bare(), behavior=behavior))
    with pytest.raises(ValueError, match="Bare has no field ``decoding``"):
        check_behavior(dataclasses.replace(config, policy=Bare(), behavior=gj.Behavior(records="raw")))
    check_behavior(dataclasses.replace(config, policy=Bare(), behavior=gj.Behavior(mismatch=gj.Noise())))
    with pytest.raises(TypeError, match="must be a Behavior"):
        check_behavior(dataclasses.replace(config, behavior=Decoding()))


def test_a_correction_has_something_to_correct_only_if_another_samples():
    apart = problem(TOKEN, gj.Behavior(decoding=Decoding(top_p=0.9)), expectation=gj.Counts())
    train.run(apart, train.init(apart), iterations=1)
    heated = dataclasses.replace(apart.policy, decoding=Decoding(temperature=0.5))
    raw = problem(TOKEN, gj.Behavior(records="raw"), expectation=gj.Counts(), policy=heated)
    _, info = train.run(raw, train.init(raw), iterations=1, record=["mismatch_min", "mismatch_max"])
    assert info["mismatch_min"] < 0.99
    for behavior in (None, gj.Behavior(proximal=gj.Proximal(weight=0.0)), gj.Behavior(records="raw")):
        config = problem(TOKEN, behavior, expectation=gj.Counts())
        with pytest.warns(UserWarning, match="SamplerMismatch corrects nothing here"):
            train.run(config, train.init(config), iterations=1)


def test_networks_sample_as_their_table_would():
    """An MLP's groups under top-p are those of a tree with the network's own logits."""
    policy = gj.MLPPolicy(space=SPACE, width=4)
    params = policy.init(jax.random.key(0))
    logp = np.asarray(policy.score_support(params, np.arange(1)).logp)[0]
    rows = np.zeros((1, SPACE.offsets[-1], 3))
    for place, y in enumerate(SEQUENCES):
        for t in range(3):
            rows[0, node(y[:t]), y[t]] = logp[place, t]
    decoding = Decoding(temperature=0.8, top_p=0.9, min_p=0.05)
    tree = gj.TreePolicy(space=SPACE, logits=rows, decoding=decoding)
    network = dataclasses.replace(policy, decoding=decoding)
    ours = network.score_support(params, np.arange(1)).logp
    theirs = tree.score_support(jnp.asarray(rows), np.arange(1)).logp
    drawable = np.asarray(theirs) > -1e29
    np.testing.assert_array_equal(np.asarray(ours) > -1e29, drawable)
    np.testing.assert_allclose(np.asarray(ours)[drawable], np.asarray(theirs)[drawable], atol=1e-12)


def test_a_state_without_the_policies_that_ages_ask_for_is_refused():
    base = problem(SCORE, expectation=gj.Counts())
    aged, older = (
        dataclasses.replace(base, behavior=gj.Behavior(age=gj.Age(lag=1, depth=depth))) for depth in (1, 3)
    )
    for config, made, words in ((aged, base, "holds 0 old policies"), (older, aged, "2 .*needs 4")):
        for start in (train.init(made), train.init(made, np.arange(2))):
            with pytest.raises(ValueError, match=words):
                train.run(config, start, iterations=1)
            with pytest.raises(ValueError, match=words):
                biases.inner_path(config, start, steps=1)
    train.run(aged, train.init(aged), iterations=1)
