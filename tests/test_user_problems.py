"""Policies, tasks and optimizers from outside: a wrong shape and mixed runs never train in silence."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import grpo_jax as gj
from grpo_jax import train
from grpo_jax.config import validate
from grpo_jax.records import recording
from grpo_jax.types import Scores

SHORT = {"iterations": 4, "record_every": 4, "progress": False}
SPACE = gj.Sequences(vocab=3, horizon=2, eos=2)


def configured(**changes):
    base = gj.Config(
        policy=gj.ActionPolicy.uniform(contexts=2, actions=3),
        task=gj.Questions(table=[[1.0, 0.5, 0.0], [0.0, 1.0, 0.3]]),
        loop=gj.Loop(group_size=6),
    )
    return dataclasses.replace(base, **changes)


def tree(function):
    return gj.Config(policy=gj.TreePolicy.uniform(SPACE), task=gj.SequenceReward(function=function))


def count(tokens, mask):
    return jnp.sum((tokens == 1) * mask, 2)


@pytest.mark.parametrize(
    "function",
    [
        lambda prompts, tokens, mask: count(tokens, mask) - jnp.mean(count(tokens, mask), -1, keepdims=True),
        lambda prompts, tokens, mask: count(tokens, mask) / jnp.max(count(tokens, mask) + 1),
    ],
    ids=["mean over runs", "maximum over everything"],
)
def test_a_reward_that_mixes_runs_is_refused(function):
    with pytest.raises(ValueError, match=r"SequenceReward mixes runs \(.*rewards\): axes 0, 1, 2 are"):
        gj.sweep(tree(function), seeds=2, **SHORT)
    certain = gj.TreePolicy(space=SPACE, logits=np.array([[[40.0, 0.0, 0.0]] * 3]))
    with pytest.raises(ValueError, match="mixes runs"):  # though all runs would draw one sequence at first
        train.init(dataclasses.replace(tree(function), policy=certain), np.arange(2))


def test_a_reward_may_call_python():
    def verify(tokens, mask):
        return np.sum((tokens == 1) * mask, 2).astype(mask.dtype)

    def function(prompts, tokens, mask):
        shape = tokens.shape[:2] + tokens.shape[3:]
        return jax.pure_callback(verify, jax.ShapeDtypeStruct(shape, mask.dtype), tokens, mask)

    for runs in (0, np.arange(2)):
        config = tree(function)
        _, info = train.step(config, train.init(config, runs), record=["reward", "length"])
        assert info["reward"].shape == np.shape(runs)
        assert ((info["reward"] >= 0) & (info["reward"] <= info["length"])).all()


@gj.part
class Flawed:
    """The number of tokens 1, wrongly in one of three ways."""

    fault: str = gj.static("none")

    def prompts(self, uniforms):
        return jnp.zeros(uniforms.shape, int)

    def rewards(self, prompts, tokens, mask, uniforms):
        reward = count(tokens, mask)[:, :, None]
        if self.fault == "runs":
            reward = reward - jnp.mean(reward, -1, keepdims=True)
        return reward[:, :, 0] if self.fault == "axis" else reward


@pytest.mark.parametrize("loop", [gj.Loop(), gj.Loop(prompts=2)], ids=["contexts", "drawn prompts"])
def test_a_task_of_one_s_own_is_tried(loop):
    tree = gj.Config(policy=gj.TreePolicy.uniform(SPACE), task=Flawed(), loop=loop)
    validate(tree)
    with pytest.raises(ValueError, match=r"Flawed\.rewards gives shape \(\d, 4\); it must be \[P, N, M\]"):
        validate(dataclasses.replace(tree, task=Flawed(fault="axis")))
    with pytest.raises(ValueError, match=r"Flawed mixes runs \(rewards\)"):
        validate(dataclasses.replace(tree, task=Flawed(fault="runs")))
    network = gj.MLPPolicy(space=SPACE, width=3)
    with pytest.raises(ValueError, match=r"Flawed\.rewards gives shape"):
        validate(dataclasses.replace(tree, policy=network, task=Flawed(fault="axis")))


@gj.part
class Plain:
    """Two logits for one question, drawn and scored; outputs cannot be listed."""

    logits: object = gj.number(rank=2)
    fault: str = gj.static("none")
    trailing: ClassVar[bool] = True
    rank: ClassVar[int] = 2
    horizon: ClassVar[int] = 1
    contexts: ClassVar[int] = 1

    def init(self, key):
        return jnp.asarray(self.logits, float)

    def _logp(self, params):
        mixed = jnp.mean(params, -1, keepdims=True) if self.fault == "runs" else 0
        return jax.nn.log_softmax(
            params - mixed * jnp.arange(2.0).reshape((1, 2) + (1,) * (params.ndim - 2)), 1
        )

    def sample(self, params, prompts, uniforms):
        tokens = (uniforms > jnp.exp(self._logp(params))[:, :1, None]).astype(int)
        return tokens, jnp.ones(tokens.shape)

    def score(self, params, prompts, tokens, mask):
        logp = self._logp(params)[:, :, None]
        chosen = jnp.where(tokens == 1, logp[:, 1:], logp[:, :1])
        return Scores(
            logp=chosen[:, :, 0] if self.fault == "axis" else chosen, entropy=jnp.zeros(chosen.shape)
        )


def test_a_policy_of_one_s_own_is_tried():
    config = gj.Config(policy=Plain(logits=np.zeros((1, 2))), task=Flawed())
    validate(config)
    with pytest.raises(ValueError, match=r"Plain mixes runs \(.*score"):
        validate(dataclasses.replace(config, policy=Plain(logits=np.zeros((1, 2)), fault="runs")))
    with pytest.raises(ValueError, match=r"Plain\.score \(logp\) gives shape \(1, 4\)"):
        validate(dataclasses.replace(config, policy=Plain(logits=np.zeros((1, 2)), fault="axis")))


def test_what_a_policy_and_a_task_cannot_say_is_left_out_or_named():
    config = gj.Config(policy=Plain(logits=np.zeros((1, 2))), task=Flawed())
    data = gj.sweep(config, seeds=2, **SHORT)
    assert "reward" in data
    assert not {"expected_reward", "entropy", "kl_ref"} & set(data)
    for expectation, says in (
        (gj.Counts(), r"Plain cannot count its outputs; use Sampled\(\)"),
        (gj.Exact(), r"Plain cannot list its outputs; nothing is exact then; use Sampled\(\)"),
    ):
        with pytest.raises(ValueError, match=says):
            gj.sweep(dataclasses.replace(config, expectation=expectation), **SHORT)
    with pytest.raises(ValueError, match="Plain cannot list its outputs; record sampled diagnostics"):
        gj.sweep(config, record=["entropy"], **SHORT)
    meanless = configured(task=Flawed())
    names = [name for name, _ in recording(meanless, None, None, iterations=1).measures]
    assert "expected_reward" not in names
    assert "entropy" in names
    for expectation, says in (
        (gj.Counts(), r"Flawed does not know expected rewards.*use Sampled\(\)"),
        (gj.Exact(), r"Flawed rewards have no finite list of levels.*use Sampled\(\)"),
    ):
        with pytest.raises(ValueError, match=says):
            gj.sweep(dataclasses.replace(meanless, expectation=expectation), **SHORT)
    with pytest.raises(ValueError, match=r"Flawed does not know expected rewards.*sampled diagnostics"):
        gj.sweep(meanless, record=["expected_reward"], **SHORT)


@gj.part
class Rule:
    """SGD after a scaling of the gradient."""

    scaling: object = gj.static()

    def transform(self):
        return optax.chain(self.scaling, optax.sgd(0.1))


@pytest.mark.parametrize(
    ("optimizer", "error", "says"),
    [
        (
            gj.Custom(transformation=optax.adam),
            TypeError,
            r"no Optax .*; call it: adam\(\.\.\.\)",
        ),
        (gj.Custom(transformation=optax.lbfgs()), TypeError, "Custom wants more than gradients.*value"),
        (Rule(scaling=optax.clip_by_global_norm(1.0)), ValueError, "Rule mixes runs.*reduces: ClassVar"),
        (
            gj.Custom(transformation=optax.stateless(lambda u, p: jax.tree.map(jnp.ravel, u))),
            ValueError,
            "not shaped like the parameters",
        ),
    ],
    ids=["not called", "values", "mixes", "shape"],
)
def test_an_optimizer_from_outside_is_tried(optimizer, error, says):
    with pytest.raises(error, match=says):
        train.init(configured(optimizer=optimizer), 0)


def test_optimizers_that_work_are_taken():
    for optimizer in (
        gj.Custom(transformation=optax.adam(0.1)),
        gj.Custom(transformation=optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))),
        gj.ClippedNorm(inner=Rule(scaling=optax.clip_by_global_norm(1.0))),
        Rule(scaling=optax.scale(2.0)),
    ):
        config = configured(optimizer=optimizer)
        validate(config)
        state = train.init(config, 0)
        after, _ = train.run(config, state, iterations=2, record=())
        assert np.isfinite(after.params).all()
        assert (after.params != state.params).any()
